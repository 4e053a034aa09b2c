"""Weights as construction draws them, again: `reset_parameters`, as torch's own layers call it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["GRU", "LSTM", "RNN", "EmbeddingTable", "Fresh", "Linear", "redraw"]


class Fresh(nn.Module):
    """A module whose parameters, and those of all modules in it, can be drawn anew.

    From the same seed `reset_parameters` gives what construction gives.  So does the loop

        for m in model.modules():
            if hasattr(m, "reset_parameters"):
                m.reset_parameters()

    which resets a module and then, once more, the modules in it: what is reset right after the
    module that holds it repeats what it drew there, and leaves torch's generators where they are.
    """

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in the order of construction; statistics start again too."""
        with _drawing(self):
            for part in _parts(self):
                part.reset_parameters()
            self.draw()

    def draw(self) -> None:
        """This module's own parameters and buffers."""


def _parts(module: nn.Module) -> Iterator[Any]:
    for child in module.children():
        if hasattr(child, "reset_parameters"):
            yield child
        else:
            yield from _parts(child)


class _Now(threading.local):
    # Modules that are drawn within another one, each with the generators' states before it.
    within: list[tuple[nn.Module, list[Tensor]]] | None = None


_now = _Now()
# Of modules that another one has drawn: the generators' states before them, and after all of it.
_drawn: WeakKeyDictionary[nn.Module, tuple[list[Tensor], list[Tensor]]] = WeakKeyDictionary()


@contextmanager
def _drawing(module: nn.Module) -> Iterator[None]:
    if _now.within is not None:
        _now.within.append((module, _generators()))
        yield
        return
    earlier = _drawn.pop(module, None)
    after = None if earlier is None else _generators()
    if earlier is not None and after is not None and _same(after, earlier[1]):
        _wind(earlier[0])
    else:
        earlier = None
    _now.within = []
    try:
        yield
    finally:
        parts, _now.within = _now.within, None
        if earlier is not None and after is not None:
            _wind(after)
        elif parts:
            end = _generators()
            _drawn.update({part: (begin, end) for part, begin in parts})


def _generators() -> list[Tensor]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.default_generator.get_state(), *cuda]


def _wind(states: list[Tensor]) -> None:
    torch.default_generator.set_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@torch.no_grad()
def redraw(module: nn.Module, name: str, fill: Callable[[Tensor], Any]) -> None:
    """Fill a parameter in place; a parametrised or pruned one by way of what stands behind it.

    In float32 at least, so that a seed gives the same weights in every precision.  On the meta
    device, which has no numbers, nothing is done.

    Raises RuntimeError for a weight on the cells of a crossbar.
    """
    hidden = f"{name}_orig"  # of torch.nn.utils.prune
    if parametrize.is_parametrized(module, name):
        chain: Any = module.parametrizations[name]  # type: ignore[index]
        if any(hasattr(part, "program") for part in chain):
            raise RuntimeError(
                "the weight lies on the cells of a crossbar; reset before to_crossbar, or write "
                "other weights with chip.program(weights)"
            )
        if all(hasattr(part, "right_inverse") for part in chain):
            value = getattr(module, name).clone()
            _fill(value, fill)
            setattr(module, name, value)
        else:
            _fill(chain.original, fill)
    else:
        _fill(getattr(module, hidden if hidden in module._parameters else name), fill)


def _fill(target: Tensor, fill: Callable[[Tensor], Any]) -> None:
    drawn_in = torch.promote_types(torch.get_default_dtype(), torch.float32)
    if target.is_meta:
        return
    if target.dtype == drawn_in:
        fill(target)
    else:
        value = torch.empty_like(target, dtype=drawn_in)
        fill(value)
        target.copy_(value)


class _OfTorch:
    """A layer of torch that repeats itself as `Fresh` does."""

    def reset_parameters(self) -> None:
        with _drawing(self):  # type: ignore[arg-type]
            super().reset_parameters()  # type: ignore[misc]


class Linear(_OfTorch, nn.Linear):
    """torch.nn.Linear, whose parametrised weights can be drawn anew too."""

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        with _drawing(self):
            redraw(self, "weight", lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)))
            if self.bias is not None:
                redraw(self, "bias", lambda b: nn.init.uniform_(b, -bound, bound))


class RNN(_OfTorch, nn.RNN):
    """torch.nn.RNN."""

    label = "RNN"


class GRU(_OfTorch, nn.GRU):
    """torch.nn.GRU."""

    label = "GRU"


class LSTM(_OfTorch, nn.LSTM):
    """torch.nn.LSTM."""

    label = "LSTM"


class EmbeddingTable(_OfTorch, nn.Embedding):
    """torch.nn.Embedding whose vectors start uniform in [-0.1, 0.1)."""

    def reset_parameters(self) -> None:
        with _drawing(self):
            super().reset_parameters()  # its draws are part of what a seed gives
            redraw(self, "weight", lambda w: nn.init.uniform_(w, -0.1, 0.1))
