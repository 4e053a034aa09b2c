"""Which parts of a model are layers of neurons for a learning rule, and hooks on them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from spikebridge.nn.layers import Baseline, Layer, Plain
from spikebridge.nn.synapses import Conv2d, Dense, Embedding, Normalised

__all__ = ["Hook", "Node", "apart", "channels", "compile_anew", "named", "nodes", "warn_of"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (Dense, Conv2d, nn.Linear, *CONVOLUTIONS)
# They have weights of two dimensions or more, and multiply by none.
TABLES = (Embedding, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)


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
    and an array that stands alone.  What lies inside one of them is no layer of its own.  Nor is
    what multiplies by itself, see `apart`: the Linear of torch.nn.MultiheadAttention is never
    called, so that nothing could be attached to it.

    Raises ValueError where there is none, or none of that name.
    """
    layers = list(_within(model, "", set()))
    if not layers:
        raise ValueError(
            "the model has no layer that a learning rule knows; it needs a spikebridge Layer or "
            "Plain, or torch's Linear, Conv, RNN, GRU or LSTM"
        )
    if output is not None and output not in (names := [node.name for node in layers]):
        raise ValueError(
            f"output={output!r} is no layer of this model; its layers are {names}, name the one "
            "that gives the outputs"
        )
    return layers if output is None else sorted(layers, key=lambda node: node.name == output)


def apart(model: nn.Module, layers: Sequence[Node]) -> dict[str, str]:
    """What multiplies by matrices of its own and is no layer: name, and kind in words.

    No rule reaches into it: it keeps exact backpropagation.  Tables and normalisations are none.
    """
    inside = {id(m) for node in layers for m in node.module.modules()}
    names: dict[str, str] = {}
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        alone = isinstance(module, nn.MultiheadAttention)
        if isinstance(module, TABLES):
            inside |= {id(m) for m in module.modules()}
        elif alone or any(p.dim() > 1 for p in module.parameters(recurse=False)):
            inside |= {id(m) for m in module.modules()} if alone else set()
            owner = name.partition(".parametrizations")[0]
            names.setdefault(owner, type(model.get_submodule(owner)).__name__)
    return names


def named(skip: Sequence[str], layers: Sequence[str], others: dict[str, str]) -> list[str]:
    """The layers that a list of names to leave alone means.

    Args:
        skip: names of layers, of what holds layers, or of what is left alone in any case.
        layers: of the model.
        others: what `apart` gives.

    Raises ValueError for a name that is none of these.
    """
    if isinstance(skip, str):
        raise ValueError(f"skip takes names in a list, got {skip!r}; pass [{skip!r}]")
    skipped: list[str] = []
    for name in skip:
        own = [layer for layer in layers if layer == name or layer.startswith(f"{name}.")]
        if not own and not any(name == o or name.startswith(f"{o}.") for o in others):
            beside = f", and {list(others)} are left alone in any case" if others else ""
            raise ValueError(
                f"skip={[name]} are no layers of this model; its layers are {list(layers)}{beside}"
            )
        skipped += own
    return skipped


def warn_of(others: dict[str, str], skip: Sequence[str] | None) -> None:
    """One warning of what no rule reaches into, but for what the user has named in `skip`."""

    def overlap(a: str, b: str) -> bool:
        return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")

    unskipped = [name for name in others if not any(overlap(name, part) for part in skip or ())]
    rest = [f"{name or 'the model'} ({others[name]})" for name in unskipped]
    if rest:
        warnings.warn(
            f"these multiply by themselves and keep exact backpropagation: {', '.join(rest)}; name "
            "them in skip to say that this is meant",
            stacklevel=3,
        )


def channels(layer: nn.Module) -> int:
    """How many drives a neuron takes: rows of so many channels lie one below the other."""
    return getattr(layer.unit, "drives", 1) if isinstance(layer, Layer) else 1


def geometry(array: nn.Module | None) -> nn.Module | None:
    """The array that says how weights are laid out: itself, or the one inside converters."""
    inner = getattr(array, "array", None)
    return inner if isinstance(inner, WEIGHTED) else array


def _within(module: nn.Module, name: str, seen: set[int]) -> Iterator[Node]:
    if id(module) in seen:
        return
    seen.add(id(module))
    if isinstance(module, nn.MultiheadAttention):
        return
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


def _nothing(*args: Any) -> None:
    return None


def _plain() -> Callable[..., None]:
    return _nothing


class Hook:
    """A hook that stays behind when its model is copied or pickled."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _plain, ()


def compile_anew() -> None:
    """Let torch.compile see the hooks of modules as they are now, at the next call of each graph.

    Its graphs are not guarded by the hooks of modules: what was compiled before goes on without
    those that were added, and with those that were removed.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
