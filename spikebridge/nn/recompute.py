"""Less memory for backpropagation through time: spikes kept as bits, states recomputed.

Backpropagation through time keeps, for each layer, its input and its membranes, (T, B, N) numbers
each.  Spikes are 0 or 1, so an input that is spikes fits in one bit per number; and membranes
follow from the input and a state kept every k steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spikebridge.nn.units import State

__all__ = ["pack", "recomputed", "spikes_as_bits", "unpack"]

Run = Callable[[Tensor, State], tuple[Tensor, State]]
_GATHER = 0x0102040810204080  # times eight bytes of 0 or 1, the topmost byte of the product
_SMALL = 4096  # numbers; below, packing saves nothing worth having
_PIECE = 1 << 18  # numbers packed at a time: what lies between stays in the cache


def pack(x: Tensor) -> Tensor | None:
    """The numbers of x as bits, (ceil(numel / 8),) uint8; None where one is neither 0 nor 1."""
    flat = x.detach().reshape(-1)
    if flat.numel() > _SMALL and not _binary(flat[:_SMALL]):  # most that is no spikes ends here
        return None
    bits = torch.empty(-(-flat.numel() // 8), dtype=torch.uint8, device=x.device)
    for begin in range(0, flat.numel(), _PIECE):
        piece = flat[begin : begin + _PIECE]
        ones = piece != 0
        if not bool(((piece == 1) == ones).all()):
            return None
        ones = torch.nn.functional.pad(ones, (0, -ones.numel() % 8))
        bits[begin // 8 : (begin + _PIECE) // 8] = _gathered(ones)
    return bits


def _binary(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


def _gathered(ones: Tensor) -> Tensor:
    """(8 n,) bool to (n,) uint8."""
    return (((ones.view(torch.int64) * _GATHER) >> 56) & 0xFF).to(torch.uint8)


def unpack(bits: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """What `pack` was given."""
    rows = _table(dtype, bits.device)[bits.int()]
    return rows.view(-1)[: shape.numel()].view(shape)


@cache
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Row c: the eight numbers that `_gathered` turns into c, whatever order it puts them in."""
    codes = torch.arange(256, dtype=torch.int64)
    patterns = (codes[:, None] >> torch.arange(8)) & 1
    table = torch.empty(256, 8, dtype=dtype)
    table[_gathered(patterns.bool().reshape(-1)).long()] = patterns.to(dtype)
    return table.to(device)


