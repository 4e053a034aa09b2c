"""Eligibilities of units with one state, from which the output follows: half the work and memory.

Where a neuron's output is a function of its new state and its parameters alone,

    s_t = step(s_{t-1}, y_{t-1}, drives_t, parameters),   y_t = h(s_t, parameters)

the eligibility e_t = ds_t/dtheta is one number, and that of the output follows from it:

    dy_t/dtheta = h' e_t + q_t
    e_t = ds_t/ds_{t-1} e_{t-1} + ds_t/dy_{t-1} dy_{t-1}/dtheta + ds_t/dtheta

q_t being 0 for synapses.  `Diagonal` carries the influence of a neuron on itself only: all there is
without a recurrent matrix.  `Full` carries that of every neuron on every other one.  What they must
equal is `spikebridge.learning.online_derived.Derived`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from spikebridge.learning.online_derived import Ran, Widths, jacobians
from spikebridge.nn.units import Params, SNUnit, State, Unit

__all__ = ["Diagonal", "Full", "OneState", "Slopes", "by_hand", "derived", "family", "follows"]

# g' at u from s = g(u), which has the sign of u.
G_SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda s, slope: torch.ones_like(s),
    "relu": lambda s, slope: (s > 0).to(s.dtype),
    "leaky_relu": lambda s, slope: (s > 0).to(s.dtype).mul_(1 - slope).add_(slope),
    "elu": lambda s, slope: s.clamp(max=0).add_(1),
}


class Slopes(NamedTuple):
    """The derivatives of C time steps of a unit, (C, B, N) each."""

    h: Tensor  # dy_t/ds_t
    state: Tensor  # ds_t/ds_{t-1}, y_{t-1} held
    output: Tensor  # ds_t/dy_{t-1}
    drives: list[Tensor]  # ds_t/ddrive, of each channel
    own: Tensor  # ds_t/dtheta, of each tensor of the parameters: (C, q, B, N)
    direct: Tensor  # dy_t/dtheta, s_t held: (C, q, B, N)


def derived(unit: Unit, ran: Ran, params: Params) -> Slopes:
    """From the step.  Where y = h(s), the derivatives of y are h' times those of s."""
    found, zero = jacobians(unit, ran, params), torch.zeros_like(ran.before.y)
    s, y = (
        [zero if part is None else part for part in (*state, *drive)]
        for state, drive in zip(found.state, found.drive, strict=True)
    )
    rows, columns = torch.stack(s), torch.stack(y)
    size = rows.square().sum(0)
    h = torch.where(size == 0, zero, (rows * columns).sum(0) / size)  # 0: nothing comes in
    own, direct = (
        torch.stack([zero if part is None else part for part in row], 1) for row in found.own
    )
    return Slopes(h, s[0], s[1], s[2:], own, direct - h.unsqueeze(1) * own)


def by_hand(unit: Unit, ran: Ran, params: Params) -> Slopes:
    """Of `units.step`, written out; a spike's is its surrogate's.

    With one step at a time, as in a stream, learning takes half the time of derived slopes.
    """
    rule, before, after = unit.rule, ran.before, ran.after
    decay, zero = params.decay.expand_as(before.s), torch.zeros_like(before.s)
    g = G_SLOPES[rule.g](after.s, rule.slope)
    if rule.reset == "gate":
        keep = 1 - before.y
        state, output, kept = decay * keep, -(decay * before.s), before.s * keep
    else:
        amount = params.amount
        if amount is None:
            amount = before.s.new_tensor(rule.amount or 0.0 if rule.reset == "subtract" else 0.0)
        state, output, kept = decay, (-amount).expand_as(before.s), before.s
    if rule.surrogate is None:
        h = after.y * (1 - after.y)
    else:
        h = rule.surrogate.grad(after.s + params.bias)
    own, direct = [g * kept, zero], [zero, h]  # of decay and b
    if params.amount is not None:
        own, direct = [*own, -g * before.y], [*direct, zero]
    return Slopes(h, g * state, g * output, [g], torch.stack(own, 1), torch.stack(direct, 1))


