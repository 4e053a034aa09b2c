"""Networks for online rules, and gradients of both ways."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from helpers.own_units import driven
from torch import Tensor, nn

from spikebridge.nn.layers import Layer, Readout
from spikebridge.nn.network import Network
from spikebridge.nn.synapses import (
    Dense,
)
from spikebridge.nn.units import State, make_unit

BOUND = 1e-10
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
