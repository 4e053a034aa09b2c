"""Deep networks: built from a description, observed, saved and loaded.

A `Network` is a stack of layers, each `(x, state) -> (y, state)`, and a linear readout.  The
baselines RNN, GRU and LSTM, and layers without memory, stand behind the same interface, so that a
comparison changes one word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from spikebridge.base.records import ConfigError
from spikebridge.base.tensors import TensorFile
from spikebridge.nn.dynamics import drives_of
from spikebridge.nn.fresh import EmbeddingTable, Fresh
from spikebridge.nn.gradients import Surrogate
from spikebridge.nn.layers import (
    Baseline,
    Dropout,
    Layer,
    Plain,
    Readout,
    Reduction,
    handed_on,
    joined,
    leaf,
)
from spikebridge.nn.norms import normalised
from spikebridge.nn.scan import BACKENDS, Backend
from spikebridge.nn.synapses import (
    Conv2d,
    Dense,
    Driven,
    Embedding,
    real_steps,
    round_weights,
)
from spikebridge.nn.units import Unit, make_unit
from spikebridge.settings.model import ModelConfig, check_fits
from spikebridge.settings.names import BASELINES, BINARY, PLAIN, NotAllowedError

__all__ = [
    "LayerTrace",
    "Network",
    "Observation",
    "build",
    "load_network",
    "operations",
    "renamed",
    "save_network",
]

FILE = TensorFile(
    "spikebridge-network-1",
    "restore it, or train again",
    needs=("model", "sizes"),
    unsummed=True,
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # in a file
SIZES = {"input_size", "output_size", "readout", "symbols", "image"}  # in its description


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


class Network(Fresh):
    """Hidden layers, dropout after each, and a readout.

    Args:
        layers: each `(x, state) -> (y, state)`, with a `spiking` attribute.
        readout: (T, B, N) to the output.
        dropout, same_mask: see `Dropout`; applied to the outputs of every hidden layer.
        dropout_in: the same for inputs, or for the vectors of the embedding.
        embedding: of symbols; None where the inputs are numbers or the first array takes symbols.
        embedding_scale: factor on what it gives.
        tied: the readout takes the embedding's matrix.
        read: the readout is given the outputs of so many last layers, side by side.
        skip: what goes into a layer goes on, added to its outputs, into the next one where both are
            as wide; the readout is given outputs alone.
    """

    def __init__(
        self,
        layers: Sequence[Layer | Baseline | Plain],
        readout: nn.Module,
        *,
        dropout: float = 0.0,
        dropout_in: float = 0.0,
        same_mask: bool = False,
        embedding: nn.Embedding | None = None,
        embedding_scale: float = 1.0,
        tied: bool = False,
        read: int = 1,
        skip: bool = False,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("a network needs at least one layer, got none")
        self.layers: Any = nn.ModuleList(layers)
        self.readout: Any = readout
        self.embedding = embedding
        self.embedding_scale = embedding_scale
        self.tied, self.read, self.skip = tied, read, skip
        self.dropout = Dropout(dropout, same_mask=same_mask)
        self.dropout_in = Dropout(dropout_in, same_mask=same_mask)
        self.description: dict[str, str] | None = None  # what `build` made it from

    def forward(
        self,
        x: Tensor,
        state: Sequence[Any] | None = None,
        *,
        among: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """x (T, B, I) to the output and the states of all layers, to be passed in again."""
        if isinstance(x, fx.Proxy):
            return leaf(self, x, state)
        observation = self.observe(x, state, among=among, mask=mask, inner=True)
        return observation.output, observation.state

    def observe(
        self,
        x: Tensor,
        state: Sequence[Any] | None = None,
        *,
        membranes: bool = False,
        among: Tensor | None = None,
        mask: Tensor | None = None,
        inner: bool = False,
    ) -> Observation:
        """A forward pass that also hands out every layer's outputs, before dropout.

        Args:
            x: (T, B, I); for a network of symbols (T, B), whole numbers.
            state: one state per layer, or None for silence.
            membranes: membrane states too; those layers then run in the loop.
            among: (K,) output numbers, for these K outputs only.
            mask: (T, B), True at the real steps of each sample, which come first; what follows
                them is padding and changes no output, unless it is asked for at each step.
            inner: the caller does not look at gradients of hidden outputs, only at gradients of
                parameters and inputs: the former may then be left out where they come to nothing.
        """
        states = (None,) * len(self.layers) if state is None else tuple(state)
        if len(states) != len(self.layers):
            raise ValueError(
                f"state must hold one entry for each of {len(self.layers)} layers, "
                f"got {len(states)}"
            )
        if self.embedding is not None:
            x = self.embedding(x) * self.embedding_scale
        if x.is_floating_point():
            x = self.dropout_in(x)
        traces, after, sent = [], [], []
        with nullcontext() if mask is None else real_steps(self.layers, mask):
            for number, (layer, before) in enumerate(zip(self.layers, states, strict=True), 1):
                s = None
                if membranes and isinstance(layer, Layer):
                    y, s, last = layer.trace(x, before)
                else:
                    y, last = layer(x, before)
                if inner and number < len(self.layers):
                    handed_on(y, layer, self.dropout, self.layers[number])
                traces.append(LayerTrace(f"layer{number}", y, s, layer.spiking))
                after.append(last)
                entered, x = x, self.dropout(y)
                sent.append(x)
                if self.skip and number < len(self.layers):
                    x = joined(x, entered)
        if self.read > 1:
            x = torch.cat(sent[-self.read :], -1)
        matrix = self.embedding.weight if self.tied and self.embedding is not None else None
        plain = matrix is among is mask is None
        output = self.readout(x) if plain else self.readout(x, matrix, among, mask)
        return Observation(output, tuple(after), tuple(traces))


def build(
    model: ModelConfig,
    input_size: int,
    output_size: int,
    readout: Reduction,
    *,
    symbols: bool = False,
    image: Sequence[int] | None = None,
    backend: Backend = "auto",
    recompute: int = 0,
) -> Network:
    """The network that a `ModelConfig` describes, with freshly drawn weights.

    Args:
        model: the description.
        input_size, output_size: I and O.
        readout: "last", "mean" or "each"; see `Readout`.
        symbols: inputs are whole numbers (T, B) in [0, I).
        image: (C, H, W) where inputs are flattened images, which convolutions need.
        backend, recompute: see `Layer`.

    Raises ConfigError where the description does not fit such inputs.
    """
    check_fits(model, input_size, symbols, image)
    planned = _arrays(model, input_size, symbols, image)
    _check_skip(model, [(features, size) for _, features, size in planned], symbols)
    layers = [
        _layer(model, number, *plan, backend=backend, recompute=recompute)
        for number, plan in enumerate(planned)
    ]
    width = model.embedding if symbols else 0
    read = len(model.hidden) if model.read_all else 1
    tied = width if model.tied else 0
    network = Network(
        layers,
        Readout(sum(model.hidden[-read:]), output_size, readout, tied=tied),
        dropout=model.dropout,
        dropout_in=model.dropout_in,
        same_mask=model.same_mask,
        embedding=EmbeddingTable(input_size, width) if width else None,
        embedding_scale=model.embedding_scale,
        tied=model.tied,
        read=read,
        skip=model.skip,
    )
    if model.weight_bits:
        round_weights(network, model.weight_bits)
    sizes = {
        "input_size": input_size,
        "output_size": output_size,
        "readout": readout,
        "symbols": symbols,
        "image": None if image is None else list(image),
    }
    network.description = {"model": json.dumps(asdict(model)), "sizes": json.dumps(sizes)}
    return network


def operations(network: Network) -> int:
    """Multiplications with addition per sample and time step, where nothing is sparse.

    Those of all weight matrices; the readout's where it answers at each step.  What a unit does
    with its own state is left out: a few per neuron.
    """
    total = 0
    for module in network.modules():
        if isinstance(module, Dense):
            total += module.in_features * module.out_features
        elif isinstance(module, Conv2d):
            total += module.operations
        elif isinstance(module, Layer) and module.recurrent is not None:
            total += module.recurrent.numel()
        elif isinstance(module, Baseline):
            total += sum(p.numel() for p in module.parameters() if p.dim() == 2)
        elif isinstance(module, Readout) and module.reduce == "each":
            total += module.linear.in_features * module.linear.out_features
    if network.tied and network.embedding is not None:
        total += network.embedding.num_embeddings * network.embedding.embedding_dim
    return total


Maker = Callable[[Driven], Any]


def _arrays(
    model: ModelConfig, input_size: int, symbols: bool, image: Sequence[int] | None
) -> list[tuple[Maker, int, int]]:
    """For each layer: what makes its array once there is a unit, its inputs, its neurons."""
    result: list[tuple[Maker, int, int]] = []
    features, sizes = input_size, list(model.hidden)
    drives = drives_of(model.memory, model.modulation)
    if model.channels and image is not None:
        shape = (image[0], image[1], image[2])
        for channels in model.channels:
            make = partial(_convolution, model, shape, channels)
            shape = make(None).out_shape
            result.append((partial(_normalised, model, make), features, math.prod(shape)))
            features = math.prod(shape)
    if symbols and model.embedding:
        features = model.embedding
    elif symbols:  # each symbol drives the first layer by a row of its own, a constant included
        features = sizes.pop(0)
        rows = partial(Embedding, input_size, drives * features)
        result.append((rows, input_size, features))
    for size in sizes:
        dense = partial(Dense, features, drives * size, bias=_drive_bias(model))
        result.append((partial(_normalised, model, dense), features, size))
        features = size
    return result


def _check_skip(model: ModelConfig, sizes: list[tuple[int, int]], symbols: bool) -> None:
    """ConfigError where no layer is as wide as what goes into it, but for the last one."""
    table = symbols and not model.embedding  # a symbol that goes into the first layer has no width
    wide = [size for number, (features, size) in enumerate(sizes[:-1])
            if features == size and not (table and number == 0)]  # fmt: skip
    if model.skip and not wide:
        raise ConfigError(
            f"skip=True: nothing to connect, as no layer before the last is as wide as its input "
            f"(inputs and neurons: {', '.join(f'{i} {n}' for i, n in sizes)}); give a third hidden "
            f"layer, hidden layers of {sizes[0][0]}, or leave --skip out"
        )


def _layer(
    model: ModelConfig, number: int, make_array: Maker, features: int, size: int, **run: Any
) -> Layer | Baseline | Plain:
    dropped = model.dropout_recurrent
    if model.unit in BASELINES:
        return Baseline(model.unit, features, size, dropout_recurrent=dropped)
    if model.unit in PLAIN:
        return Plain(make_array(model.unit), model.unit)
    unit = unit_of(model, size)
    recurrent = model.recurrent and number >= len(model.channels)
    return Layer(
        make_array(unit), unit, recurrent=recurrent,
        recurrent_gates=recurrent and model.recurrent_gates,
        dropout_recurrent=dropped if recurrent else 0.0, delays=model.delays, **run,
    )  # fmt: skip


def _convolution(
    model: ModelConfig, shape: tuple[int, int, int], channels: int, unit: Driven
) -> Conv2d:
    try:
        return Conv2d(
            shape,
            channels,
            model.kernel_size,
            stride=model.stride,
            padding=model.kernel_size // 2,
            pool=model.pool,
            unit=unit,
            bias=_drive_bias(model),
        )
    except ValueError as error:
        raise ConfigError(f"channels={list(model.channels)}: {error}") from error


def _normalised(model: ModelConfig, make: Maker, unit: Driven) -> Any:
    return normalised(model.norm, make(unit), unit, centre=model.centre)


def _drive_bias(model: ModelConfig) -> bool:
    """Whether arrays have a bias of their own; a centred drive has its shift."""
    shifted = model.centre or model.norm in ("layer", "step")
    return (model.drive_bias or model.unit == "binary-ci") and not shifted


def unit_of(model: ModelConfig, size: int) -> Unit:
    """The hidden units of a description."""
    surrogate = Surrogate(model.surrogate, model.surrogate_width, model.surrogate_height)
    settings: dict[str, Any] = {"threshold": model.threshold}
    if model.unit != "softsnu":
        settings["surrogate"] = surrogate
    if model.unit not in BINARY:
        settings |= {
            "g": model.g,
            "slope": model.g_slope,
            "reset": model.reset,
            "subtract": model.subtract,
            "decay": _decays(model, size),
            "train_decay": model.train_decay,
            "per_unit": model.train_decay,
        }
    if model.memory != "leak" or model.modulation != "none":
        settings |= {"memory": model.memory, "modulation": model.modulation}
    if model.memory == "oscillation":
        settings |= {"slow_decay": model.slow_decay, "periods": (model.period, model.period_to)}
    return make_unit(model.unit, size, **settings)


def _decays(model: ModelConfig, size: int) -> float | Tensor:
    if not model.decay_to:
        return model.decay
    # Numbers even where parameters have none, on the meta device, unless they take much memory.
    device = "cpu" if size <= 1 << 20 else None
    return torch.linspace(model.decay, model.decay_to, size, device=device)


OLD_NAME, NAME = ".unit.bias", ".unit.threshold"
# What is kept of a parameter and does not change its sign with it.
EVEN = ("importance.", "path.", "exp_avg_sq")


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file by today's names: files of before hold b = -threshold of each unit."""
    result = {}
    for name, value in tensors.items():
        if name.endswith(OLD_NAME):
            name = name.removesuffix(OLD_NAME) + NAME
            value = value if any(part in name for part in EVEN) else -value
        result[name] = value
    return result


