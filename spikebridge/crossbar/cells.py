"""Arrays of memory cells: the protocol that a simulator, an instrument and a remote bench share.

A `CellArray` is many memory cells of one shape with a clock.  It knows nothing of weights; what its
conductances stand for is the business of `crossbar.matrix`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from spikebridge.crossbar import pcm
from spikebridge.crossbar.pcm import Cell, Cells

__all__ = ["CellArray", "SimulatedArray", "checked_counts", "checked_targets"]

# Pulses of one command, for a cell and for all: what a simulation does within seconds, since others
# wait for it, and more than any cell needs.
MOST_AT_ONCE, MOST_IN_ALL = 2_000, 1_000_000_000


@runtime_checkable
class CellArray(Protocol):
    """Memory cells of any shape that can be programmed, pulsed and read.

    Tensors have the shape of the array, conductances are in microsiemens and float32, and a write
    that returns has been done.  Where `where` is given, a bool tensor of that shape, other cells
    are left alone.
    """

    shape: tuple[int, ...]
    name: str
    g_max_uS: float

    @property
    def clock_s(self) -> float:
        """Time on the array's clock, in seconds."""
        ...

    @property
    def pulse_curve_uS(self) -> tuple[float, ...]:
        """Mean conductance after 0, 1, 2, .. SET pulses from RESET; () where it has none."""
        ...

    def program(self, target_uS: Tensor, where: Tensor | None = None) -> None:
        """Write conductances in the array's best way."""
        ...

    def pulse(self, counts: Tensor) -> None:
        """Blind SET pulses: counts (whole numbers, >= 0) for each cell, without looking."""
        ...

    def reset(self, where: Tensor | None = None) -> None:
        """RESET pulses."""
        ...

    def read(self) -> Tensor:
        """Conductances as they are read now, with the noise of this read."""
        ...

    def wait(self, seconds_s: float) -> None:
        """Let time pass."""
        ...


