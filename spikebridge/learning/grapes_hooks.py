"""The hooks through which the factors of GRAPES act, in the letters of docs/learning.md.

    d_l <- M_l * d_l                    ScaledError, where the error d enters layer l (propagated)
    dW_l[i, k] <- M_i dW_l[i, k]        ScaledGradient, of each parameter (local)
    dW_l[i, k] <- P'_i P_k dW_l[i, k]   the same, by the weights that go out (outgoing)

i counts the neurons of the layer, k its inputs.

Hooks belong to one handle and one model.  Copies and pickles of that model get hooks that do
nothing in their place.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map_only

from spikebridge.learning.grapes_factors import (
    NeuronWeights,
    Population,
    inner,
    left_behind,
    populations_of,
)
from spikebridge.learning.model_layers import CONVOLUTIONS, Hook, channels
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


class Rows(NamedTuple):
    """Where the neurons of a parameter lie; axis, gates and repeat as in `NeuronWeights`."""

    population: int = 0
    axis: int = 0
    gates: int = 1
    repeat: int = 1


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
        M: (populations, N); with outgoing importance P', that of the layer above.
        P: of the neurons below, (I,), with outgoing importance; else None.
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
        self.M = torch.ones(len(sizes), sizes[0])
        self.P: Tensor | None = None
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
        self.M, self.P, self.states = ones(len(self.sizes), self.sizes[0]), None, None
        self.output = self.M[0]
        targets = list(zip(self.populations, self.M, strict=True))
        if isinstance(self.holder, nn.RNNBase):
            self.states = ones(len(self.sizes), 1, self.sizes[0])
            self.output = self.states[self.top :].view(-1)
            tops = range(self.top, len(self.sizes))
            targets += [(self.populations[k], self.states[k, 0]) for k in tops]
        elif isinstance(self.holder, CONVOLUTIONS):
            self.output = self.M[0].view(-1, *[1] * len(self.holder.kernel_size))
        elif isinstance(self.module, Layer) and self.stack is None:
            self.states = self.M[0]
        if self.stack is not None and self.stack[0].states is not None:
            targets.append((self.populations[0], self.stack[0].states[self.stack[1], 0]))
        if self.below is not None:
            self.P = ones(self.below[1])
            targets.append((self.below[0], self.P))
        return ((population, to) for population, to in targets if population is not None)

    def parameters(self) -> Iterator[tuple[nn.Parameter, Rows]]:
        """Each own parameter that has neurons, and where they lie.

        Raises ValueError for a parameter that belongs to no neurons.
        """
        for path, parameter in self.module.named_parameters():
            parts = path.split(".")
            hidden = "parametrizations" in parts
            name = parts[parts.index("parametrizations") + 1] if hidden else parts[-1]
            rows = self._rows_of(name, parameter)
            if rows is not None:
                yield parameter, rows
            elif parameter.dim():  # a decay that a layer shares belongs to none of its neurons
                raise ValueError(
                    f"{self.name!r}: the parameter {path} {tuple(parameter.shape)} has no row for "
                    f'each of {self.sizes[0]} neurons; use form="propagated", or name the layer '
                    "in skip"
                )

    def _rows_of(self, name: str, parameter: Tensor) -> Rows | None:
        if isinstance(self.holder, nn.RNNBase):
            place = re.search(r"_l(\d+)(_reverse)?$", name)
            assert place is not None
            population = int(place[1]) * (len(self.sizes) - self.top) + bool(place[2])
            return Rows(population, gates=parameter.shape[0] // self.sizes[0])
        n, shape = self.sizes[0], tuple(parameter.shape) or (0,)
        drives = channels(self.module)
        if isinstance(self.holder, Embedding) and name == "weight":
            return Rows(axis=1, gates=drives)
        if shape[0] in range(n, drives * n + 1, n):
            return Rows(gates=shape[0] // n)
        shared = isinstance(self.holder, Conv2d) and shape[0] == self.holder.out_shape[0]
        return Rows(gates=drives, repeat=n * drives // shape[0]) if shared else None


class ScaledError(Hook):
    """Forward hook: d <- M * d for the errors d that will arrive at what a layer hands out.

    Args:
        refresh: puts the factors on the device of the weights, and computes them.
        factors: M of outputs and of states.
    """

    def __init__(self, refresh: Callable[[], None], factors: LayerFactors | StackFactors) -> None:
        self.refresh, self.factors = refresh, factors
        self.mark = f"_grapes_inside_{id(self)}"
        _sole_owners()  # while no transform of torch.func is at work

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not torch.is_grad_enabled():
            return output
        M = self.factors.output
        if type(output) is Tensor and M is not None and not traced():  # in as few steps as can be
            alike = M.dtype is output.dtype and M.is_cpu and output.is_cpu
            if not alike and left_behind(M, output):
                self.refresh()
                return self(module, args, output)
            return _scale_error(output, M)
        y, state = (output, None) if isinstance(output, Tensor) else output
        data = y.data if isinstance(y, PackedSequence) else y
        known = self.factors.states if self.factors.output is None else self.factors.output
        if known is not None and not traced() and left_behind(known, data):
            self.refresh()
        if self.factors.output is not None:
            data = scale_error(data, self.factors.output)
            y = y._replace(data=data) if isinstance(y, PackedSequence) else data
        if self.factors.states is not None:
            state = tree_map_only(Tensor, partial(self._handed, self.factors.states), state)
        return y if isinstance(output, Tensor) else (y, state)

    def _handed(self, M: Tensor, state: Tensor) -> Tensor:
        """A state whose error is scaled when it is used outside; it remembers the inner state."""
        if M.dim() > state.dim():  # one sequence, without a batch
            M = M.squeeze(1)
        # A view: the inner state may be part of the outputs too, and is not scaled twice.
        handed = scale_error(state if traced() else state.view_as(state), M)
        setattr(handed, self.mark, state)
        return handed


class InnerState(Hook):
    """Forward pre-hook: a state that comes back is the inner one again; see `ScaledError`."""

    def __init__(self, entrance: ScaledError) -> None:
        self.mark = entrance.mark

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if len(args) > 1:
            return (args[0], tree_map_only(Tensor, self._inner, args[1]), *args[2:]), kwargs
        states = {k: v for k, v in kwargs.items() if k in ("state", "hx")}
        return (args, kwargs | tree_map_only(Tensor, self._inner, states)) if states else None

    def _inner(self, state: Tensor) -> Tensor:
        return getattr(state, self.mark, state)


class ScaledGradient(Hook):
    """Tensor hook of a parameter: dW[i, k] <- M_i dW[i, k], or P'_i P_k dW[i, k].

    Args:
        refresh: as in `ScaledError`.
        factors: of the layer.
        rows: where the neurons i lie.
    """

    def __init__(self, refresh: Callable[[], None], factors: LayerFactors, rows: Rows) -> None:
        self.refresh, self.factors, self.rows = refresh, factors, rows

    def __call__(self, dW: Tensor) -> Tensor:
        factors, (population, axis, gates, repeat) = self.factors, self.rows
        if not traced() and left_behind(factors.M, dW):
            self.refresh()
        M = factors.M[population][::repeat].to(dW.dtype)
        if gates > 1:
            M = M.repeat(gates)
        scaled = dW * M.view([-1 if k == axis else 1 for k in range(dW.dim())])
        P = factors.P
        if P is not None and dW.dim() == 2 and dW.shape[1] == P.shape[0]:
            scaled *= P.to(dW.dtype)
        return scaled


class OwnParameters(Hook):
    """Forward pre-hook: RuntimeError in a call with parameters that have no `ScaledGradient`."""

    def __init__(self, factors: LayerFactors) -> None:
        self.factors = factors

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not torch.is_grad_enabled():
            return
        for part, key, parameter in self.factors.hooked:
            if part._parameters.get(key) is not parameter:
                raise RuntimeError(
                    f"{self.factors.name}: the local form of GRAPES scales the gradients of the "
                    f"parameters that the model had, and {key} is another tensor in this call; "
                    'with functional_call or torch.func use form="propagated", after replacing a '
                    "parameter call refresh()"
                )


def scale_error(y: Tensor, M: Tensor) -> Tensor:
    """y, whose error d = dL/dy will become M * d, with M as it is now."""
    if traced():
        return modulate(y, _as_wide(M, y))
    if y.requires_grad and M.dim() == 1 and y.shape[-1] != M.shape[0]:
        y.register_hook(partial(_scaled_wide, M, M._version))
        return y
    return _scale_error(y, M)


def _scale_error(y: Tensor, M: Tensor) -> Tensor:
    if not y.requires_grad:
        return y
    # No copy of y; and what changes y in place afterwards leaves this gradient's place alone.
    if y._backward_hooks is None and y.grad_fn is not None and type(y) is Tensor:
        sole = _sole_owners() if y.numel() >= _SMALL else None
        # `register_hook` without the handle to remove it by, which takes most of its time.
        y._backward_hooks = OrderedDict({_OWN: partial(_scaled, M, M._version, sole)})
        y.grad_fn._register_hook_dict(y)
    else:
        y.register_hook(partial(_scaled, M, M._version, None))
    return y


def _scaled(
    M: Tensor, version: int, sole: _Owners | list[_Owners] | None, d: Tensor | None
) -> Tensor | None:
    """M * d, in the memory of d where the backward pass is its sole owner."""
    if d is None:  # one of several outputs of a kernel, and nobody used it
        return None
    if M._version != version:
        raise RuntimeError(
            "the factors of GRAPES have changed between forward and backward: an optimiser's "
            "step, refresh() or detach() came between; run backward() first"
        )
    if M.dtype is not d.dtype:
        M = M.to(d.dtype)
    # A second array as large as the activations is most of what GRAPES costs.
    if sole is None or type(d) is not Tensor or torch.is_grad_enabled():
        return d * M
    owners = _owners(d)
    if isinstance(sole, list) and owners is not None:
        sole.append(owners)
    return d.mul_(M) if owners == sole else d * M


def _scaled_wide(M: Tensor, version: int, d: Tensor) -> Tensor | None:
    """`_scaled` of the error of states (B, k N)."""
    scaled = _scaled(M, version, None, d.unflatten(-1, (-1, M.shape[0])))
    return None if scaled is None else scaled.flatten(-2)


def _as_wide(M: Tensor, x: Tensor) -> Tensor:
    """M (N,) for states (B, k N), where a neuron keeps more than its membrane."""
    if M.dim() > 1 or x.shape[-1] == M.shape[0]:
        return M
    return M.repeat(x.shape[-1] // M.shape[0])


# Who holds a gradient: as a tensor, as memory, as an object of Python.
_Owners = tuple[int, int, int]
_OWN = -1  # of a hook among those of a tensor: torch counts its own from 0
_SMALL = 1 << 15  # numbers; a smaller gradient is multiplied sooner than asked who owns it


def _owners(grad: Tensor) -> _Owners | None:
    try:
        memory = torch._C._storage_Use_Count(grad.untyped_storage()._cdata)
        return grad._use_count(), memory, sys.getrefcount(grad)  # type: ignore[attr-defined]
    except (AttributeError, NotImplementedError):  # another torch, or one of many batched gradients
        return None


@functools.cache
def _sole_owners() -> _Owners | None:
    """How often a gradient is held that the backward pass alone holds, as `_scaled` sees it."""
    seen: list[_Owners] = []
    with torch.inference_mode(False), torch.enable_grad():
        M = torch.ones(1, device="cpu")
        y = torch.ones(1, device="cpu", requires_grad=True) * 1
        y.register_hook(partial(_scaled, M, M._version, seen))
        (y * 2).sum().backward()
    return seen[0] if seen else None


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
    neurons = {name: h.out_features // channels(layers[name]) for name, h in holders.items()}
    for below, above in pairwise(hidden):
        if neurons[below] != holders[above].in_features:
            raise ValueError(
                f"{above!r} has {holders[above].in_features} inputs and {below!r} "
                f"{neurons[below]} neurons, so these are no stack; use "
                'importance="incoming"'
            )
    factors = []
    for k, name in enumerate(hidden):
        holder = holders[name]
        post = k + 1 if k + 1 < len(hidden) else None
        if name in chosen:
            size, before = neurons[name], (k, holder.in_features)
            factors.append(LayerFactors(name, layers[name], [post], [size], before=before))
    outgoing = [(h.in_features, NeuronWeights(h, "weight", 1)) for h in holders.values()]
    return factors, [Population(size, (weights,)) for size, weights in outgoing]
