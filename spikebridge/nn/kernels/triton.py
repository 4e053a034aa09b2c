# mypy: allow-untyped-defs
"""The GPU kernel: what the ops of `ops.py` do on CUDA, one Triton template for the whole family.

(B, N) is cut into blocks; a program carries the states of its block through all of time in
registers, so that every tensor over time moves through memory once.  With a recurrent matrix or
lateral inhibition each step is a matrix product, or a maximum over the layer, followed by the same
kernel for one step.  Nothing waits for the host: a call can be captured in a CUDA graph (after one
call outside, which compiles).

Proved in Triton's interpreter and compiled for sm_90; it has not been run on a GPU yet, and no
choice in it (block, warps, stages) has been measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spikebridge.nn import dynamics
from spikebridge.nn.kernels import native
from spikebridge.nn.kernels.triton_units import (
    NeuronKind,
    add_product,
    add_shares,
    adjoint,
    fire,
    get_currents,
    get_params,
    get_states,
    or_first,
    put_currents,
    put_params,
    put_states,
    recall,
    remember,
)

__all__ = ["backward", "forward"]

BLOCK = 256
STAGES = 4  # steps whose operands are on their way while one is computed
LAUNCH = {
    "num_warps": 4,
    # A membrane must round exactly as in the loop: no product and sum fused into one operation.
    "enable_fp_fusion": False,
}


@triton.jit(do_not_specialize=["steps"])
def _forward(
    drive, product, most, decay, bias, own, s_state, y_state, y, s_all, seen,
    steps, units, size, drive_time, drive_batch, decay_unit, bias_unit,
    FED: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`steps` steps of a block.  `s_state` (k B, N) and `y_state` (B, N) are read, and written anew
    at the end.

    drive (steps, B, d N) has the strides `drive_time`, `drive_batch` and 1.  `product` (B, FED N),
    what the recurrent matrix adds to the currents, and `most` (B,), the largest of the last outputs
    where that gates the membranes, may be None; so may what is kept: `s_all`, and `seen`, the
    currents with what was added to them.  The rest is dense.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, passed = at < size, tl.full((), 0, tl.int64)
    apart, unit, row = passed + size, at % units, at // units
    params = get_params(decay, bias, own, unit, decay_unit, bias_unit, units, inside, KIND)
    states, out = get_states(s_state, at, apart, inside, KIND), tl.load(y_state + at, inside)
    drive_at, dense = row * drive_batch + unit, row * (KIND.drives * units) + unit
    for _ in tl.range(0, steps, num_stages=STAGES):
        currents = get_currents(drive, drive_at, units, inside, out, KIND)
        if product is not None:
            fed_at = row * (FED * units) + unit
            currents = add_product(currents, product, fed_at, units, inside, FED, KIND)
        if seen is not None:
            seen_at = dense + KIND.drives * passed
            put_currents(seen, seen_at, units, inside, currents, KIND)
        by = out
        if most is not None:
            by = tl.load(most + row, inside)
        states = remember(states, currents, out, by, params, KIND)
        out = fire(states, currents, params, KIND)
        tl.store(y + at + passed, out.to(y.dtype.element_ty), inside)
        if s_all is not None:
            put_states(s_all, at + KIND.states * passed, apart, inside, states, KIND)
        drive_at += drive_time
        passed += apart
    put_states(s_state, at, apart, inside, states, KIND)
    tl.store(y_state + at, out, inside)


@triton.jit
def _outputs(
    s_all, drive, decay, bias, own, y, units, size, drive_batch, decay_unit, bias_unit,
    KIND: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y (B, N) of a step anew."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, apart = at < size, tl.full((), 0, tl.int64) + size
    unit, row = at % units, at // units
    params = get_params(decay, bias, own, unit, decay_unit, bias_unit, units, inside, KIND)
    drive_at = row * drive_batch + unit
    step = recall(s_all, at, apart, drive, drive_at, units, inside, params, KIND)
    tl.store(y + at, step.y, inside)


@triton.jit(do_not_specialize=["steps"])
def _backward(
    grad_y, drive, most, to_most, decay, bias, own, s_all, s0, y0, ds_state, dy_state,
    share_decay, share_bias, share_own, grad_drive,
    steps, units, size, grad_time, grad_batch, drive_time, drive_batch, decay_unit, bias_unit,
    FIRST: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`steps` steps of a block, the last one first; FIRST where they begin with step 0.

    Pointers over time point at the first of these steps.  `ds_state` (k B, N) and `dy_state` (B, N)
    hold what flows into the last step and get what flows out of the first; the shares are added to.
    `grad_y` may be None, and so may `drive`, the currents, where the step does not read them.  With
    `most` (B,), as in `_forward` and for a single step, what flows to it goes to `to_most` (B, N).
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, apart = at < size, tl.full((), 0, tl.int64) + size
    unit, row, last = at % units, at // units, (steps - 1).to(tl.int64)
    passed = last * apart
    params = get_params(decay, bias, own, unit, decay_unit, bias_unit, units, inside, KIND)
    sums = get_params(share_decay, share_bias, share_own, at, 1, 1, apart, inside, KIND)
    ds, dy = get_states(ds_state, at, apart, inside, KIND), tl.load(dy_state + at, inside)
    first, y_first = get_states(s0, at, apart, inside, KIND), tl.load(y0 + at, inside)
    grad_at = row * grad_batch + unit + last * grad_time
    drive_at = row * drive_batch + unit + last * drive_time
    dense, s_at = row * (KIND.drives * units) + unit, at + KIND.states * passed
    now = recall(s_all, s_at, apart, drive, drive_at, units, inside, params, KIND)
    for _ in tl.range(0, steps, num_stages=STAGES):
        later = inside  # than step 0
        if FIRST:
            later = inside & (passed > 0)
        s_at -= KIND.states * apart
        drive_at -= drive_time
        before = recall(s_all, s_at, apart, drive, drive_at, units, later, params, KIND)
        if FIRST:
            before = or_first(later, before, first, y_first)
        by = before.y
        if most is not None:
            by = tl.load(most + row, inside)
        if grad_y is not None:
            dy += tl.load(grad_y + grad_at, inside).to(dy.dtype)
            grad_at -= grad_time
        ds, dy, to_by, currents, shares = adjoint(ds, dy, now, before, by, params, KIND)
        if most is None:
            dy += to_by
        else:
            tl.store(to_most + at, to_by, inside)
        drive_to = dense + KIND.drives * passed
        put_currents(grad_drive, drive_to, units, inside, currents, KIND)
        sums, now = add_shares(sums, shares, KIND), before
        passed -= apart
    put_states(ds_state, at, apart, inside, ds, KIND)
    tl.store(dy_state + at, dy, inside)
    put_params(share_decay, share_bias, share_own, at, apart, inside, sums, KIND)


def forward(
    drive: Tensor, recurrent: Tensor | None, s0: Tensor, y0: Tensor, decay: Tensor, bias: Tensor,
    own: Tensor | None, g: str, slope: float, gate: bool, amount: float, h: str, width: float,
    height: float, lateral: bool, step: str, numbers: Sequence[float], keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `native.forward`."""
    states = {"s0": s0, "y0": y0, "decay": decay, "bias": bias, "own": own}
    native.check(g, h, width, step, drive=drive, recurrent=recurrent, **states)
    (t, _, wide), (b, n) = drive.shape, y0.shape
    drive, coupled = native.rows(drive), lateral or recurrent is not None
    y = torch.empty((t, b, n), dtype=drive.dtype, device=drive.device)
    s_all = s0.new_empty((t if keep else 0, *s0.shape))
    apart = keep and coupled and native.step(step).reads
    seen = s0.new_empty((t if apart else 0, b, wide))
    s, out = (x.clone(memory_format=torch.contiguous_format) for x in (s0, y0))
    # Which formula replaces the derivative is nothing to the forward pass.
    kind = _kind(step, numbers, g, slope, gate or lateral, amount, h, 0.0, 0.0)
    kind = kind._replace(h="sigmoid" if h == "sigmoid" else "step")
    product = None if recurrent is None else s0.new_empty((b, len(recurrent)))
    recurrent = None if recurrent is None else recurrent.contiguous()
    own = None if own is None else own.contiguous()
    most = s0.new_empty(b) if lateral and n else None
    for first, steps in _pieces(t, coupled):
        if recurrent is not None:
            torch.mm(out, recurrent.mT, out=product)
        if most is not None:
            torch.amax(out, -1, out=most)
        _launch(
            _forward, y0, drive[first:], product, most, decay, bias, own, s, out, y[first:],
            s_all[first:] if keep else None, seen[first:] if apart else None, steps, n, b * n,
            *drive.stride()[:2], *_unit_strides(decay, bias),
            FED=0 if product is None else product.shape[1] // max(n, 1), KIND=kind,
        )  # fmt: skip
    return y, s, out, s_all, seen


