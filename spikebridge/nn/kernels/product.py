"""The product in front of a scan: over what is not zero where that is faster, in reused memory.

`linear` chooses between the dense and the sparse product in one visible place; `unsupported` gives
the reason why the sparse one cannot serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from spikebridge.nn.kernels import native, sparse
from spikebridge.nn.kernels.sparse import Marks

__all__ = [
    "PRODUCTS",
    "Product",
    "in_bfloat16",
    "linear",
    "marks_for",
    "plain",
    "slow_bfloat16",
    "traced",
    "unsupported",
    "unwrapped",
]

Product = Literal["auto", "dense", "sparse"]
PRODUCTS = ("auto", "dense", "sparse")
_SMALL_WORK = 1 << 18  # multiplications: fewer than any choice is for


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


def linear(x: Tensor, weight: Tensor, product: Product = "auto") -> Tensor:
    """x W^T as torch.nn.functional.linear, autocast included, for x (..., I) and W (N, I).

    On a CPU large results reuse the memory of earlier ones.  In bfloat16, where that is slow, the
    product is taken in float32 and its result rounded: closer to the exact one, and faster.

    Args:
        x, weight: of one dtype, or under autocast.
        product: "dense"; "sparse", which sums over the numbers of x that are not zero; or "auto":
            sparse where `unsupported` names no reason against it, the product is large
            (`sparse.LEAST_WORK`) and x is sparse (`sparse.DENSEST`).

    A sparse product does not read the weights of inputs that are zero: NaN or Inf among them stays
    out of the result.  NaN and Inf among the inputs reach it.

    Raises RuntimeError where "sparse" is asked for and cannot serve.
    """
    if product not in PRODUCTS:
        raise ValueError(f"product={product!r} is not known; choose one of {list(PRODUCTS)}")
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not watched and product != "sparse" and x.numel() * weight.shape[0] < _SMALL_WORK:
        return F.linear(x, weight)  # what follows would say so too, and takes as long
    if product == "dense" or (product == "auto" and not _large(x, weight)):
        return _dense(x, weight)
    reason = unsupported(x, weight)
    if reason is not None:
        if product == "sparse":
            raise RuntimeError(f'product="sparse" cannot serve: {reason}; use product="auto"')
        return _dense(x, weight)
    dtype = torch.bfloat16 if in_bfloat16(x, weight) else x.dtype
    if torch.compiler.is_compiling():
        return torch.ops.spikebridge.linear(x, weight, product, dtype)
    y = _sparse(x, weight, product, dtype)
    return _dense(x, weight) if y is None else y


def unsupported(x: Tensor, weight: Tensor) -> str | None:
    """Why the sparse product cannot take x (..., I) and W (N, I); None when it can."""
    if native.missing is not None:
        return native.missing
    if not (x.is_cpu and weight.is_cpu):
        return f"it runs on the CPU, x is on {x.device} and the weight on {weight.device}"
    if x.dtype not in native.DTYPES or weight.dtype not in native.DTYPES:
        return f"it takes {native.TAKES}, got {x.dtype} and {weight.dtype}"
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return f"it takes {native.TAKES}, autocast asks for {torch.get_autocast_dtype('cpu')}"
    if x.dtype != weight.dtype and not in_bfloat16(x, weight):
        return f"x is {x.dtype} and the weight {weight.dtype}; make them equal"
    if torch.compiler.is_compiling() or plain(x, weight):
        return None
    return "x and the weight are traced, transformed or no plain tensors"


def _large(x: Tensor, weight: Tensor) -> bool:
    """Whether the choice is worth its time: yes, too, where torch.compile has symbols for sizes.

    Not for torch.export: a file of torch's own ops serves everyone.
    """
    if torch.jit.is_tracing() or torch.compiler.is_exporting():  # tracing has tensors for sizes
        return False
    work = x.numel() * weight.shape[0]
    return not isinstance(work, int) or work >= sparse.LEAST_WORK


def _dense(x: Tensor, weight: Tensor) -> Tensor:
    low = in_bfloat16(x, weight)
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


def _sparse(x: Tensor, weight: Tensor, product: Product, dtype: torch.dtype) -> Tensor | None:
    """The sparse product of dtype; None where "auto" finds x too dense for it."""
    flat = x.reshape(-1, x.shape[-1])
    rows = flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()
    marks = marks_for(rows, product, sparse.DENSEST, dtype)
    if marks is None:
        return None
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        keep = Keep(marks, rows, _source(x))
        with torch.autograd.graph.saved_tensors_hooks(keep.pack, keep.unpack):
            y = _SparseProduct.apply(rows, weight, dtype, keep)
    else:
        y = sparse.times(marks, rows, weight, dtype)
    return y.view(*x.shape[:-1], weight.shape[0])


def marks_for(
    x: Tensor, product: Product, densest: Mapping[torch.dtype, float], dtype: torch.dtype
) -> Marks | None:
    """The marks of x (M, I) for a result of dtype; None where "auto" finds it denser than that."""
    if product == "sparse":
        return sparse.mark(x.detach())
    return sparse.marks_if_few(x.detach(), densest[torch.float32 if slow_bfloat16() else dtype])


def in_bfloat16(x: Tensor, weight: Tensor) -> bool:
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


def goes_on(y: Tensor) -> Tensor:
    """y, output of a scan, whose gradient nobody sees but that scan; see `Keep.needed`."""
    y._spikebridge_goes_on = True  # type: ignore[attr-defined]
    return y


def _source(x: Tensor) -> Any:
    """The node of the graph that alone gets the gradient of x; None where others may look at it."""
    return x.grad_fn if getattr(x, "_spikebridge_goes_on", False) else None


class Keep:
    """Keeps an x of ones as its marks, a bit per number, and another one as it is.

    The hooks of saved tensors know the way back to x, which second derivatives take.
    """

    def __init__(self, marks: Marks, x: Tensor, source: Any) -> None:
        self.marks, self.shape, self.dtype = marks, x.shape, x.dtype
        self.address = x.data_ptr() if marks.ones else None
        self.source = source
        self.read = False  # whether the backward pass reads the numbers of x, not only its marks

    def needed(self) -> Marks | None:
        """Where the gradient of x is needed, if that is known and leaves enough of it out."""
        find = getattr(getattr(self.source, "_forward_cls", None), "needed", None)
        needed = None if find is None else find(self.source)
        if needed is None or needed.total > sparse.DENSEST_NEEDED * self.shape.numel():
            return None
        return needed

    def pack(self, x: Tensor) -> Tensor | None:
        if x.data_ptr() != self.address or x.shape != self.shape:
            return x
        self.address = None  # x is saved first; a weight that is the same tensor stays
        return None

    def unpack(self, kept: Tensor | None) -> Tensor:
        if kept is not None:
            return kept
        if self.read:
            return sparse.unmarked(self.marks, self.dtype)
        return torch.empty((), dtype=self.dtype).expand(self.shape)


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype, keep: Keep) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.keep, ctx.version = keep, weight._version
        return sparse.times(keep.marks, x, weight, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (grad,) = grads
        first = plain(grad) and not torch.is_grad_enabled()
        ctx.keep.read = not first
        x, weight = ctx.saved_tensors
        check_version(weight, ctx.version)
        of_x, of_weight, *_ = ctx.needs_input_grad
        if not first:
            return (
                _differentiable(grad, weight, x.dtype) if of_x else None,
                _differentiable(grad.mT, x, weight.dtype) if of_weight else None,
                None,
                None,
            )
        return (
            _input_gradient(grad, weight, x.dtype, ctx.keep.needed()) if of_x else None,
            sparse.weight_gradient(ctx.keep.marks, x, grad).to(weight.dtype) if of_weight else None,
            None,
            None,
        )


def check_version(weight: Tensor, version: int) -> None:
    """RuntimeError for a changed weight, as autograd does not look where tensors have hooks."""
    if weight._version != version:
        raise RuntimeError(
            "a weight needed for the gradient was modified by an inplace operation after the "
            "forward pass; modify it after backward()"
        )


def _input_gradient(
    grad: Tensor, weight: Tensor, dtype: torch.dtype, needed: Marks | None
) -> Tensor:
    """grad W of dtype, taken in bfloat16 only where grad is and the CPU is fast at it."""
    if needed is not None:
        return sparse.input_gradient(needed, grad, weight).to(dtype)
    if grad.dtype == torch.bfloat16 and not slow_bfloat16():
        return (grad @ weight.to(grad.dtype)).to(dtype)
    return _multiply(grad, weight, dtype)


@torch.library.custom_op("spikebridge::linear", mutates_args=(), device_types="cpu")
def _linear(x: Tensor, weight: Tensor, product: str, dtype: torch.dtype) -> Tensor:
    """`linear` for torch.compile and torch.export: it looks at x when it runs."""
    y = _sparse(x, weight, cast(Product, product), dtype)
    return F.linear(x.to(dtype), weight.to(dtype)) if y is None else y


@torch.library.custom_op("spikebridge::linear_weights", mutates_args=(), device_types="cpu")
def _linear_weights(grad: Tensor, x: Tensor, product: str) -> Tensor:
    """The gradient of the weight, (N, I), in the dtype of grad (..., N) or float32 at least."""
    grad, x = grad.flatten(0, -2), sparse.dense_rows(x.flatten(0, -2))
    marks = marks_for(x, cast(Product, product), sparse.DENSEST, grad.dtype)
    if marks is not None:
        return sparse.weight_gradient(marks, x, grad)
    return (grad.mT @ x.to(grad.dtype)).to(torch.promote_types(grad.dtype, torch.float32))


@_linear.register_fake
def _(x, weight, product, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


@_linear_weights.register_fake
def _(grad, x, product):  # type: ignore[no-untyped-def]
    dtype = torch.promote_types(grad.dtype, torch.float32)
    return x.new_empty((grad.shape[-1], x.shape[-1]), dtype=dtype)


def _op_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, ctx.product, _ = inputs
    ctx.save_for_backward(x, weight)


def _op_backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight = ctx.saved_tensors
    of_x, of_weight, *_ = ctx.needs_input_grad
    weights = torch.ops.spikebridge.linear_weights
    return (
        (grad @ weight.to(grad.dtype)).to(x.dtype) if of_x else None,
        weights(grad, x, ctx.product).to(weight.dtype) if of_weight else None,
        None,
        None,
    )


def _weights_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _weights_backward(ctx: Any, cotangent: Tensor) -> tuple:
    grad, x = ctx.saved_tensors
    cotangent = cotangent.to(grad.dtype)
    return F.linear(x.to(grad.dtype), cotangent), (grad @ cotangent).to(x.dtype), None


_linear.register_autograd(_op_backward, setup_context=_op_setup)
_linear_weights.register_autograd(_weights_backward, setup_context=_weights_setup)


def _differentiable(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """For second derivatives."""
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        return (a.to(wide) @ b.to(wide)).to(dtype)
