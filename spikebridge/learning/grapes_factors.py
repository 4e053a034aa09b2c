"""How much each neuron weighs: sums of |weights|.

Dellaferrera et al. 2022 (GRAPES) call the sum over the weights that come into a neuron its
importance, I_i = sum over j of |W_ij|, and take from it the factor M_i = 2 I_i / max I.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from spikebridge.learning.model_layers import CONVOLUTIONS, channels
from spikebridge.nn.kernels import native
from spikebridge.nn.kernels.product import traced
from spikebridge.nn.layers import Layer
from spikebridge.nn.synapses import Conv2d, Dense, Embedding

__all__ = [
    "Bank",
    "Clip",
    "NeuronWeights",
    "Population",
    "absolute_sums",
    "factor",
    "inner",
    "left_behind",
    "populations_of",
]

Clip = tuple[float, float]
_PIECE = 1 << 18  # numbers whose absolute values are written down at a time: they stay in the cache


def factor(weight: Tensor, clip: Clip | None = (1.0, 2.0), axis: int = 0) -> Tensor:
    """M = 2 I / max I of the neurons of one weight, (N,), float32 at least.

    Args:
        weight: (N, ...): all that comes into neuron i is weight[i].
        clip: bounds of a factor; None as published for feedback alignment.
        axis: that of the neurons, where it is not the first.

    Where all weights are 0 it is the lower bound, or 1 without one.
    """
    sums = absolute_sums(weight, axis)
    m = 2 * sums / sums.amax()
    m = m if clip is None else m.clamp(*clip)
    return m.nan_to_num_(nan=1.0 if clip is None else clip[0])  # 0 / 0: all weights are 0


def absolute_sums(
    weight: Tensor, axis: int = 0, out: Tensor | None = None, scratch: Scratch | None = None
) -> Tensor:
    """Sum of |W| over all axes but one, float32 at least, with no copy of a large W."""
    weight, axis = weight.detach(), axis % weight.dim()
    over = [d for d in range(weight.dim()) if d != axis]
    wide = torch.promote_types(weight.dtype, torch.float32)
    if out is None:
        out = weight.new_empty(weight.shape[axis], dtype=wide)
    if not traced() and native.importance([(weight, axis, 1, 1)], out):
        return out
    if weight.device.type != "cpu":
        return torch.linalg.vector_norm(weight, 1, over, dtype=wide, out=out)
    # On a CPU that norm runs number by number; |W| and a plain sum are four times as fast.
    rows = min(max(1, _PIECE * len(weight) // max(weight.numel(), 1)), len(weight))
    sizes = (Scratch() if scratch is None else scratch).like(weight[:rows])
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows]
        absolute = torch.abs(part, out=sizes[: len(part)])
        if axis == 0:
            torch.sum(absolute, over, dtype=wide, out=out[start : start + rows])
        elif start == 0:
            torch.sum(absolute, over, dtype=wide, out=out)
        else:
            out += torch.sum(absolute, over, dtype=wide)
    return out


class Scratch:
    """Memory for |W| that stays from update to update: fresh memory costs more than the sums."""

    def __init__(self) -> None:
        self.buffers: dict[torch.dtype, Tensor] = {}

    def like(self, part: Tensor) -> Tensor:
        """An unset buffer of the shape and dtype of a part of a weight."""
        buffer = self.buffers.get(part.dtype)
        if buffer is None or buffer.numel() < part.numel():
            buffer = self.buffers[part.dtype] = part.new_empty(max(part.numel(), 1))
        return buffer[: part.numel()].view(part.shape)


@dataclass(frozen=True)
class NeuronWeights:
    """Weights W_ij that the importance of the neurons of a layer sums over.

    Args:
        owner, name: module and attribute.
        axis: that of the neurons.
        gates: rows of so many gates lie one below the other, each with all neurons.
        repeat: neurons of a channel, which share their weights.
    """

    owner: nn.Module
    name: str
    axis: int = 0
    gates: int = 1
    repeat: int = 1

    def value(self) -> Tensor:
        """The weight that the last forward pass used, as far as that is known without drawing.

        After an update it is what the next one will use; of the older `spectral_norm` a multiple.
        Of parametrised weights: what a parametrisation says that it `held`, with those that come
        after it; else the chain as it is in use, where noise is silent.
        """
        plain = self.owner._parameters.get(self.name)
        if plain is not None:  # in nearly all models, and what follows takes long to say no
            return plain
        chain = getattr(self.owner, "parametrizations", {})
        if self.name not in chain:
            # The older norms write the attribute in a hook before each call: until then it is old.
            for hook in self.owner._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm | SpectralNorm) and hook.name == self.name:
                    return _normed(hook, self.owner)
            whole, mask = (getattr(self.owner, self.name + end, None) for end in ("_orig", "_mask"))
            return getattr(self.owner, self.name) if mask is None else whole * mask
        chain = chain[self.name]
        steps, value = list(chain), None
        for k in reversed(range(len(steps))):
            if hasattr(steps[k], "held"):
                value = steps[k].held
                if value is None:  # a state was loaded: the original is what was read last
                    originals = [p for _, p in chain.named_parameters(recurse=False)]
                    value = _carried(chain, steps[:k], None) if k else originals[0].detach()
                steps = steps[k + 1 :]
                break
        return _carried(chain, steps, value)

    def sums(self, value: Tensor, scratch: Scratch, out: Tensor | None = None) -> Tensor:
        """Sum of |W| of each neuron, (N,), of that value."""
        if self.gates == self.repeat == 1:
            return absolute_sums(value, self.axis, out, scratch)
        channels = absolute_sums(value, self.axis, None, scratch).view(self.gates, -1).sum(0)
        neurons = channels.repeat_interleave(self.repeat)
        return neurons if out is None else out.copy_(neurons)


@torch.no_grad()
def _normed(norm: WeightNorm | SpectralNorm, owner: nn.Module) -> Tensor:
    """What the next call of a module will use, the iteration of a spectral norm left out.

    That iteration changes one number for all of the weight, which no factor depends on.
    """
    if isinstance(norm, WeightNorm):
        return norm.compute_weight(owner)
    return norm.compute_weight(owner, do_power_iteration=False)


@torch.no_grad()
def _carried(chain: Any, steps: Sequence[nn.Module], value: Tensor | None) -> Tensor:
    """A value through parametrisations in use; None starts from what is trained."""
    modes = [(module, module.training) for module in chain.modules()]
    try:
        for module, _ in modes:
            module.training = False
        if value is None:
            originals = [p for name, p in chain.named_parameters(recurse=False)]
            value, steps = steps[0](*originals), steps[1:]
        for step in steps:
            value = step(value)
    finally:
        for module, mode in modes:
            module.training = mode
    assert value is not None
    return value


@dataclass(frozen=True)
class Population:
    """Neurons that are compared with each other: those of a layer, or of a direction of one."""

    size: int
    sources: tuple[NeuronWeights, ...]

    def weights(self) -> list[tuple[Tensor, int, int, int]]:
        """The weight of each source as it is now, with its axis, gates and repeat."""
        return [(s.value(), s.axis, s.gates, s.repeat) for s in self.sources]

    def sum_into(self, weights: Sequence[tuple[Any, ...]], out: Tensor, scratch: Scratch) -> None:
        """The sums over these weights of all sources into out, (size,)."""
        self.sources[0].sums(weights[0][0], scratch, out)
        for source, (value, *_) in zip(self.sources[1:], weights[1:], strict=True):
            out += source.sums(value, scratch).to(out.device, out.dtype)

    def device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of its sums."""
        source = self.sources[0]
        weight = next(p for p in source.owner.parameters())
        return weight.device, torch.promote_types(weight.dtype, torch.float32)


