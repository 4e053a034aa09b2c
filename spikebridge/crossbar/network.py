"""Any network of torch modules on crossbars: `to_crossbar`, and `from_crossbar` off them again."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spikebridge.base.records import UsageError
from spikebridge.base.tensors import TensorFile
from spikebridge.crossbar import pcm
from spikebridge.crossbar.cells import CellArray, SimulatedArray
from spikebridge.crossbar.converters import Converted
from spikebridge.crossbar.matrix import Crossbar
from spikebridge.crossbar.measured import read_table
from spikebridge.crossbar.pcm import Cell
from spikebridge.crossbar.places import Place, copied, places
from spikebridge.nn.layers import Layer
from spikebridge.nn.synapses import Embedding
from spikebridge.settings.crossbar import CellConfig, CrossbarConfig
from spikebridge.settings.names import is_place, named

__all__ = ["Crossbar", "CrossbarNetwork", "cell_of", "from_crossbar", "to_crossbar"]

FILE = TensorFile("spikebridge-chip-1", "make it with the settings of its run", unsummed=True)
MakeCells = Callable[[tuple[int, ...]], CellArray]


def cell_of(config: CellConfig, *, pulsed: bool = False) -> Cell:
    """The cell model of a config; "pcm" is the one for pulses, or for programmed targets.

    Raises UsageError.
    """
    if config.cell_table:
        return read_table(config.cell_table)
    models = {cell.name: cell for cell in (pcm.ACCUMULATION, pcm.ACCUMULATION_2020, pcm.ITERATIVE)}
    models["pcm"] = pcm.ACCUMULATION if pulsed else pcm.ITERATIVE
    if config.cells == "ideal":
        return pcm.ideal(config.levels)
    if is_place(config.cells):
        cell = named("cells", config.cells)
        if not isinstance(cell, Cell):
            raise UsageError(
                f"cells={config.cells!r}: it must be a spikebridge.crossbar.Cell, got {cell!r}"
            )
        return cell
    if config.cells not in models:
        raise UsageError("there are no cells; pass --cells accumulation")
    return models[config.cells]


@dataclass
class CrossbarNetwork:
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
        """Let time pass for all cells."""
        for crossbar in self.crossbars.values():
            crossbar.cell_array.wait(seconds_s)

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
        """The state of all crossbars and their simulated cells, as safetensors.

        The file is written whole or not at all.
        """
        tensors: dict[str, Tensor] = {}
        for name, crossbar in self.crossbars.items():
            tensors |= crossbar.state_dict(prefix=f"{name}/")
        FILE.write(Path(path), tensors)

    def settle(self) -> None:
        """Take the weights that the cells hold now as those that are meant, after training."""
        for name, crossbar in self.crossbars.items():
            crossbar.settle()
            self.aimed[name] = crossbar.weights()

    def load(self, path: Path) -> None:
        """Put back what `save` wrote.  Raises ValueError where it does not fit."""
        try:
            _, tensors = FILE.read(Path(path))
            for name, crossbar in self.crossbars.items():
                at = f"{name}/"
                own = {k.removeprefix(at): v for k, v in tensors.items() if k.startswith(at)}
                crossbar.load_state_dict(own)
                self.aimed[name] = crossbar.weights()
        except (RuntimeError, ValueError) as error:
            remedy = "make it with the settings of its run"
            raise ValueError(f"{path}: not the cells of such a chip ({error}); {remedy}") from error

    def errors(self) -> dict[str, float]:
        """Root mean square of (read - meant) over that of the meant weights, for each matrix.

        Where all weights are meant to be 0, over 1.
        """
        errors = {}
        for name, crossbar in self.crossbars.items():
            aimed = self.aimed[name].float().cpu()
            gap = crossbar.weights() - aimed
            size = float(aimed.square().mean().sqrt())
            errors[name] = float(gap.square().mean().sqrt()) / (size or 1.0)
        return errors


def to_crossbar(
    network: nn.Module,
    cells: Cell | MakeCells,
    config: CrossbarConfig | None = None,
    *,
    seed: int = 0,
    in_place: bool = False,
) -> CrossbarNetwork:
    """Put every weight matrix of a network on crossbars, programmed with its present values.

    Mapped are Dense, Conv2d, Embedding and recurrent matrices of ours, torch.nn.Linear and Conv2d;
    thresholds, biases, decays, normalisations and torch.nn.Embedding stay digital.  So does any
    other parameter of two dimensions or more, such as those of attention, with a UserWarning that
    names it.

    A weight that is made from others is taken as it is now, and what made it (the norms of
    `torch.nn.utils`, `torch.nn.utils.parametrize`) ends: the cells hold the weight itself.  What
    `torch.nn.utils.prune` took away stays away, whatever its cells hold.

    Args:
        network: any torch module.
        cells: a cell model to simulate, or what makes a `CellArray` of a shape.
        config: pairs, tile, converters and the like.
        seed: of simulated cells; each matrix draws from a stream of its own.
        in_place: change `network` itself rather than a copy; an optimiser is made after that.

    Raises UsageError for torch's RNN, GRU and LSTM, for weights that are shared, lie on a crossbar
    already or are made in a way that is not known, for faults in cells that are not simulated, and
    where there is nothing to map.  The network is then as it was.
    """
    config = config or CrossbarConfig()
    if not isinstance(cells, Cell) and config.dead + config.stuck:
        raise UsageError(
            f"dead={config.dead}, stuck={config.stuck}: faults are drawn for simulated cells, and "
            "cells of your own have theirs; leave both out"
        )
    network = network if in_place else copied(network)
    if not (mapped := places(network)):
        raise UsageError(
            "the network has no Linear, Conv2d or spiking layer to put on a crossbar; name one "
            "that has"
        )
    _warn_of_digital(network, mapped)
    seeds = torch.Generator().manual_seed(seed)
    chip = CrossbarNetwork(network, {}, {})
    for place in mapped:
        own = int(torch.randint(2**62, (), generator=seeds))
        weight = place.value()
        shape = (2, config.pairs, weight.shape[0], math.prod(weight.shape[1:]))
        array: CellArray
        if isinstance(cells, Cell):
            array = SimulatedArray(shape, cells, seed=own, dead=config.dead, stuck=config.stuck)
        else:
            array = cells(shape)
        crossbar = Crossbar(tuple(weight.shape), array, config)
        crossbar.program(weight)
        chip.crossbars[place.name], chip.aimed[place.name] = crossbar, weight
    # The network is changed once nothing can fail any more.
    for place in mapped:
        place.put(chip.crossbars[place.name], chip.aimed[place.name])
    if config.dac_bits or config.adc_bits:
        for place in mapped:
            if not isinstance(place.module, Layer | Embedding | nn.Embedding):
                new = Converted(place.module, chip.crossbars[place.name])
                chip.network = _swapped(chip.network, place.module, new)
    return chip


def from_crossbar(chip: CrossbarNetwork) -> nn.Module:
    """A plain copy of the network with the weights as one read sees them.

    What `torch.nn.utils.prune` took away before `to_crossbar` is 0 in it, and still pruned.
    """
    network = copied(chip.network)
    for module in list(network.modules()):
        if isinstance(module, Converted):
            network = _swapped(network, module, module.array)
    for name, crossbar in chip.crossbars.items():
        owner, _, field = name.rpartition(".")
        Place(name, network.get_submodule(owner), field).take_off(crossbar.weights())
    return network


def _warn_of_digital(network: nn.Module, mapped: list[Place]) -> None:
    """Tell which matrices no crossbar stands in for."""
    known = {id(p) for place in mapped for p in place.stored}
    known |= {
        id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    digital = [n for n, p in network.named_parameters() if p.dim() > 1 and id(p) not in known]
    if digital:
        warnings.warn(
            f"these weights stay digital, no crossbar can stand in for them: {', '.join(digital)}",
            stacklevel=3,
        )


def _swapped(network: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """The network with another module wherever one was; that module itself where it was all."""
    for module in list(network.modules()):
        for key, child in module._modules.items():
            if child is old:
                module._modules[key] = new
    return new if network is old else network
