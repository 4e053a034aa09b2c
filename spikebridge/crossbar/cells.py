"""Arrays of memory cells: the protocol that a simulator, an instrument and a remote bench share.

A `CellArray` is many memory cells of one shape with a clock.  It knows nothing of weights; what its
conductances stand for is the business of `crossbar.matrix`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from spikebridge.crossbar import pcm
from spikebridge.crossbar.pcm import Cell
from spikebridge.crossbar.physics import normal

__all__ = ["CellArray", "SimulatedArray"]

# Pulses of one command, for a cell and for all: what a simulation does within seconds, since others
# wait for it, and more than any cell needs.
MOST_AT_ONCE, MOST_IN_ALL = 2_000, 1_000_000_000
# Cells that are worked on at once: what a block needs stays in the nearer caches, and no operation
# is so large that torch shares it among threads, which costs more than it saves.
BLOCK = 1 << 14
At = Tensor | slice


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
        self.g_uS: Tensor  # as it was written, before drift and read noise
        self.written_s: Tensor  # time of the last write
        self.nu: Tensor  # drift exponent
        self.history: Tensor  # what a pulse model keeps of earlier pulses
        self.clock: Tensor
        self.pulses: Tensor
        self.writes: Tensor
        self.draws: Tensor
        self.faulty: Tensor | None
        self.fault_uS: Tensor | None
        self.shape, self.cell = tuple(shape), cell
        self.name, self.g_max_uS = cell.name, cell.g_max_uS
        self._generator = torch.Generator().manual_seed(seed)
        for name in ("g_uS", "written_s", "nu", "history"):
            # float32 would know the time to 2 s only after a year.
            dtype = torch.float64 if name == "written_s" else None
            self.register_buffer(name, torch.zeros(self.shape, dtype=dtype))
        keep_key(self, "history", "memory")
        self.register_buffer("clock", torch.zeros((), dtype=torch.float64))
        for name in ("pulses", "writes"):
            self.register_buffer(name, torch.zeros(self.shape, dtype=torch.int32))
        self._reset(None)
        self.register_buffer("draws", self._generator.get_state())
        self._expected: tuple[Tensor, Tensor | None] | None = None
        self._add_faults(dead, stuck)

    def _add_faults(self, dead: float, stuck: float) -> None:
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

    def program(self, target_uS: Tensor, where: Tensor | None = None) -> None:
        """Write conductances: with verification where the model has it, else RESET and pulses."""
        target, cell = checked_targets(target_uS, self).reshape(-1), self.cell
        flat = self._flat(where)
        aimed = target if flat is None else target[flat]
        self._expected = None
        self.writes.view(-1)[_all(flat)] += 1
        if cell.write is None:
            counts = pcm.pulses_for(cell, aimed)
            self.pulses.view(-1)[_all(flat)] += counts.to(torch.int32)
            if len(aimed):
                self._reset(flat)
                every = torch.zeros(self.g_uS.numel(), dtype=torch.int64)
                every[_all(flat)] = counts
                self._send(every)
        elif len(aimed):
            for at, block in zip(self._blocks(flat), aimed.split(BLOCK), strict=True):
                self._put(at, cell.write.reached(block, normal(block, self._generator)), block)

    def pulse(self, counts: Tensor) -> None:
        """Blind SET pulses; ValueError where the cell model knows none."""
        counts = checked_counts(counts, self)
        if self.cell.pulse is None:
            raise ValueError(
                f"the cell model {self.cell.name!r} knows no single pulses; train on "
                "'accumulation', or program targets"
            )
        self._expected = None
        self._send(counts.reshape(-1))
        self.pulses += counts.to(torch.int32)

    def reset(self, where: Tensor | None = None) -> None:
        """RESET pulses."""
        flat = self._flat(where)
        self._expected = None
        self.writes.view(-1)[_all(flat)] += 1
        self._reset(flat)

    def read(self) -> Tensor:
        """Conductances with the noise of this read, at least 0."""
        if self._expected is None:  # reads at the same time share what is slow
            mean, sigma = self._at_this_time()
            if self.cell.noise is not None and self.cell.noise.slow:
                mean, sigma = self._noisy(mean, sigma), None
            self._expected = mean, sigma
        return self._with_faults(self._noisy(*self._expected))

    def conductance(self) -> Tensor:
        """Conductances now, without read noise: what only a simulation can tell."""
        return self._with_faults(self._conductance(slice(None)).view(self.shape))

    def _reset(self, flat: Tensor | None) -> None:
        start = self.cell.pulse.history_start if self.cell.pulse is not None else 0.0
        for at in self._blocks(flat):
            level = torch.full_like(self.g_uS.view(-1)[at], self.cell.reset_uS)
            if self.cell.reset_spread:
                level *= 1 + self.cell.reset_spread * normal(level, self._generator)
            self._put(at, level, level)
            self.history.view(-1)[at] = start

    def _send(self, counts: Tensor) -> None:
        """Pulses (cells,) on top of what is there."""
        where = counts.nonzero().squeeze(1)
        for at in self._blocks(where if len(where) < len(counts) else None):
            self._pulse(at, counts[at])

    def _pulse(self, at: At, left: Tensor) -> None:
        """At least one pulse for each of a block of cells."""
        cell = self.cell
        assert cell.pulse is not None
        # A pulse meets the conductance that drift has left.
        g_uS, history = self._conductance(at), self.history.view(-1)[at].clone()
        # The most pulses first: what still gets some then lies at the front, without gathering.
        left, order = left.sort(descending=True)
        g, h = g_uS[order], history[order]
        last = int(left[0])
        ends = torch.searchsorted(-left, -torch.arange(1, last + 1), right=True).tolist()
        for end in ends:  # so many get a first, a second, .. pulse
            new, kept = cell.pulse.step(g[:end], h[:end], normal(g[:end], self._generator))
            g[:end], h[:end] = new.clamp_(cell.g_min_uS, cell.g_max_uS), kept
        g_uS[order], history[order] = g, h
        self.history.view(-1)[at] = history
        self._put(at, g_uS, g_uS)

    def _put(self, at: At, g_uS: Tensor, aimed_uS: Tensor) -> None:
        """Write down new conductances, clamped, with the time and new exponents."""
        top = None if self.cell.overshoot else self.cell.g_max_uS
        self.g_uS.view(-1)[at] = g_uS.clamp(self.cell.g_min_uS, top)
        self.written_s.view(-1)[at] = self.clock_s
        if self.cell.drift is not None:
            self.nu.view(-1)[at] = self.cell.drift.exponents(aimed_uS, self._generator)

    def _conductance(self, at: At) -> Tensor:
        g_uS = self.g_uS.view(-1)[at]
        if self.cell.drift is None:
            return g_uS.clone()
        return g_uS * self.cell.drift.factor(self._elapsed_s(at), self.nu.view(-1)[at])

    def _elapsed_s(self, at: At) -> Tensor:
        return (self.clock_s - self.written_s.view(-1)[at]).to(self.g_uS.dtype)

    def _at_this_time(self) -> tuple[Tensor, Tensor | None]:
        """What reads scatter around, and how far; None where they do not scatter."""
        mean, noise = torch.empty_like(self.g_uS), self.cell.noise
        sigma = None if noise is None else torch.empty_like(mean)
        for at in self._blocks(None):
            g_uS = mean.view(-1)[at] = self._conductance(at)
            if noise is not None and sigma is not None:
                written_uS, elapsed_s = self.g_uS.view(-1)[at], self._elapsed_s(at)
                sigma.view(-1)[at] = noise.sigma_uS(g_uS, written_uS, elapsed_s)
        return mean, sigma

    def _noisy(self, mean_uS: Tensor, sigma_uS: Tensor | None) -> Tensor:
        if sigma_uS is None:
            return mean_uS.clone()
        return normal(mean_uS, self._generator).mul_(sigma_uS).add_(mean_uS).clamp_min_(0)

    def _blocks(self, flat: Tensor | None) -> Iterator[At]:
        """Numbers of cells, or all, in parts."""
        if flat is not None:
            yield from (part for part in flat.split(BLOCK) if len(part))
            return
        yield from (slice(at, at + BLOCK) for at in range(0, self.g_uS.numel(), BLOCK))

    def _with_faults(self, g_uS: Tensor) -> Tensor:
        if self.faulty is None or self.fault_uS is None:
            return g_uS
        return torch.where(self.faulty, self.fault_uS, g_uS)

    def wait(self, seconds_s: float) -> None:
        """Let time pass."""
        self.clock += checked_seconds(seconds_s)
        self._expected = None

    def _flat(self, where: Tensor | None) -> Tensor | None:
        """Numbers of the chosen cells; None for all."""
        where = checked_where(where, self)
        return None if where is None else where.reshape(-1).nonzero().squeeze(1)

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


def _all(flat: Tensor | None) -> At:
    return slice(None) if flat is None else flat


def keep_key(module: nn.Module, name: str, stored: str) -> None:
    """Let state dicts, and so files, call an attribute of a module what they always did."""
    module.register_state_dict_post_hook(partial(_renamed, name, stored))
    module.register_load_state_dict_pre_hook(partial(_renamed, stored, name))


def _renamed(
    old: str, new: str, _: nn.Module, state: dict[str, Any], prefix: str, *rest: Any
) -> None:
    for key in [key for key in state if f"{key}.".startswith(f"{prefix}{old}.")]:
        state[prefix + new + key.removeprefix(prefix + old)] = state.pop(key)


def checked_where(where: Tensor | None, array: CellArray) -> Tensor | None:
    """A choice of cells, bool of the array's shape.  Raises ValueError."""
    if where is None:
        return None
    if tuple(where.shape) != tuple(array.shape) or where.dtype != torch.bool:
        raise ValueError(
            f"where must be bool {tuple(array.shape)}, got {where.dtype} {tuple(where.shape)}"
        )
    return where.detach().cpu()


def checked_seconds(seconds_s: float, array: CellArray | None = None) -> float:
    """A time that can pass, in seconds.  Raises ValueError."""
    known = isinstance(seconds_s, Real) and not isinstance(seconds_s, bool)
    if not (known and math.isfinite(seconds_s) and seconds_s >= 0):
        raise ValueError(f"seconds_s={seconds_s}: time passes forward; give 0 or more")
    return float(seconds_s)


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