def save_network(network: Network, path: str | Path) -> None:
    """Weights and the description that `load_network` needs, as safetensors, written atomically.

    Raises ValueError for a network that `build` has not made: nothing would say how to load it.
    """
    if network.description is None:
        raise ValueError(
            "this network was put together by hand, so a file could not say how to build it again; "
            "make it with spikebridge.build, or save its state_dict yourself"
        )
    FILE.write(Path(path), network.state_dict(), **network.description)


def load_network(path: str | Path, *, backend: Backend = "auto") -> Network:
    """A network from a file of `save_network`; never runs code from the file.

    Names and shapes are compared before memory is taken for the network, so that loading takes no
    more than a few times the size of the file.

    Raises:
        FileNotFoundError: no such file.
        NotAllowedError: its unit or surrogate is of a module that the user has not named.
        ValueError: damaged, of another format, of a later version, with tensors that do not fit its
            description, or with values that no network can have.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known; choose one of {list(BACKENDS)}")
    path = Path(path)
    metadata, tensors = _read(path)
    with _blaming(path):
        model, sizes = _described(metadata, tensors)
        with torch.device("meta"):  # shapes without memory
            plan = build(model, **sizes)
    try:
        plan.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"the tensors of {path} do not fit its own description: {str(error)[:1000]}"
        ) from error
    with _blaming(path):
        network = build(model, **sizes, backend=backend)
    network.load_state_dict(tensors)
    _check_values(network, path)
    return network


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file whose format, types and checksum are right."""
    try:
        metadata, tensors = FILE.read(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no network file at {path}; name the model.safetensors in a finished run's folder"
        ) from error
    for name, value in tensors.items():
        if value.dtype not in DTYPES:
            raise ValueError(
                f"{path}: {name} is of {value.dtype}, and numbers of a network are of "
                f"{', '.join(map(str, DTYPES))}; save it with one of these"
            )
    return metadata, renamed(tensors)


