"""Eligibilities: how the outputs of one layer depend on its parameters, carried forward in time.

For a parameter theta of a layer and the recurrence of `spikebridge.nn.units`

    u_t = W x_t + R y_{t-1} + c + decay s_{t-1} keep(y_{t-1}) - amount y_{t-1}
    s_t = g(u_t),   y_t = h(s_t + b)

the eligibility e_t = ds_t/dtheta follows from that of the step before, so that no step has to be
kept:

    e_t = g'(u_t) (du_t/dtheta + du_t/ds_{t-1} e_{t-1} + du_t/dy_{t-1} dy_{t-1}/dtheta)
    dy_t/dtheta = h'(s_t + b) (e_t + [theta is b])

`Diagonal` carries the influence of a neuron on itself only: all there is without R.  `Full` carries
that of every neuron on every other one.  Source: Bohnstingl et al. 2022 (OSTL) and, for what
`Diagonal` leaves out where there is an R, Bellec et al. 2020 (e-prop).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spikebridge.nn.layers import Layer
from spikebridge.nn.synapses import Dense
from spikebridge.nn.units import Params, Rule, SNUnit, State, state_dtype, step

__all__ = ["Diagonal", "Forward", "Full", "Slopes", "slopes", "unsupported"]

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


class Forward:
    """One layer run forward with its eligibilities, some steps at a time.

    Args:
        layer: dense synapses and an SNU.
        full: carry the influence of neurons on one another, where the layer is recurrent.
    """

    def __init__(self, layer: Layer, full: bool) -> None:
        self.layer: Any = layer
        self.rule = layer.unit.rule
        self.recurrent = layer.recurrent is not None
        self.kind: type[Diagonal | Full] = Full if full and self.recurrent else Diagonal
        array: Any = layer.array
        self.inputs: int = array.in_features + self.recurrent * layer.unit.size
        self.inputs += array.bias is not None

    def bytes(self, batch: int, width: int) -> int:
        """What its eligibilities take."""
        return self.kind.bytes(batch, self.layer.unit.size, self.inputs, width)

    def begin(self, batch: int, state: State | None) -> None:
        """Eligibilities at zero: the state to begin with depends on no parameter."""
        unit = self.layer.unit
        silence = unit.initial_state(batch, unit.threshold.dtype)
        self.state = silence if state is None else _fitting(state, silence)
        self.h = torch.zeros_like(silence.s)
        self.eligibility = self.kind(batch, unit.size, self.inputs, silence.s)
        self.read()

    def read(self) -> None:
        """Take the parameters as they are now, with the way back from their values to them."""
        layer, dtype = self.layer, state_dtype(self.layer.unit.threshold.dtype)
        with torch.enable_grad():
            recurrent = layer.connections()
            parts = [layer.array.weight, recurrent, layer.array.bias]
            self.roots: list[Tensor | None] = [*parts, -layer.unit.threshold, layer.unit.decay]
        values = [None if root is None else root.detach().to(dtype) for root in self.roots]
        self.weight, self.matrix, self.constant = values[:3]
        assert values[3] is not None
        assert values[4] is not None
        amount = -values[3] if self.rule.trained else None
        self.params = Params(decay=values[4], bias=values[3], amount=amount)

    def run(self, x: Tensor) -> Tensor:
        """x (C, B, I) to y (C, B, N); `learn` must follow."""
        assert self.weight is not None
        first, states = self.state, []
        for drive in F.linear(x, self.weight, self.constant).unbind():
            if self.matrix is not None:
                drive = drive + F.linear(self.state.y, self.matrix)
            self.state = step(self.rule, self.state, drive, self.params)
            states.append(self.state)
        before = [first, *states[:-1]]
        earlier, after = (
            State(*map(torch.stack, zip(*steps, strict=True))) for steps in (before, states)
        )
        self.of = slopes(self.rule, earlier, after, self.params)
        parts = [x]
        if self.matrix is not None:
            parts.append(earlier.y)
        if self.constant is not None:
            parts.append(torch.ones_like(x[..., :1]))
        self.z = x if len(parts) == 1 else torch.cat(parts, 2)
        return after.y

    def learn(self, signal: Tensor | None) -> Tensor | None:
        """Eligibilities through the steps of `run`, and gradients of the errors dE_t/dy_t.

        Args:
            signal: (C, B, N); None where there is no error.

        Returns:
            The errors at the drive, (C, B, N).
        """
        errors = None if signal is None else signal * self.of.h
        h = torch.cat([self.h.unsqueeze(0), self.of.h[:-1]])
        self.eligibility.advance(self.z, self.of, h, self.matrix, errors)
        self.h = self.of.h[-1]
        return None if errors is None else errors * self.of.g

    def down(self, errors: Tensor) -> Tensor:
        """The errors at the inputs of the same steps, (C, B, I), of those at the drive."""
        assert self.weight is not None
        return errors @ self.weight

    def collect(self) -> list[tuple[Tensor, Tensor]]:
        """Parameters' values, with the graph behind them, and their gradients; starts anew."""
        sums = self.eligibility.collect()
        weight, matrix, constant, bias, decay = self.roots
        inputs = self.layer.array.in_features
        end = inputs + self.recurrent * self.layer.unit.size
        result = [
            (weight, sums[:, :inputs]),
            (matrix, sums[:, inputs:end]),
            (constant, sums[:, -3]),
            (bias, sums[:, -2]),
            (decay, sums[:, -1]),
        ]
        pairs = []
        for root, gradient in result:
            if root is not None and root.requires_grad:
                # One decay for all neurons: theirs add up.
                gradient = gradient.sum() if root.dim() == 0 else gradient
                pairs.append((root, gradient.to(root.dtype, copy=True)))
        return pairs


def _fitting(state: State, silence: State) -> State:
    for name in State._fields:
        value, wanted = getattr(state, name), getattr(silence, name)
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise ValueError(
                f"state.{name} must be {tuple(wanted.shape)} {wanted.dtype} for this layer and "
                f"batch, got {tuple(value.shape)} {value.dtype}; start from "
                "unit.initial_state(batch, dtype), or from None"
            )
    return State(*state).detach()


def unsupported(layer: Any) -> str | None:
    """Why a layer cannot be trained, and what to do; None where it can."""
    if not isinstance(layer, Layer):
        return f"it is a {type(layer).__name__}; use a Layer of SNUs"
    if type(layer.unit).step is not SNUnit.step:
        return f"{type(layer.unit).__name__} has no eligibilities here; use snu or softsnu"
    if layer.unit.rule.reset == "lateral":
        return 'lateral inhibition couples all neurons; use reset="gate"'
    # A parametrised array, of rounded or noisy weights, is of a class made from Dense.
    if not isinstance(layer.array, Dense):
        return f"its synapses are a {type(layer.array).__name__}; use Dense"
    return None