class SimulatedArray(nn.Module):
    """Cells that follow a model of `crossbar.pcm`, with faults and a count of writes.

    A Module so that its state moves with a checkpoint: `state_dict` holds all of it, the position
    of its generator included, and a restored array goes on bit for bit.

    Args:
        shape: of the cells, each side at least 1.
        cell: the model.
        seed: of all draws, at least 0.
        dead: share of cells that stay at g_min_uS whatever is done, in [0, 1].
        stuck: share of cells that stay at a conductance drawn evenly from the range.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        cell: Cell,
        *,
        seed: int = 0,
        dead: float = 0.0,
        stuck: float = 0.0,
    ) -> None:
        super().__init__()
        if not shape or min(shape) < 1:
            raise ValueError(f"an array needs a shape with sides of at least 1, got {shape}")
        if not (0 <= dead <= 1 and 0 <= stuck <= 1 and dead + stuck <= 1):
            raise ValueError(f"dead={dead}, stuck={stuck}: shares of all cells, together at most 1")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed}: a seed is a whole number in [0, 2**63)")
        self.clock: Tensor
        self.pulses: Tensor
        self.writes: Tensor
        self.draws: Tensor
        self.fault_uS: Tensor | None
        self.shape, self.cell = tuple(shape), cell
        self.name, self.g_max_uS = cell.name, cell.g_max_uS
        self._generator = torch.Generator().manual_seed(seed)
        for field, value in pcm.fresh(cell, self.shape, self._generator)._asdict().items():
            self.register_buffer(field, value)
        self.register_buffer("clock", torch.zeros((), dtype=torch.float64))
        self.register_buffer("pulses", torch.zeros(self.shape, dtype=torch.int32))
        self.register_buffer("writes", torch.zeros(self.shape, dtype=torch.int32))
        self.register_buffer("draws", self._generator.get_state())
        keep_key(self, "history", "memory")
        self._expected: tuple[Tensor, Tensor | None] | None = None
        self._add_faults(dead, stuck)

    def _add_faults(self, dead: float, stuck: float) -> None:
        self.faulty: Tensor | None
        self.register_buffer("faulty", None)
        self.register_buffer("fault_uS", None)
        if not dead + stuck:
            return
        drawn = torch.rand(self.shape, generator=self._generator)
        level = torch.rand(self.shape, generator=self._generator)
        low, high = self.cell.g_min_uS, self.cell.g_max_uS
        self.faulty = drawn < dead + stuck
        self.fault_uS = torch.where(drawn < dead, low, low + (high - low) * level)

    @property
    def clock_s(self) -> float:
        """Time on the array's clock, in seconds."""
        return float(self.clock)

    @property
    def pulse_curve_uS(self) -> tuple[float, ...]:
        """Mean conductance after 0, 1, 2, .. SET pulses from RESET; () where there are none."""
        if self.cell.pulse is None:
            return ()
        return tuple(pcm.mean_curve_uS(self.cell).tolist())

    @property
    def cells(self) -> Cells:
        """The state of the cells; the tensors are those of the array."""
        return Cells(*(getattr(self, field) for field in Cells._fields))

    def program(self, target_uS: Tensor, where: Tensor | None = None) -> None:
        """Write conductances: with verification where the model has it, else RESET and pulses."""
        target = checked_targets(target_uS, self)
        self._expected = None
        flat = self._flat(where)
        aimed = target.reshape(-1) if flat is None else target.reshape(-1)[flat]
        at = slice(None) if flat is None else flat
        self.writes.view(-1)[at] += 1
        if self.cell.write is None:
            self.pulses.view(-1)[at] += pcm.pulses_for(self.cell, aimed).to(torch.int32)
        pcm.write(self.cell, self.cells, flat, aimed, self.clock_s, self._generator)

    def pulse(self, counts: Tensor) -> None:
        """Blind SET pulses."""
        counts = checked_counts(counts, self)
        self._expected = None
        pcm.pulse(self.cell, self.cells, counts, self.clock_s, self._generator)
        self.pulses += counts.to(torch.int32)

    def reset(self, where: Tensor | None = None) -> None:
        """RESET pulses."""
        flat = self._flat(where)
        self._expected = None
        self.writes.view(-1)[slice(None) if flat is None else flat] += 1
        pcm.reset(self.cell, self.cells, flat, self.clock_s, self._generator)

    def read(self) -> Tensor:
        """Conductances with the noise of this read."""
        if self._expected is None:  # reads at the same time share what is slow
            mean, sigma = pcm.expected(self.cell, self.cells, self.clock_s)
            if self.cell.noise is not None and self.cell.noise.slow:
                mean, sigma = pcm.read(mean, sigma, self._generator), None
            self._expected = mean, sigma
        return self._with_faults(pcm.read(*self._expected, self._generator))

    def conductance(self) -> Tensor:
        """Conductances now, without read noise: what only a simulation can tell."""
        g = pcm.conductance(self.cell, self.cells, self.clock_s)
        return self._with_faults(g)

    def _with_faults(self, g_uS: Tensor) -> Tensor:
        if self.faulty is None or self.fault_uS is None:
            return g_uS
        return torch.where(self.faulty, self.fault_uS, g_uS)

    def wait(self, seconds_s: float) -> None:
        """Let time pass."""
        if not (math.isfinite(seconds_s) and seconds_s >= 0):
            raise ValueError(f"seconds_s={seconds_s}: time passes forward; give 0 or more")
        self.clock += seconds_s
        self._expected = None

    def _flat(self, where: Tensor | None) -> Tensor | None:
        """Numbers of the chosen cells; None for all."""
        if where is None:
            return None
        if where.shape != self.shape or where.dtype != torch.bool:
            raise ValueError(
                f"where must be bool {self.shape}, got {where.dtype} {tuple(where.shape)}"
            )
        return where.reshape(-1).nonzero().squeeze(1)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # What was drawn for this time is not saved: the next read draws, here as there.
        self._expected = None
        self.draws.copy_(self._generator.get_state())
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._expected = None
        self._generator.set_state(self.draws.cpu())

    def _apply(self, fn: Any, recurse: bool = True) -> SimulatedArray:
        """Physics stays in float32 on the CPU, whatever becomes of the network around it."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SimulatedArray:
        twin = SimulatedArray(self.shape, self.cell)
        twin.faulty = None if self.faulty is None else torch.empty_like(self.faulty)
        twin.fault_uS = None if self.fault_uS is None else torch.empty_like(self.fault_uS)
        twin.load_state_dict(self.state_dict())
        return twin

    def extra_repr(self) -> str:
        return f"{self.name}, {self.shape}"


def keep_key(module: nn.Module, name: str, stored: str) -> None:
    """Let state dicts, and so files, call an attribute of a module what they always did."""
    module.register_state_dict_post_hook(partial(_renamed, name, stored))
    module.register_load_state_dict_pre_hook(partial(_renamed, stored, name))


def _renamed(
    old: str, new: str, _: nn.Module, state: dict[str, Any], prefix: str, *rest: Any
) -> None:
    for key in [key for key in state if f"{key}.".startswith(f"{prefix}{old}.")]:
        state[prefix + new + key.removeprefix(prefix + old)] = state.pop(key)


def checked_targets(target_uS: Tensor, array: CellArray) -> Tensor:
    """Targets as float32 of the array's shape.  Raises ValueError for what cannot be meant."""
    if tuple(target_uS.shape) != tuple(array.shape):
        raise ValueError(f"target_uS must be {tuple(array.shape)}, got {tuple(target_uS.shape)}")
    target = target_uS.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(target).all()):
        raise ValueError("target_uS holds NaN or infinite values; check the weights they stem from")
    low, high = float(target.min()), float(target.max())
    if low < 0 or high > array.g_max_uS * (1 + 1e-5):
        raise ValueError(
            f"target_uS must lie in [0, {array.g_max_uS:g}], got {low:g} to {high:g}; scale or "
            "clip the weights"
        )
    return target


def checked_counts(counts: Tensor, array: CellArray) -> Tensor:
    """Numbers of pulses as int64 of the array's shape.  Raises ValueError, TypeError."""
    if tuple(counts.shape) != tuple(array.shape):
        raise ValueError(f"counts must be {tuple(array.shape)}, got {tuple(counts.shape)}")
    if counts.is_floating_point() or counts.dtype == torch.bool:
        raise TypeError(f"counts are whole numbers, got {counts.dtype}; call .to(torch.int64)")
    if counts.numel() and int(counts.min()) < 0:
        raise ValueError(
            f"counts must be at least 0, got {int(counts.min())}; conductances are lowered by RESET"
        )
    if counts.numel() and int(counts.max()) > MOST_AT_ONCE:
        raise ValueError(
            f"counts must be at most {MOST_AT_ONCE:,} for a cell, got {int(counts.max()):,}; most "
            "cells are saturated long before: give the others several commands"
        )
    if (total := int(counts.sum(dtype=torch.int64))) > MOST_IN_ALL:
        raise ValueError(
            f"counts must be at most {MOST_IN_ALL:,} for all cells together, got {total:,}; give "
            "them in several commands"
        )
    return counts.detach().to("cpu", torch.int64)
