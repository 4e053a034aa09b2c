"""The hooks through which the factors of GRAPES act.

    d_l <- M_l * d_l                    ScaledError, where the error enters a layer (propagated)
    dW_l[i, k] <- M_i dW_l[i, k]        ScaledGradient, of each parameter (local)
    dW_l[i, k] <- P'_i P_k dW_l[i, k]   the same, by the weights that go out (outgoing)

Hooks belong to one handle and one model.  Copies and pickles of that model get hooks that do
nothing in their place.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from spikebridge.learning.grapes_factors import NeuronWeights, Population, inner, populations_of
from spikebridge.learning.model_layers import CONVOLUTIONS, Hook
from spikebridge.nn.gradients import modulate
from spikebridge.nn.kernels.product import traced
from spikebridge.nn.layers import Layer
from spikebridge.nn.rnn import SNU, SoftSNU
from spikebridge.nn.synapses import Conv2d, Dense, Embedding, Normalised

__all__ = [
    "InnerState",
    "LayerFactors",
    "OwnParameters",
    "ScaledError",
    "ScaledGradient",
    "StackFactors",
    "incoming_factors",
    "outgoing_factors",
]


class StackFactors:
    """A `spikebridge.nn.rnn` module: its layers' states come out as one, (layers, B, N)."""

    output = None

    def __init__(self, module: Any) -> None:
        self.module = module
        self.states: Tensor | None = None

    def allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        """Factors of the states, all 1."""
        shape = (len(self.module.layers), 1, self.module.hidden_size)
        self.states = torch.ones(shape, device=device, dtype=dtype)


