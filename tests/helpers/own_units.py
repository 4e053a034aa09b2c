"""Units of one's own, of several drives and states, and layers that run them step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.nn.layers import Layer
from spikebridge.nn.synapses import Dense
from spikebridge.nn.units import Params, Rule, State, Unit, make_unit

SMOOTH = Rule(None)


class Gated(Unit):
    """Two drives: the leak is a function of the second, z = sigmoid(gate).

    u = (1 - z) drive + z s (1 - y / 2),   s' = u,   y' = h(u + b)
    """

    drives = 2

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        current, gate = drive.split(self.size, -1)
        z = torch.sigmoid(gate)
        s = (1 - z) * current + z * state.s * (1 - state.y / 2)
        return State(self.rule.fire(s + params.bias), s)


class Modulated(Gated):
    """Three drives: the output is turned down by the third, past the state."""

    drives = 3

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        *others, axon = drive.split(self.size, -1)
        after = super().step(state, torch.cat(others, -1), params)
        return State(after.y * torch.sigmoid(axon), after.s)


class Turning(NamedTuple):
    decay: Tensor
    bias: Tensor
    angle: Tensor  # (N,), trained
    pull: Tensor  # (), trained, of all neurons


class Oscillating(Unit):
    """Two states that turn around each other, each by the other's new value in its turn."""

    def __init__(self, size: int, rule: Rule, **settings: Any) -> None:
        super().__init__(size, rule, **settings)
        self.angle = nn.Parameter(torch.linspace(0.2, 0.9, size))
        self.pull = nn.Parameter(torch.tensor(0.3))

    @property
    def state_size(self) -> int:
        return 2 * self.size

    def membrane(self, state: State) -> Tensor:
        return state.s[..., : self.size]

    def params(self, dtype: torch.dtype) -> Any:
        decay, bias, *_ = super().params(dtype)
        return Turning(decay, bias, self.angle.to(dtype), self.pull.to(dtype))

    def step(self, state: State, drive: Tensor, params: Any) -> State:
        u, w = state.s.split(self.size, -1)
        u = params.decay * u - params.angle * w + drive - 0.4 * state.y
        w = params.decay * w + params.angle * u + params.pull * state.y
        return State(self.rule.fire(u + params.bias), torch.cat([u, w], -1))


OWN: dict[str, tuple[type[Unit], int]] = {  # and how many drives the last outputs go into
    "gated": (Gated, 1),
    "gated-by-outputs": (Gated, 2),
    "modulated": (Modulated, 2),
    "oscillating": (Oscillating, 1),
}


def driven(layer: Any, x: Tensor, y: Tensor) -> Tensor:
    """The drives of one step, of inputs (B, I) and last outputs (B, N)."""
    drive = layer.array(x)
    if layer.recurrent is None:
        return drive
    heard = F.linear(y, layer.recurrent)
    return drive + F.pad(heard, (0, drive.shape[1] - heard.shape[1]))


class Stepping(Layer):
    """A layer that takes its unit's steps one after another."""

    def _run(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        unit: Any = self.unit
        state = unit.initial_state(x.shape[1], unit.threshold.dtype) if state is None else state
        params, outputs = unit.params(state.s.dtype), []
        for now in x:
            state = unit.step(state, driven(self, now, state.y), params)
            outputs.append(state.y)
        return torch.stack(outputs), state


def own_layer(
    name: str,
    inputs: int,
    size: int,
    *,
    recurrent: bool = False,
    soft: bool = False,
    array: nn.Module | None = None,
    of: type[Layer] = Layer,
) -> Layer:
    """A layer of units of one's own, of several drives perhaps."""
    kind, fed = OWN[name]
    unit = kind(size, SMOOTH if soft else Rule(), train_decay=kind is Oscillating)
    one = make_unit("snu", size)
    layer: Any = of(Dense(inputs, size, one), one, backend="loop")
    drives = getattr(unit, "drives", 1)
    layer.unit, layer.array = unit, array or Dense(inputs, drives * size, one, bias=True)
    nn.init.normal_(layer.array.bias, std=0.3)
    if recurrent:
        layer.recurrent = nn.Parameter(torch.randn(fed * size, size) / size**0.5)
    return layer.double()