def spikes_as_bits() -> Any:
    """Within this context autograd keeps tensors of spikes (all 0 or 1) as bits, 32 times smaller.

    Values and gradients stay exactly the same; a look at each kept tensor is the cost.  For eager
    mode: torch.compile does not trace the hooks of saved tensors.

        with spikebridge.spikes_as_bits():
            loss = network(x)
        loss.backward()
    """

    def keep(x: Tensor) -> Any:
        # Parameters and inputs of the graph live on anyway.
        if x.is_leaf or not x.is_floating_point() or x.numel() < _SMALL:
            return x
        bits = pack(x)
        return x if bits is None else (bits, x.shape, x.dtype)

    def give(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else unpack(*kept)

    return torch.autograd.graph.saved_tensors_hooks(keep, give)


def recomputed(
    run: Run, x: Tensor, state: State, parameters: tuple[Tensor, ...], every: int
) -> tuple[Tensor, State]:
    """`run(x, state)` that keeps its input and every k-th state, and computes the rest twice.

    Args:
        run: (x (t, B, ...), state) to (y (t, B, N), state) for any t, a function of its arguments
            and `parameters` alone, the same each time it is called.
        x: (T, B, ...); kept as bits where it is spikes.
        state: where to begin.
        parameters: what else receives gradients.
        every: k, at least 1.  About sqrt(T) keeps the least.

    Returns:
        y (T, B, N) and the state after the last step.  Backward holds k steps at a time.  Second
        derivatives are not offered.
    """
    if every < 1:
        raise ValueError(f"recompute must be at least 1 step, got {every}; 0 turns it off")
    parts = tuple(state)
    if x.shape[0] == 0:
        return run(x, state)
    y, *last = _Recomputed.apply(run, every, x, len(parts), *parts, *parameters)
    return y, State(*last)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Run, every: int, x: Tensor, count: int, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        state, parameters = State(*rest[:count]), rest[count:]
        starts: list[Tensor] = []
        bits: list[Tensor] | None = [] if x.is_floating_point() else None
        y = None
        for piece in x.split(every):
            starts += state
            out, state = run(piece, state)
            if y is None:
                y = out.new_empty((x.shape[0], *out.shape[1:]))
            begin = len(starts) // count * every - every
            y[begin : begin + every] = out
            packed = None if bits is None else pack(piece)
            bits = None if bits is None or packed is None else [*bits, packed]
        kept = [x] if bits is None else bits
        ctx.save_for_backward(*kept, *starts, *parameters)
        ctx.run, ctx.every, ctx.count, ctx.packed = run, every, count, bits is not None
        ctx.shape, ctx.dtype, ctx.autocast = x.shape, x.dtype, _autocast(x.device.type)
        ctx.set_materialize_grads(False)
        assert y is not None
        return (y, *state)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, *grad_state: Tensor | None) -> tuple:
        with torch.no_grad():
            grads = _Recomputed._first(ctx, grad_y, *grad_state)
        if not torch.is_grad_enabled():
            return grads
        # create_graph=True: torch's own refusal stays away where grad_y needs no gradient.
        sources = [t for t in (grad_y, *grad_state, *ctx.saved_tensors) if t is not None]
        sources = [t for t in sources if t.requires_grad]
        return tuple(g if g is None else _Final.apply(g, *sources) for g in grads)

    @staticmethod
    def _first(ctx: Any, grad_y: Tensor | None, *grad_state: Tensor | None) -> tuple:
        saved, count, every = list(ctx.saved_tensors), ctx.count, ctx.every
        pieces = -(-ctx.shape[0] // every)
        kept, saved = _split(saved, pieces if ctx.packed else 1)
        starts, parameters = _split(saved, pieces * count)
        wants_x = ctx.needs_input_grad[2]
        grad_x = kept[0].new_empty(ctx.shape, dtype=ctx.dtype) if wants_x else None
        trained = [i for i, p in enumerate(parameters) if p.requires_grad]
        sums: list[Tensor | None] = [None] * len(parameters)
        current = list(grad_state)
        for k in reversed(range(pieces)):
            span = slice(k * every, min((k + 1) * every, ctx.shape[0]))
            shape = torch.Size([span.stop - span.start, *ctx.shape[1:]])
            piece = unpack(kept[k], shape, ctx.dtype) if ctx.packed else kept[0][span].detach()
            start = [p.detach().requires_grad_() for p in starts[k * count : (k + 1) * count]]
            with torch.enable_grad(), _within(ctx.autocast):
                y, after = ctx.run(piece.requires_grad_(wants_x), State(*start))
            ends = zip(
                (y, *after), (None if grad_y is None else grad_y[span], *current), strict=False
            )
            into = [*([piece] if wants_x else []), *start, *(parameters[i] for i in trained)]
            grads = _gradients([end for end in ends if end[1] is not None], into)
            if grad_x is not None:
                result, *grads = grads
                grad_x[span] = 0 if result is None else result
            current, grads = _split(grads, count)
            for i, grad in zip(trained, grads, strict=True):
                total = sums[i]
                if grad is not None:
                    sums[i] = grad if total is None else total.add_(grad)
        return (None, None, grad_x, None, *current, *sums)


class _Final(torch.autograd.Function):
    """A gradient that raises an error where it is differentiated again."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *sources: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "recompute has no second derivatives: its gradients cannot be differentiated again; "
            'use recompute=0 with backend="loop"'
        )


def _split(all_: list, count: int) -> tuple[list, list]:
    return all_[:count], all_[count:]


def _gradients(ends: list, into: list[Tensor]) -> list[Tensor | None]:
    ends = [(end, grad) for end, grad in ends if end.requires_grad]
    if not ends:
        return [None] * len(into)
    outputs, grads = zip(*ends, strict=True)
    return list(torch.autograd.grad(outputs, into, grads, allow_unused=True))


def _autocast(device: str) -> tuple[str, bool, torch.dtype]:
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _within(autocast: tuple[str, bool, torch.dtype]) -> Any:
    device, enabled, dtype = autocast
    # No cache: a weight cast for one piece belongs to a graph that is gone by the next.
    return torch.autocast(device, enabled=enabled, dtype=dtype, cache_enabled=False)