def family(unit: Unit) -> bool:
    """Whether `by_hand` knows its step."""
    return type(unit).step is SNUnit.step and unit.rule.reset != "lateral"


@torch.no_grad()
def follows(unit: Unit) -> bool:
    """Whether it has one state, from which its output follows, at random numbers."""
    if unit.state_size != unit.size:
        return False
    like, noise = unit.threshold, torch.Generator().manual_seed(2)
    silence = unit.initial_state(16, like.dtype)
    drawn = [
        torch.randn(1, 16, width, generator=noise).to(silence.s)
        for width in (unit.size, unit.size, unit.size * getattr(unit, "drives", 1))
    ]
    ran = Ran(drawn[0], drawn[2], State(drawn[0].sigmoid(), drawn[1]), silence)
    params = unit.params(silence.s.dtype)
    found, slopes = jacobians(unit, ran, params), derived(unit, ran, params)
    expected = [slopes.h * s for s in (slopes.state, slopes.output, *slopes.drives)]
    return all(
        torch.allclose(one, torch.zeros_like(one) if y is None else y, 1e-3, 1e-5)
        for one, y in zip(expected, [*found.state[1], *found.drive[1]], strict=True)
    )


class Before(NamedTuple):
    """What C steps take from the ones before each of them."""

    h: Tensor  # dy_{t-1}/ds_{t-1}, (C, B, N)
    direct: Tensor  # dy_{t-1}/dtheta, s_{t-1} held, (C, q, B, N)
    own: Tensor  # ds_t/dtheta, s_{t-1} held, (C, q, B, N)
    matrices: tuple[Tensor, ...]  # recurrent ones, of each channel that is fed