def backward(
    grad_y: Tensor | None, grad_s_last: Tensor | None, grad_y_last: Tensor | None,
    drive: Tensor | None, recurrent: Tensor | None, s_all: Tensor, s0: Tensor, y0: Tensor,
    decay: Tensor, bias: Tensor, own: Tensor | None, g: str, slope: float, gate: bool,
    amount: float, h: str, width: float, height: float, lateral: bool, step: str,
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `native.backward`."""
    grads = {"grad_y": grad_y, "grad_s_last": grad_s_last, "grad_y_last": grad_y_last}
    given = {"s0": s0, "y0": y0, "decay": decay, "bias": bias, "own": own, "drive": drive}
    native.check(g, h, width, step, s_all=s_all, recurrent=recurrent, **grads, **given)
    t, (b, n), coupled = len(s_all), y0.shape, lateral or recurrent is not None
    io = native.output_dtype(s_all, grad_y, None if coupled else drive)
    s_all, s0, y0 = s_all.contiguous(), s0.contiguous(), y0.contiguous()
    own = None if own is None else own.contiguous()
    grad_y, drive = (None if x is None else native.rows(x) for x in (grad_y, drive))
    kind = _kind(step, numbers, g, slope, gate or lateral, amount, h, width, height)
    grad_drive = s0.new_empty((t, b, kind.drives * n), dtype=io)
    # The product with the matrix is taken before a gradient is rounded for its way out.
    wide = recurrent is not None and io != s_all.dtype
    row = s0.new_empty(grad_drive.shape[1:]) if wide else None
    ds, dy, share_decay, share_bias = (torch.zeros_like(x) for x in (s0, y0, y0, y0))
    share_own = y0.new_zeros((kind.own * b, n))
    for into, of in ((ds, grad_s_last), (dy, grad_y_last)):
        if of is not None:
            into.copy_(of)
    most: Any = s0.new_empty(b) if lateral and n else None
    to_most: Any = None if most is None else torch.empty_like(y0)
    params = decay, bias, own
    for first, steps in reversed(_pieces(t, coupled)):
        if most is not None:
            before = y0 if first == 0 else _output_of(first - 1, s_all, drive, y0, params, kind)
            torch.amax(before, -1, out=most)
        to = grad_drive[first:] if row is None else row
        _launch(
            _backward, y0, _from(grad_y, first), _from(drive, first), most, to_most, *params,
            s_all[first:], s0, y0, ds, dy, share_decay, share_bias, share_own, to, steps, n, b * n,
            *_strides(grad_y), *_strides(drive), *_unit_strides(decay, bias),
            FIRST=first == 0, KIND=kind,
        )  # fmt: skip
        if most is not None:
            _give_to_largest(dy, to_most, before, most)
        if recurrent is not None:
            dy.addmm_((grad_drive[first] if row is None else row)[:, : len(recurrent)], recurrent)
        if row is not None:
            grad_drive[first].copy_(row)
    return grad_drive, ds, dy, share_decay, share_bias, share_own


def _output_of(
    t: int,
    s_all: Tensor,
    drive: Tensor | None,
    like: Tensor,
    params: Sequence[Any],
    kind: NeuronKind,
) -> Tensor:
    """y (B, N) of step t anew."""
    y, (b, n) = torch.empty_like(like), like.shape
    _launch(
        _outputs, like, s_all[t], _from(drive, t), *params, y, n, b * n, _strides(drive)[1],
        *_unit_strides(*params[:2]), KIND=kind,
    )  # fmt: skip
    return y


def _give_to_largest(dy: Tensor, to_most: Tensor, before: Tensor, most: Tensor) -> None:
    """Adds to dy (B, N) what is due to the largest of the outputs `before`.

    Equal outputs share it, and NaN reaches the others too, as in torch.
    """
    has = before == most.unsqueeze(-1)
    share = (to_most.sum(-1) / has.sum(-1)).unsqueeze(-1)
    dy += torch.where(has, share, share * 0.0)


def _kind(
    step: str, numbers: Sequence[float], g: str, slope: float, gate: bool, amount: float, h: str,
    width: float, height: float,
) -> NeuronKind:  # fmt: skip
    parts, sizes = step.split("+"), native.step(step)
    memory = next((part for part in parts if part in dynamics.MEMORY), "leak")
    modulation = next((part for part in parts if part in dynamics.MODULATION), "none")
    rho, rest, beta = (*numbers, 0.0, 0.0, 0.0)[:3]
    return NeuronKind(
        memory, modulation, sizes.states, sizes.drives, sizes.own, rho, rest, beta,
        g, slope, gate, amount, h, width, height,
    )  # fmt: skip


def _pieces(t: int, coupled: bool) -> list[tuple[int, int]]:
    """First step and number of steps of each launch."""
    if not coupled:
        return [(0, t)] if t else []
    return [(first, 1) for first in range(t)]


def _from(x: Tensor | None, first: int) -> Tensor | None:
    return None if x is None else x[first:]


def _strides(x: Tensor | None) -> tuple[int, ...]:
    """Over time and batch."""
    return (0, 0) if x is None else x.stride()[:2]


def _unit_strides(*params: Tensor) -> list[int]:
    """0 where a parameter () is shared by all units."""
    return [x.stride(0) if x.dim() else 0 for x in params]


def _launch(kernel: Any, like: Tensor, *arguments: Any, **constants: Any) -> None:
    """One program for each block of `like`, (B, N), on its device."""
    if like.numel():
        with torch.cuda.device_of(like):
            kernel[triton.cdiv(like.numel(), BLOCK),](
                *arguments, **constants, BLOCK=BLOCK, STAGES=STAGES, **LAUNCH
            )