def _described(
    metadata: dict[str, str], tensors: dict[str, Tensor]
) -> tuple[ModelConfig, dict[str, Any]]:
    """What `build` is to be given.  Raises whatever a wrong description leads to."""
    model, sizes = json.loads(metadata["model"]), json.loads(metadata["sizes"])
    known = {entry.name for entry in fields(ModelConfig)}
    for what, given, names in (("model", model, known), ("sizes", sizes, SIZES)):
        if not isinstance(given, dict):
            raise ValueError(f"{what} is a {type(given).__name__}, not names with values")
        if unknown := sorted(given.keys() - names):
            raise ValueError(
                f"{what} has {', '.join(map(repr, unknown[:5]))}, which this version does not "
                "know: a later version may have written it, so update spikebridge"
            )
    config = ModelConfig(**model)
    layers = len(config.hidden) + len(config.channels)
    if layers > len(tensors):
        raise ValueError(f"it names {layers:,} layers, there are {len(tensors):,} tensors")
    for name in ("input_size", "output_size"):
        if type(sizes[name]) is not int or sizes[name] < 1:
            raise ValueError(f"{name}={sizes[name]!r}: it must be a whole number above 0")
    if type(sizes.get("symbols", False)) is not bool:
        raise ValueError(f"symbols={sizes['symbols']!r}: it must be true or false")
    image = sizes.get("image")
    if image is not None and (len(image) != 3 or any(type(n) is not int or n < 1 for n in image)):
        raise ValueError(f"image={image}: it must be [C, H, W], whole numbers above 0")
    return config, sizes


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Errors become a ValueError that names the file: a wrong setting can lead to any kind."""
    try:
        yield
    except NotAllowedError as error:
        raise NotAllowedError(f"{path}: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{path}: its description fits no network ({type(error).__name__}: {error}); restore "
            "it, or train again"
        ) from error


def _check_values(network: Network, path: Path) -> None:
    """ValueError for values of a file that no training leads to."""
    for name, value in network.state_dict().items():
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"{path}: {name} has a value that is not finite; restore it, or train again"
            )
    for name, part in network.named_modules():
        if isinstance(part, Unit) and not bool(((part.decay >= 0) & (part.decay <= 1)).all()):
            raise ValueError(
                f"{path}: {name} has a decay outside [0, 1]; restore it, or train again"
            )
