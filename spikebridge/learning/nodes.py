"""Which parts of a model count as layers of neurons for a learning rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from spikebridge.layers import Baseline, Layer, Plain
from spikebridge.synapses import Conv2d, Dense, Normalised

__all__ = ["Node", "nodes"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (Dense, Conv2d, nn.Linear, *CONVOLUTIONS)


class Node(NamedTuple):
    """A layer of neurons inside a model."""

    name: str
    """As in `named_modules`, such as "layers.0" or "readout.linear"."""
    module: nn.Module
    """What is called with the layer's input first."""
    array: nn.Module | None
    """What is called where that input meets the weight; None in torch's RNN, GRU and LSTM."""


def nodes(model: nn.Module, output: str | None = None) -> list[Node]:
    """The layers of a model in the order of registration, but the output layer last.

    Args:
        output: name of the output layer; None takes the one that was registered last.

    Layers are `Layer`, `Plain` and `Baseline`, torch's Linear, Conv1d to Conv3d, RNN, GRU and LSTM,
    and an array that stands alone.  What lies inside one of them is no layer of its own.

    Raises ValueError where there is none, none of that name, and for torch.nn.MultiheadAttention,
    whose Linear is never called: nothing could be attached to it.
    """
    found = list(_within(model, "", set()))
    if not found:
        raise ValueError(
            "the model has no layer that a learning rule knows; it needs a spikebridge Layer or "
            "Plain, or torch's Linear, Conv, RNN, GRU or LSTM"
        )
    if output is not None and output not in (names := [node.name for node in found]):
        raise ValueError(
            f"output={output!r} is no layer of this model; its layers are {names}, name the one "
            "that gives the outputs"
        )
    return found if output is None else sorted(found, key=lambda node: node.name == output)


def geometry(array: nn.Module | None) -> nn.Module | None:
    """The array that says how weights are laid out: itself, or the one inside converters."""
    inner = getattr(array, "array", None)
    return inner if isinstance(inner, WEIGHTED) else array


def _within(module: nn.Module, name: str, seen: set[int]) -> Iterator[Node]:
    if id(module) in seen:
        return
    seen.add(id(module))
    if isinstance(module, nn.MultiheadAttention):
        raise ValueError(
            f"{name or 'the model'}: torch's MultiheadAttention multiplies by itself, out of reach "
            "of a learning rule; write it with Linear layers"
        )
    if isinstance(module, Layer | Plain):
        array = module.array
        yield Node(name, module, array.array if isinstance(array, Normalised) else array)
    elif isinstance(module, Baseline | nn.RNNBase):
        yield Node(name, module, None)
    elif isinstance(module, WEIGHTED) or _converted(module):
        yield Node(name, module, module)
    else:
        for key, child in module.named_children():
            yield from _within(child, f"{name}.{key}" if name else key, seen)


def _converted(module: nn.Module) -> bool:
    """Whether it stands in for an array that it holds but does not call: behind converters."""
    return hasattr(module, "crossbar") and isinstance(getattr(module, "array", None), WEIGHTED)
