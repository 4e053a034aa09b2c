"""A unit carried through time: the loop that defines it, and the faster paths that must equal it.

`loop` is the definition.  `scan` chooses between it and the kernels in one visible place,
`unsupported`, which gives the reason why a kernel cannot serve.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from spikebridge.nn.compiled import compiled, fed
from spikebridge.nn.gradients import FORMULAS
from spikebridge.nn.kernels import native, ops
from spikebridge.nn.kernels.product import plain, traced
from spikebridge.nn.units import State, Unit, state_dtype

__all__ = ["Backend", "Trace", "loop", "scan", "unsupported"]

Backend = Literal["auto", "loop", "native", "triton", "compiled"]
BACKENDS = get_args(Backend)
_said: set[str] = set()


class Trace(NamedTuple):
    """Outputs and membrane states of every step."""

    y: Tensor  # (T, B, N)
    s: Tensor  # (T, B, N)
    state: State  # after the last step


def loop(
    unit: Unit, drive: Tensor, recurrent: Tensor | None = None, state: State | None = None
) -> Trace:
    """The definition: one `unit.step` after another.

    Args:
        unit: N neurons.
        drive: (T, B, N) input current, without the recurrent term; (T, B, d N) of a unit that
            takes d currents.
        recurrent: (N, N) matrix H, out by in: H y_prev is added to the drive of each step; with
            (d N, N) to all d currents.
        state: where to begin; None is silence.

    Returns:
        y (T, B, N), s (T, B, N), and the state after the last step.
    """
    state = _checked(unit, drive, recurrent, state)
    params = unit.params(state.s.dtype)
    matrix = None if recurrent is None else recurrent.to(state.s.dtype)
    ys, ss = [], []
    for current in drive.unbind(0):  # not drive[t]: its backward would cost O(T^2)
        if matrix is not None:
            current = fed(unit, current, _product(state.y, matrix))
        state = unit.step(state, current, params)
        ys.append(state.y.to(drive.dtype))
        ss.append(unit.membrane(state))
    if not ys:
        none = drive[..., : unit.size]
        return Trace(none, none.to(state.s.dtype), state)
    return Trace(torch.stack(ys), torch.stack(ss), state)


def _product(y: Tensor, matrix: Tensor) -> Tensor:
    """H y in the dtype of the state, under autocast too."""
    kind = y.device.type
    if not torch.amp.is_autocast_available(kind):  # the meta device has none to turn off
        return torch.nn.functional.linear(y, matrix)
    with torch.autocast(kind, enabled=False):
        return torch.nn.functional.linear(y, matrix)


def scan(
    unit: Unit,
    drive: Tensor,
    recurrent: Tensor | None = None,
    state: State | None = None,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, State]:
    """A unit over a whole sequence: (T, B, N) drive to (T, B, N) outputs.

    Args:
        unit, drive, recurrent, state: as in `loop`.
        backend: "loop"; "native", the kernel for CPUs; "triton", the one for CUDA; "compiled", any
            pure step compiled by torch, which takes about half a minute at the first call; or
            "auto": the kernel of the drive's device where it can serve, else the loop.  What is
            asked for by name raises with the reason instead, and `unsupported` says it.  Only a
            kernel that is not there at all is reported, once.

    Returns:
        y (T, B, N) and the state after the last step, ready to be passed in again.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known; choose one of {list(BACKENDS)}")
    alone = plain(drive)
    if not alone and torch.onnx.is_in_onnx_export():
        backend = _for_onnx(drive, backend)
    if backend == "compiled":
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if recorded or not len(drive):
            backend = "loop"  # compiled or recorded with what is around it
    if backend != "loop":
        reason = unsupported(unit, drive, backend)
        if reason is None:
            state = _checked(unit, drive, recurrent, state)
            if backend == "compiled":
                return compiled(unit, drive, recurrent, state)
            return ops.scan(unit, drive, recurrent, state, alone)
        if backend != "auto":
            raise RuntimeError(f'backend="{backend}" cannot serve: {reason}; use backend="auto"')
        _say_once(reason)
    trace = loop(unit, drive, recurrent, state)
    return trace.y, trace.state


