"""What a network makes a crossbar do: inputs that drive rows, reads, sums that are converted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.crossbar.converters import Converted, padded
from spikebridge.crossbar.network import CrossbarNetwork
from spikebridge.crossbar.places import MAPPED
from spikebridge.energy.costs import Counts
from spikebridge.nn.layers import Layer, Readout
from spikebridge.nn.synapses import Embedding

__all__ = ["Traffic", "counts", "listening"]


@dataclass
class Traffic:
    """What went through a weight matrix while it was listened to.

    Args:
        rows, columns: inputs and outputs of the matrix; of a convolution, those of one patch.
        vectors: input vectors (patches) that were multiplied.
        active: inputs among them that were not zero.
        binary: whether all of those were 1.
    """

    rows: int
    columns: int
    vectors: float = 0.0
    active: float = 0.0
    binary: bool = True

    def add(self, x: Tensor, *, binary: bool = True) -> None:
        """Count inputs (.., rows)."""
        self.vectors += x.numel() / self.rows
        self.active += float(torch.count_nonzero(x))
        self.binary &= binary

    @property
    def macs(self) -> float:
        """Multiplications with addition of the dense products."""
        return self.vectors * self.rows * self.columns

    @property
    def events(self) -> float:
        """Additions where only inputs that are not zero cause any."""
        return self.active * self.columns


@contextmanager
def listening(network: nn.Module) -> Iterator[tuple[dict[str, Traffic], dict[str, float]]]:
    """Count what goes through a network's weight matrices and neurons while this lasts.

    Gives the traffic by the name of the weight, as in `CrossbarNetwork.crossbars`,
    and the updates of neurons by the name of their layer.  For networks on cells and off them.
    """
    traffic: dict[str, Traffic] = {}
    updates: dict[str, float] = {}
    hooks = []
    inside = {id(m.array) for m in network.modules() if isinstance(m, Converted)}
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        if id(module) in inside:
            continue
        if isinstance(module, (Converted, *MAPPED)):
            hooks.append(module.register_forward_pre_hook(_of_array(traffic, f"{prefix}weight")))
        elif isinstance(module, Readout) and module.bias is not None:
            hooks.append(module.linear.register_forward_hook(_of_tied(traffic, len(module.bias))))
        elif isinstance(module, Layer):
            hooks.append(module.register_forward_hook(_of_layer(traffic, updates, name, prefix)))
    try:
        yield traffic, updates
    finally:
        for hook in hooks:
            hook.remove()


def counts(
    traffic: dict[str, Traffic], updates: dict[str, float], chip: CrossbarNetwork, inferences: float
) -> tuple[Counts, Counts]:
    """Events per inference: of spike inputs and of inputs with several bits.

    Digital hardware can leave out what is zero only in the former; neuron updates count there.
    """
    sparse, dense = Counts(neuron_updates=sum(updates.values())), Counts()
    for name, seen in traffic.items():
        crossbar = chip.crossbars[name]
        tile = crossbar.config.tile
        across, along = math.ceil(seen.columns / tile), math.ceil(seen.rows / tile)
        cells = seen.events * 2 * crossbar.config.pairs
        reading = Counts(
            macs=seen.macs,
            weights_fetched=seen.macs,
            accumulates=seen.events if seen.binary else 0.0,
            cell_reads=cells,
            read_uS=cells * float(crossbar.cell_array.read().mean()),
            adc_conversions=seen.vectors * seen.columns * along,
            row_events=seen.active * across if seen.binary else 0.0,
            dac_conversions=0.0 if seen.binary else seen.active * across,
            tile_reads=seen.vectors,  # all tiles of a matrix at the same time
        )
        sparse, dense = (sparse + reading, dense) if seen.binary else (sparse, dense + reading)
    return sparse * (1 / inferences), dense * (1 / inferences)


def _of_array(traffic: dict[str, Traffic], key: str) -> Callable[..., None]:
    def hook(module: Any, given: tuple[Any, ...]) -> None:
        x = given[0].detach()
        if isinstance(module, Embedding):  # a row is looked up, whatever its number
            traffic.setdefault(key, Traffic(1, module.out_features)).add(torch.ones_like(x))
            return
        array = module.array if isinstance(module, Converted) else module
        shape = _weight_shape(array)
        seen = traffic.setdefault(key, Traffic(math.prod(shape[1:]), shape[0]))
        binary = bool(((x == 0) | (x == 1)).all())
        if len(shape) == 2:
            seen.add(x, binary=binary)
            return
        images = x.reshape(-1, *array.in_shape) if hasattr(array, "in_shape") else x
        images = (images.unsqueeze(0) if images.dim() == 3 else images) != 0
        patches = F.conv2d(
            padded(images.float(), array),
            torch.ones(1, *shape[1:]),
            stride=array.stride,
            dilation=getattr(array, "dilation", 1),
        )
        seen.vectors += patches.numel()
        seen.active += float(patches.sum())
        seen.binary &= binary

    return hook


def _of_layer(
    traffic: dict[str, Traffic], updates: dict[str, float], name: str, prefix: str
) -> Callable[..., None]:
    def hook(module: Any, given: tuple[Any, ...], output: Any) -> None:
        y: Tensor = output[0].detach()
        updates[name] = updates.get(name, 0.0) + y.numel()
        if not _recurrent(module):
            return
        size = module.unit.size
        seen = traffic.setdefault(f"{prefix}recurrent", Traffic(size, size))
        seen.add(y[:-1], binary=module.spiking)
        seen.vectors += y.shape[1]  # the first step hears silence, or the outputs of the state
        if len(given) > 1 and given[1] is not None:
            seen.active += float(torch.count_nonzero(given[1].y))

    return hook


def _of_tied(traffic: dict[str, Traffic], outputs: int) -> Callable[..., None]:
    """The product with the embedding's matrix behind the linear map of a tied readout."""

    def hook(module: Any, given: tuple[Any, ...], output: Tensor) -> None:
        seen = traffic.setdefault("embedding.weight", Traffic(output.shape[-1], outputs))
        seen.add(output.detach(), binary=False)

    return hook


def _recurrent(layer: Any) -> bool:
    return "recurrent" in getattr(layer, "parametrizations", {}) or (
        layer._parameters.get("recurrent") is not None
    )


def _weight_shape(array: Any) -> torch.Size:
    """Without asking for the weight itself, which would be a read."""
    if "weight" in getattr(array, "parametrizations", {}):
        return array.parametrizations.weight.original.shape
    return array.weight.shape
