# mypy: allow-untyped-defs
"""The GPU kernel: what the ops of `ops.py` do on CUDA, one Triton template for the whole family.

(B, N) is cut into blocks; a program carries the state of its block through all of time in
registers, so that every (T, B, N) tensor moves through memory once.  With a recurrent matrix each
step is a matrix product followed by the same kernel for one step.  Nothing waits for the host: a
call can be captured in a CUDA graph (after one call outside, which compiles).

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

from spikebridge.nn.kernels.native import check, rows

__all__ = ["backward", "forward"]

BLOCK = 256
STAGES = 4  # steps whose operands are on their way while one is computed
LAUNCH = {
    "num_warps": 4,
    # A membrane must round exactly as in the loop: no product and sum fused into one operation.
    "enable_fp_fusion": False,
}


@triton.jit
def _logistic(x):
    """1 / (1 + exp(-x)) from exp(-|x|), which cannot overflow; NaN stays NaN."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, e) / (1.0 + e)


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0; near 0 by its series, which keeps the relative accuracy."""
    near = tl.where(x > -0.5, x, 0.0)
    series = tl.full(x.shape, 1.0, x.dtype)
    for k in tl.static_range(2, 16):
        series = 1.0 + series * (near * (1.0 / (17 - k)))
    return tl.where(x > -0.5, near * series, tl.exp(x) - 1.0)


@triton.jit
def _apply_g(u, G: tl.constexpr, SLOPE: tl.constexpr):
    if G == "relu":
        s = tl.where(u <= 0, 0.0, u)  # NaN passes
    elif G == "leaky_relu":
        s = tl.where(u > 0, u, u * SLOPE)
    elif G == "elu":
        s = tl.where(u > 0, u, _expm1(tl.where(u > 0, 0.0, u)))
    else:
        s = u
    return s


@triton.jit
def _slope_g(s, G: tl.constexpr, SLOPE: tl.constexpr):
    """g'(u) read off s = g(u): each g keeps the sign."""
    if G == "relu":
        below = tl.zeros_like(s)
    elif G == "leaky_relu":
        below = tl.full(s.shape, SLOPE, s.dtype)
    elif G == "elu":
        below = s + 1.0
    else:
        below = tl.full(s.shape, 1.0, s.dtype)
    return tl.where(s > 0, 1.0, below)


@triton.jit
def _apply_h(x, H: tl.constexpr):
    return _logistic(x) if H == "sigmoid" else (x > 0).to(x.dtype)


@triton.jit
def _slope_h(x, y, H: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr):
    """dh/dx at x = s + bias, where y = h(x).  The window's edge must not move by a rounding."""
    z = x * (1.0 / WIDTH)
    if H == "sigmoid":
        slope = y * (1.0 - y)
    elif H == "window":
        slope = tl.where(tl.abs(x) < WIDTH, tl.full(x.shape, HEIGHT, x.dtype), 0.0)
    elif H == "tanh_prime":
        e = tl.exp(-2.0 * tl.abs(z))  # 1 - tanh(z)^2 without its cancellation
        slope = 4.0 * HEIGHT * e / ((1.0 + e) * (1.0 + e))
    elif H == "triangle":
        slope = HEIGHT * tl.where(tl.abs(z) < 1.0, 1.0 - tl.abs(z), 0.0)
    elif H == "fast_sigmoid":
        slope = HEIGHT / ((1.0 + tl.abs(z)) * (1.0 + tl.abs(z)))
    elif H == "arctan":
        slope = HEIGHT / (1.0 + z * z)
    else:
        tl.static_assert(H == "sigmoid_prime")
        p = _logistic(z)
        slope = 4.0 * HEIGHT * p * (1.0 - p)
    return slope


