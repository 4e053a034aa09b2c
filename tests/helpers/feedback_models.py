"""Networks of every kind, and how feedback is put on them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from helpers.own_units import Stepping, own_layer
from torch import Tensor, nn

from spikebridge.learning import feedback
from spikebridge.learning.angles import gradients_of
from spikebridge.learning.model_layers import nodes
from spikebridge.nn.layers import Plain, Readout
from spikebridge.nn.network import Network, build
from spikebridge.nn.synapses import Conv2d, Dense, Normalised
from spikebridge.settings.model import ModelConfig

EXACT = {"rtol": 1e-9, "atol": 1e-12}


def network(unit: str = "softsnu", readout: str = "mean", **settings: object) -> Network:
    config = ModelConfig(unit=unit, **{"hidden": (6, 5), **settings})
    return build(config, 64, 4, readout, image=(1, 8, 8)).double()


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (4, 4, 4)),
        nn.Conv2d(4, 3, 3, padding=1, stride=2, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 6, 3, groups=3, padding="same"),
        nn.Tanh(),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
        nn.AvgPool2d(2),
        nn.Flatten(1, 2),
        nn.Conv1d(4, 5, 1),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(5, 4),
    ).double()


def mlp() -> nn.Module:
    hidden = [nn.Linear(64, 7), nn.ReLU(inplace=True), nn.Linear(7, 6), nn.Tanh(), nn.Dropout(0.3)]
    return nn.Sequential(*hidden, nn.Linear(6, 4)).double()


def volumes() -> nn.Module:
    first = [nn.Unflatten(1, (1, 4, 4, 4)), nn.Conv3d(1, 2, 2), nn.ReLU()]
    return nn.Sequential(
        *first, nn.Conv3d(2, 3, 3, dilation=1), nn.Flatten(), nn.Linear(3, 4)
    ).double()


def plain_layers() -> Network:
    layers = [
        Plain(Conv2d((1, 8, 8), 2, 3, pool=3, padding=1), "tanh"),
        Plain(Normalised(Conv2d((2, 2, 2), 3, 2, padding=1, pool=2), centre=True), "relu"),
        Plain(Dense(3, 5, bias=True), "tanh"),
    ]
    return Network(layers, Readout(5, 4, "last"), dropout=0.2).double()  # type: ignore[arg-type]


def gated() -> Network:
    layers = [
        own_layer("gated-by-outputs", 64, 6, recurrent=True, of=Stepping),
        own_layer("modulated", 6, 5, soft=True, of=Stepping),
    ]
    return Network(layers, Readout(5, 4, "mean")).double()


FLAT: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "conv": convolutions, "volumes": volumes}
TIMED: dict[str, Callable[[], nn.Module]] = {
    "recurrent": lambda: network(recurrent=True, dropout=0.2),
    "spikes": lambda: network("snu", "last", recurrent=True, train_decay=True),
    "images": lambda: network(channels=(2, 3), stride=1, pool=2, hidden=(5,), norm=True),
    "each": lambda: network("snu", "each", norm=True, drive_bias=True),
    "plain": plain_layers,
    "gated": gated,
}
SENDING = {**FLAT, **TIMED}


def inputs_of(kind: str) -> Tensor:
    # Sides larger than what pooling uses, and sizes that cannot be taken for each other.
    shape = (3, 64) if kind in FLAT else (5, 3, 64)
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2


def output(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return y[0] if isinstance(y, tuple) else y


def loss_of(model: nn.Module, x: Tensor, handle: feedback.Feedback | None = None) -> Tensor:
    torch.manual_seed(3)  # of dropout
    y = output(model, x)
    classes = torch.arange(y[..., 0].numel()).reshape(y.shape[:-1]) % y.shape[-1]
    if handle is not None and handle.rule == "drtp":
        handle.target(classes)
    return F.cross_entropy(y.flatten(0, -2), classes.flatten())


def gradients(
    model: nn.Module, x: Tensor, handle: feedback.Feedback | None = None
) -> dict[str, Tensor]:
    return gradients_of(model, lambda: loss_of(model, x, handle))


def equal(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **(tolerance or EXACT))


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {node.name: node.array.weight for node in nodes(model)[1:] if node.array is not None}


def linear_stack(depth: int) -> list[nn.Linear]:
    sizes = [*[6, 5, 7, 4][:depth], 3]
    return [nn.Linear(a, b, bias=False).double() for a, b in pairwise(sizes)]