def _for_onnx(drive: Tensor, backend: Backend) -> Backend:
    """The loop, step by step in the file; RuntimeError for a kernel or a length that is not one."""
    if backend not in ("auto", "loop"):
        raise RuntimeError(
            f'backend="{backend}" cannot be exported to ONNX, which has no operator for it; make '
            'the layer with backend="loop"'
        )
    if isinstance(drive.shape[0], torch.SymInt):
        raise RuntimeError(
            'ONNX gets the loop (backend="loop") written out step by step, so the length cannot be '
            "dynamic; leave it out of dynamic_shapes, and export a file for each length"
        )
    warnings.warn(
        'ONNX gets the loop (backend="loop") written out: the file is for sequences of the length '
        "of this example, and no others",
        stacklevel=3,
    )
    return "loop"


def unsupported(unit: Unit, drive: Tensor, backend: Backend = "auto") -> str | None:
    """Why a kernel cannot run this; None when it can.

    Args:
        unit, drive: as in `loop`.
        backend: "native", "triton" or "compiled"; otherwise the kernel of the drive's device.
    """
    if backend == "compiled":
        return "inside torch.func transforms the loop serves" if traced() else None
    if backend not in ops.KERNELS:
        backend = "triton" if drive.device.type == ops.KERNELS["triton"].device else "native"
    kernel, missing, rule = ops.KERNELS[backend], ops.missing(backend), unit.rule
    if missing is not None:
        return missing
    if drive.device.type != kernel.device:
        return f"the {backend} kernel runs on {kernel.place}, the drive is on {drive.device}"
    if drive.dtype not in kernel.dtypes:
        return f"the {backend} kernel takes {kernel.takes}, the drive is {drive.dtype}"
    step = ops.step_of(unit)
    if step is None:
        variant = f" ({unit.variant})" if unit.variant not in ("", "snu") else ""
        return f"{type(unit).__name__}{variant} has no {backend} kernel"
    if rule.g in ("relu", "elu") and not native.step(step.name).every_g:
        return f"the {backend} kernel of {unit.variant} has g identity and leaky_relu, not {rule.g}"
    if not all(isinstance(x, float | int) for x in step.numbers(unit)):
        return f"the {backend} kernel takes plain numbers, {type(unit).__name__} has others"
    if rule.surrogate is not None and rule.surrogate.formula not in FORMULAS:
        return f"{rule.surrogate.formula} is a formula of your own and runs in the loop"
    if rule.surrogate is not None and rule.surrogate.relaxed:
        return "a relaxed surrogate is for gradient checks and runs in the loop"
    if not torch.compiler.is_compiling() and traced():
        return "inside torch.func transforms the loop serves"
    return None


def _say_once(reason: str) -> None:
    """A missing kernel is news to the user; what a kernel does not cover is documented."""
    if reason in [ops.missing(kernel) for kernel in ops.KERNELS] and reason not in _said:
        _said.add(reason)
        warnings.warn(f"spikebridge runs its time loop in Python: {reason}", stacklevel=3)


def _checked(unit: Unit, drive: Tensor, recurrent: Tensor | None, state: State | None) -> State:
    """The state to begin with, once shapes, dtypes and devices agree."""
    n, device = unit.size, drive.device
    if torch.jit.is_tracing():  # sizes are tensors there, and warn where they are looked at
        return unit.initial_state(drive.shape[1], drive.dtype) if state is None else state
    if drive.dim() != 3 or drive.shape[-1] != n * unit.drives:
        raise ValueError(
            f"drive must be (T, B, {n * unit.drives}) for this unit, got {tuple(drive.shape)}"
        )
    if not drive.is_floating_point():
        raise TypeError(f"drive must be floating point, got {drive.dtype}; call .float() on it")
    if device != unit.threshold.device:
        raise ValueError(
            f"drive is on {device}, the unit on {unit.threshold.device}; move one of them"
        )
    if recurrent is not None:
        if recurrent.shape not in ((n, n), (n * unit.drives, n)) or recurrent.device != device:
            raise ValueError(
                f"recurrent must be ({n}, {n}) on {device}, got {tuple(recurrent.shape)} on "
                f"{recurrent.device}"
            )
        if not recurrent.is_floating_point():
            raise TypeError(f"recurrent must be floating point, got {recurrent.dtype}")
    if state is None:
        return unit.initial_state(drive.shape[1], drive.dtype, device)
    dtype, batch = state_dtype(drive.dtype), drive.shape[1]
    for name, value, width in (("y", state.y, n), ("s", state.s, unit.state_size)):
        shape = (batch, width)
        if value.shape != shape or value.dtype != dtype or value.device != device:
            raise ValueError(
                f"state.{name} must be {shape} {dtype} on {device} for this drive, got "
                f"{tuple(value.shape)} {value.dtype} on {value.device}; start from "
                f"unit.initial_state(batch, dtype), or convert it"
            )
    return state
