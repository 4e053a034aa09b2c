"""Deep networks: built from a description, observed, saved and loaded.

A `Network` is a stack of layers, each `(x, state) -> (y, state)`, and a linear readout.  The
baselines RNN, GRU and LSTM stand behind the same interface, so that a comparison changes one word.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spikebridge.config import BASELINES, ModelConfig
from spikebridge.gradients import Surrogate
from spikebridge.layers import Baseline, Dropout, Layer, Readout, Reduction
from spikebridge.scan import Backend
from spikebridge.synapses import Dense
from spikebridge.units import Unit, make_unit

__all__ = [
    "LayerTrace",
    "Network",
    "Observation",
    "build",
    "load_network",
    "save_network",
]

FORMAT = "spikebridge-network-1"


class LayerTrace(NamedTuple):
    """What one hidden layer did."""

    name: str
    y: Tensor  # (T, B, N) outputs
    s: Tensor | None  # (T, B, N) membrane states, where asked for and existing
    spiking: bool


class Observation(NamedTuple):
    """A forward pass with what went on inside."""

    output: Tensor
    state: tuple[Any, ...]
    layers: tuple[LayerTrace, ...]


class Network(nn.Module):
    """Hidden layers, dropout after each, and a readout.

    Args:
        layers: each `(x, state) -> (y, state)`, with a `spiking` attribute.
        readout: (T, B, N) to the output.
        dropout: see `Dropout`; applied to the outputs of every hidden layer.
    """

    def __init__(
        self,
        layers: Sequence[Layer | Baseline],
        readout: nn.Module,
        *,
        dropout: float = 0.0,
        same_mask: bool = False,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("a network needs at least one layer, got none")
        self.layers: Any = nn.ModuleList(layers)
        self.readout: Any = readout
        self.dropout = Dropout(dropout, same_mask=same_mask)
        self.description: dict[str, str] | None = None  # what `build` made it from

    def forward(
        self, x: Tensor, state: Sequence[Any] | None = None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """x (T, B, I) to the output and the states of all layers, to be passed in again."""
        observation = self.observe(x, state)
        return observation.output, observation.state

    def observe(
        self, x: Tensor, state: Sequence[Any] | None = None, *, membranes: bool = False
    ) -> Observation:
        """A forward pass that also hands out every layer's outputs, before dropout.

        Args:
            x: (T, B, I).
            state: one state per layer, or None for silence.
            membranes: membrane states too; those layers then run in the loop.
        """
        states = (None,) * len(self.layers) if state is None else tuple(state)
        if len(states) != len(self.layers):
            raise ValueError(
                f"state must hold one entry for each of {len(self.layers)} layers, "
                f"got {len(states)}"
            )
        traces, after = [], []
        for number, (layer, before) in enumerate(zip(self.layers, states, strict=True), start=1):
            s = None
            if membranes and isinstance(layer, Layer):
                y, s, last = layer.trace(x, before)
            else:
                y, last = layer(x, before)
            traces.append(LayerTrace(f"layer{number}", y, s, layer.spiking))
            after.append(last)
            x = self.dropout(y)
        return Observation(self.readout(x), tuple(after), tuple(traces))


def build(
    model: ModelConfig,
    input_size: int,
    output_size: int,
    readout: Reduction,
    *,
    backend: Backend = "auto",
    recompute: int = 0,
) -> Network:
    """The network that a `ModelConfig` describes, with freshly drawn weights."""
    layers: list[Layer | Baseline] = []
    features = input_size
    for size in model.hidden:
        if model.unit in BASELINES:
            layers.append(Baseline(model.unit, features, size))
        else:
            unit = _unit(model, size)
            array = Dense(features, size, unit)
            recurrent = model.recurrent
            layers.append(
                Layer(array, unit, recurrent=recurrent, backend=backend, recompute=recompute)
            )
        features = size
    network = Network(
        layers,
        Readout(features, output_size, readout),
        dropout=model.dropout,
        same_mask=model.same_mask,
    )
    sizes = {"input_size": input_size, "output_size": output_size, "readout": readout}
    network.description = {"model": json.dumps(asdict(model)), "sizes": json.dumps(sizes)}
    return network


def _unit(model: ModelConfig, size: int) -> Unit:
    surrogate = Surrogate(model.surrogate, model.surrogate_width, model.surrogate_height)
    return make_unit(
        model.unit,
        size,
        surrogate=None if model.unit == "softsnu" else surrogate,
        g=model.g,
        slope=model.g_slope,
        reset=model.reset,
        amount=max(model.threshold, 0.0),
        decay=model.decay,
        train_decay=model.train_decay,
        per_unit=model.train_decay,
        threshold=model.threshold,
    )


def save_network(network: Network, path: str | Path) -> None:
    """Weights and the description that `load_network` needs, as safetensors, written atomically.

    Raises ValueError for a network that `build` has not made: nothing would say how to load it.
    """
    path = Path(path)
    if network.description is None:
        raise ValueError(
            "this network was put together by hand, so a file could not say how to build it again; "
            "make it with spikebridge.build, or save its state_dict yourself"
        )
    metadata = {"format": FORMAT, **network.description}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    try:
        save_file(tensors, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_network(path: str | Path, *, backend: Backend = "auto") -> Network:
    """A network from a file of `save_network`; never runs code from the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another format, or with tensors that do not fit its description.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no network file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); restore it, or train again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {metadata.get('format')!r}, this version reads {FORMAT!r}"
        )
    description = json.loads(metadata["model"])
    description["hidden"] = tuple(description["hidden"])
    network = build(ModelConfig(**description), **json.loads(metadata["sizes"]), backend=backend)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"the tensors of {path} do not fit its own description: {error}"
        ) from error
    return network
