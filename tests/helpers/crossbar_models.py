"""Networks on ideal cells."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikebridge.crossbar.network import Crossbar, CrossbarNetwork, to_crossbar
from spikebridge.crossbar.pcm import Cell, ideal
from spikebridge.nn.network import build
from spikebridge.settings.crossbar import CrossbarConfig
from spikebridge.settings.model import ModelConfig

STEPS, BATCH, SYMBOLS = 5, 3, 20
CONV: dict[str, Any] = {"channels": (4,), "kernel_size": 3, "stride": 1, "pool": 2, "hidden": (7,)}
CENTRED: dict[str, Any] = {"norm": True, "centre": True}
TEXT: dict[str, Any] = {"unit": "softsnu", "recurrent": True, "hidden": (8, 6), "embedding": 5}
# Model, shape of an input, readout; no shape stands for symbols.
MODELS: dict[str, tuple[ModelConfig, tuple[int, ...], Any]] = {
    "snu": (ModelConfig(hidden=(12, 9)), (10,), "mean"),
    "recurrent snu": (ModelConfig(hidden=(12, 9), recurrent=True), (10,), "each"),
    "soft snu": (ModelConfig(unit="softsnu", hidden=(12, 9), norm=True), (10,), "each"),
    "conv": (ModelConfig(**CONV), (2, 8, 8), "each"),
    "binary di": (ModelConfig(unit="binary-di", hidden=(12, 9), **CENTRED), (10,), "each"),
    "binary ci": (ModelConfig(unit="binary-ci", hidden=(12, 9)), (10,), "mean"),
    "binary ci conv": (ModelConfig(**CONV | {"unit": "binary-ci"}), (2, 8, 8), "each"),
    "relu": (ModelConfig(unit="relu", hidden=(12, 9)), (10,), "each"),
    "tanh conv": (ModelConfig(**CONV | {"unit": "tanh", "drive_bias": True}), (2, 8, 8), "mean"),
    "li-snu": (ModelConfig(unit="li-snu", hidden=(12,)), (10,), "last"),
    "tied text": (ModelConfig(**TEXT, tied=True), (), "each"),
    "text": (ModelConfig(hidden=(8, 6), recurrent=True), (), "each"),
}
IDEAL = ideal()
NETWORKS = pytest.mark.parametrize("name", [*MODELS, "torch"])
CONVERTERS: dict[str, Any] = {"dac_bits": 14, "adc_bits": 14, "adc_range": 6.0, "tile": 6}


def network_of(name: str) -> Any:
    torch.manual_seed(7)
    if name == "torch":
        conv = nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    model, shape, readout = MODELS[name]
    if not shape:
        return build(model, SYMBOLS, SYMBOLS, readout, symbols=True)
    made = build(model, math.prod(shape), 4, readout, image=shape if len(shape) == 3 else None)
    for layer in made.layers:
        if getattr(layer.array, "bias", None) is not None:  # a constant drive, 0 at first
            nn.init.uniform_(layer.array.bias, -0.5, 0.5)
    return made


def input_of(name: str) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    if name == "torch":
        return torch.randn(BATCH, 2, 8, 8, generator=draw)
    shape = MODELS[name][1]
    if not shape:
        return torch.randint(0, SYMBOLS, (STEPS, BATCH), generator=draw)
    return (torch.rand(STEPS, BATCH, math.prod(shape), generator=draw) < 0.4).float()


def output_of(network: nn.Module, x: Tensor) -> Tensor:
    found = network(x)
    return found[0] if isinstance(found, tuple) else found


def results(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output of a copy and gradients of a fixed loss, by names that are the same on a chip."""
    network = copy.deepcopy(network)
    y = output_of(network, x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)) / BATCH
    (y * cotangent).sum().backward()
    grads = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
    short = {re.sub(r"\.array|\.original|parametrizations\.", "", k): g for k, g in grads.items()}
    return {"output": y, **short}


def on_chip(network: nn.Module, cell: Cell, **more: Any) -> tuple[CrossbarNetwork, Crossbar]:
    """With the crossbar of its first matrix."""
    chip = to_crossbar(network, cell, CrossbarConfig(**more))
    return chip, next(iter(chip.crossbars.values()))
