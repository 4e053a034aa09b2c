"""Drives that are normalised at each step by itself: over the layer, or over the batch."""

from __future__ import annotations

from typing import Any, NoReturn, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from spikebridge.base.records import UsageError
from spikebridge.nn.synapses import Conv2d, Dense, Driven, Normalised
from spikebridge.settings.model import NormName

__all__ = ["NORMS", "LayerNormalised", "StepNormalised", "normalised"]

NORMS = get_args(NormName)


class LayerNormalised(Normalised):
    """An array whose drive is normalised over the neurons of the layer (Ba et al. 2016).

        drive = size (W x - mean) / sqrt(variance + EPS) + shift

    Mean and variance are those of one sample at one step, over all N neurons; where a unit has
    several currents, of each current by itself.  So training and use, a whole sequence and one
    step at a time, a batch and its samples one by one are all the same.  No weights stand for it,
    as what it divides by depends on the input.

    Args:
        array: (..., I) to (..., N); of a `Conv2d` all channels and pixels are one layer.
        unit: as in `Dense`.

    Attributes, each (groups,), one per feature or channel:
        size, shift: trained; they start at the size that `gain` gives, and at 0.
    """

    EPS = 1e-5
    shared = False

    def __init__(self, array: Dense | Conv2d, unit: Driven = None) -> None:
        super().__init__(array, unit, centre=True)
        self.mean_square = self.mean = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) to (..., N)."""
        drive = self.array(x)
        features = drive.shape[-1] // self.drives
        kind = torch.promote_types(drive.dtype, torch.float32)
        assert self.shift is not None
        own = (self.size, self.shift)
        size, shift = (self._each(part, drive.shape[-1]).to(kind) for part in own)
        if self.drives == 1:
            # In bfloat16 only the result is rounded.
            return F.layer_norm(drive.to(kind), (features,), size, shift, self.EPS).to(drive.dtype)
        parts = drive.to(kind).unflatten(-1, (self.drives, features))
        each = F.layer_norm(parts, (features,), None, None, self.EPS).flatten(-2)
        return torch.addcmul(shift, each, size).to(drive.dtype)

    def _each(self, values: Tensor, width: int) -> Tensor:
        """One number per feature of the drive: those of a channel are the same."""
        return values if self.groups == width else values.repeat_interleave(width // self.groups)

    def folded(self) -> NoReturn:
        """Nothing stands for it.  Raises UsageError with the reason."""
        raise UsageError(
            "norm=layer does not fold into weights and a constant drive: what it divides by is "
            "known only once the drives of all neurons are; train with --norm batch or step"
        )

    def extra_repr(self) -> str:
        return f"{self.groups} features, drives={self.drives}"


class StepNormalised(Normalised):
    """An array whose drive is batch-normalised at each time step by itself.

    In training mean and variance of a feature are those of the batch at that step, as in BNTT (Kim
    and Panda 2021).  Size, shift and running statistics are one for all steps, unlike there, so
    that sequences may have any length, and in use it is weights and a constant drive, see `folded`.
    A step with one sample (and no pixels) has no variance, and takes the running statistics.

    Args:
        array, unit, momentum: as in `Normalised`.  The running statistics take in, at each call,
            the mean over its steps of the steps' means and variances.
    """

    def __init__(
        self, array: Dense | Conv2d, unit: Driven = None, *, momentum: float = 0.05
    ) -> None:
        super().__init__(array, unit, momentum=momentum, centre=True)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, B, I) to (T, B, N); fewer dimensions are one step, and one sample."""
        if not self.training:
            return super().forward(x)
        drive = self.array(x)
        if drive.numel() == 0:
            return drive
        steps = drive.reshape(-1, *drive.shape[-2:]) if drive.dim() > 1 else drive[None, None]
        # (T, B, features, pixels of a feature)
        seen = steps.unflatten(-1, (self.groups, self.out_features // self.groups))
        if self.real is None and seen.shape[1] * seen.shape[3] > 1:
            return self._whole(seen).reshape(drive.shape)
        real = torch.ones_like(seen[:, :, :1, :1], dtype=torch.bool)
        if self.real is not None:
            real = self.real.to(seen.device)[:, :, None, None]
        return self._masked(seen, real).reshape(drive.shape)

    def _whole(self, seen: Tensor) -> Tensor:
        """All samples are there at all steps, and there are several."""
        kind = torch.promote_types(seen.dtype, torch.float32)
        wide = seen.to(kind)
        variance, mean = torch.var_mean(wide, (1, 3), correction=0, keepdim=True)
        self._take_in_steps(mean, variance, torch.ones_like(mean[:, :, :1, :1]))
        factor, constant = self._by(mean, variance)
        return torch.addcmul(constant, wide, factor).to(seen.dtype)

    def _by(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and constant for statistics (T, 1, features, 1)."""
        assert self.shift is not None
        size, shift = (part[:, None].to(mean.dtype) for part in (self.size, self.shift))
        factor = size * (variance + self.EPS).rsqrt()
        return factor, shift - mean * factor

    def _masked(self, seen: Tensor, real: Tensor) -> Tensor:
        """Of what is real (T, B, 1, 1); padding gets no drive, nor gradients."""
        kind, nothing = torch.promote_types(seen.dtype, torch.float32), seen.new_zeros(())
        values = torch.where(real, seen, nothing).to(kind)
        count = (real.sum(1, keepdim=True) * seen.shape[3]).to(kind)
        total, enough = count.clamp(min=1), count > 1
        mean = values.sum((1, 3), keepdim=True) / total
        off = torch.where(real, values - mean, nothing.to(kind))
        variance = off.square().sum((1, 3), keepdim=True) / total
        self._take_in_steps(mean, variance, enough)
        assert self.mean is not None
        mean = torch.where(enough, mean, self.mean[:, None].to(kind))
        variance = torch.where(enough, variance, self.mean_square[:, None].to(kind))
        factor, constant = self._by(mean, variance)
        scaled = torch.addcmul(constant, values, factor)
        return torch.where(real, scaled, nothing.to(kind)).to(seen.dtype)

    @torch.no_grad()
    def _take_in_steps(self, mean: Tensor, variance: Tensor, enough: Tensor) -> None:
        """The mean over the steps that have statistics; nothing where there is none."""
        steps = enough.sum()
        among = [(part * enough).sum((0, 1, 3)) / steps.clamp(min=1) for part in (mean, variance)]
        for kept, fresh in zip((self.mean, self.mean_square), among, strict=True):
            assert kept is not None
            weight = (self.momentum * (steps > 0)).to(kept.dtype)
            kept.lerp_(fresh.to(kept.dtype), weight)


def normalised(
    norm: str | bool, array: Dense | Conv2d, unit: Driven = None, *, centre: bool = False
) -> Any:
    """An array with its drive normalised: by "none", "batch", "layer" or "step".

    True and False are "batch" and "none".  ValueError for another name, and for a centre elsewhere
    than in "batch".
    """
    norm = {True: "batch", False: "none"}.get(norm, norm) if isinstance(norm, bool) else norm
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is not known; choose one of {list(NORMS)}")
    if centre and norm != "batch":
        raise ValueError(f'centre=True is for norm="batch", got {norm!r}; leave it out')
    if norm == "none":
        return array
    if norm == "batch":
        return Normalised(array, unit, centre=centre)
    return (LayerNormalised if norm == "layer" else StepNormalised)(array, unit)