class OneState:
    """As `spikebridge.learning.online_derived.Derived`, for a unit that `follows`."""

    def __init__(self, batch: int, of: Widths, full: bool, unit: Unit, like: Tensor) -> None:
        self.of, self.unit = of, unit
        self.slopes = by_hand if family(unit) else derived
        self.h = like.new_zeros(1, batch, of.size)
        self.direct = like.new_zeros(1, of.own, batch, of.size)
        self.past = like.new_zeros(of.own, of.size)  # gradients past the state
        self.carried: Diagonal | Full = (Full if full else Diagonal)(batch, of, like)

    @staticmethod
    def bytes(batch: int, of: Widths, full: bool, width: int) -> int:
        """What eligibilities and gradients take, for numbers of `width` bytes."""
        return 2 * batch * of.size * (of.size if full else 1) * of.columns * width

    def advance(
        self, ran: Ran, params: Params, recurrent: Tensor | None, signal: Tensor | None
    ) -> Tensor | None:
        """C steps on; the errors at the drives."""
        found = self.slopes(self.unit, ran, params)
        h, direct = torch.cat([self.h, found.h]), torch.cat([self.direct, found.direct])
        self.h, self.direct = found.h[-1:].clone(), found.direct[-1:].clone()
        x = ran.x if recurrent is None else torch.cat([ran.x, ran.before.y], 2)
        z = [x if channel < self.of.fed else ran.x for channel in range(self.of.drives)]
        own = found.own + found.output.unsqueeze(1) * direct[:-1]
        matrices = () if recurrent is None else recurrent.split(self.of.size)
        errors = None if signal is None else signal * found.h
        self.carried.advance(z, found, Before(h[:-1], direct[:-1], own, matrices), errors)
        if signal is None or errors is None:
            return None
        self.past += (signal.unsqueeze(1) * found.direct).sum((0, 2))
        return torch.cat([errors * g for g in found.drives], 2)

    def collect(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The gradients, which start at zero again; see `Derived.collect`."""
        of, total = self.of, self.carried.collect()
        *blocks, own = total.split([*_blocks(of), of.own], 1)
        own = own.t() + self.past
        self.past = torch.zeros_like(self.past)
        heard = [block[:, of.inputs :] for block in blocks[: of.fed]]
        return (
            torch.cat([block[:, : of.inputs] for block in blocks]),
            torch.cat(heard) if heard else total[:0],
            list(own),
        )


class Diagonal:
    """A neuron's own eligibilities: its synapses, channel after channel, and its parameters."""

    def __init__(self, batch: int, of: Widths, like: Tensor) -> None:
        self.synapses = like.new_zeros(batch, of.size, of.columns - of.own)
        self.blocks = self.synapses.split(_blocks(of), 2)
        self.own = like.new_zeros(of.own, batch, of.size)
        # Summed over time sample by sample, over samples at the end: with so few of them that is
        # several times faster than a product at each step.
        self.sums = torch.zeros_like(self.synapses), torch.zeros_like(self.own)

    def advance(self, z: list[Tensor], of: Slopes, before: Before, errors: Tensor | None) -> None:
        """C steps on, and the gradients of their errors added up.

        Args:
            z: what the synapses of each channel carry, (C, B, ..).
            of, before: the slopes of these steps, and what the steps before left.
            errors: (C, B, N) at s_t; None where there are none.
        """
        factor = of.state + of.output * before.h
        for t, (keep, own) in enumerate(zip(factor, before.own, strict=True)):
            self.synapses.mul_(keep.unsqueeze(2))
            for block, slope, carried in zip(self.blocks, of.drives, z, strict=True):
                block.addcmul_(slope[t].unsqueeze(2), carried[t].unsqueeze(1))
            self.own.mul_(keep).add_(own)
            if errors is not None:
                self.sums[0].addcmul_(errors[t].unsqueeze(2), self.synapses)
                self.sums[1].addcmul_(errors[t], self.own)

    def collect(self) -> Tensor:
        """The gradients, (N, columns), which start at zero again."""
        gradient = torch.cat([self.sums[0].sum(0), self.sums[1].sum(1).t()], 1)
        for part in self.sums:
            part.zero_()
        return gradient


class Full:
    """The influence of all parameters of a recurrent layer on all of its neurons.

    Real-time recurrent learning (Williams and Zipser 1989) within one layer: time per step is that
    of B N N N columns multiplications.  Some tens of neurons are what this is for.
    """

    def __init__(self, batch: int, of: Widths, like: Tensor) -> None:
        shape = (batch, of.size, of.size, of.columns)  # sample, neuron, owner, which
        self.now, self.next = like.new_zeros(shape), like.new_zeros(shape)
        self.sums = like.new_zeros(of.size, of.columns)
        self.widths = [*_blocks(of), of.own]

    def advance(self, z: list[Tensor], of: Slopes, before: Before, errors: Tensor | None) -> None:
        """C steps on, and the gradients of their errors added up; see `Diagonal.advance`."""
        factor = of.state + of.output * before.h
        for t in range(len(factor)):
            # ds_i / dy_j, by way of the recurrent matrix
            parts = [
                slope[t].unsqueeze(2) * matrix
                for slope, matrix in zip(of.drives, before.matrices, strict=False)
            ]
            heard = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
            influence = heard * before.h[t].unsqueeze(1)
            influence.diagonal(dim1=1, dim2=2).add_(factor[t])
            torch.bmm(influence, self.now.flatten(2), out=self.next.flatten(2))
            self.now, self.next = self.next, self.now
            *blocks, own = self.now.diagonal(dim1=1, dim2=2).split(self.widths, 1)
            for block, slope, carried in zip(blocks, of.drives, z, strict=True):
                block.addcmul_(slope[t].unsqueeze(1), carried[t].unsqueeze(2))
            own.add_(before.own[t].movedim(0, 1))
            for column, direct in enumerate(before.direct[t], start=-len(before.direct[t])):
                self.now[..., column].addcmul_(heard, direct.unsqueeze(1))
            if errors is not None:
                influence = self.now.flatten(0, 1).flatten(1)  # (B N, N columns)
                self.sums.view(-1).addmv_(influence.t(), errors[t].reshape(-1))

    def collect(self) -> Tensor:
        """The gradients, (N, columns), which start at zero again."""
        gradient = self.sums.clone()
        self.sums.zero_()
        return gradient


def _blocks(of: Widths) -> list[int]:
    """How many synapses a neuron has in each channel."""
    return [of.inputs + of.size * (channel < of.fed) for channel in range(of.drives)]
