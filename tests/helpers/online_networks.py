"""Networks for online rules, and gradients of both ways."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.nn.layers import Layer, Readout
from spikebridge.nn.network import Network
from spikebridge.nn.synapses import (
    Dense,
)
from spikebridge.nn.units import Params, Rule, State, Unit, make_unit

BOUND = 1e-10
SMOOTH = Rule(None)
INPUTS, OUTPUTS, B, T = 5, 3, 4, 12


def layer_of(
    unit: str,
    inputs: int,
    size: int,
    *,
    recurrent: bool = False,
    bias: bool = False,
    **params: Any,
) -> Layer:
    made = make_unit(unit, size, **params)
    layer = Layer(Dense(inputs, size, made, bias=bias), made, recurrent=recurrent, backend="loop")
    if bias:
        nn.init.normal_(layer.array.bias, std=0.1)
    return layer.double()


def network_of(
    *layers: Layer, reduce: str = "each", read: int = 1, out: int = OUTPUTS, **dropouts: Any
) -> Network:
    width = sum(layer.unit.size for layer in layers[-read:])
    return Network(layers, Readout(width, out, reduce), read=read, **dropouts).double()


def stack(depth: int, *, recurrent: bool = False, unit: str = "snu", **params: Any) -> Network:
    read, reduce = params.pop("read", 1), params.pop("reduce", "each")
    sizes = [INPUTS, *(7, 6, 8)[:depth]]
    layers = [layer_of(unit, a, b, recurrent=recurrent, **params) for a, b in pairwise(sizes)]
    return network_of(*layers, read=read, reduce=reduce)


def data(steps: int = T, batch: int = B) -> tuple[Tensor, Tensor]:
    """Inputs (T, B, INPUTS) and what makes outputs a loss, (T, B, OUTPUTS)."""
    noise = torch.Generator().manual_seed(7)
    x = torch.rand(steps, batch, INPUTS, generator=noise, dtype=torch.float64)
    return x, torch.randn(steps, batch, OUTPUTS, generator=noise, dtype=torch.float64)


def taken(network: nn.Module) -> dict[str, Tensor]:
    """The gradients, taken away."""
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    for parameter in network.parameters():
        parameter.grad = None
    return found


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor], bound: float = BOUND) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = max(1.0, float(other[name].abs().max()))
        torch.testing.assert_close(
            value, other[name], rtol=0, atol=bound * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


def made(unit: str = "snu", array: Any = None, **params: Any) -> Layer:
    own = make_unit(unit, 8, **params)
    return Layer(Dense(INPUTS, 8, own) if array is None else array, own)


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
        decay, bias, _ = super().params(dtype)
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


def own_layer(
    name: str, inputs: int, size: int, *, recurrent: bool = False, soft: bool = False
) -> Layer:
    """A layer of units of one's own, of several drives perhaps."""
    kind, fed = OWN[name]
    unit = kind(size, SMOOTH if soft else Rule(), train_decay=kind is Oscillating)
    one = make_unit("snu", size)
    layer: Any = Layer(Dense(inputs, size, one), one, backend="loop")
    drives = getattr(unit, "drives", 1)
    layer.unit, layer.array = unit, Dense(inputs, drives * size, one, bias=True)
    nn.init.normal_(layer.array.bias, std=0.3)
    if recurrent:
        layer.recurrent = nn.Parameter(torch.randn(fed * size, size) / size**0.5)
    return layer.double()


def driven(layer: Any, x: Tensor, y: Tensor) -> Tensor:
    """The drives of one step, of inputs (B, I) and last outputs (B, N)."""
    drive = layer.array(x)
    if layer.recurrent is None:
        return drive
    heard = F.linear(y, layer.recurrent)
    return drive + F.pad(heard, (0, drive.shape[1] - heard.shape[1]))


def stepped(
    network: Network, x: Tensor, state: Sequence[State] | None = None
) -> tuple[Tensor, list[State]]:
    """A network's outputs (T, B, O) and last states, by steps of its units."""
    states = [
        layer.unit.initial_state(x.shape[1], x.dtype) if state is None else state[number]
        for number, layer in enumerate(network.layers)
    ]
    outputs = []
    for now in x:
        sent = []
        for number, layer in enumerate(network.layers):
            drive = driven(layer, now, states[number].y)
            states[number] = layer.unit.step(states[number], drive, layer.unit.params(x.dtype))
            now = states[number].y
            sent.append(now)
        outputs.append(network.readout.linear(torch.cat(sent[-network.read :], -1)))
    return torch.stack(outputs), states
