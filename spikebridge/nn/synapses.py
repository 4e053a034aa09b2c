"""Synapse arrays: anything that maps x (..., I) to the drive (..., N) of a unit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from spikebridge.nn.fresh import Fresh, redraw
from spikebridge.nn.gradients import forward_as
from spikebridge.nn.kernels.convolution import conv2d
from spikebridge.nn.kernels.product import PRODUCTS, Product, linear
from spikebridge.nn.kernels.rescale import rescaled
from spikebridge.nn.units import ACTIVATIONS, Unit, whole

__all__ = [
    "Array",
    "Conv2d",
    "Dense",
    "Driven",
    "Embedding",
    "Normalised",
    "gain",
    "noisy_weights",
    "plain_weights",
    "real_steps",
    "round_weights",
]

Driven = Unit | str | None  # what an array drives: a unit, "relu" or "tanh", or who knows what


@runtime_checkable
class Array(Protocol):
    """A synapse array: x (..., in_features) to drive (..., out_features).

    The bias of a spiking layer is its threshold and belongs to the unit.  A bias of an array is
    something else, a constant drive at every step, which only some units have use for.
    """

    in_features: int
    out_features: int

    def __call__(self, x: Tensor) -> Tensor:
        """The drive, (..., out_features)."""
        ...


def gain(driven: Driven) -> float:
    """Standard deviation of a weight, times sqrt(fan-in): that of the unit, see `Unit.gain`.

    Layers without memory have the usual ones, relu sqrt(2) (He et al. 2015) and tanh 1; ValueError
    for another name.
    """
    if driven is None:
        return 1.0 / math.sqrt(3.0)  # that of torch.nn.Linear
    if not isinstance(driven, str):
        return driven.gain
    if driven not in ACTIVATIONS:
        raise ValueError(f"unit={driven!r}: no such layer; choose one of {[*ACTIVATIONS]}")
    return ACTIVATIONS[driven].gain


class _Weighted(Fresh):
    """A weight, drawn uniformly for what it drives, and a constant drive where there is one."""

    outputs = 0  # the axis of the weight that drives lie along

    def __init__(
        self, shape: tuple[int, ...], fan_in: int, unit: Driven, bias: bool = False, **made: Any
    ) -> None:
        super().__init__()
        weight = torch.empty(shape, **made)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(weight.new_empty(shape[0])) if bias else None
        self.gain, self.fan_in = gain(unit), fan_in
        self.drives = unit.drives if isinstance(unit, Unit) else 1
        self.draw()

    def draw(self) -> None:
        """The weight uniform, that of gates and modulations of gain 1, the constant drive 0."""
        bound = self.gain * math.sqrt(3.0 / self.fan_in)

        def fill(weight: Tensor) -> None:
            nn.init.uniform_(weight, -bound, bound)
            for part in weight.chunk(self.drives, self.outputs)[1:]:
                part.mul_(1.0 / self.gain)

        redraw(self, "weight", fill)
        if self.bias is not None:
            redraw(self, "bias", nn.init.zeros_)


class Dense(_Weighted):
    """All-to-all synapses: drive = W x, or W x + c.

    Args:
        in_features: I.
        out_features: N, or d N for a unit that takes d currents.
        unit: what is driven, a unit or "relu" or "tanh"; sets the scale of the initial weights, see
            `gain`.
        bias: add a trained constant drive c (N,), at first 0, at every step; None as attribute
            `bias` says that there is none.  Yin et al. 2017: it plays the leak of a membrane that
            has no other.
        product: "dense", "sparse" or "auto", by the share of inputs that are not zero; see
            `spikebridge.nn.kernels.product.linear`.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        unit: Driven = None,
        *,
        bias: bool = False,
        product: Product = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _positive(in_features=in_features, out_features=out_features)
        shape = (out_features, in_features)
        super().__init__(shape, in_features, unit, bias, device=device, dtype=dtype)
        self.in_features, self.out_features = in_features, out_features
        self.product = _known(product)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) to (..., N)."""
        _check_last(x, self.in_features)
        drive = linear(x, self.weight, self.product)
        return drive if self.bias is None else drive + self.bias.to(drive.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Conv2d(_Weighted):
    """Convolutional synapses on flattened images: (..., C H W) to (..., C' H' W').

    Args:
        in_shape: (C, H, W) of the input image.
        channels: C' of the output.
        kernel_size, stride, padding: as in torch.nn.Conv2d, square.
        pool: the drive is averaged over squares of this side; what does not fill one is left out.
            Averaging the drive rather than the spikes keeps what layers exchange at 0 and 1.
        unit: as in `Dense`.
        bias: as in `Dense`, one constant drive per channel, (C',).
        product: as in `Dense`; see `spikebridge.nn.kernels.convolution.conv2d`.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        pool: int = 1,
        unit: Driven = None,
        bias: bool = False,
        product: Product = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        c, height, width = in_shape
        _positive(C=c, H=height, W=width, channels=channels, kernel_size=kernel_size)
        _positive(stride=stride, pool=pool)
        rows, columns = ((n + 2 * padding - kernel_size) // stride + 1 for n in (height, width))
        inner, sides = rows * columns, (rows // pool, columns // pool)
        if min(sides) < 1:
            raise ValueError(
                f"a kernel of {kernel_size} does not fit into an image of {height} x {width} with "
                f"padding {padding} and pool {pool}; use a smaller kernel or pool, or more padding"
            )
        shape = (channels, c, kernel_size, kernel_size)
        super().__init__(shape, math.prod(shape[1:]), unit, bias, device=device, dtype=dtype)
        self.in_shape, self.out_shape = (c, height, width), (channels, *sides)
        self.in_features, self.out_features = math.prod(in_shape), math.prod(self.out_shape)
        self.stride, self.padding, self.pool = stride, padding, pool
        self.product = _known(product)
        self.operations = channels * inner * c * kernel_size**2

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C H W) to (..., C' H' W')."""
        _check_last(x, self.in_features)
        images = x.reshape(-1, *self.in_shape)
        drive = conv2d(images, self.weight, self.bias, self.stride, self.padding, self.product)
        if self.pool > 1:
            drive = F.avg_pool2d(drive, self.pool)
        return drive.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        shapes = f"{self.in_shape} -> {self.out_shape}"
        return f"{shapes}, stride={self.stride}, pool={self.pool}, bias={bias}"


class Embedding(_Weighted):
    """One row of drive per symbol: x (...) of integers in [0, I) to (..., N)."""

    outputs = 1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        unit: Driven = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _positive(in_features=in_features, out_features=out_features)
        # A symbol is one active input: of fan-in 1.
        super().__init__((in_features, out_features), 1, unit, device=device, dtype=dtype)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """x (...), int64 or int32, to (..., N)."""
        if x.is_floating_point() or x.dtype == torch.bool:
            raise TypeError(f"an embedding takes symbols as integers, got {x.dtype}; call .long()")
        if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.in_features:
            raise ValueError(
                f"symbols must be in [0, {self.in_features}), got {int(x.min())} to {int(x.max())}"
            )
        return F.embedding(x, self.weight)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class Normalised(Fresh):
    """An array whose drive is scaled, feature by feature, to a trained root mean square.

    In training by that of the batch, over all samples and time steps, in use by a running one: a
    factor on the weights, and nothing else, so that hardware needs no part for it.  The drive
    starts with the size that `gain` gives it for inputs of mean square 1/4.

    With `centre` it is batch normalisation (Ioffe and Szegedy 2015), which takes off the mean too
    and adds a trained shift:

        drive = size (W x - mean) / sqrt(mean_square + EPS) + shift

    That folds into weights and a constant drive, `folded`, or into weights and a threshold where
    a membrane keeps nothing (binary-di).  Where it leaks and is reset, no shift of a threshold
    stands for a constant drive.

    Args:
        array: (..., I) to (..., N); a `Conv2d` is scaled channel by channel.
        unit: as in `Dense`.
        momentum: share of a batch in the running mean and mean square.
        centre: take off the mean and add a shift, at first 0; the array must then have no bias.

    Attributes, each (groups,), one per feature or channel:
        size: trained.
        mean_square: running mean square of what is scaled, with `centre` the (biased) variance.
        mean, shift: the running mean, and trained; None without `centre`.

    Raises ValueError for a bias under `centre`: the mean would take it off again.
    """

    EPS = 1e-6
    shared = True
    """Whether in training the samples of a batch share what they are divided by."""

    def __init__(
        self,
        array: Dense | Conv2d,
        unit: Driven = None,
        *,
        momentum: float = 0.05,
        centre: bool = False,
    ) -> None:
        super().__init__()
        if centre and array.bias is not None:
            raise ValueError(
                "centre=True takes the mean off, and a bias of the array with it; make the array "
                "with bias=False, the shift stands for it"
            )
        self.array, self.momentum, self.centre = array, momentum, centre
        self.in_features, self.out_features = array.in_features, array.out_features
        self.groups = array.out_shape[0] if isinstance(array, Conv2d) else array.out_features
        self.gain, self.drives = gain(unit), unit.drives if isinstance(unit, Unit) else 1
        empty = array.weight.new_empty(self.groups)
        self.size = nn.Parameter(empty.clone())
        self.mean_square: Tensor
        self.register_buffer("mean_square", empty.clone())
        # None is no entry of the state: files from before there was a centre still load.
        self.mean: Tensor | None
        self.register_buffer("mean", empty.clone() if centre else None)
        self.shift = nn.Parameter(empty.clone()) if centre else None
        self.draw()
        self.real: Tensor | None = None  # set by `real_steps`

    @torch.no_grad()
    def draw(self) -> None:
        """The size that `gain` gives, and nothing seen yet."""
        redraw(self, "size", self._sized)
        if self.mean_square is not None:
            self.mean_square.fill_(1.0)
        for zero in (self.mean, self.shift):
            if zero is not None:
                zero.zero_()

    def _sized(self, size: Tensor) -> None:
        size.fill_(self.gain / 2)
        for part in size.chunk(self.drives)[1:]:  # gates and modulations have weights of gain 1
            part.fill_(1 / 2)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) to (..., N)."""
        drive = self.array(x)
        # (samples, features, pixels of a feature): one pixel where the array is no convolution.
        seen = drive.reshape(-1, self.groups, drive.shape[-1] // self.groups)
        if self.real is None or not self.training:
            return self._scaled(seen).reshape(drive.shape)
        real = self.real.flatten().nonzero().squeeze(1)
        scaled = self._scaled(seen.index_select(0, real))
        # Padding gets no drive: it takes no part in the sizes of the batch, nor in gradients.
        return seen.new_zeros(seen.shape).index_copy(0, real, scaled).reshape(drive.shape)

    def _scaled(self, seen: Tensor) -> Tensor:
        """(samples, features, pixels) by the sizes of the batch, or in use by the running ones."""
        if (fresh := self.training and len(seen) > 0) and not self.centre:
            scaled, mean_square = rescaled(seen, self.size, self.EPS)
            self._take_in(mean_square)
            return scaled
        sizes = self._batch(seen) if fresh else (self.mean, self.mean_square)
        factor, constant = self._affine(*sizes)
        scaled = seen * factor.to(seen.dtype).unsqueeze(1)
        if constant is not None:
            scaled = scaled + constant.to(seen.dtype).unsqueeze(1)
        return scaled

    def folded(self) -> tuple[Tensor, Tensor]:
        """Factor on the weights and constant drive, (groups,) each, that stand for it in use.

        A bias of the array is part of the constant.
        """
        factor, constant = self._affine(self.mean, self.mean_square)
        constant = torch.zeros_like(factor) if constant is None else constant
        own = self.array.bias
        return factor, constant if own is None else constant + factor * own

    def _affine(self, mean: Tensor | None, mean_square: Tensor) -> tuple[Tensor, Tensor | None]:
        factor = self.size * (mean_square + self.EPS).rsqrt()
        if mean is None or self.shift is None:
            return factor, None
        return factor, self.shift - mean * factor

    def _batch(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of a batch, in one pass and without cancellation."""
        kind = torch.promote_types(seen.dtype, torch.float32)
        variance, mean = torch.var_mean(seen.to(kind), (0, 2), correction=0)
        self._take_in(variance, mean)
        return mean, variance

    @torch.no_grad()
    def _take_in(self, mean_square: Tensor, mean: Tensor | None = None) -> None:
        self.mean_square.lerp_(mean_square.to(self.mean_square.dtype), self.momentum)
        if self.mean is not None and mean is not None:
            self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)

    def extra_repr(self) -> str:
        return f"{self.groups} features, centre={self.centre}"


@contextmanager
def real_steps(module: nn.Module, mask: Tensor) -> Iterator[None]:
    """For a while, what normalises within a module counts real steps only: mask (T, B) is True.

    Raises ValueError where a layer recomputes its drive later, by when the mask is gone.
    """
    result = [part for part in module.modules() if isinstance(part, Normalised) and part.shared]
    if result and any(getattr(layer, "recompute", 0) for layer in module.modules()):
        raise ValueError(
            "recompute with norm: sequences of several lengths are normalised over their real "
            "steps, which is not known again where steps are recomputed; leave one of them out"
        )
    try:
        for part in result:
            part.real = mask
        yield
    finally:
        for part in result:
            part.real = None


class Rounded(nn.Module):
    """A weight matrix as `bits` can hold it, with the gradient of the full one.

    Each row (all weights of one neuron) has 2^bits - 1 levels, evenly spaced and symmetric about
    0, the outermost at its largest weight, so that a row's scale can go into a threshold.  Rows
    that are compared with each other, those of a readout, share one scale.
    """

    def __init__(self, bits: int, *, shared: bool = False) -> None:
        super().__init__()
        if not 2 <= bits <= 16:
            raise ValueError(f"weights have 2 to 16 bits, got {bits}")
        self.bits, self.shared = bits, shared

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weights, of the same shape."""
        levels = 2 ** (self.bits - 1) - 1
        largest = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-12)
        if self.shared:
            largest = largest.amax().expand_as(largest)
        scale = (largest / levels).view(-1, *[1] * (weight.dim() - 1))
        return forward_as(weight, (weight.detach() / scale).round() * scale)

    def extra_repr(self) -> str:
        return f"{self.bits} bits"


class Noisy(nn.Module):
    """A weight with normal noise in training, drawn at each use; gradients pass it by.

    What cells of a memory add to a weight, ahead of time (Joshi et al. 2020).
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, weight: Tensor) -> Tensor:
        """The weight; in training plus sigma max |weight| N(0, 1)."""
        if not self.training:
            return weight
        return weight + torch.randn_like(weight) * (self.sigma * weight.detach().abs().max())

    def extra_repr(self) -> str:
        return f"{self.sigma}"


def plain_weights(module: nn.Module) -> None:
    """Take the noise of `noisy_weights` off again."""
    for part in list(module.modules()):
        for name in list(getattr(part, "parametrizations", {})):
            remove_parametrizations(part, name, leave_parametrized=False)


def weight_matrices(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Owner and attribute of every weight matrix inside a module.

    Biases, thresholds, decays and normalisations are none.
    """
    return [
        (part, name)
        for part in module.modules()
        for name, value in part.named_parameters(recurse=False)
        if value.dim() >= 2
    ]


def noisy_weights(module: nn.Module, sigma: float) -> None:
    """Put noise on every weight matrix inside a module, in training only."""
    for part, name in weight_matrices(module):
        register_parametrization(part, name, Noisy(sigma))


def round_weights(module: nn.Module, bits: int) -> None:
    """Make every weight matrix inside a module a rounded one, in training and in use.

    Biases, thresholds, decays and normalisations keep full precision.
    """
    for part, name in weight_matrices(module):
        # Arrays have classes of their own: torch's Linear is a readout.
        shared = isinstance(part, nn.Linear)
        register_parametrization(part, name, Rounded(bits, shared=shared))


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if whole(**{name: value}) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _known(product: Product) -> Product:
    if product not in PRODUCTS:
        raise ValueError(f"product={product!r} is not known; choose one of {list(PRODUCTS)}")
    return product


def _check_last(x: Tensor, features: int) -> None:
    if torch.jit.is_tracing():  # sizes are tensors there, and warn where they are looked at
        return
    if x.dim() < 1 or x.shape[-1] != features:
        raise ValueError(f"x must be (..., {features}), got {tuple(x.shape)}")
