"""Which matrices of a network go on crossbars, and what each of them is now.

A weight may be no plain parameter: torch's pruning, its norms and `torch.nn.utils.parametrize` make
it anew from others at each use.  Cells hold numbers, so what counts is its value at present.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from spikebridge.base.records import UsageError
from spikebridge.crossbar.matrix import Crossbar
from spikebridge.nn.layers import Baseline, Layer
from spikebridge.nn.synapses import Conv2d, Dense, Embedding, Noisy, Rounded

__all__ = ["MAPPED", "Place", "Pruned", "copied", "places", "remade"]

MAPPED = (Dense, Conv2d, Embedding, nn.Linear, nn.Conv2d)
# Those of ours stay in front of a crossbar: training on the cells goes on through them.
KEPT = (Rounded, Noisy)
Anything = TypeVar("Anything")


class Pruned(nn.Module):
    """A weight without the entries that `torch.nn.utils.prune` took away, nor their gradients."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask: Tensor
        self.register_buffer("mask", mask.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, 0 where the mask is."""
        return weight * self.mask.to(weight.dtype)


@dataclass(frozen=True)
class Place:
    """A matrix of a network: attribute `field` of a module."""

    name: str
    """As in `named_parameters`, such as "layers.0.array.weight"."""
    module: nn.Module
    field: str

    @property
    def stored(self) -> list[Tensor]:
        """The parameters that it is made of."""
        if chain := self._chain():
            originals = [chain.original] if chain.is_tensor else list(chain.parameters(False))
            return [p for p in originals if p is not None]
        names = [self.field + end for end in ("", "_orig", "_g", "_v")]
        stored = [self.module._parameters.get(name) for name in names]
        return [p for p in stored if p is not None]

    @torch.no_grad()
    def value(self) -> Tensor:
        """The weight as it is in use, without noise of training; nothing changes by asking."""
        if chain := self._chain():
            return _still(chain).detach().clone()
        hook = self._hook()
        if isinstance(hook, prune.BasePruningMethod):
            return hook.apply_mask(self.module).detach().clone()
        if isinstance(hook, WeightNorm):
            return hook.compute_weight(self.module).detach().clone()
        if isinstance(hook, SpectralNorm):
            return hook.compute_weight(self.module, do_power_iteration=False).detach().clone()
        return getattr(self.module, self.field).detach().clone()

    def check(self) -> None:
        """Raise UsageError where it is not known how the weight is made."""
        if any(is_lazy(p) for p in self.stored):
            raise UsageError(f"{self.name} has no shape yet; call the network once before")
        if chain := self._chain():
            if any(isinstance(step, Crossbar) for step in chain):
                raise UsageError(
                    f"{self.name} lies on a crossbar already; take it off by from_crossbar(chip) "
                    "first, or program that chip anew"
                )
        elif self._hook() is None and self.field not in self.module._parameters:
            raise UsageError(
                f"{self.name} is no parameter, but made from others in a way that is not known "
                f"here; put its value into a torch.nn.Parameter of the name {self.field!r}"
            )

    def put(self, crossbar: Crossbar, value: Tensor) -> None:
        """Let the crossbar stand in for the weight, whose present value is given.

        What made the weight so far ends, but for roundings and noise of ours and for pruning.
        """
        hook = self._hook()
        mask: Any = getattr(self.module, f"{self.field}_mask", None)
        trained = any(p.requires_grad for p in self.stored)
        if (chain := self._chain()) and not all(isinstance(step, KEPT) for step in chain):
            own_class(self.module)
            chain.eval()  # the power iteration of a spectral norm stands still
            parametrize.remove_parametrizations(self.module, self.field)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(self.module, self.field)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(self.module, self.field)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(self.module, self.field)
        if not self._chain():
            if self.field not in self.module._parameters:  # torch leaves frozen ones as buffers
                delattr(self.module, self.field)
                self.module.register_parameter(self.field, nn.Parameter(value.clone()))
            getattr(self.module, self.field).requires_grad_(trained)
        parametrize.register_parametrization(self.module, self.field, crossbar)
        if isinstance(hook, prune.BasePruningMethod):
            parametrize.register_parametrization(self.module, self.field, Pruned(mask))

    def take_off(self, weights: Tensor) -> None:
        """Make it a plain parameter of these values again, pruned where it was pruned."""
        chain = self._chain()
        mask = next((step.mask for step in chain if isinstance(step, Pruned)), None)
        own_class(self.module)
        parametrize.remove_parametrizations(self.module, self.field, leave_parametrized=False)
        with torch.no_grad():
            weight = getattr(self.module, self.field)
            weight.copy_(weights.to(weight.device, weight.dtype))
        if mask is not None:
            prune.custom_from_mask(self.module, self.field, mask)

    def _chain(self) -> Any:
        """The parametrisations of the weight, or None."""
        known = parametrize.is_parametrized(self.module, self.field)
        return self.module.parametrizations[self.field] if known else None  # type: ignore[index]

    def _hook(self) -> Any:
        """What makes the weight before each call, in the older way of torch; or None."""
        for hook in self.module._forward_pre_hooks.values():
            if remade(hook) == self.field:
                return hook
        return None


def remade(hook: Any) -> str | None:
    """The attribute that a hook of torch makes anew before each call; None for other hooks."""
    if isinstance(hook, prune.BasePruningMethod):
        return hook._tensor_name
    return hook.name if isinstance(hook, WeightNorm | SpectralNorm) else None


def places(network: nn.Module) -> list[Place]:
    """Each matrix that goes on a crossbar; UsageError for what cannot."""
    owners: dict[int, str] = {}
    mapped = list(_places(network))
    for place in mapped:
        place.check()
        for parameter in place.stored:
            other = owners.setdefault(id(parameter), place.name)
            if other != place.name:
                names = [name.rpartition(".")[0] for name in (place.name, other)]
                raise UsageError(
                    f"{names[0]} and {names[1]} share a weight, which cells cannot; give each its "
                    "own"
                )
    return mapped


def _places(network: nn.Module) -> Iterator[Place]:
    tied = bool(getattr(network, "tied", False))
    for name, module in network.named_modules():
        where = f"{name}: " if name else ""
        if isinstance(module, Baseline | nn.RNNBase):
            kind = type(getattr(module, "core", module)).__name__
            raise UsageError(
                f"{where}torch's {kind} keeps its matrices to itself, so no crossbar can stand in "
                "for them; use a spiking unit"
            )
        if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.transposed):
            raise UsageError(f"{where}convolutions in groups are not mapped; use groups=1")
        prefix = f"{name}." if name else ""
        # An embedding is a table to look up, but for one whose matrix is that of the outputs too.
        if isinstance(module, MAPPED) or (tied and isinstance(module, nn.Embedding)):
            yield Place(f"{prefix}weight", module, "weight")
        elif isinstance(module, Layer) and module.recurrent is not None:
            yield Place(f"{prefix}recurrent", module, "recurrent")


def copied(thing: Anything) -> Anything:
    """A deep copy of a network, or of what holds one.

    Older ways of torch leave a weight of the last call on its module, which carries that call's
    graph and which torch refuses to copy; the next call makes it anew.
    """
    network: Any = getattr(thing, "network", thing)
    memo: dict[int, Any] = {}
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(thing, memo)


def own_class(module: nn.Module) -> None:
    """Give a parametrised module a class of its own: a copy shares that of its original.

    Taking a parametrisation off changes the class.
    """
    kind = type(module)
    module.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))


def _still(chain: Any) -> Tensor:
    """What parametrisations give in use, whatever the mode of their network."""
    modes = [(module, module.training) for module in chain.modules()]
    chain.eval()
    try:
        return chain()
    finally:
        for module, training in modes:
            module.training = training