# Where a weight lay when a call for it was made: parameters of its owner, name, weight, address,
# shape.
_Place = tuple[dict[str, Any], str, Tensor, int, torch.Size]


def left_behind(factors: Tensor, x: Tensor) -> bool:
    """Whether the model has gone to another device, or to float64."""
    return factors.device != x.device or x.dtype is torch.float64 is not factors.dtype


class Bank:
    """The factors of populations on one device, by a kernel or in a few operations for all.

    Args:
        populations: P of them, of up to N neurons.
        clip: see `factor`.
        gain: every neuron gets the mean factor of its population.

    Attributes:
        factors: of each population, (size,), in its own memory or where `lead` says.
    """

    def __init__(self, populations: Sequence[Population], clip: Clip | None, gain: bool) -> None:
        self.populations, self.clip, self.scratch = populations, clip, Scratch()
        self.rule = (clip is not None, *(clip or (0.0, 0.0)), gain)  # for the kernel
        device, dtype = populations[0].device_and_dtype()
        sizes = [p.size for p in populations]
        # The last column is next to nothing: weights that are all 0 are then no 0 / 0.
        shape = (len(sizes), max(sizes) + 1)
        self.sums = torch.zeros(shape, device=device, dtype=dtype)
        self.sums[:, -1] = torch.finfo(dtype).tiny
        self.zero, self.largest = self.sums.new_zeros(()), self.sums.new_zeros(shape[0], 1)
        self.out = torch.zeros_like(self.sums)
        self.no_weights: Tensor | None = None if clip is not None else self.sums[:, -1:].clone()
        self.mean: Tensor | None = None
        if gain:  # of the neurons, not of what pads the row
            counts = torch.tensor(sizes, device=device, dtype=dtype).unsqueeze(1)
            self.mean = (torch.arange(shape[1], device=device) < counts) / counts
        self.rows = [self.sums[k, :size] for k, size in enumerate(sizes)]
        self.own = [self.out[k, :size] for k, size in enumerate(sizes)]
        self.factors = list(self.own)
        self.calls: list[tuple[Callable[[int], None], list[_Place]] | None] = [None] * len(sizes)

    def lead(self, k: int, to: Tensor) -> bool:
        """Write the factors of a population there from now on, if that takes them as they are."""
        if to.device != self.out.device or to.dtype != self.out.dtype or not to.is_contiguous():
            return False
        self.factors[k], self.calls[k] = to, None
        return True

    def update(self, which: Sequence[int]) -> None:
        """Read the weights of these populations anew; `factors` follows.

        A kernel does a population in one pass over its weights; what it leaves, torch does.
        """
        left, plain, threads = False, not traced(), torch.get_num_threads()
        for k in which:
            if not (plain and self._by_kernel(k, threads)):
                self._sum(k)
                left = True
        if left:
            self.write_factors()
        if plain:  # what keeps factors for a backward pass learns that they are others
            torch.autograd.graph.increment_version([self.factors[k] for k in which])

    @torch.no_grad()
    def _sum(self, k: int) -> None:
        population = self.populations[k]
        population.sum_into(population.weights(), self.rows[k], self.scratch)

    def _by_kernel(self, k: int, threads: int) -> bool:
        """Whether the kernel has done a population.

        Its call is kept while the weights are parameters that stay where they are: to make it takes
        as long as a sum over a small matrix.
        """
        kept = self.calls[k]
        if kept is not None:
            call, places = kept
            for parameters, name, weight, address, shape in places:
                if (
                    parameters.get(name) is not weight
                    or weight.data_ptr() != address
                    or weight.shape != shape
                    or weight.dtype is not self.sums.dtype
                    or not weight.is_contiguous()
                ):
                    break
            else:
                call(threads)
                return True
        self.calls[k] = None
        population = self.populations[k]
        weights = population.weights()
        made = native.importance_call(weights, self.rows[k], self.factors[k], self.rule)
        if made is None:
            return False
        made(threads)
        pairs = zip(population.sources, weights, strict=True)
        places = [(s.owner._parameters, s.name, w, w.data_ptr(), w.shape) for s, (w, *_) in pairs]
        if all(parameters.get(name) is w for parameters, name, w, *_ in places):
            self.calls[k] = made, places
        return True

    @torch.no_grad()
    def write_factors(self) -> None:
        """The factors of all populations from the sums."""
        torch.amax(self.sums, 1, keepdim=True, out=self.largest)
        torch.addcdiv(self.zero, self.sums, self.largest, value=2.0, out=self.out)
        if self.clip is not None:
            self.out.clamp_(*self.clip)
        elif self.no_weights is not None:
            self.out.masked_fill_(self.largest <= self.no_weights, 1.0)
        if self.mean is not None:
            self.out.copy_((self.out * self.mean).sum(1, keepdim=True).expand_as(self.out))
        for to, own in zip(self.factors, self.own, strict=True):
            if to is not own:
                to.copy_(own)


