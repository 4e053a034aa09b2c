"""Synapse arrays: anything that maps x (..., I) to the drive (..., N) of a unit."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from spikebridge.gradients import forward_as
from spikebridge.kernels.product import linear
from spikebridge.units import AdaptiveUnit, Unit

__all__ = [
    "Array",
    "Conv2d",
    "Dense",
    "Embedding",
    "Normalised",
    "gain",
    "noisy_weights",
    "plain_weights",
    "round_weights",
]


@runtime_checkable
class Array(Protocol):
    """A synapse array: x (..., in_features) to drive (..., out_features), without a bias.

    The bias of a spiking layer is its threshold and belongs to the unit.
    """

    in_features: int
    out_features: int

    def __call__(self, x: Tensor) -> Tensor:
        """The drive, (..., out_features)."""
        ...


def gain(unit: Unit | None) -> float:
    """Standard deviation of a weight, times sqrt(fan-in), that keeps a deep stack of `unit` alive.

    A spiking layer that receives sparse spikes needs weights with which the membrane reaches its
    threshold, or activity dies out within a few layers; a soft unit passes at most a quarter of
    what varies in its input, and needs as much to keep inputs distinguishable.  A decay d adds up
    1 / sqrt(1 - d^2) times the spread of one step's drive, which the gain takes back up to 0.8:
    membranes that leak more slowly do not get that far between two resets.  The factors were
    chosen by measurement; a test holds stacks of eight layers to them.
    """
    if unit is None:
        return 1.0 / math.sqrt(3.0)  # that of torch.nn.Linear
    decay = min(float(unit.decay.detach().double().mean()), 0.8)
    spread = math.sqrt(1.0 - decay**2)
    if not unit.spiking:
        return (5.0 if unit.rule.g == "identity" else 8.0) * spread
    threshold = max(-float(unit.bias.detach().double().mean()), 0.1)
    factor = 10.0 / 3.0
    if unit.rule.reset == "lateral":
        factor = 5.0
    elif isinstance(unit, AdaptiveUnit):
        factor = 4.5
    return factor * threshold * spread


class Dense(nn.Module):
    """All-to-all synapses: drive = W x.

    Args:
        in_features: I.
        out_features: N.
        unit: the unit that is driven; sets the scale of the initial weights, see `gain`.
    """

    def __init__(self, in_features: int, out_features: int, unit: Unit | None = None) -> None:
        super().__init__()
        _positive(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        _uniform(self.weight, gain(unit), in_features)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) to (..., N)."""
        _check_last(x, self.in_features)
        return linear(x, self.weight)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class Conv2d(nn.Module):
    """Convolutional synapses on flattened images: (..., C H W) to (..., C' H' W').

    Args:
        in_shape: (C, H, W) of the input image.
        channels: C' of the output.
        kernel_size, stride, padding: as in torch.nn.Conv2d, square.
        pool: the drive is averaged over squares of this side; what does not fill one is left out.
            Averaging the drive rather than the spikes keeps what layers exchange at 0 and 1.
        unit: as in `Dense`.
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
        unit: Unit | None = None,
    ) -> None:
        super().__init__()
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
        self.in_shape, self.out_shape = (c, height, width), (channels, *sides)
        self.in_features, self.out_features = math.prod(in_shape), math.prod(self.out_shape)
        self.stride, self.padding, self.pool = stride, padding, pool
        self.weight = nn.Parameter(torch.empty(channels, c, kernel_size, kernel_size))
        self.operations = channels * inner * c * kernel_size**2
        _uniform(self.weight, gain(unit), c * kernel_size**2)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C H W) to (..., C' H' W')."""
        _check_last(x, self.in_features)
        images = x.reshape(-1, *self.in_shape)
        drive = F.conv2d(images, self.weight, stride=self.stride, padding=self.padding)
        if self.pool > 1:
            drive = F.avg_pool2d(drive, self.pool)
        return drive.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, stride={self.stride}, pool={self.pool}"


class Embedding(nn.Module):
    """One row of drive per symbol: x (...) of integers in [0, I) to (..., N)."""

    def __init__(self, in_features: int, out_features: int, unit: Unit | None = None) -> None:
        super().__init__()
        _positive(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        _uniform(self.weight, gain(unit), 1)  # a symbol is one active input

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


class Normalised(nn.Module):
    """An array whose drive is scaled, feature by feature, to a trained root mean square.

    In training by that of the batch, over all samples and time steps, in use by a running one: a
    factor on the weights, and nothing else, so that hardware needs no part for it.  (Batch
    normalisation, Ioffe and Szegedy 2015, also takes off the mean, which would leave a constant
    drive behind: no shift of a threshold stands for that where a membrane leaks and is reset.)
    The drive starts with the size that `gain` gives it for inputs of mean square 1/4.

    Args:
        array: (..., I) to (..., N); a `Conv2d` is scaled channel by channel.
        unit: as in `Dense`.
        momentum: share of a batch in the running mean square.
    """

    EPS = 1e-6

    def __init__(
        self, array: Dense | Conv2d, unit: Unit | None = None, *, momentum: float = 0.05
    ) -> None:
        super().__init__()
        self.array, self.momentum = array, momentum
        self.in_features, self.out_features = array.in_features, array.out_features
        self.groups = array.out_shape[0] if isinstance(array, Conv2d) else array.out_features
        self.size = nn.Parameter(torch.full((self.groups,), gain(unit) / 2))
        self.mean_square: Tensor
        self.register_buffer("mean_square", torch.ones(self.groups))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) to (..., N)."""
        drive = self.array(x)
        # (samples, features, pixels of a feature): one pixel where the array is no convolution.
        seen = drive.reshape(-1, self.groups, drive.shape[-1] // self.groups)
        if self.training and len(seen):
            kind = torch.promote_types(seen.dtype, torch.float32)
            mean_square = seen.square().mean((0, 2), dtype=kind)
            with torch.no_grad():
                self.mean_square.lerp_(mean_square.to(self.mean_square.dtype), self.momentum)
        else:
            mean_square = self.mean_square
        factor = self.size * (mean_square + self.EPS).rsqrt()
        return (seen * factor.to(seen.dtype).unsqueeze(1)).reshape(drive.shape)

    def extra_repr(self) -> str:
        return f"{self.groups} features"


class Rounded(nn.Module):
    """A weight matrix as `bits` can hold it, with the gradient of the full one.

    Each row (all weights of one neuron) has 2^bits - 1 levels, evenly spaced and symmetric about
    0, the outermost at its largest weight, so that a row's scale can go into a threshold.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not 2 <= bits <= 16:
            raise ValueError(f"weights have 2 to 16 bits, got {bits}")
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weights, of the same shape."""
        levels = 2 ** (self.bits - 1) - 1
        largest = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-12)
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
        register_parametrization(part, name, Rounded(bits))


def _uniform(weight: nn.Parameter, std: float, fan_in: int) -> None:
    bound = std * math.sqrt(3.0 / fan_in)
    nn.init.uniform_(weight, -bound, bound)


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _check_last(x: Tensor, features: int) -> None:
    if x.dim() < 1 or x.shape[-1] != features:
        raise ValueError(f"x must be (..., {features}), got {tuple(x.shape)}")
