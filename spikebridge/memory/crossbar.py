"""Any network of torch modules on crossbars: `Chip`.

`to_crossbar` puts every weight matrix of a
network on cells and gives a `Chip`, `from_crossbar` takes them off again.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spikebridge.layers import Baseline, Layer
from spikebridge.memory import pcm
from spikebridge.memory.array import Device, SimulatedArray
from spikebridge.memory.converters import Converted
from spikebridge.memory.matrix import Crossbar
from spikebridge.memory.measured import read_table
from spikebridge.memory.pcm import Cell
from spikebridge.memory_config import MemoryConfig
from spikebridge.records import UsageError
from spikebridge.synapses import Conv2d, Dense, Embedding

__all__ = ["Chip", "Crossbar", "cell_of", "from_crossbar", "to_crossbar"]

MakeDevice = Callable[[tuple[int, ...]], Device]
# What a parametrised weight, such as one of few bits, is called among parameters.
ORIGINAL = re.compile(r"parametrizations\.(\w+)\.original\d*$")
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

    def settle(self) -> None:
        """Take the weights that the cells hold now as those that are meant, after training."""
        for name, crossbar in self.crossbars.items():
            crossbar.settle()
            self.aimed[name] = crossbar.weights()

    def load(self, path: Path) -> None:
        """Put back what `save` wrote.  Raises ValueError where it does not fit."""
        try:
            tensors = load_file(path)
            for name, crossbar in self.crossbars.items():
                own = {
                    k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(name)
                }
                crossbar.load_state_dict(own)
                self.aimed[name] = crossbar.weights()
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{path}: not the cells of such a chip ({error}); make it with the settings of "
                "its run"
            ) from error

    def errors(self) -> dict[str, float]:
        """Root mean square of (read - meant) over that of the meant weights, for each matrix.

        Where all weights are meant to be 0, over 1.
        """
        found = {}
        for name, crossbar in self.crossbars.items():
            meant = self.aimed[name].float().cpu()
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
    thresholds, biases, decays, normalisations and torch.nn.Embedding stay digital.  So does any
    other parameter of two dimensions or more, such as those of attention, with a UserWarning that
    names it.

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
    _warn_of_digital(network, {name for name, *_ in found})
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
            if not isinstance(module, Layer | Embedding | nn.Embedding):
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
    owners: dict[int, str] = {}
    tied = bool(getattr(network, "tied", False))
    for name, module in network.named_modules():
        if isinstance(module, Baseline | nn.RNNBase):
            raise UsageError(
                f"{name}: torch's {type(module).__name__} keeps its matrices to itself, so no "
                "crossbar can stand in for them; use a spiking unit"
            )
        if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.transposed):
            raise UsageError(f"{name}: convolutions in groups are not mapped; use groups=1")
        prefix = f"{name}." if name else ""
        # An embedding is a table to look up, but for one whose matrix is that of the outputs too.
        if isinstance(module, MAPPED) or (tied and isinstance(module, nn.Embedding)):
            other = owners.setdefault(id(module.weight), name)
            if other != name:
                raise UsageError(
                    f"{name} and {other} share a weight, which cells cannot; give each its own"
                )
            yield f"{prefix}weight", module, "weight"
        elif isinstance(module, Layer) and module.recurrent is not None:
            yield f"{prefix}recurrent", module, "recurrent"


def _warn_of_digital(network: nn.Module, mapped: set[str]) -> None:
    """Tell which matrices no crossbar stands in for."""
    tables = {
        id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    digital = [
        name
        for name, p in network.named_parameters()
        if p.dim() > 1 and ORIGINAL.sub(r"\1", name) not in mapped and id(p) not in tables
    ]
    if digital:
        warnings.warn(
            f"these weights stay digital, no crossbar can stand in for them: {', '.join(digital)}",
            stacklevel=3,
        )


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