class LayerFactors:
    """A layer with its factors, which stay where they are and are written anew.

    Args:
        name, module: of the layer.
        populations: the number of each in the handle; None where the factor is 1.
        sizes: neurons of each.
        before: number and size of the population of its inputs (outgoing importance).
        stack: the `StackFactors` that holds it, and its place there.

    Attributes:
        m: M, or P' of the layer above, (populations, N).
        p: P of the neurons below, (I,), with outgoing importance; else None.
        output, states: what outputs and states are multiplied by, backwards; None where nothing.
        hooked: each parameter with a `ScaledGradient`, after its module and its name there.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        populations: Sequence[int | None],
        sizes: Sequence[int],
        *,
        before: tuple[int, int] | None = None,
        stack: tuple[StackFactors, int] | None = None,
    ) -> None:
        self.name, self.module = name, module
        self.populations, self.sizes = list(populations), list(sizes)
        self.below, self.stack = before, stack
        self.m = torch.ones(len(sizes), sizes[0])
        self.p: Tensor | None = None
        self.output: Tensor | None = None
        self.states: Tensor | None = None
        self.hooked: list[tuple[nn.Module, str, nn.Parameter]] = []
        self.holder = inner(module)

    @property
    def top(self) -> int:
        """Number of the first population that hands out the outputs: those below are local."""
        return len(self.sizes) - (2 if getattr(self.holder, "bidirectional", False) else 1)

    def allocate(self, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """Fresh factors of 1; gives the populations and where their factors go."""
        ones = partial(torch.ones, device=device, dtype=dtype)
        self.m, self.p, self.states = ones(len(self.sizes), self.sizes[0]), None, None
        self.output = self.m[0]
        targets = list(zip(self.populations, self.m, strict=True))
        if isinstance(self.holder, nn.RNNBase):
            self.states = ones(len(self.sizes), 1, self.sizes[0])
            self.output = self.states[self.top :].view(-1)
            targets += [(self.populations[k], self.states[k, 0]) for k in self._tops()]
        elif isinstance(self.holder, CONVOLUTIONS):
            pixels = next(d for d, kind in enumerate(CONVOLUTIONS, 1) if _is(self.holder, kind))
            self.output = self.m[0].view(-1, *[1] * pixels)
        elif isinstance(self.module, Layer) and self.stack is None:
            self.states = self.m[0]
        if self.stack is not None and self.stack[0].states is not None:
            targets.append((self.populations[0], self.stack[0].states[self.stack[1], 0]))
        if self.below is not None:
            self.p = ones(self.below[1])
            targets.append((self.below[0], self.p))
        return ((population, to) for population, to in targets if population is not None)

    def _tops(self) -> range:
        return range(self.top, len(self.sizes))

    def parameters(self) -> Iterator[tuple[nn.Parameter, int, int, int, int]]:
        """Each own parameter that has neurons, with population, axis, gates and repeat.

        Raises ValueError for a parameter that belongs to no neurons.
        """
        for path, parameter in self.module.named_parameters():
            parts = path.split(".")
            hidden = "parametrizations" in parts
            name = parts[parts.index("parametrizations") + 1] if hidden else parts[-1]
            rows = self._rows_of(name, parameter)
            if rows is not None:
                yield parameter, *rows
            elif parameter.dim():  # a decay that a layer shares belongs to none of its neurons
                raise ValueError(
                    f"{self.name!r}: the parameter {path} {tuple(parameter.shape)} has no row for "
                    f'each of {self.sizes[0]} neurons; use form="propagated", or name the layer '
                    "in skip"
                )

    def _rows_of(self, name: str, parameter: Tensor) -> tuple[int, int, int, int] | None:
        if isinstance(self.holder, nn.RNNBase):
            place = re.search(r"_l(\d+)(_reverse)?$", name)
            assert place is not None
            k = int(place[1]) * (len(self.sizes) - self.top) + bool(place[2])
            return k, 0, parameter.shape[0] // self.sizes[0], 1
        n, shape = self.sizes[0], tuple(parameter.shape) or (0,)
        if isinstance(self.holder, Embedding) and name == "weight":
            return 0, 1, 1, 1
        if shape[0] == n:
            return 0, 0, 1, 1
        shared = isinstance(self.holder, Conv2d) and shape[0] == self.holder.out_shape[0]
        return (0, 0, 1, n // shape[0]) if shared else None


def _is(holder: nn.Module, kind: type) -> bool:
    return isinstance(holder, kind)


class ScaledError(Hook):
    """Forward hook: multiplies the errors that will arrive at what a layer hands out.

    Args:
        refresh: puts the factors on the device of the weights, and computes them.
        at: a `LayerFactors`, or a `StackFactors`.
    """

    def __init__(self, refresh: Callable[[], None], at: LayerFactors | StackFactors) -> None:
        self.refresh, self.at = refresh, at
        self.mark = f"_grapes_inside_{id(self)}"
        _sole_owners()  # while no transform of torch.func is at work

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not torch.is_grad_enabled():
            return output
        y, state = (output, None) if isinstance(output, Tensor) else output
        data = y.data if isinstance(y, PackedSequence) else y
        if not traced():
            self._follow(data)
        factor, states = self.at.output, self.at.states
        if factor is not None:
            data = _error_scaled(data, factor)
            y = y._replace(data=data) if isinstance(y, PackedSequence) else data
        if states is not None:
            state = _map_state(state, partial(self._handed, states))
        return y if isinstance(output, Tensor) else (y, state)

    def _follow(self, y: Tensor) -> None:
        """The model may have gone to another device, or to float64."""
        factor = self.at.states if self.at.output is None else self.at.output
        if factor is None:
            return
        wider = y.dtype is torch.float64 is not factor.dtype
        if wider or factor.device != y.device:
            self.refresh()

    def _handed(self, factor: Tensor, state: Tensor) -> Tensor:
        """A state that is multiplied when it is used outside, and remembers what it is inside."""
        if factor.dim() > state.dim():  # one sequence, without a batch
            factor = factor.squeeze(1)
        # A view: the inner state may be part of the outputs too, and is not multiplied twice.
        handed = _error_scaled(state if traced() else state.view_as(state), factor)
        setattr(handed, self.mark, state)
        return handed


class InnerState(Hook):
    """Forward pre-hook: a state that comes back is the inner one again; see `ScaledError`."""

    def __init__(self, entrance: ScaledError) -> None:
        self.mark = entrance.mark

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if len(args) > 1:
            return (args[0], _map_state(args[1], self._inner), *args[2:]), kwargs
        own = {k: _map_state(v, self._inner) for k, v in kwargs.items() if k in ("state", "hx")}
        return (args, {**kwargs, **own}) if own else None

    def _inner(self, state: Tensor) -> Tensor:
        return getattr(state, self.mark, state)


class ScaledGradient(Hook):
    """Tensor hook of a parameter: multiplies its gradient, row by row.

    Args:
        refresh: as in `ScaledError`.
        node, k: the factors.
        axis, gates, repeat: see `spikebridge.learning.grapes_factors.NeuronWeights`.
    """

    def __init__(
        self,
        refresh: Callable[[], None],
        node: LayerFactors,
        k: int,
        axis: int,
        gates: int,
        repeat: int,
    ) -> None:
        self.refresh, self.node, self.k = refresh, node, k
        self.axis, self.gates, self.repeat = axis, gates, repeat

    def __call__(self, grad: Tensor) -> Tensor:
        node = self.node
        wider = grad.dtype == torch.float64 != node.m.dtype
        if not traced() and (wider or grad.device != node.m.device):
            self.refresh()
        m = node.m[self.k][:: self.repeat].to(grad.dtype)
        if self.gates > 1:
            rows = grad.unflatten(0, (self.gates, -1))
            return (rows * m.view(-1, *[1] * (grad.dim() - 1))).flatten(0, 1)
        shape = [1] * grad.dim()
        shape[self.axis] = -1
        scaled = grad * m.view(shape)
        p = node.p
        if p is not None and grad.dim() == 2 and grad.shape[1] == p.shape[0]:
            scaled *= p.to(grad.dtype)
        return scaled


class OwnParameters(Hook):
    """Forward pre-hook: RuntimeError in a call with parameters that have no `ScaledGradient`."""

    def __init__(self, node: LayerFactors) -> None:
        self.node = node

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not torch.is_grad_enabled():
            return
        for part, key, parameter in self.node.hooked:
            if part._parameters.get(key) is not parameter:
                raise RuntimeError(
                    f"{self.node.name}: the local form of GRAPES scales the gradients of the "
                    f"parameters that the model had, and {key} is another tensor in this call; "
                    'with functional_call or torch.func use form="propagated", after replacing a '
                    "parameter call refresh()"
                )


def _error_scaled(y: Tensor, factor: Tensor) -> Tensor:
    """y, whose gradient will be multiplied by the factor as it is now."""
    if traced():
        return modulate(y, _as_wide(factor, y))
    if y.requires_grad:
        # No copy of y; and what changes y in place afterwards leaves this gradient's place alone.
        sole = _sole_owners() if y._backward_hooks is None else None
        y.register_hook(partial(_times_m, factor, factor._version, sole))
    return y


def _times_m(
    factor: Tensor, version: int, sole: _Owners | list[_Owners] | None, grad: Tensor | None
) -> Tensor | None:
    if grad is None:  # one of several outputs of a kernel, and nobody used it
        return None
    if factor._version != version:
        raise RuntimeError(
            "the factors of GRAPES have changed between forward and backward: an optimiser's "
            "step, refresh() or detach() came between; run backward() first"
        )
    scale = _as_wide(factor if factor.dtype is grad.dtype else factor.to(grad.dtype), grad)
    # A second array as large as the activations is most of what GRAPES costs.
    if sole is None or type(grad) is not Tensor or torch.is_grad_enabled():
        return grad * scale
    owners = _owners(grad)
    if isinstance(sole, list) and owners is not None:
        sole.append(owners)
    return grad.mul_(scale) if owners == sole else grad * scale


def _as_wide(factor: Tensor, x: Tensor) -> Tensor:
    """Factors (N,) for states (B, k N), where a neuron keeps more than its membrane."""
    if factor.dim() > 1 or x.shape[-1] == factor.shape[0]:
        return factor
    return factor.repeat(x.shape[-1] // factor.shape[0])


# Who holds a gradient: as a tensor, as memory, as an object of Python.
_Owners = tuple[int, int, int]


def _owners(grad: Tensor) -> _Owners | None:
    try:
        memory = torch._C._storage_Use_Count(grad.untyped_storage()._cdata)
        return grad._use_count(), memory, sys.getrefcount(grad)  # type: ignore[attr-defined]
    except (AttributeError, NotImplementedError):  # another torch, or one of many batched gradients
        return None


@functools.cache
def _sole_owners() -> _Owners | None:
    """How often a gradient is held that the backward pass alone holds, as `_times_m` sees it."""
    seen: list[_Owners] = []
    with torch.inference_mode(False), torch.enable_grad():
        factor = torch.ones(1, device="cpu")
        y = torch.ones(1, device="cpu", requires_grad=True) * 1
        y.register_hook(partial(_times_m, factor, factor._version, seen))
        (y * 2).sum().backward()
    return seen[0] if seen else None


def _map_state(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A state with its tensors changed; what is no tensor stays."""
    if isinstance(state, Tensor):
        return change(state)
    if not isinstance(state, tuple | list):
        return state
    parts = [change(part) if isinstance(part, Tensor) else part for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


Factors = tuple[list[LayerFactors], list[Population]]


def incoming_factors(
    model: nn.Module, layers: dict[str, nn.Module], chosen: Sequence[str]
) -> Factors:
    """The chosen layers and their populations, by the weights that come in."""
    inside: dict[int, tuple[StackFactors, int]] = {}
    for module in model.modules():
        if isinstance(module, SNU | SoftSNU):
            stack = StackFactors(module)
            inside |= {id(layer): (stack, k) for k, layer in enumerate(module.layers)}
    factors: list[LayerFactors] = []
    populations: list[Population] = []
    for name in chosen:
        own = populations_of(name, layers[name])
        numbers = range(len(populations), len(populations) + len(own))
        sizes = [population.size for population in own]
        place = inside.get(id(layers[name]))
        factors.append(LayerFactors(name, layers[name], numbers, sizes, stack=place))
        populations += own
    return factors, populations


def outgoing_factors(
    model: nn.Module, layers: dict[str, nn.Module], chosen: Sequence[str]
) -> Factors:
    """The chosen hidden layers, and the weights that go out of the neurons below each.

    Raises ValueError where the hidden layers are no stack of dense ones.
    """
    hidden = list(layers)[1:-1]
    holders: dict[str, Any] = {name: inner(layers[name]) for name in hidden}
    for name, holder in holders.items():
        module: Any = layers[name]
        dense = isinstance(holder, Dense | nn.Linear) and not any(
            isinstance(part, Normalised) for part in module.modules()
        )
        if not dense or (isinstance(module, Layer) and module.recurrent is not None):
            raise ValueError(
                f'{name!r}: importance="outgoing" is for stacks of dense layers without recurrence '
                'or normalisation; use importance="incoming"'
            )
    for below, above in pairwise(hidden):
        if holders[below].out_features != holders[above].in_features:
            raise ValueError(
                f"{above!r} has {holders[above].in_features} inputs and {below!r} "
                f"{holders[below].out_features} neurons, so these are no stack; use "
                'importance="incoming"'
            )
    factors = []
    for k, name in enumerate(hidden):
        holder = holders[name]
        post = k + 1 if k + 1 < len(hidden) else None
        if name in chosen:
            size, before = holder.out_features, (k, holder.in_features)
            factors.append(LayerFactors(name, layers[name], [post], [size], before=before))
    outgoing = [(h.in_features, NeuronWeights(h, "weight", 1)) for h in holders.values()]
    return factors, [Population(size, (weights,)) for size, weights in outgoing]
