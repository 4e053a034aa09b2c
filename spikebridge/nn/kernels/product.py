"""The product in front of a scan: in reused memory, in the precision that the CPU is fast at."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from spikebridge.nn.kernels import native

__all__ = ["linear", "plain", "slow_bfloat16", "traced", "unwrapped"]


def traced() -> bool:
    """Whether torch.compile or a torch.func transform looks on."""
    return torch.compiler.is_compiling() or bool(torch._C._functorch.peek_interpreter_stack())


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are what they seem, on a CPU, and nobody looks on: their memory can be used.

    Not so under torch.compile, torch.func, torch.jit.trace, forward-mode derivatives and modes of
    dispatch, nor for subclasses, many gradients at once (is_grads_batched) and lazy negatives.
    """
    if traced() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    return forward_ad._current_level < 0 and unwrapped(*tensors)


def unwrapped(*tensors: Tensor | None) -> bool:
    """Whether these are what they seem, on a CPU: what `plain` asks of the tensors."""
    functorch = torch._C._functorch
    for x in tensors:
        if x is not None and (
            type(x) not in (Tensor, Parameter)
            or not x.is_cpu
            or x.layout is not torch.strided
            or x.is_neg()
            or functorch.is_legacy_batchedtensor(x)
            or functorch.is_functorch_wrapped_tensor(x)
        ):
            return False
    return True


@cache
def slow_bfloat16() -> bool:
    """Whether this CPU multiplies matrices faster in float32 than in bfloat16.

    Without instructions for bfloat16 torch emulates them: 3 to 4 times the time of float32.
    """
    return not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T as torch.nn.functional.linear, autocast included, for x (..., I) and W (N, I).

    On a CPU large results reuse the memory of earlier ones.  In bfloat16, where that is slow, the
    product is taken in float32 and its result rounded: closer to the exact one, and faster.
    """
    low = _low(x, weight)
    if (
        x.device.type != "cpu"
        or native.missing is not None
        or torch.jit.is_tracing()
        or x.numel() // max(x.shape[-1], 1) * weight.shape[0] < native.BUFFER_BYTES // 4
        or (low and not slow_bfloat16())
        or (not low and (x.dtype != weight.dtype or x.dtype not in native.DTYPES))
        or traced()
    ):
        return F.linear(x, weight)
    y = _Product.apply(x.reshape(-1, x.shape[-1]), weight, torch.bfloat16 if low else x.dtype)
    return y.view(*x.shape[:-1], weight.shape[0])


def _low(x: Tensor, weight: Tensor) -> bool:
    """Whether torch would multiply in bfloat16."""
    if torch.is_autocast_enabled("cpu"):
        kinds = (torch.float32, torch.bfloat16)
        low = torch.get_autocast_dtype("cpu") == torch.bfloat16
        return low and x.dtype in kinds and weight.dtype in kinds
    return x.dtype == weight.dtype == torch.bfloat16


def _multiply(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a b for two-dimensional operands, in reused memory; taken in float32 if dtype is bfloat16."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    out = native.empty((a.shape[0], b.shape[1]), wide)
    torch.mm(a.to(wide), b.to(wide), out=out)
    return out if wide == dtype else native.empty(tuple(out.shape), dtype).copy_(out)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight.mT, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        multiply = _multiply if plain(grad) and not torch.is_grad_enabled() else _differentiable
        wants = ctx.needs_input_grad
        return (
            multiply(grad, weight, x.dtype) if wants[0] else None,
            multiply(grad.mT, x, weight.dtype) if wants[1] else None,
            None,
        )


def _differentiable(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """For second derivatives."""
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        return (a.to(wide) @ b.to(wide)).to(dtype)
