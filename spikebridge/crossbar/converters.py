"""What surrounds the cells of a tile: converters that drive rows and read columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.crossbar.places import remade
from spikebridge.nn.gradients import forward_as

if TYPE_CHECKING:
    from spikebridge.crossbar.matrix import Crossbar


class Converted(nn.Module):
    """An array whose products go through converters, tile by tile; sums over tiles are digital.

    Inputs are scaled to the largest of their vector, so that spikes pass any converter unchanged;
    what a column of a tile gives is cut off at `adc_range`.  Gradients pass converters as they are.

    Args:
        array: Dense, Conv2d, torch.nn.Linear or torch.nn.Conv2d with its weight on a crossbar.
        crossbar: that crossbar.
    """

    def __init__(self, array: nn.Module, crossbar: Crossbar) -> None:
        super().__init__()
        self.array: Any = array
        self._crossbar = [crossbar]  # in a list: it is registered once, with its weight
        for name in ("in_features", "out_features", "in_shape", "out_shape", "operations"):
            if hasattr(array, name):
                setattr(self, name, getattr(array, name))

    @property
    def crossbar(self) -> Crossbar:
        """The crossbar that holds the weight."""
        return self._crossbar[0]

    @property
    def weight(self) -> Tensor:
        """As the cells hold it."""
        return self.array.weight

    @property
    def bias(self) -> Tensor | None:
        """The array's own, added digitally."""
        return getattr(self.array, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """As the array itself."""
        array = self.array
        for hook in array._forward_pre_hooks.values():  # of a pruned bias, say
            if remade(hook):
                hook(array, (x,))
        if not hasattr(array, "kernel_size") and not hasattr(array, "in_shape"):
            y = self._product(x, array.weight)
            return y if self.bias is None else y + self.bias
        own = hasattr(array, "in_shape")  # ours takes flattened images
        images = x.reshape(-1, *array.in_shape) if own else x
        if images.dim() == 3:
            images = images.unsqueeze(0)
        images = padded(images, array)
        weight = array.weight
        dilation = getattr(array, "dilation", 1)
        patches = F.unfold(images, weight.shape[2:], dilation=dilation, stride=array.stride)
        y = self._product(patches.transpose(1, 2), weight.flatten(1)).transpose(1, 2)
        if self.bias is not None:
            y = y + self.bias[:, None]
        y = y.unflatten(-1, self._sides(images.shape[-2:]))
        if own:
            y = F.avg_pool2d(y, array.pool) if array.pool > 1 else y
            return y.reshape(*x.shape[:-1], array.out_features)
        return y if x.dim() == 4 else y.squeeze(0)

    def _sides(self, sizes: torch.Size) -> tuple[int, int]:
        """Rows and columns of the output, of those of the padded image."""
        sides = []
        for axis, (size, k) in enumerate(zip(sizes, self.crossbar.weight_shape[2:], strict=True)):
            stride, dilation = (
                value[axis] if isinstance(value, tuple) else value
                for value in (self.array.stride, getattr(self.array, "dilation", 1))
            )
            sides.append((size - dilation * (k - 1) - 1) // stride + 1)
        return sides[0], sides[1]

    def _product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """x (..., I) and the matrix (N, I) to (..., N)."""
        config = self.crossbar.config
        top = x.detach().abs().amax(-1, keepdim=True).clamp_min(1e-12)
        if config.dac_bits:
            x = _converted(x, top, config.dac_bits)
        largest = self.crossbar.w_max.to(matrix.device, matrix.dtype)
        total: Tensor | None = None
        for start in range(0, matrix.shape[1], config.tile):
            part = x[..., start : start + config.tile] @ matrix[:, start : start + config.tile].T
            if config.adc_bits:
                # What scales outputs digitally comes after the converter.
                factor = self.crossbar.correction.to(matrix.device, matrix.dtype)
                bound = config.adc_range * top * largest[:, start] * factor
                part = _converted(part, bound, config.adc_bits)
            total = part if total is None else total + part
        assert total is not None
        return total


def _converted(x: Tensor, bound: Tensor, bits: int) -> Tensor:
    """x cut off at +-bound and rounded to 2^bits - 1 evenly spaced values; its own gradient."""
    most = 2 ** (bits - 1) - 1
    hard = (x.detach() * (most / bound)).round_().clamp_(-most, most).mul_(bound / most)
    return forward_as(x, hard) if torch.is_grad_enabled() else hard


def padded(images: Tensor, array: Any) -> Tensor:
    """Images with the padding of a convolution, in its own way."""
    if hasattr(array, "in_shape"):
        return F.pad(images, (array.padding,) * 4)
    mode = "constant" if array.padding_mode == "zeros" else array.padding_mode
    return F.pad(images, array._reversed_padding_repeated_twice, mode=mode)
