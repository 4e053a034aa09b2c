"""Trained axonal delays: what a neuron puts out reaches the next layer some steps later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spikebridge.nn.fresh import Fresh, redraw
from spikebridge.nn.kernels import native
from spikebridge.nn.kernels.product import plain
from spikebridge.nn.units import state_dtype, whole

__all__ = ["Delays", "delayed"]

_PIECE = 1 << 18  # numbers worked on at a time: what lies between passes stays in the cache


class Delays(Fresh):
    """A delay of d steps for each neuron, 0 <= d <= D, which is trained.

        late_t = (1 - f) y_(t-k) + f y_(t-k-1),   k = floor(d), f = d - k     in training
        late_t = y_(t-k),                         k = round(d)                in use

    So the gradient to d is that of the interpolation, exactly.  The delays are D times the logistic
    function of a parameter, which keeps them inside (0, D); they start spread evenly.

    Args:
        size: N.
        max_delay: D, at least 1.
        device, dtype: of the parameter.

    Attributes:
        logit: (N,), the parameter.

    Axonal delays are those of SLAYER (Shrestha and Orchard 2018).
    """

    def __init__(
        self,
        size: int,
        max_delay: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.size, self.max_delay = whole(size=size), whole(delays=max_delay)
        if self.max_delay < 1:
            raise ValueError(f"delays must be at least 1 step, or 0 for none, got {max_delay}")
        self.logit = nn.Parameter(torch.empty(self.size, device=device, dtype=dtype))
        self.draw()

    def draw(self) -> None:
        """Delays spread evenly over (0, D), whatever their neurons."""
        redraw(self, "logit", lambda logit: logit.uniform_(0.02, 0.98).logit_())

    @property
    def delays(self) -> Tensor:
        """The delays (N,) in steps, before rounding."""
        return self.max_delay * torch.sigmoid(self.logit.to(state_dtype(self.logit.dtype)))

    def forward(self, y: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """y (T, B, N) delayed, and the last D outputs to go on from.

        past: the D outputs before y, (B, D N), the earliest first, zeros in silence.
        """
        steps, kind = self.max_delay, past.dtype
        before = past.unflatten(-1, (steps, self.size)).transpose(0, 1)
        # In float32 at least; a spike is exact in it.
        wide = y.to(kind)
        late = delayed(before, wide, self.delays.to(kind), self.training)
        kept = torch.cat([before, wide])[-steps:] if len(y) < steps else wide[len(y) - steps :]
        return late.to(y.dtype), kept.transpose(0, 1).flatten(1)

    def extra_repr(self) -> str:
        return f"{self.size}, max_delay={self.max_delay}"


def delayed(before: Tensor, y: Tensor, delays: Tensor, between: bool) -> Tensor:
    """y (T, B, N), and the D steps before it, delayed by (N,) steps: (T, B, N).

    Args:
        before, y, delays: of one dtype; D is at least as much as any delay.
        between: interpolate between steps; otherwise delays are rounded.
    """
    steps = len(before)
    k = (delays.floor() if between else delays.round()).detach()
    k = k.clamp(0, steps - 1 if between else steps)
    part = delays - k if between else None
    if not plain(y) or not y.is_cpu or native.missing is not None or y.numel() == 0:
        return _gathered(before, y, k, part)
    return _Delayed.apply(before, y, k, part)


def _gathered(before: Tensor, y: Tensor, k: Tensor, part: Tensor | None) -> Tensor:
    """The definition, in operations of torch."""
    steps, whole_ = len(before), torch.cat([before, y])
    at = torch.arange(y.shape[0], device=y.device)[:, None, None] + (steps - k.long())
    at = at.expand(y.shape)
    late = whole_.gather(0, at)
    return late if part is None else late + part * (whole_.gather(0, at - 1) - late)


class _Delayed(torch.autograd.Function):
    """The same by shifts: one by 1, 2, 4, .. steps for each bit of a delay.

    A shift that only some neurons take is an interpolation with weights 0 and 1, which runs over
    memory as it lies; looking up each number by itself takes three times as long.  It is exact, but
    for outputs that are not finite: they spread over the D steps behind them.
    """

    @staticmethod
    def forward(ctx: Any, before: Tensor, y: Tensor, k: Tensor, part: Tensor | None) -> Tensor:
        ctx.save_for_backward(before, y, k, part)
        steps = len(before)
        shifts = _shifts(k, part, steps)
        reach = sum(s for s, _ in shifts)
        out = native.empty(tuple(y.shape), y.dtype)
        for piece, (now, to) in _pieces([before, y], max(reach, steps) - steps, 0):
            now = now[max(steps - reach, 0) :]
            for s, weight in shifts[:-1]:
                torch.lerp(now[s:], now[:-s], weight, out=to[: len(now) - s])
                now, to = to[: len(now) - s], now
            s, weight = shifts[-1]
            torch.lerp(now[s:], now[:-s], weight, out=out[:, piece])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (grad,), (before, y, k, part) = grads, ctx.saved_tensors
        if torch.is_grad_enabled() or not plain(grad):
            return _gradients(ctx, grad)
        steps = len(before)
        (s, weight), *others = shifts = _shifts(k, part, steps)
        ends = [torch.empty_like(before) if ctx.needs_input_grad[0] else None]
        ends.append(native.empty(tuple(y.shape), y.dtype))
        grad_part = None if part is None else torch.zeros_like(part)
        # The same backwards in time: what y_t has sent to t + d comes back from there.
        for piece, (now, to) in _pieces([grad], steps, sum(s for s, _ in shifts)):
            for shift, bit in others:
                torch.lerp(now[:-shift], now[shift:], bit, out=to[: len(now) - shift])
                now, to = to[: len(now) - shift], now
            for end, part_of, at in zip(ends, (before, y), (0, steps), strict=True):
                here, there = (now[at + n : at + n + len(part_of)] for n in (0, s))
                if end is not None:
                    torch.lerp(here, there, weight, out=end[:, piece])
                if grad_part is not None:
                    slope = torch.sub(there, here, out=to[: len(part_of)])
                    grad_part += slope.mul_(part_of[:, piece]).sum((0, 1))
        return (*ends, None, grad_part)


def _gradients(ctx: Any, grad: Tensor) -> tuple:
    """For second derivatives, and for many gradients at once."""
    before, y, k, part = ctx.saved_tensors
    further, asked = torch.is_grad_enabled(), ctx.needs_input_grad
    with torch.enable_grad():
        own: list[Any] = [
            t if t is None else t.view_as(t) if further else t.detach().requires_grad_()
            for t in (before, y, part)
        ]
        late = _gathered(own[0], own[1], k, own[2])
        wanted = [t for t, needs in zip(own, (*asked[:2], asked[3]), strict=True) if needs]
        found = iter(torch.autograd.grad(late, wanted, grad, create_graph=further))
    result = [next(found) if needs else None for needs in (*asked[:2], asked[3])]
    return (*result[:2], None, result[2])


def _shifts(k: Tensor, part: Tensor | None, steps: int) -> list[tuple[int, Tensor]]:
    """By how many steps, and the weight (N,) of what is as much earlier: the part of a step first,
    then for each bit of a delay which neurons have it, as 1 and 0.
    """
    whole_, between = k.long(), part is not None
    bits = [
        (1 << b, ((whole_ >> b) & 1).to(k.dtype)) for b in range((steps - between).bit_length())
    ]
    return bits if part is None else [(1, part), *bits]


def _pieces(
    parts: list[Tensor], front: int, back: int
) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
    """Samples of (.., B, N) in a row of time, with silence before and behind, and as much memory to
    work in; both are used again for the next samples.
    """
    batch, size = parts[0].shape[1:]
    length = front + sum(map(len, parts)) + back
    samples = min(batch, max(1, _PIECE // (length * size)))
    memory = native.empty((2, length, samples, size), parts[0].dtype)
    for begin in range(0, batch, samples):
        now, to = memory[:, :, : batch - begin]
        piece, at = slice(begin, begin + samples), front
        now[:front], now[length - back :] = 0, 0
        for part in parts:
            now[at : at + len(part)] = part[:, piece]
            at += len(part)
        yield piece, (now, to)
