"""Any pure step compiled by torch: some steps at a time, unrolled into one function.

torch.compile fuses what is elementwise in them into one pass over the neurons, whose state stays in
registers from step to step, forwards and backwards.
"""

from __future__ import annotations

from functools import cache
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from spikebridge.nn.units import Params, State, Unit

__all__ = ["compiled"]

STEPS = 8
"""Of a piece, a power of 2.  What is left of a sequence takes smaller powers: few graphs serve all
lengths, and the time to compile one grows with its steps."""
_numbers = count()


def compiled(
    unit: Unit, drive: Tensor, recurrent: Tensor | None, state: State
) -> tuple[Tensor, State]:
    """`spikebridge.nn.scan.loop` in compiled pieces; the caller has checked its operands.

    It has no second derivatives.  Raises RuntimeError, by torch, where a step cannot be compiled.
    """
    kind: Any = type(unit)
    dtype, ys = state.s.dtype, []
    # One copy per sample: gradients add up step by step, and over samples once, at the end.
    params = unit.params(dtype)
    decay, bias, amount, own = params
    taken = None if amount is None else amount.expand(state.y.shape)
    parts = (p.expand(state.y.shape) for p in own)
    params = Params(decay.expand(state.y.shape), bias.expand(state.y.shape), taken, tuple(parts))
    matrix = None if recurrent is None else recurrent.to(dtype)
    for piece in drive.split(_pieces(len(drive))):
        key = (
            kind,
            unit.variant,
            len(piece),
            unit.size,
            drive.dtype,
            matrix is None,
            torch.is_grad_enabled(),
        )
        y, state = _graph(*key)(unit, piece, matrix, state, params)
        ys.append(y)
    return torch.cat(ys), state


def fed(unit: Unit, current: Tensor, product: Tensor) -> Tensor:
    """Currents (B, d N) with what the recurrent matrix adds to the first ones, (B, N) or all."""
    if unit.drives > 1:  # sizes are not compared: where a call is traced they are no numbers
        product = torch.nn.functional.pad(product, (0, current.shape[-1] - product.shape[-1]))
    return current + product


def _pieces(steps: int) -> list[int]:
    powers = [1 << k for k in reversed(range(STEPS.bit_length() - 1)) if steps >> k & 1]
    return [STEPS] * (steps // STEPS) + powers


@cache
def _graph(*key: Any) -> Any:
    """Compiled `_steps`, a copy for each key: torch keeps few graphs of one function."""
    code = _steps.__code__.replace(co_name=f"steps_{next(_numbers)}")
    return torch.compile(FunctionType(code, globals()), fullgraph=True)


def _steps(
    unit: Unit, drive: Tensor, matrix: Tensor | None, state: State, params: Params
) -> tuple[Tensor, State]:
    ys = []
    for current in drive.unbind(0):
        if matrix is not None:
            current = fed(unit, current, torch.nn.functional.linear(state.y, matrix))
        state = unit.step(state, current, params)
        ys.append(state.y.to(drive.dtype))
    return torch.stack(ys), state
