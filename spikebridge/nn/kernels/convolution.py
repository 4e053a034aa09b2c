"""Convolutions in front of a scan: over pixels that are not zero, where that is faster."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spikebridge.nn.kernels import native, product, sparse
from spikebridge.nn.kernels.product import Keep, Product, plain, slow_bfloat16
from spikebridge.nn.kernels.sparse import Marks

__all__ = ["conv2d"]

# Shares of pixels that are not zero, up to which the sparse convolution is the faster one: few
# channels in are slow for the dense one, few channels out for the sparse one.
_DENSEST = {torch.float32: 0.12, torch.float64: 0.12, torch.bfloat16: 0.06}
_DENSEST_OF_FEW_IN = {torch.float32: 0.3, torch.float64: 0.3, torch.bfloat16: 0.15}
_FEW_IN, _FEW_OUT = 3, 31


class _Shape(NamedTuple):
    """Sizes of a convolution, in the order of native/sparse_conv.h."""

    samples: int
    channels: int
    height: int
    width: int
    outputs: int
    rows: int
    columns: int
    kernel: int
    stride: int
    padding: int

    @property
    def y(self) -> tuple[int, int, int, int]:
        return self.samples, self.outputs, self.rows, self.columns

    @property
    def work(self) -> int:
        """Multiplications of the dense convolution."""
        return math.prod(self.y) * self.channels * self.kernel**2


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    product: Product = "auto",
) -> Tensor:
    """torch.nn.functional.conv2d, autocast included, for square kernels.

    Args:
        x: (M, C, H, W).
        weight: (C', C, k, k).
        bias: (C',) or None.
        stride, padding: alike in both directions.
        product: "dense"; "sparse", which goes through pixels that are not zero; or "auto", by size
            and share of such pixels.  What `product.linear` says of NaN and Inf holds here too.

    Returns (M, C', H', W').  Raises RuntimeError where "sparse" is asked for and cannot serve.
    """
    if product != "dense":
        reason = _unsupported(x, weight)
        if reason is None:
            y = _sparse(x, weight, _shape(x, weight, stride, padding), product)
            if y is not None:
                return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)
        elif product == "sparse":
            raise RuntimeError(f'product="sparse" cannot serve: {reason}; use product="auto"')
    return F.conv2d(x, weight, bias, stride=stride, padding=padding)


def _unsupported(x: Tensor, weight: Tensor) -> str | None:
    if torch.compiler.is_compiling():
        return "under torch.compile and torch.export convolutions are dense"
    return product.unsupported(x, weight)


def _shape(x: Tensor, weight: Tensor, stride: int, padding: int) -> _Shape:
    samples, channels, height, width = x.shape
    outputs, _, kernel, _ = weight.shape
    rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
    return _Shape(samples, channels, height, width, outputs, rows, columns, kernel, stride, padding)


def _sparse(x: Tensor, weight: Tensor, shape: _Shape, choice: Product) -> Tensor | None:
    if choice == "auto" and (shape.work < sparse.LEAST_WORK or shape.outputs <= _FEW_OUT):
        return None
    flat = x.flatten(1)
    flat = flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()
    dtype = torch.bfloat16 if product.in_bfloat16(x, weight) else x.dtype
    limits = _DENSEST_OF_FEW_IN if shape.channels <= _FEW_IN else _DENSEST
    marks = product.marks_for(flat, choice, limits, dtype)
    if marks is None:
        return None
    if not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return _forward(marks, flat, weight, shape, dtype)
    keep = Keep(marks, flat, None)
    with torch.autograd.graph.saved_tensors_hooks(keep.pack, keep.unpack):
        return _SparseConvolution.apply(flat, weight, shape, dtype, keep)


def _forward(marks: Marks, x: Tensor, weight: Tensor, shape: _Shape, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    weight = weight.detach().to(wide).contiguous()
    values = None if marks.ones else x.detach().to(wide).contiguous()
    y = native.empty(shape.y, dtype)
    native.call("conv_forward", dtype)(
        list(shape), marks.bits.data_ptr(), 0 if values is None else values.data_ptr(),
        weight.data_ptr(), y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y


def _weight_gradient(marks: Marks, x: Tensor, grad: Tensor, shape: _Shape) -> Tensor:
    wide = torch.promote_types(grad.dtype, torch.float32)
    grad, values = grad.contiguous(), None if marks.ones else x.to(wide).contiguous()
    out = torch.empty((shape.outputs, shape.channels, shape.kernel, shape.kernel), dtype=wide)
    native.call("conv_weights", grad.dtype)(
        list(shape), marks.bits.data_ptr(), 0 if values is None else values.data_ptr(),
        grad.data_ptr(), out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


class _SparseConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, shape: _Shape, dtype: torch.dtype, keep: Keep
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape, ctx.keep, ctx.version = shape, keep, weight._version
        return _forward(keep.marks, x, weight, shape, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (grad,) = grads
        first = plain(grad) and not torch.is_grad_enabled()
        ctx.keep.read = not first
        x, weight = ctx.saved_tensors
        product.check_version(weight, ctx.version)
        of_x, of_weight, *_ = ctx.needs_input_grad
        if not first:
            both = _dense_backward(grad, x, weight, ctx.shape, (of_x, of_weight))
            return *both, None, None, None
        result_x, _ = _dense_backward(grad, x, weight, ctx.shape, (of_x, False))
        result = _weight_gradient(ctx.keep.marks, x, grad, ctx.shape) if of_weight else None
        return result_x, None if result is None else result.to(weight.dtype), None, None, None


def _dense_backward(
    grad: Tensor, x: Tensor, weight: Tensor, shape: _Shape, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """torch's own gradients of x (M, C H W) and weight, differentiable again."""
    kind = grad.dtype
    if kind == torch.bfloat16 and slow_bfloat16():
        kind = torch.float32
    images = x.to(kind).reshape(shape.samples, shape.channels, shape.height, shape.width)
    two, same = [shape.stride] * 2, [shape.padding] * 2
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        grad.to(kind), images, weight.to(kind), None, two, same, [1, 1], False, [0, 0], 1,
        [*wants, False],
    )  # fmt: skip
    return (
        of_x.to(x.dtype).reshape(x.shape) if wants[0] else None,
        of_weight.to(weight.dtype) if wants[1] else None,
    )