def inner(module: Any) -> Any:
    """What holds the weight of a layer: its array, without what scales or converts drives."""
    while not hasattr(module, "core") and isinstance(getattr(module, "array", None), nn.Module):
        module = module.array
    return getattr(module, "core", module)


def populations_of(name: str, module: nn.Module) -> list[Population]:
    """The neurons of a layer; a stack of torch has one population for each layer and direction.

    Raises ValueError for a lazy layer before its first call, an LSTM with projections, and an
    array whose weights belong to no neurons.
    """
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):
        raise ValueError(f"{name!r} is lazy and has no weights yet; call the model once before")
    holder = inner(module)
    if isinstance(holder, nn.RNNBase):
        return _stack(name, holder)
    drives = channels(module)
    size = (getattr(holder, "out_features", None) or holder.out_channels) // drives
    axis = 1 if isinstance(holder, Embedding) else 0
    known = isinstance(holder, (Dense, Conv2d, Embedding, nn.Linear, *CONVOLUTIONS))
    weight = _weight_of(holder)
    rows = 0 if weight is None or weight.dim() < 2 else weight.shape[axis] // drives
    if not rows or (size % rows if known else size != rows):
        raise ValueError(
            f"{name!r}: a {type(holder).__name__} has no weight ({size}, ...) with a row for each "
            "neuron; name the layer in skip"
        )
    sources = [NeuronWeights(holder, "weight", axis, drives, size // rows)]
    if isinstance(module, Layer) and module.recurrent is not None:
        heard = NeuronWeights(module, "recurrent")
        sources.append(replace(heard, gates=len(heard.value()) // size) if drives > 1 else heard)
    return [Population(size, tuple(sources))]


def _weight_of(holder: nn.Module) -> Tensor | None:
    """Its weight, not drawn from where it is drawn at each use."""
    if "weight" in getattr(holder, "parametrizations", {}):
        return NeuronWeights(holder, "weight").value()
    weight = getattr(holder, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def _stack(name: str, core: nn.RNNBase) -> list[Population]:
    if core.proj_size:
        raise ValueError(
            f"{name!r}: an LSTM with proj_size={core.proj_size} hands out no neurons but mixtures "
            "of them; name the layer in skip, or use proj_size=0 and a Linear"
        )
    gates = {"LSTM": 4, "GRU": 3}.get(core.mode, 1)
    populations = []
    for depth in range(core.num_layers):
        for end in ("", "_reverse")[: 2 if core.bidirectional else 1]:
            names = (f"weight_{kind}_l{depth}{end}" for kind in ("ih", "hh"))
            sources = tuple(NeuronWeights(core, own, gates=gates) for own in names)
            populations.append(Population(core.hidden_size, sources))
    return populations


def checked_clip(clip: Clip | None) -> Clip | None:
    """Bounds of a factor.  Raises ValueError where they are none."""
    if clip is not None:
        low, high = clip
        if not (0 <= low <= high < math.inf and high > 0):
            raise ValueError(f"clip must be two bounds 0 <= low <= high, or None, got {clip}")
    return clip
