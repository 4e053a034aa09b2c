"""Eligibilities of the SNU family written out by hand: twice as fast as derived ones, or faster.

For a parameter theta of a layer and the recurrence of `spikebridge.nn.units`

    u_t = W x_t + R y_{t-1} + c + decay s_{t-1} keep(y_{t-1}) - amount y_{t-1}
    s_t = g(u_t),   y_t = h(s_t + b)

the eligibility e_t = ds_t/dtheta is one number, and that of the output follows from it:

    e_t = g'(u_t) (du_t/dtheta + du_t/ds_{t-1} e_{t-1} + du_t/dy_{t-1} dy_{t-1}/dtheta)
    dy_t/dtheta = h'(s_t + b) (e_t + [theta is b])

`Diagonal` carries the influence of a neuron on itself only: all there is without R.  `Full` carries
that of every neuron on every other one.  What they must equal is
`spikebridge.learning.online_derived.Derived`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikebridge.learning.online_derived import Ran, Widths
from spikebridge.nn.units import Params, Rule, State, Unit

# g' at u from s = g(u), which has the sign of u.
G_SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda s, slope: torch.ones_like(s),
    "relu": lambda s, slope: (s > 0).to(s.dtype),
    "leaky_relu": lambda s, slope: (s > 0).to(s.dtype).mul_(1 - slope).add_(slope),
    "elu": lambda s, slope: s.clamp(max=0).add_(1),
}


class Slopes(NamedTuple):
    """The derivatives of C time steps of a unit, (C, B, N) each."""

    g: Tensor  # ds_t/du_t
    h: Tensor  # dy_t/ds_t
    membrane: Tensor  # du_t/ds_{t-1}, y_{t-1} held
    output: Tensor  # du_t/dy_{t-1}, of the neuron's own reset
    decay: Tensor  # du_t/ddecay
    bias: Tensor | None  # du_t/db, y_{t-1} held; None where it is 0


def slopes(rule: Rule, before: State, after: State, params: Params) -> Slopes:
    """The derivatives of `units.step` from states to the next; a spike's is its surrogate's."""
    decay = params.decay.expand_as(before.s)
    if rule.reset == "gate":
        keep = 1 - before.y
        membrane, output, kept = decay * keep, -(decay * before.s), before.s * keep
    else:
        amount = params.amount
        if amount is None:
            amount = before.s.new_tensor(rule.amount or 0.0 if rule.reset == "subtract" else 0.0)
        membrane, output, kept = decay, (-amount).expand_as(before.s), before.s
    if rule.surrogate is None:
        h = after.y * (1 - after.y)
    else:
        h = rule.surrogate.grad(after.s + params.bias)
    g = G_SLOPES[rule.g](after.s, rule.slope)
    return Slopes(g, h, membrane, output, kept, before.y if rule.trained else None)


class Diagonal:
    """A neuron's own eligibilities: K presynaptic signals, the threshold and the decay.

    Memory is that of 2 B N (K + 2) numbers, time per step in proportion to it.
    """

    def __init__(self, batch: int, size: int, inputs: int, like: Tensor) -> None:
        self.synapses = like.new_zeros(batch, size, inputs)
        self.own = like.new_zeros(2, batch, size)  # b, decay
        # Summed over time sample by sample, over samples at the end: with so few of them that is
        # several times faster than a product at each step.
        self.sums = torch.zeros_like(self.synapses), torch.zeros_like(self.own)

    @staticmethod
    def bytes(batch: int, size: int, inputs: int, width: int) -> int:
        """What the eligibilities and gradients take, for numbers of `width` bytes."""
        return 2 * batch * size * (inputs + 2) * width

    def advance(
        self, z: Tensor, of: Slopes, h: Tensor, recurrent: Tensor | None, errors: Tensor | None
    ) -> None:
        """C steps on, and the gradients of their errors added up.

        Args:
            z: (C, B, K), what the synapses carry.
            of, h: the slopes of these steps, and `of.h` one step earlier, (C, B, N).
            recurrent: (N, N), which only `Full` looks at.
            errors: (C, B, N) at s_t + b; None where there are none.
        """
        own = of.output * h
        factor = of.g * (of.membrane + own)
        bias = own if of.bias is None else own + of.bias
        direct = of.g.unsqueeze(1) * torch.stack([bias, of.decay], 1)
        parts = factor.unbind(), of.g.unsqueeze(3).unbind(), z.unsqueeze(2).unbind()
        for t, (keep, g, carried) in enumerate(zip(*parts, strict=True)):
            self.synapses.mul_(keep.unsqueeze(2)).addcmul_(g, carried)
            self.own.mul_(keep).add_(direct[t])
            if errors is not None:
                self.sums[0].addcmul_(errors[t].unsqueeze(2), self.synapses)
                self.sums[1].addcmul_(errors[t], self.own)
        if errors is not None:
            self.sums[1][0] += errors.sum(0)

    def collect(self) -> Tensor:
        """The gradients, (N, K + 2), which start at zero again: synapses, b, decay."""
        gradient = torch.cat([self.sums[0].sum(0), self.sums[1].sum(1).t()], 1)
        for part in self.sums:
            part.zero_()
        return gradient


class Full:
    """The influence of all parameters of a recurrent layer on all of its neurons.

    Real-time recurrent learning (Williams and Zipser 1989) within one layer.  Memory is that of
    2 B N N (K + 2) numbers, time per step that of B N N N (K + 2) multiplications, K being at
    least N: some tens of neurons are what this is for.
    """

    def __init__(self, batch: int, size: int, inputs: int, like: Tensor) -> None:
        shape = (batch, size, size, inputs + 2)  # sample, neuron, owner of the parameter, which
        self.now, self.next = like.new_zeros(shape), like.new_zeros(shape)
        self.sums = like.new_zeros(size, inputs + 2)

    @staticmethod
    def bytes(batch: int, size: int, inputs: int, width: int) -> int:
        """What the eligibilities take, for numbers of `width` bytes."""
        return 2 * batch * size * size * (inputs + 2) * width

    def advance(
        self, z: Tensor, of: Slopes, h: Tensor, recurrent: Tensor | None, errors: Tensor | None
    ) -> None:
        """C steps on, and the gradients of their errors added up; see `Diagonal.advance`."""
        if recurrent is None:
            raise ValueError("a layer without recurrent weights needs no Full; use Diagonal")
        for t in range(len(z)):
            now: Any = [None if part is None else part[t] for part in of]
            self._step(z[t], Slopes(*now), h[t], recurrent)
            if errors is not None:
                influence = self.now.flatten(0, 1).flatten(1)  # (B N, N (K + 2))
                self.sums.view(-1).addmv_(influence.t(), errors[t].reshape(-1))
                self.sums[:, -2] += errors[t].sum(0)

    def _step(self, z: Tensor, of: Slopes, h: Tensor, recurrent: Tensor) -> None:
        through = recurrent * h.unsqueeze(1)  # (B, N, N): du_i / d(s_j + b_j) by way of y_j
        through.diagonal(dim1=1, dim2=2).add_(of.output * h)
        through.mul_(of.g.unsqueeze(2))
        influence = through.clone()
        influence.diagonal(dim1=1, dim2=2).add_(of.g * of.membrane)
        torch.bmm(influence, self.now.flatten(2), out=self.next.view(*self.next.shape[:2], -1))
        self.now, self.next = self.next, self.now
        own = self.now.diagonal(dim1=1, dim2=2)  # (B, K + 2, N)
        own[:, :-2].addcmul_(of.g.unsqueeze(1), z.unsqueeze(2))
        self.now[..., -2] += through
        own[:, -1].addcmul_(of.g, of.decay)
        if of.bias is not None:
            own[:, -2].addcmul_(of.g, of.bias)

    def collect(self) -> Tensor:
        """The gradients, (N, K + 2), which start at zero again: synapses, b, decay."""
        gradient = self.sums.clone()
        self.sums.zero_()
        return gradient


class ByHand:
    """As `spikebridge.learning.online_derived.Derived`, for the step of an `SNUnit`."""

    def __init__(self, batch: int, of: Widths, full: bool, unit: Unit, like: Tensor) -> None:
        self.of, self.rule = of, unit.rule
        self.h = like.new_zeros(batch, of.size)
        self.carried = (Full if full else Diagonal)(batch, of.size, _synapses(of), like)

    @staticmethod
    def bytes(batch: int, of: Widths, full: bool, width: int) -> int:
        """What eligibilities and gradients take, for numbers of `width` bytes."""
        return (Full if full else Diagonal).bytes(batch, of.size, _synapses(of), width)

    def advance(
        self, ran: Ran, params: Params, recurrent: Tensor | None, signal: Tensor | None
    ) -> Tensor | None:
        """C steps on; the errors at the drive."""
        of = slopes(self.rule, ran.before, ran.after, params)
        errors = None if signal is None else signal * of.h
        earlier = torch.cat([self.h.unsqueeze(0), of.h[:-1]])
        z = ran.x if recurrent is None else torch.cat([ran.x, ran.before.y], 2)
        self.carried.advance(z, of, earlier, recurrent, errors)
        self.h = of.h[-1]
        return None if errors is None else errors * of.g

    def collect(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The gradients, which start at zero again; b's holds that of a trained amount, -b."""
        total = self.carried.collect()
        bias, decay = total[:, -2], total[:, -1]
        own = [decay, bias, torch.zeros_like(bias)]
        inputs = self.of.inputs
        return total[:, :inputs], total[:, inputs:-2], own[: self.of.own]


def _synapses(of: Widths) -> int:
    return of.inputs + of.fed * of.size
