"""Scaling to a root mean square, as `spikebridge.nn.synapses.Normalised` does it in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikebridge.nn.kernels import native
from spikebridge.nn.kernels.product import plain

__all__ = ["rescaled"]

_LARGE = 1 << 18  # numbers; below, a few operations of torch are as fast


def rescaled(x: Tensor, size: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x (samples, C, pixels) times size / sqrt(mean of x^2 + eps), channel by channel.

    Gives the mean squares (C,) too, float32 at least.  On a CPU large x takes two passes each way
    over memory that is used again; in bfloat16 only the result is rounded.
    """
    y, mean_square = _Rescaled.apply(x, size, eps) if _served(x) else _formula(x, size, eps)
    return y, mean_square


def _formula(x: Tensor, size: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(x.dtype, torch.float32)
    mean_square = x.square().mean((0, 2), dtype=kind)
    factor = size * (mean_square + eps).rsqrt()
    return x * factor.to(x.dtype).unsqueeze(1), mean_square.detach()


def _served(x: Tensor) -> bool:
    """Whether it is large and dense on a CPU, and nobody looks on."""
    return (
        native.missing is None
        and x.dtype in native.DTYPES
        and x.numel() >= _LARGE
        and x.is_contiguous()
        and plain(x)
    )


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        mean_square = native.channel_dots(x, x) / (len(x) * x.shape[2])
        inverse = (mean_square + eps).rsqrt()
        ctx.save_for_backward(x, size, inverse)
        ctx.mark_non_differentiable(mean_square)
        ctx.eps = eps
        return native.channel_sums(x, size * inverse), mean_square

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple:
        grad, (x, size, inverse) = grads[0], ctx.saved_tensors
        if torch.is_grad_enabled() or not plain(grad):
            return (*_gradients(x, size, grad, ctx), None)
        grad = grad.contiguous()
        shares, factor = native.channel_dots(grad, x), size * inverse
        # d y / d x through the mean square: -size inverse^3 x / count, times sum of grad x.
        through = -factor * inverse.square() * shares / (len(x) * x.shape[2])
        grad_x = native.channel_sums(grad, factor, x, through)
        return grad_x, (shares * inverse).to(size.dtype), None


def _gradients(x: Tensor, size: Tensor, grad: Tensor, ctx: Any) -> list[Tensor | None]:
    """For second derivatives, and for many gradients at once."""
    further, wants = torch.is_grad_enabled(), ctx.needs_input_grad[:2]
    with torch.enable_grad():
        # Views: x may depend on size, and what comes that way is the engine's to add.
        own = [t.view_as(t) if further else t.detach().requires_grad_() for t in (x, size)]
        y, _ = _formula(own[0], own[1], ctx.eps)
        inputs = [t for t, wanted in zip(own, wants, strict=True) if wanted]
        result = iter(torch.autograd.grad(y, inputs, grad, create_graph=further))
    return [next(result) if wanted else None for wanted in wants]
