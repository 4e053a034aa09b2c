"""An error sent to the input of an array through another matrix than the array's weight."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.learning.model_layers import WEIGHTED, geometry
from spikebridge.nn.kernels.product import linear
from spikebridge.nn.synapses import Conv2d, Dense

__all__ = ["fan_in", "sent", "weight_shape"]


def weight_shape(array: nn.Module | None) -> tuple[int, ...] | None:
    """Shape of the weight of an array, (N, I) or (C', C, k, ...); None where no rule is known."""
    array = geometry(array)
    if not isinstance(array, WEIGHTED):
        return None
    # Reading a parametrised weight may draw noise, which a forward pass would miss.
    parametrised: Any = getattr(array, "parametrizations", {})
    weight = getattr(parametrised["weight"], "original", None) if "weight" in parametrised else None
    weight = array.weight if weight is None else weight
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(
            f"{type(array).__name__} has no shape yet; run the model once before attaching"
        )
    return tuple(weight.shape)


def fan_in(module: nn.Module, array: nn.Module | None) -> int:
    """How many inputs one neuron of a layer has: I, or C k k of a convolution."""
    shape = weight_shape(array)
    if shape is not None:
        return math.prod(shape[1:])
    core = getattr(module, "core", module)
    return getattr(core, "input_size", None) or getattr(core, "in_features", 0) or 1


def transported(array: nn.Module, g: Tensor, matrix: Tensor, shape: torch.Size) -> Tensor:
    """The gradient at the input of an array, were `matrix` its weight.

    Args:
        array: one with a `weight_shape`.
        g: gradient at its output.
        matrix: of the shape of its weight.
        shape: of its input.
    """
    form: Any = geometry(array)
    matrix = matrix.to(g.dtype)
    if isinstance(form, Dense | nn.Linear):
        return linear(g, matrix.mT)
    if isinstance(form, Conv2d):
        return _through_images(form, g, matrix, shape)
    if form.padding_mode != "zeros" or isinstance(form.padding, str):
        with torch.enable_grad():
            x = g.new_zeros(shape, requires_grad=True)
            y = form._conv_forward(x, matrix, None)
        return torch.autograd.grad(y, x, g)[0]
    sides = len(form.kernel_size)
    single = len(shape) == sides + 1
    batched = torch.Size((1, *shape)) if single else shape
    turned = getattr(nn.grad, f"conv{sides}d_input")(
        batched, matrix, g.unsqueeze(0) if single else g,
        form.stride, form.padding, form.dilation, form.groups,
    )  # fmt: skip
    return turned.squeeze(0) if single else turned


def _through_images(array: Conv2d, g: Tensor, matrix: Tensor, shape: torch.Size) -> Tensor:
    g = g.reshape(-1, *array.out_shape)
    k, pool = matrix.shape[-1], array.pool
    if pool > 1:
        g = g.repeat_interleave(pool, -1).repeat_interleave(pool, -2) / pool**2
        sizes = ((n + 2 * array.padding - k) // array.stride + 1 for n in array.in_shape[1:])
        rows, columns = sizes  # what filled no square was left out
        g = F.pad(g, (0, columns - g.shape[-1], 0, rows - g.shape[-2]))
    images = torch.Size((g.shape[0], *array.in_shape))
    x = nn.grad.conv2d_input(images, matrix, g, stride=array.stride, padding=array.padding)
    return x.reshape(shape)


class _Sent(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, x: Tensor, matrix: Tensor, array: nn.Module) -> Tensor:
        return y.clone()  # not y itself: what follows may change it in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, x, matrix, ctx.array = inputs
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.save_for_backward(matrix)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (g,), (matrix,) = grads, ctx.saved_tensors
        return g, transported(ctx.array, g, matrix, ctx.shape).to(ctx.dtype), None, None


def sent(y: Tensor, x: Tensor, matrix: Tensor, array: nn.Module) -> Tensor:
    """The value of y; its gradient also goes to x, as if `matrix` were the weight of `array`.

    Args:
        y: what `array` made of x with the gradient cut.
        x: any shape that `array` takes.
        matrix: of the shape of the array's weight; receives no gradient.
    """
    return _Sent.apply(y, x, matrix, array)