@triton.jit(do_not_specialize=["steps"])
def _forward(
    drive, product, decay, bias, s_state, y_state, y, s_all,
    steps, units, size, drive_time, drive_batch, decay_unit, bias_unit,
    G: tl.constexpr, SLOPE: tl.constexpr, GATE: tl.constexpr, AMOUNT: tl.constexpr,
    H: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`steps` steps of a block.  The states (B, N) are read, and written anew at the end.

    drive (steps, B, N) has the strides `drive_time`, `drive_batch` and 1; `product` (B, N), what
    the recurrent matrix adds to it, may be None, and so may `s_all`.  The rest is dense.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    unit = at % units
    keep = tl.load(decay + unit * decay_unit, inside)
    b = tl.load(bias + unit * bias_unit, inside)
    s = tl.load(s_state + at, inside)
    out = tl.load(y_state + at, inside)
    drive_at = drive + at // units * drive_batch + unit
    row = at
    for _ in tl.range(0, steps, num_stages=STAGES):
        u = tl.load(drive_at, inside).to(s.dtype)
        if product is not None:
            u += tl.load(product + at, inside)
        kept = s
        if GATE:
            kept = s * (1.0 - out)
        u += keep * kept
        if AMOUNT < 0:
            u -= -b * out
        elif AMOUNT != 0:
            u -= AMOUNT * out
        s = _apply_g(u, G, SLOPE)
        out = _apply_h(s + b, H)
        tl.store(y + row, out.to(y.dtype.element_ty), inside)
        if s_all is not None:
            tl.store(s_all + row, s, inside)
        drive_at += drive_time
        row += size
    tl.store(s_state + at, s, inside)
    tl.store(y_state + at, out, inside)


@triton.jit(do_not_specialize=["steps"])
def _backward(
    grad_y, decay, bias, s_all, s0, y0, ds_state, dy_state, share_decay, share_bias, grad_drive,
    steps, units, size, grad_time, grad_batch, decay_unit, bias_unit, FIRST: tl.constexpr,
    G: tl.constexpr, SLOPE: tl.constexpr, GATE: tl.constexpr, AMOUNT: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`steps` steps of a block, the last one first; FIRST where they begin with step 0.

    Pointers over time point at the first of these steps.  `ds_state` and `dy_state` (B, N) hold
    what flows into the last step and get what flows out of the first; the shares are added to.
    `grad_y` may be None.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    unit = at % units
    keep = tl.load(decay + unit * decay_unit, inside)
    b = tl.load(bias + unit * bias_unit, inside)
    s_before, y_before = tl.load(s0 + at, inside), tl.load(y0 + at, inside)
    ds, dy = tl.load(ds_state + at, inside), tl.load(dy_state + at, inside)
    d_decay, d_bias = tl.load(share_decay + at, inside), tl.load(share_bias + at, inside)
    last = (steps - 1).to(tl.int64)
    row = at + last * size
    s = tl.load(s_all + row, inside)
    out = _apply_h(s + b, H)
    if grad_y is not None:
        grad_at = grad_y + at // units * grad_batch + unit + last * grad_time
    for _ in tl.range(0, steps, num_stages=STAGES):
        later = inside  # than step 0
        if FIRST:
            later = inside & (row >= size)
        s_prev = tl.where(later, tl.load(s_all + row - size, later), s_before)
        y_prev = tl.where(later, _apply_h(s_prev + b, H), y_before)
        dx = dy
        if grad_y is not None:
            dx += tl.load(grad_at, inside).to(s.dtype)
            grad_at -= grad_time
        dx *= _slope_h(s + b, out, H, WIDTH, HEIGHT)
        du = (ds + dx) * _slope_g(s, G, SLOPE)
        tl.store(grad_drive + row, du.to(grad_drive.dtype.element_ty), inside)
        through = du * keep
        kept, ds, dy = s_prev, through, tl.zeros_like(through)
        if GATE:
            kept, ds = s_prev * (1.0 - y_prev), through * (1.0 - y_prev)
            dy = -through * s_prev
        d_bias += dx
        if AMOUNT < 0:
            dy -= -b * du
            d_bias += du * y_prev
        elif AMOUNT != 0:
            dy -= AMOUNT * du
        d_decay += du * kept
        s, out = s_prev, y_prev
        row -= size
    tl.store(ds_state + at, ds, inside)
    tl.store(dy_state + at, dy, inside)
    tl.store(share_decay + at, d_decay, inside)
    tl.store(share_bias + at, d_bias, inside)


def forward(
    drive: Tensor, recurrent: Tensor | None, s0: Tensor, y0: Tensor, decay: Tensor, bias: Tensor,
    own: Tensor | None, g: str, slope: float, gate: bool, amount: float, h: str, width: float,
    height: float, lateral: bool, step: str, numbers: Sequence[float], keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `native.forward`, for the step of the SNU without lateral inhibition."""
    _check_step(lateral, step)
    states = {"s0": s0, "y0": y0, "decay": decay, "bias": bias}
    check(g, h, width, step, drive=drive, recurrent=recurrent, **states)
    t, b, n = drive.shape
    drive, recurrent = rows(drive), None if recurrent is None else recurrent.contiguous()
    y = torch.empty((t, b, n), dtype=drive.dtype, device=drive.device)
    s_all = torch.empty((t if keep else 0, b, n), dtype=s0.dtype, device=drive.device)
    s, out = (x.clone(memory_format=torch.contiguous_format) for x in (s0, y0))
    # Which formula replaces the derivative is nothing to the forward pass.
    rule = {"G": g, "SLOPE": slope, "GATE": gate, "AMOUNT": amount}
    rule["H"] = "sigmoid" if h == "sigmoid" else "step"
    product = None if recurrent is None else torch.empty_like(s)
    for first, steps in _pieces(t, recurrent):
        if recurrent is not None:
            torch.mm(out, recurrent.mT, out=product)
        _launch(
            _forward, s, drive[first:], product, decay, bias, s, out, y[first:],
            s_all[first:] if keep else None, steps, n, b * n, drive.stride(0), drive.stride(1),
            *_unit_strides(decay, bias), **rule,
        )  # fmt: skip
    return y, s, out, s_all, s.new_empty((0, b, n))


def backward(
    grad_y: Tensor | None, grad_s_last: Tensor | None, grad_y_last: Tensor | None,
    drive: Tensor | None, recurrent: Tensor | None, s_all: Tensor, s0: Tensor, y0: Tensor,
    decay: Tensor, bias: Tensor, own: Tensor | None, g: str, slope: float, gate: bool,
    amount: float, h: str, width: float, height: float, lateral: bool, step: str,
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `native.backward`, of the same."""
    _check_step(lateral, step)
    grads = {"grad_y": grad_y, "grad_s_last": grad_s_last, "grad_y_last": grad_y_last}
    states = {"s0": s0, "y0": y0, "decay": decay, "bias": bias}
    check(g, h, width, step, s_all=s_all, recurrent=recurrent, **grads, **states)
    t, b, n = s_all.shape
    s0, y0 = s0.contiguous(), y0.contiguous()
    grad_y = None if grad_y is None else rows(grad_y)
    io = s_all.dtype if grad_y is None else grad_y.dtype
    grad_drive = torch.empty((t, b, n), dtype=io, device=s_all.device)
    # The product with the matrix is taken before a gradient is rounded for its way out.
    wide = None if recurrent is None or io == s_all.dtype else torch.empty_like(s0)
    ds, dy, share_decay, share_bias = small = [torch.zeros_like(s0) for _ in range(4)]
    for into, given in ((ds, grad_s_last), (dy, grad_y_last)):
        if given is not None:
            into.copy_(given)
    rule = {"G": g, "SLOPE": slope, "GATE": gate, "AMOUNT": amount}
    rule |= {"H": h, "WIDTH": width, "HEIGHT": height}
    for first, steps in reversed(_pieces(t, recurrent)):
        row = grad_drive[first:] if wide is None else wide
        _launch(
            _backward, s0, None if grad_y is None else grad_y[first:], decay, bias, s_all[first:],
            s0, y0, *small, row, steps, n, b * n,
            *((0, 0) if grad_y is None else grad_y.stride()[:2]), *_unit_strides(decay, bias),
            FIRST=first == 0, **rule,
        )  # fmt: skip
        if recurrent is not None:
            dy.addmm_(grad_drive[first] if wide is None else wide, recurrent)
        if wide is not None:
            grad_drive[first].copy_(wide)
    return grad_drive, ds, dy, share_decay, share_bias, ds.new_empty((0, n))


def _check_step(lateral: bool, step: str) -> None:
    if lateral or step != "snu":
        raise ValueError(
            f"the triton kernel has the step of the SNU only, got step={step!r}, "
            f'lateral={lateral}; use backend="loop"'
        )


def _pieces(t: int, recurrent: Tensor | None) -> list[tuple[int, int]]:
    """First step and number of steps of each launch."""
    if recurrent is None:
        return [(0, t)] if t else []
    return [(first, 1) for first in range(t)]


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
