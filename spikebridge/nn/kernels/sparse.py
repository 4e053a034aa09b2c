"""The product of a sparse x with a matrix on the CPU: only what is not zero is summed over.

x (M, I) is kept as marks, one bit per number.  See native/sparse.h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spikebridge.nn.kernels import native

__all__ = [
    "DENSEST",
    "DENSEST_NEEDED",
    "LEAST_WORK",
    "Marks",
    "dense_rows",
    "input_gradient",
    "mark",
    "mark_near",
    "marks_if_few",
    "share",
    "times",
    "unmarked",
    "weight_gradient",
]

DENSEST = {torch.float32: 0.35, torch.float64: 0.35, torch.bfloat16: 0.2}
"""Share of numbers that are not zero, up to which the sparse product is the faster one."""
DENSEST_NEEDED = 0.35
"""Share of the places of a gradient, up to which it is computed at these only."""
LEAST_WORK = (
    1 << 24
)  # multiplications of the dense product; below, the choice costs more than it gives
_SAMPLED = 32  # rows that tell what is sparse


class Marks(NamedTuple):
    """Which numbers of x (M, I) are not zero."""

    bits: Tensor  # (M, ceil(I / 64)) int64
    total: int  # of numbers that are not zero
    ones: bool  # each of them is 1
    inputs: int  # I


def share(x: Tensor) -> float:
    """The share of numbers of x (M, I) that are not zero, from rows spread evenly over it."""
    rows = x[:: max(1, len(x) // _SAMPLED)]
    return int(rows.count_nonzero()) / max(rows.numel(), 1)


def mark(x: Tensor) -> Marks:
    """The marks of x (M, I), whose rows are dense."""
    bits = native.empty((len(x), -(-x.shape[1] // 64)), torch.int64)
    total, ones = native.call("mark", x.dtype)(
        (*x.shape, x.stride(0)), x.data_ptr(), bits.data_ptr(), torch.get_num_threads()
    )
    return Marks(bits, total, ones, x.shape[1])


def marks_if_few(x: Tensor, densest: float) -> Marks | None:
    """The marks of x; None where a look at some rows, or at all, finds more than that share."""
    if share(x) > densest:
        return None
    marks = mark(x)
    return marks if marks.total <= densest * x.numel() else None


def dense_rows(x: Tensor) -> Tensor:
    """x (M, I), detached, its rows without gaps; a copy only where they have some."""
    x = x.detach()
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def mark_near(s: Tensor, bias: Tensor, width: float) -> Marks:
    """Where |s + bias| <= width, for membranes s (M, N), dense, and bias (N,)."""
    bits = native.empty((len(s), -(-s.shape[1] // 64)), torch.int64)
    total, ones = native.call("mark_near", s.dtype)(
        tuple(s.shape),
        s.data_ptr(),
        bias.data_ptr(),
        width,
        bits.data_ptr(),
        torch.get_num_threads(),
    )
    return Marks(bits, total, ones, s.shape[1])


def unmarked(marks: Marks, dtype: torch.dtype) -> Tensor:
    """The x (M, I) of marks that are all ones."""
    places = torch.arange(64)
    wide = (marks.bits.unsqueeze(2) >> places) & 1
    return wide.flatten(1)[:, : marks.inputs].to(dtype)


def times(marks: Marks, x: Tensor | None, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x W^T (M, N) of dtype for W (N, I); x is needed where marks are not all ones."""
    wide = torch.promote_types(dtype, torch.float32)
    weight = weight.to(wide).contiguous()
    x, values = _values(marks, x, wide)
    y = native.empty((len(marks.bits), len(weight)), dtype)
    native.call("sparse_forward", dtype)(
        (len(y), marks.inputs, len(weight)),
        (marks.bits.data_ptr(), marks.total),
        values,
        weight.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def input_gradient(needed: Marks, grad: Tensor, weight: Tensor) -> Tensor:
    """grad W (M, I) in the dtype of grad (M, N), where it is needed, and 0 elsewhere."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    weight = weight.to(wide).contiguous()
    grad = dense_rows(grad)
    out = native.empty((len(grad), needed.inputs), grad.dtype)
    native.call("sparse_inputs", grad.dtype)(
        (len(grad), needed.inputs, len(weight)),
        (needed.bits.data_ptr(), needed.total),
        (grad.data_ptr(), grad.stride(0)),
        weight.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def weight_gradient(marks: Marks, x: Tensor | None, grad: Tensor) -> Tensor:
    """grad^T x (N, I), float32 at least, for grad (M, N)."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    grad = dense_rows(grad)
    x, values = _values(marks, x, wide)
    out = native.empty((grad.shape[1], marks.inputs), wide)
    native.call("sparse_weights", grad.dtype)(
        (len(grad), marks.inputs, grad.shape[1]),
        (marks.bits.data_ptr(), marks.total),
        values,
        (grad.data_ptr(), grad.stride(0)),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _values(
    marks: Marks, x: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, tuple[int, int]]:
    """x in dtype, which must outlive the call, with its address and stride; (0, 0) for all ones."""
    if marks.ones or x is None:
        return None, (0, 0)
    x = x.to(dtype)
    return x, (x.data_ptr(), x.stride(0))
