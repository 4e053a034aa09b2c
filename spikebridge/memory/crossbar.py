"""Weight matrices on differential pairs of memory cells, for any network of torch modules.

A `Crossbar` is a parametrisation: the module that owns the weight asks for it as ever and gets what
the cells hold, with the gradient of the weight itself.  `to_crossbar` puts every weight matrix of a
network on cells and gives a `Chip`, `from_crossbar` takes them off again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spikebridge.gradients import forward_as
from spikebridge.layers import Baseline, Layer
from spikebridge.memory import pcm
from spikebridge.memory.array import Device, SimulatedArray
from spikebridge.memory.converters import Converted, behind_wires
from spikebridge.memory.measured import read_table
from spikebridge.memory.pcm import Cell
from spikebridge.memory_config import REFRESH_HIGH, REFRESH_LOW, MemoryConfig
from spikebridge.records import UsageError
from spikebridge.synapses import Conv2d, Dense, Embedding

__all__ = ["Chip", "Crossbar", "cell_of", "from_crossbar", "to_crossbar"]

MakeDevice = Callable[[tuple[int, ...]], Device]
MAPPED = (Dense, Conv2d, Embedding, nn.Linear, nn.Conv2d)


def cell_of(config: MemoryConfig, *, pulsed: bool = False) -> Cell:
    """The device model of a config; "pcm" is the one for pulses, or for programmed targets.

    Raises UsageError.
    """
    if config.device_table:
        return read_table(config.device_table)
    models = {cell.name: cell for cell in (pcm.ACCUMULATION, pcm.ACCUMULATION_2020, pcm.ITERATIVE)}
    models["pcm"] = pcm.ACCUMULATION if pulsed else pcm.ITERATIVE
    if config.device == "ideal":
        return pcm.ideal(config.levels)
    if config.device not in models:
        raise UsageError("there is no device; pass --device accumulation")
    return models[config.device]


class Crossbar(nn.Module):
    """A weight matrix (N, I) on `pairs` differential pairs per weight, cut into tiles.

    w = (sum over pairs of G+ - G-) / (pairs scale), where scale, in uS per unit of weight, is that
    of the tile.  A kernel of a convolution counts as (C', C k k).

    Args:
        shape: of the weight.
        device: cells (2, pairs, N, I): G+ and G- of every pair.
        config: pairs, tile, w_max, wire_ohm.
    """

    def __init__(self, shape: tuple[int, ...], device: Device, config: MemoryConfig) -> None:
        super().__init__()
        self.weight_shape = tuple(shape)
        rows, columns = shape[0], math.prod(shape[1:])
        expected = (2, config.pairs, rows, columns)
        if tuple(device.shape) != expected:
            raise ValueError(
                f"a weight {tuple(shape)} in {config.pairs} pairs needs a device of shape "
                f"{expected}, got {tuple(device.shape)}"
            )
        self.device, self.config = device, config
        self.scale: Tensor  # uS per unit of weight, (N, I): equal within a tile
        self.correction: Tensor
        self.reference: Tensor
        self.turn: Tensor
        self.register_buffer("scale", torch.ones(rows, columns))
        self.register_buffer("correction", torch.ones(()))
        self.register_buffer("reference", torch.zeros(()))
        self.register_buffer("turn", torch.zeros(rows, columns, dtype=torch.int32))
        self.held: Tensor | None = None  # what the last read gave

    @property
    def cells(self) -> int:
        """Number of memory cells."""
        return math.prod(self.device.shape)

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles along the outputs and along the inputs."""
        rows, columns = self.scale.shape
        return math.ceil(rows / self.config.tile), math.ceil(columns / self.config.tile)

    @property
    def w_max(self) -> Tensor:
        """The weight that the whole range of a cell stands for, (N, I): equal within a tile."""
        return self.device.g_max_uS / self.scale

    def forward(self, weight: Tensor) -> Tensor:
        """The weights that the cells hold, as one read sees them; gradients go to `weight`."""
        self.held = self.weights().to(weight.device, weight.dtype)
        return forward_as(weight, self.held)

    def weights(self) -> Tensor:
        """The weights that the cells hold, as one read sees them, float32 of the weight's shape."""
        g = self.device.read()
        if self.config.wire_ohm:
            g = behind_wires(g, self.config.tile, self.config.wire_ohm)
        # Not a mean over both: each polarity sums on its own line before the difference is taken.
        value = (g[0].mean(0) - g[1].mean(0)) / self.scale * self.correction
        return value.reshape(self.weight_shape)

    def program(self, weight: Tensor) -> None:
        """Write weights, in the device's best way; each cell of one polarity gets its share."""
        matrix = self._matrix(weight)
        self._set_scale(matrix)
        self.device.program(self._targets(matrix))
        self.correction.fill_(1.0)
        self.reference.copy_(self.weights().abs().mean())

    def pulse(self, counts: Tensor) -> None:
        """Blind pulses: positive counts (N, I or the weight's shape) raise a weight, on G+."""
        counts = counts.reshape(self.scale.shape)
        pairs = self.config.pairs
        up, down = counts.clamp_min(0), (-counts).clamp_min(0)
        both = torch.stack([up, down]).unsqueeze(1)
        # The pairs of a weight take turns, so that all of them age alike.
        place = (torch.arange(pairs).view(1, -1, 1, 1) - self.turn) % pairs
        self.device.pulse(both // pairs + (place < both % pairs))
        self.turn.add_(counts.abs().to(torch.int32)).remainder_(pairs)

    def refresh(self) -> int:
        """Write pairs anew that have used up their range on both sides; returns how many.

        A pair is RESET and its difference written to one side where the larger conductance is above
        3/4 and the smaller above 1/4 of what pulses reach (the rule of aihwkit's one-sided cells).
        """
        g = self.device.read()
        curve = self.device.pulse_curve_uS
        top = max(curve) if curve else self.device.g_max_uS
        worn = (g.amax(0) > REFRESH_HIGH * top) & (g.amin(0) > REFRESH_LOW * top)
        if not worn.any():
            return 0
        difference = g[0] - g[1]
        targets = torch.stack([difference.clamp_min(0), (-difference).clamp_min(0)])
        where = worn.unsqueeze(0).expand_as(g)
        self.device.program(targets.clamp_max(self.device.g_max_uS), where)
        return int(worn.sum())

    def compensate(self) -> float:
        """Global drift compensation: scale by what |weights| have lost; returns the factor.

        Joshi et al. 2020, as in aihwkit: the mean output for one-hot inputs, now and after
        programming.
        """
        self.correction.fill_(1.0)
        now = self.weights().abs().mean()
        self.correction.copy_(self.reference / now.clamp_min(1e-4 * self.reference + 1e-12))
        return float(self.correction)

    def clip(self, weight: Tensor) -> Tensor:
        """A weight cut off at what the cells can hold, of its own shape."""
        bound = self.w_max.to(weight.device, weight.dtype).reshape(self.weight_shape)
        return torch.minimum(torch.maximum(weight, -bound), bound)

    @property
    def epsilon(self) -> float:
        """Change of a weight by one pulse, on average over the lower half of its range.

        Raises UsageError for a device without pulses.
        """
        curve = self.device.pulse_curve_uS
        if len(curve) < 2:
            raise UsageError(
                f"the device {self.device.name!r} knows no single pulses, and training on the "
                "hardware needs them; pass --device accumulation"
            )
        half = curve[0] + (max(curve) - curve[0]) / 2
        count = max(sum(g <= half for g in curve) - 1, 1)
        step_uS = (curve[count] - curve[0]) / count
        return step_uS / (self.config.pairs * float(self.scale.mean()))

    def _matrix(self, weight: Tensor) -> Tensor:
        if tuple(weight.shape) != self.weight_shape:
            raise ValueError(f"weight must be {self.weight_shape}, got {tuple(weight.shape)}")
        matrix = weight.detach().to("cpu", torch.float32).reshape(self.scale.shape)
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("the weight holds NaN or infinite values; train it anew")
        return matrix

    def _set_scale(self, matrix: Tensor) -> None:
        tile, top = self.config.tile, self.device.g_max_uS
        if self.config.w_max:
            self.scale.fill_(top / self.config.w_max)
            return
        for a in range(0, matrix.shape[0], tile):
            for b in range(0, matrix.shape[1], tile):
                part = matrix[a : a + tile, b : b + tile]
                largest = float(part.abs().max())
                if self.config.clip_rms:
                    largest = min(
                        largest, self.config.clip_rms * float(part.square().mean().sqrt())
                    )
                self.scale[a : a + tile, b : b + tile] = top / (largest or 1.0)

    def _targets(self, matrix: Tensor) -> Tensor:
        g = (matrix * self.scale).clamp(-self.device.g_max_uS, self.device.g_max_uS)
        both = torch.stack([g.clamp_min(0), (-g).clamp_min(0)])
        return both.unsqueeze(1).expand(self.device.shape)

    def _apply(self, fn: Any, recurse: bool = True) -> Crossbar:
        """Conductances and their scale stay in float32 on the CPU, wherever the network goes."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Crossbar:
        """A chip of its own; a device outside this process is shared."""
        device: Any = self.device
        if isinstance(device, nn.Module):
            device = copy.deepcopy(device, memo)
        twin = Crossbar(self.weight_shape, device, self.config)
        twin.load_state_dict(self.state_dict())
        memo[id(self)] = twin
        return twin

    def extra_repr(self) -> str:
        return f"{self.weight_shape}, {self.config.pairs} pairs, tiles {self.tiles}"


@dataclass
class Chip:
    """A network whose weight matrices lie on crossbars, with the handles of the hardware."""

    network: nn.Module
    crossbars: dict[str, Crossbar]
    """By the name of the weight, such as "layers.0.array.weight"."""
    aimed: dict[str, Tensor]
    """The weights as they were meant when last programmed."""

    @property
    def cells(self) -> int:
        """Memory cells in all."""
        return sum(crossbar.cells for crossbar in self.crossbars.values())

    def wait(self, seconds_s: float) -> None:
        """Let time pass on all devices."""
        for crossbar in self.crossbars.values():
            crossbar.device.wait(seconds_s)

    def compensate(self) -> dict[str, float]:
        """Global drift compensation of every matrix; returns its factors."""
        return {name: crossbar.compensate() for name, crossbar in self.crossbars.items()}

    def uncompensate(self) -> None:
        """Take the factors of `compensate` back."""
        for crossbar in self.crossbars.values():
            crossbar.correction.fill_(1.0)

    def program(self, weights: dict[str, Tensor] | None = None) -> None:
        """Write all weights anew; by default those that were meant last."""
        for name, value in (weights or self.aimed).items():
            self.crossbars[name].program(value)
            self.aimed[name] = value.detach().clone()

    def save(self, path: Path) -> None:
        """The state of all crossbars and their simulated cells, as safetensors."""
        tensors = {
            f"{name}/{key}": value.contiguous()
            for name, crossbar in self.crossbars.items()
            for key, value in crossbar.state_dict().items()
        }
        save_file(tensors, path, {"format": "spikebridge-chip-1"})

    def errors(self) -> dict[str, float]:
        """Root mean square of (read - meant) over that of the meant weights, for each matrix.

        Where all weights are meant to be 0, over 1.
        """
        found = {}
        for name, crossbar in self.crossbars.items():
            meant = self.aimed[name].float()
            gap = crossbar.weights() - meant
            size = float(meant.square().mean().sqrt())
            found[name] = float(gap.square().mean().sqrt()) / (size or 1.0)
        return found


def to_crossbar(
    network: nn.Module,
    device: Cell | MakeDevice,
    config: MemoryConfig | None = None,
    *,
    seed: int = 0,
    in_place: bool = False,
) -> Chip:
    """Put every weight matrix of a network on crossbars, programmed with its present values.

    Mapped are Dense, Conv2d, Embedding and recurrent matrices of ours, torch.nn.Linear and Conv2d;
    thresholds, biases, decays, normalisations and torch.nn.Embedding stay digital.

    Args:
        network: any torch module.
        device: a cell model to simulate, or what makes a `Device` of a shape.
        config: pairs, tile, converters and the like; `device` in it is not looked at.
        seed: of simulated devices; each matrix draws from a stream of its own.
        in_place: change `network` itself rather than a copy.

    Raises UsageError for torch's RNN, GRU and LSTM, and where there is nothing to map.
    """
    config = config or MemoryConfig()
    network = network if in_place else copy.deepcopy(network)
    found = list(_weights(network))
    if not found:
        raise UsageError(
            "the network has no Linear, Conv2d or spiking layer to put on a crossbar; name one "
            "that has"
        )
    seeds = torch.Generator().manual_seed(seed)
    chip = Chip(network, {}, {})
    for name, module, field in found:
        own = int(torch.randint(2**62, (), generator=seeds))
        weight = getattr(module, field).detach().clone()
        crossbar = Crossbar(tuple(weight.shape), _device(device, weight, config, own), config)
        crossbar.program(weight)
        parametrize.register_parametrization(module, field, crossbar)
        chip.crossbars[name], chip.aimed[name] = crossbar, weight
    if config.dac_bits or config.adc_bits:
        for name, module, _ in found:
            if not isinstance(module, Layer | Embedding):
                new = Converted(module, chip.crossbars[name])
                chip.network = _swapped(chip.network, name.rpartition(".")[0], new)
    return chip


def from_crossbar(chip: Chip) -> nn.Module:
    """A plain copy of the network with the weights as one read sees them."""
    network = copy.deepcopy(chip.network)
    for name, module in list(network.named_modules()):
        if isinstance(module, Converted):
            network = _swapped(network, name, module.array)
    for name, crossbar in chip.crossbars.items():
        owner, _, field = name.rpartition(".")
        module = network.get_submodule(owner)
        # Taking a parametrisation off changes the class, which a copy shares with the original.
        kind = type(module)
        module.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
        parametrize.remove_parametrizations(module, field, leave_parametrized=False)
        with torch.no_grad():
            weight = getattr(module, field)
            weight.copy_(crossbar.weights().to(weight.device, weight.dtype))
    return network


def _weights(network: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, owner and attribute of each matrix that goes on a crossbar."""
    for name, module in network.named_modules():
        if isinstance(module, Baseline | nn.RNNBase):
            raise UsageError(
                f"{name}: torch's {type(module).__name__} keeps its matrices to itself, so no "
                "crossbar can stand in for them; use a spiking unit"
            )
        if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.transposed):
            raise UsageError(f"{name}: convolutions in groups are not mapped; use groups=1")
        prefix = f"{name}." if name else ""
        if isinstance(module, MAPPED):
            yield f"{prefix}weight", module, "weight"
        elif isinstance(module, Layer) and module.recurrent is not None:
            yield f"{prefix}recurrent", module, "recurrent"


def _device(device: Cell | MakeDevice, weight: Tensor, config: MemoryConfig, seed: int) -> Device:
    shape = (2, config.pairs, weight.shape[0], math.prod(weight.shape[1:]))
    if isinstance(device, Cell):
        return SimulatedArray(shape, device, seed=seed, dead=config.dead, stuck=config.stuck)
    return device(shape)


def _swapped(network: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """The network with another module in a place; that module itself where it was all of it."""
    if not name:
        return new
    owner, _, field = name.rpartition(".")
    network.get_submodule(owner)._modules[field] = new
    return network
