"""A weight matrix on differential pairs of memory cells.

A `Crossbar` is a parametrisation: the module that owns the weight asks for it as ever and gets what
the cells hold, with the gradient of the weight itself.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from spikebridge.base.records import UsageError
from spikebridge.crossbar.cells import CellArray, keep_key
from spikebridge.nn.gradients import forward_as
from spikebridge.settings.crossbar import REFRESH_HIGH, REFRESH_LOW, CrossbarConfig

UNKNOWN = -1.0
"""In `Crossbar.reference`: pulses have come since it was known what the cells are meant to hold."""
LARGEST_FACTOR = 1e4
"""Of `Crossbar.compensate`: a matrix that has lost more is beyond a factor."""


class Crossbar(nn.Module):
    """A weight matrix (N, I) on `pairs` differential pairs per weight, cut into tiles.

    w = (sum over pairs of G+ - G-) / (pairs scale), where scale, in uS per unit of weight, is that
    of the tile.  A kernel of a convolution counts as (C', C k k).

    Args:
        shape: of the weight.
        cell_array: cells (2, pairs, N, I): G+ and G- of every pair.
        config: pairs, tile, w_max, wire_ohm.
    """

    def __init__(
        self, shape: tuple[int, ...], cell_array: CellArray, config: CrossbarConfig
    ) -> None:
        super().__init__()
        self.weight_shape = tuple(shape)
        rows, columns = shape[0], math.prod(shape[1:])
        expected = (2, config.pairs, rows, columns)
        if tuple(cell_array.shape) != expected:
            raise ValueError(
                f"a weight {tuple(shape)} in {config.pairs} pairs needs an array of shape "
                f"{expected}, got {tuple(cell_array.shape)}"
            )
        self.cell_array, self.config = cell_array, config
        keep_key(self, "cell_array", "device")
        self.scale: Tensor  # uS per unit of weight, (N, I): equal within a tile
        self.correction: Tensor
        self.reference: Tensor
        self.turn: Tensor
        self.register_buffer("scale", torch.ones(rows, columns))
        self.register_buffer("correction", torch.ones(()))
        self.register_buffer("reference", torch.zeros(()))
        self.register_buffer("turn", torch.zeros(rows, columns, dtype=torch.int32))
        self.held: Tensor | None = None  # what the last read gave

    @property
    def cells(self) -> int:
        """Number of memory cells."""
        return math.prod(self.cell_array.shape)

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles along the outputs and along the inputs."""
        rows, columns = self.scale.shape
        return math.ceil(rows / self.config.tile), math.ceil(columns / self.config.tile)

    @property
    def w_max(self) -> Tensor:
        """The weight that the whole range of a cell stands for, (N, I): equal within a tile."""
        return self.cell_array.g_max_uS / self.scale

    def forward(self, weight: Tensor) -> Tensor:
        """The weights that the cells hold, as one read sees them; gradients go to `weight`.

        A pass that is computed again in backward, as torch.utils.checkpoint does, is that of the
        last read: it draws no other.
        """
        if self.held is None or torch._C._current_graph_task_id() == -1:  # not in backward
            self.held = self.weights().to(weight.device, weight.dtype)
        return forward_as(weight, self.held)

    def weights(self) -> Tensor:
        """The weights that the cells hold, as one read sees them, float32 of the weight's shape."""
        g = self.cell_array.read()
        if self.config.wire_ohm:
            g = _behind_wires(g, self.config.tile, self.config.wire_ohm)
        # Not a mean over both: each polarity sums on its own line before the difference is taken.
        value = (g[0].mean(0) - g[1].mean(0)) / self.scale * self.correction
        return value.reshape(self.weight_shape)

    def program(self, weight: Tensor, largest: float | None = None) -> None:
        """Write weights, in the array's best way; each cell of one polarity gets its share.

        largest is the weight that the whole range stands for, instead of what the config says.
        """
        matrix = self._matrix(weight)
        if largest is None:
            self._set_scale(matrix)
        else:
            self.scale.fill_(self.cell_array.g_max_uS / largest)
        self.cell_array.program(self.targets_uS(weight))
        self.settle()
        if not matrix.any():  # what is read is noise, which says nothing of drift
            self.reference.zero_()

    def settle(self) -> None:
        """Take what the cells hold now as what later drift is compensated to."""
        self.correction.fill_(1.0)
        self.reference.copy_(self.weights().abs().mean())

    def pulse(self, counts: Tensor) -> None:
        """Blind pulses: positive counts (N, I or the weight's shape) raise a weight, on G+."""
        counts = counts.reshape(self.scale.shape)
        pairs = self.config.pairs
        up, down = counts.clamp_min(0), (-counts).clamp_min(0)
        both = torch.stack([up, down]).unsqueeze(1)
        # The pairs of a weight take turns, so that all of them age alike.
        place = (torch.arange(pairs).view(1, -1, 1, 1) - self.turn) % pairs
        self.cell_array.pulse(both // pairs + (place < both % pairs))
        self.reference.fill_(UNKNOWN)
        self.turn.add_(counts.abs().to(torch.int32)).remainder_(pairs)

    def refresh(self) -> int:
        """Write pairs anew that have used up their range on both sides; returns how many.

        A pair is RESET and its difference written to one side where the larger conductance is above
        3/4 and the smaller above 1/4 of what pulses reach (the rule of aihwkit's one-sided cells).
        """
        g = self.cell_array.read()
        curve = self.cell_array.pulse_curve_uS
        top = max(curve) if curve else self.cell_array.g_max_uS
        worn = (g.amax(0) > REFRESH_HIGH * top) & (g.amin(0) > REFRESH_LOW * top)
        if not worn.any():
            return 0
        difference = g[0] - g[1]
        targets = torch.stack([difference.clamp_min(0), (-difference).clamp_min(0)])
        where = worn.unsqueeze(0).expand_as(g)
        self.cell_array.program(targets.clamp_max(self.cell_array.g_max_uS), where)
        return int(worn.sum())

    def compensate(self) -> float:
        """Global drift compensation: scale by what |weights| have lost; returns the factor.

        Joshi et al. 2020, as in aihwkit: the mean output for one-hot inputs, now and after
        programming.  The factor is 1 where there is nothing to compare: a matrix that was meant
        to be all 0, or of which nothing is left to read.

        Raises RuntimeError after pulses, until `CrossbarNetwork.settle`.
        """
        if self.reference == UNKNOWN:
            raise RuntimeError(
                "the weights have been changed by pulses since they were written, so it is not "
                "known what drift took from them; call settle() where training ends"
            )
        self.correction.fill_(1.0)
        now, reference = float(self.weights().abs().mean()), float(self.reference)
        if now > 0 and reference > 0:
            self.correction.fill_(min(reference / now, LARGEST_FACTOR))
        return float(self.correction)

    def clip(self, weight: Tensor) -> Tensor:
        """A weight cut off at what the cells can hold, of its own shape."""
        bound = self.w_max.to(weight.device, weight.dtype).reshape(self.weight_shape)
        return torch.minimum(torch.maximum(weight, -bound), bound)

    @property
    def epsilon(self) -> float | Tensor:
        """Change of a weight by one pulse, on average over the lower half of its range.

        A tensor of the weight's shape where tiles have scales of their own.

        Raises UsageError for cells without pulses.
        """
        curve = self.cell_array.pulse_curve_uS
        if len(curve) < 2:
            raise UsageError(
                f"the cell {self.cell_array.name!r} knows no single pulses, and training on the "
                "hardware needs them; pass --cells accumulation"
            )
        half = curve[0] + (max(curve) - curve[0]) / 2
        count = max(sum(g <= half for g in curve) - 1, 1)
        step_uS = (curve[count] - curve[0]) / count
        steps = step_uS / (self.config.pairs * self.scale)
        first = float(steps[0, 0])
        return first if bool((steps == first).all()) else steps.reshape(self.weight_shape)

    def _matrix(self, weight: Tensor) -> Tensor:
        if tuple(weight.shape) != self.weight_shape:
            raise ValueError(f"weight must be {self.weight_shape}, got {tuple(weight.shape)}")
        matrix = weight.detach().to("cpu", torch.float32).reshape(self.scale.shape)
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("the weight holds NaN or infinite values; train it anew")
        return matrix

    def _set_scale(self, matrix: Tensor) -> None:
        tile, top = self.config.tile, self.cell_array.g_max_uS
        if self.config.w_max:
            self.scale.fill_(top / self.config.w_max)
            return
        # Single pulses may end below g_max_uS: the largest weight must be within their reach.
        top = min(top, max(self.cell_array.pulse_curve_uS, default=top))
        for a in range(0, matrix.shape[0], tile):
            for b in range(0, matrix.shape[1], tile):
                part = matrix[a : a + tile, b : b + tile]
                largest = float(part.abs().max())
                if self.config.clip_rms:
                    largest = min(
                        largest, self.config.clip_rms * float(part.square().mean().sqrt())
                    )
                self.scale[a : a + tile, b : b + tile] = top / (largest or 1.0)

    def targets_uS(self, weight: Tensor) -> Tensor:
        """What the cells are to hold for a weight, (2, pairs, N, I), with the scale in force."""
        g = (self._matrix(weight) * self.scale).clamp(
            -self.cell_array.g_max_uS, self.cell_array.g_max_uS
        )
        both = torch.stack([g.clamp_min(0), (-g).clamp_min(0)])
        return both.unsqueeze(1).expand(self.cell_array.shape)

    def _apply(self, fn: Any, recurse: bool = True) -> Crossbar:
        """Conductances and their scale stay in float32 on the CPU, wherever the network goes."""
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.held = None  # of other cells

    def __deepcopy__(self, memo: dict[int, Any]) -> Crossbar:
        """With cells of its own; an array outside this process is shared."""
        cells: Any = self.cell_array
        if isinstance(cells, nn.Module):
            cells = copy.deepcopy(cells, memo)
        twin = Crossbar(self.weight_shape, cells, self.config)
        twin.load_state_dict(self.state_dict())
        memo[id(self)] = twin
        return twin

    def extra_repr(self) -> str:
        return f"{self.weight_shape}, {self.config.pairs} pairs, tiles {self.tiles}"


def _behind_wires(g_uS: Tensor, tile: int, wire_ohm: float) -> Tensor:
    """Conductances (..., I) as they act behind the resistance of a column's wire, to first order.

    Cell j of a column sees its input less R sum_m min(j, m) G_m x_m, with rows counted from the
    converter, while half of all rows are driven.
    """
    seen_uS = g_uS.clone()
    for start in range(0, g_uS.shape[-1], tile):
        part = g_uS[..., start : start + tile]
        rows = torch.arange(1, part.shape[-1] + 1, dtype=part.dtype)
        lost = part @ torch.minimum(rows[:, None], rows) * (0.5e-6 * wire_ohm)
        seen_uS[..., start : start + tile] = part * (1 - lost).clamp_min(0)
    return seen_uS
