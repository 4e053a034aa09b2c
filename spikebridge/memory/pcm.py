"""Physics of phase-change memory cells: frozen parameter records and pure functions of them.

A `Cell` says how a device answers to a SET pulse, to programming with verification, to time and to
being read; each part may be missing or ideal.  `Cells` is the state of many devices.  Conductances
are in microsiemens, times in seconds, and every draw comes from a generator that is passed in.
Policy, that is when to write what, lives elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = [
    "ACCUMULATION",
    "ACCUMULATION_2020",
    "ITERATIVE",
    "Accumulation",
    "Cell",
    "Cells",
    "Drift",
    "ExponentialSteps",
    "Levels",
    "LinearNoise",
    "NoiseOneOverF",
    "Verified",
    "ideal",
]

_NANDAKUMAR_2018 = (
    "Nandakumar et al. 2018, J. Appl. Phys. 124:152135, constants as in the public simulation "
    "srnn-pcm by Y. Demirag"
)
_ICECS_2019 = "Nandakumar et al. 2019, ICECS, constants as in aihwkit's PCMLikeNoiseModel"
_FRONTIERS_2020 = (
    "Nandakumar et al. 2020, Front. Neurosci., fitted in aihwkit's PCMPresetDevice; 10 uS per unit "
    "of its weight"
)


# Cells that are worked on at once: what a block needs stays in the nearer caches, and no operation
# is so large that torch shares it among threads, which costs more than it saves.
BLOCK = 1 << 14


class Pulse(Protocol):
    """What one SET pulse does."""

    @property
    def memory_start(self) -> float:
        """Memory after RESET."""
        ...

    def step(self, g_uS: Tensor, memory: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """New conductance, not yet clamped, and new memory, of (n,) cells and N(0, 1) draws."""
        ...

    def mean_step_uS(self, g_uS: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Mean change and the new memory."""
        ...


class Write(Protocol):
    """What iterative programming with verification reaches."""

    def reached(self, target_uS: Tensor, noise: Tensor) -> Tensor:
        """Conductance, not yet clamped, for a target and N(0, 1) draws."""
        ...


class Ageing(Protocol):
    """How conductance changes by itself."""

    def exponents(self, g_uS: Tensor, generator: torch.Generator) -> Tensor:
        """A drift exponent for each cell, drawn when it is written; g_uS is what was aimed at."""
        ...

    def factor(self, elapsed_s: Tensor, nu: Tensor) -> Tensor:
        """Conductance over that of the time of reference."""
        ...


class Noise(Protocol):
    """What a read adds."""

    def sigma_uS(self, g_uS: Tensor, written_uS: Tensor, elapsed_s: Tensor) -> Tensor:
        """Standard deviation of a read, of the conductance now and as it was written."""
        ...


@dataclass(frozen=True)
class Accumulation:
    """Partial SET pulses whose effect falls with the conductance and with earlier pulses.

    Per pulse P <- P exp(-1 / memory_pulses), with P = 1 after RESET, and a change drawn from
    N(mean_slope G + mean_offset + mean_memory P, (sd_slope G + sd_offset + sd_memory P)^2).
    """

    memory_pulses: float = 2.6
    """Pulses over which the effect of RESET fades, 1."""
    mean_slope: float = -0.084
    """uS per uS."""
    mean_offset_uS: float = 0.880
    mean_memory_uS: float = 1.40
    sd_slope: float = 0.091
    """uS per uS."""
    sd_offset_uS: float = 0.260
    sd_memory_uS: float = 2.15
    memory_start: float = 1.0
    """P after RESET."""
    source: str = _NANDAKUMAR_2018

    def mean_step_uS(self, g_uS: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        memory = memory * math.exp(-1 / self.memory_pulses)
        return self.mean_slope * g_uS + self.mean_offset_uS + self.mean_memory_uS * memory, memory

    def sigma_uS(self, g_uS: Tensor, memory: Tensor) -> Tensor:
        """Spread of a pulse, of the conductance before it and the memory after it."""
        return self.sd_slope * g_uS + self.sd_offset_uS + self.sd_memory_uS * memory

    def step(self, g_uS: Tensor, memory: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        change, memory = self.mean_step_uS(g_uS, memory)
        return g_uS + change + self.sigma_uS(g_uS, memory) * noise, memory


@dataclass(frozen=True)
class ExponentialSteps:
    """Pulses whose mean step falls exponentially with the conductance; no memory.

    Mean step = step (1 + rise exp(-G / fall)); its spread is spread (step + floor + slope G).
    """

    step_uS: float = 0.1
    rise: float = 27.235
    """1."""
    fall_uS: float = 4.0
    spread: float = 0.6
    """1."""
    spread_floor_uS: float = 0.42
    spread_slope: float = 0.108
    """uS per uS."""
    memory_start: float = 0.0
    source: str = _FRONTIERS_2020

    def mean_step_uS(self, g_uS: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.step_uS * (1 + self.rise * torch.exp(-g_uS / self.fall_uS)), memory

    def sigma_uS(self, g_uS: Tensor, memory: Tensor) -> Tensor:
        """Spread of a pulse, of the conductance before it."""
        change, _ = self.mean_step_uS(g_uS, memory)
        return self.spread * (change.abs() + self.spread_floor_uS + self.spread_slope * g_uS)

    def step(self, g_uS: Tensor, memory: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        change, _ = self.mean_step_uS(g_uS, memory)
        return g_uS + change + self.sigma_uS(g_uS, memory) * noise, memory


@dataclass(frozen=True)
class EqualSteps:
    """Every pulse changes the conductance by the same amount, exactly."""

    step_uS: float
    memory_start: float = 0.0

    def mean_step_uS(self, g_uS: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(g_uS, self.step_uS), memory

    def step(self, g_uS: Tensor, memory: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return g_uS + self.step_uS, memory


@dataclass(frozen=True)
class Verified:
    """Program-and-verify: reaches the target with an error of known spread.

    sigma = (c0 + c1 x + c2 x^2) g_max / 25 uS, x = target / g_max.
    """

    g_max_uS: float = 25.0
    c0_uS: float = 0.26348
    c1_uS: float = 1.9650
    c2_uS: float = -1.1731
    source: str = _ICECS_2019

    def sigma_uS(self, target_uS: Tensor) -> Tensor:
        """Standard deviation of what is reached."""
        x = target_uS / self.g_max_uS
        return (self.c0_uS + x * (self.c1_uS + x * self.c2_uS)) * (self.g_max_uS / 25.0)

    def reached(self, target_uS: Tensor, noise: Tensor) -> Tensor:
        return target_uS + self.sigma_uS(target_uS) * noise


@dataclass(frozen=True)
class Levels:
    """Writes without error, to the nearest of `count` evenly spaced levels; 0 = to any value."""

    g_max_uS: float
    count: int = 0

    def reached(self, target_uS: Tensor, noise: Tensor) -> Tensor:
        if not self.count:
            return target_uS.clone()
        step = self.g_max_uS / (self.count - 1)
        return (target_uS / step).round() * step


@dataclass(frozen=True)
class Drift:
    """Structural relaxation: G(t) = G (max(t + offset, t0) / t0)^-nu, t since the last write.

    nu = |N(mean, sd)| of each cell, drawn when it is written; mean and sd are
    clamp(slope ln x + start, low, high) of x = target / g_max, and plain numbers where slope is 0.
    """

    t0_s: float
    """Time of reference."""
    offset_s: float = 0.0
    """What is added to the time since the write."""
    nu_slope: float = 0.0
    nu_start: float = 0.0
    nu_low: float = 0.0
    nu_high: float = math.inf
    sd_slope: float = 0.0
    sd_start: float = 0.0
    sd_low: float = 0.0
    sd_high: float = math.inf
    g_max_uS: float = 25.0
    source: str = ""

    def mean_nu(self, g_uS: Tensor) -> Tensor:
        """Mean exponent of cells written to a conductance."""
        return self._line(g_uS, self.nu_slope, self.nu_start).clamp(self.nu_low, self.nu_high)

    def sd_nu(self, g_uS: Tensor) -> Tensor:
        """Its spread from cell to cell."""
        return self._line(g_uS, self.sd_slope, self.sd_start).clamp(self.sd_low, self.sd_high)

    def _line(self, g_uS: Tensor, slope: float, start: float) -> Tensor:
        if slope == 0:
            return torch.full_like(g_uS, start)
        return slope * (g_uS / self.g_max_uS).clamp_min(1e-7).log() + start

    def exponents(self, g_uS: Tensor, generator: torch.Generator) -> Tensor:
        mean = self.mean_nu(g_uS)
        if self.sd_slope == 0 and self.sd_start == 0:
            return mean
        return (mean + self.sd_nu(g_uS) * _normal(g_uS, generator)).abs()

    def factor(self, elapsed_s: Tensor, nu: Tensor) -> Tensor:
        return ((elapsed_s + self.offset_s).clamp_min(self.t0_s) / self.t0_s) ** -nu


@dataclass(frozen=True)
class LinearNoise:
    """Reads scatter with sigma = slope G + floor."""

    slope: float = 0.03
    """uS per uS."""
    floor_uS: float = 0.13
    source: str = _NANDAKUMAR_2018

    def sigma_uS(self, g_uS: Tensor, written_uS: Tensor, elapsed_s: Tensor) -> Tensor:
        return self.slope * g_uS + self.floor_uS


@dataclass(frozen=True)
class NoiseOneOverF:
    """Low-frequency noise, accumulated from the write to the read.

    sigma = G q sqrt(ln((t + t_read) / (2 t_read))), t = elapsed + t0,
    q = min(q_max, q_scale / max((G_written / g_max)^q_power, 1e-3)).
    """

    g_max_uS: float = 25.0
    q_scale: float = 0.0088
    q_power: float = 0.65
    q_max: float = 0.2
    t_read_s: float = 250e-9
    t0_s: float = 20.0
    source: str = _ICECS_2019

    def sigma_uS(self, g_uS: Tensor, written_uS: Tensor, elapsed_s: Tensor) -> Tensor:
        x = (written_uS / self.g_max_uS).clamp_min(0)
        q = (self.q_scale / (x**self.q_power).clamp_min(1e-3)).clamp_max(self.q_max)
        t = elapsed_s + self.t0_s
        return g_uS.abs() * q * ((t + self.t_read_s) / (2 * self.t_read_s)).log().sqrt()


@dataclass(frozen=True)
class Cell:
    """A kind of device: what a part leaves out does not happen.

    Args:
        name: as in `--device`.
        g_max_uS: conductance that no write exceeds.
        g_min_uS: conductance that no write falls below.
        reset_uS, reset_spread: mean after RESET, and its spread from write to write over the mean.
        pulse: what SET pulses do; None where the model knows none.
        write: what programming with verification reaches; None: RESET and a number of SET pulses.
        drift, noise: what time and reads do; None: nothing.
    """

    name: str
    g_max_uS: float
    g_min_uS: float = 0.0
    reset_uS: float = 0.0
    reset_spread: float = 0.0
    pulse: Pulse | None = None
    write: Write | None = None
    drift: Ageing | None = None
    noise: Noise | None = None
    source: str = field(default="", kw_only=True)


ACCUMULATION = Cell(
    "accumulation",
    g_max_uS=12.0,
    g_min_uS=0.1,
    reset_uS=0.1,
    reset_spread=0.1,
    pulse=Accumulation(),
    drift=Drift(t0_s=38.6, nu_start=0.04, source=_NANDAKUMAR_2018),
    noise=LinearNoise(),
    source=_NANDAKUMAR_2018,
)
ACCUMULATION_2020 = Cell(
    "accumulation-2020",
    g_max_uS=20.0,
    reset_uS=0.1,
    reset_spread=1.0,
    pulse=ExponentialSteps(),
    source=_FRONTIERS_2020,
)
ITERATIVE = Cell(
    "iterative",
    g_max_uS=25.0,
    write=Verified(),
    drift=Drift(
        t0_s=20.0,
        offset_s=20.0,
        nu_slope=-0.0155,
        nu_start=0.0244,
        nu_low=0.049,
        nu_high=0.1,
        sd_slope=-0.0125,
        sd_start=-0.0059,
        sd_low=0.008,
        sd_high=0.045,
        source=_ICECS_2019,
    ),
    noise=NoiseOneOverF(),
    source=_ICECS_2019,
)


def ideal(levels: int = 0, *, pulse_uS: float = 0.0, g_max_uS: float = 25.0) -> Cell:
    """A device without error, noise and drift.

    Args:
        levels: values that it can hold, evenly spaced from 0 to g_max_uS, at least 2; 0 = any.
        pulse_uS: what a pulse adds; by default a level, or 1/1000 of the range without levels.
        g_max_uS: its range.
    """
    if levels == 1 or levels < 0:
        raise ValueError(f"levels={levels}: a device holds at least 2 values, or any (0)")
    step = pulse_uS or g_max_uS / ((levels - 1) if levels else 1000)
    name = f"ideal, {levels} levels" if levels else "ideal"
    return Cell(
        name, g_max_uS, pulse=EqualSteps(step), write=Levels(g_max_uS, levels), source="arithmetic"
    )


class Cells(NamedTuple):
    """State of many devices, each tensor of the same shape; changed in place by what is below."""

    g_uS: Tensor
    """Conductance as it was written, before drift and read noise."""
    written_s: Tensor
    """Time of the last write."""
    nu: Tensor
    """Drift exponent."""
    memory: Tensor
    """What a pulse model remembers of earlier pulses."""


def fresh(cell: Cell, shape: tuple[int, ...], generator: torch.Generator) -> Cells:
    """Devices that have just been RESET, at time 0, float32."""
    state = Cells(*(torch.zeros(shape) for _ in Cells._fields))
    reset(cell, state, None, 0.0, generator)
    return state


def reset(
    cell: Cell, cells: Cells, where: Tensor | None, now_s: float, generator: torch.Generator
) -> None:
    """RESET pulses on the devices whose flat numbers are given, (n,), or on all."""
    start = cell.pulse.memory_start if cell.pulse is not None else 0.0
    for at, size in _blocks(where, cells):
        level = torch.full((size,), cell.reset_uS)
        if cell.reset_spread:
            level *= 1 + cell.reset_spread * _normal(level, generator)
        _put(cell, cells, at, level, level, now_s, generator)
        cells.memory.view(-1)[at] = start


def pulse(
    cell: Cell, cells: Cells, counts: Tensor, now_s: float, generator: torch.Generator
) -> None:
    """Blind SET pulses: counts, whole numbers of the shape of the cells, on top of what is there.

    Raises ValueError where the model of the device knows no pulses.
    """
    if cell.pulse is None:
        raise ValueError(
            f"the device model {cell.name!r} knows no single pulses; train on 'accumulation', or "
            "program targets"
        )
    counts = counts.reshape(-1)
    where = counts.nonzero().squeeze(1)
    for at, _ in _blocks(where if len(where) < len(counts) else None, cells):
        _pulse(cell, cells, at, counts[at], now_s, generator)


def _pulse(
    cell: Cell, cells: Cells, at: At, left: Tensor, now_s: float, generator: torch.Generator
) -> None:
    """At least one pulse for each of a block of cells."""
    assert cell.pulse is not None
    # A pulse meets the conductance that drift has left.
    now = Cells(*(part.view(-1)[at] for part in cells))
    found, memory = conductance(cell, now, now_s), now.memory.clone()
    # The most pulses first: what still gets some then lies at the front, and needs no gathering.
    left, order = left.sort(descending=True)
    g, m = found[order], memory[order]
    last = int(left[0])
    ends = torch.searchsorted(-left, -torch.arange(1, last + 1), right=True).tolist()
    for end in ends:  # so many get a first, a second, .. pulse
        new, kept = cell.pulse.step(g[:end], m[:end], _normal(g[:end], generator))
        g[:end], m[:end] = new.clamp_(cell.g_min_uS, cell.g_max_uS), kept
    found[order], memory[order] = g, m
    cells.memory.view(-1)[at] = memory
    _put(cell, cells, at, found, found, now_s, generator)


def write(
    cell: Cell,
    cells: Cells,
    where: Tensor | None,
    target_uS: Tensor,
    now_s: float,
    generator: torch.Generator,
) -> None:
    """Program the devices with the flat numbers `where` (n,), or all, to targets (n,).

    With verification where the model has it; otherwise by RESET and as many pulses as reach the
    target on average.
    """
    if cell.write is not None:
        blocks = zip(_blocks(where, cells), target_uS.split(BLOCK), strict=True)
        for (at, _), aimed in blocks:
            reached = cell.write.reached(aimed, _normal(aimed, generator))
            _put(cell, cells, at, reached, aimed, now_s, generator)
        return
    reset(cell, cells, where, now_s, generator)
    counts = pulses_for(cell, target_uS)
    if where is not None:
        counts = torch.zeros(cells.g_uS.numel(), dtype=torch.int64).index_copy_(0, where, counts)
    pulse(cell, cells, counts, now_s, generator)


def conductance(cell: Cell, cells: Cells, now_s: float) -> Tensor:
    """Conductance at a time, without read noise."""
    if cell.drift is None:
        return cells.g_uS.clone()
    return cells.g_uS * cell.drift.factor(now_s - cells.written_s, cells.nu)


def read(cell: Cell, cells: Cells, now_s: float, generator: torch.Generator) -> Tensor:
    """Conductances as one read sees them, at least 0."""
    found = torch.empty_like(cells.g_uS)
    blocks = zip(*(part.view(-1).split(BLOCK) for part in (found, *cells)), strict=True)
    for out, *parts in blocks:
        block = Cells(*parts)
        g = conductance(cell, block, now_s)
        if cell.noise is not None:
            sigma = cell.noise.sigma_uS(g, block.g_uS, now_s - block.written_s)
            g.addcmul_(sigma, _normal(g, generator)).clamp_min_(0)
        out.copy_(g)
    return found


def mean_curve_uS(cell: Cell, pulses: int = 64) -> Tensor:
    """Conductance after 0, 1, .. pulses from RESET if each took its mean effect, (pulses + 1,).

    Raises ValueError where the model of the device knows no pulses.
    """
    if cell.pulse is None:
        raise ValueError(f"the device model {cell.name!r} knows no single pulses")
    g, memory = torch.tensor(cell.reset_uS), torch.tensor(cell.pulse.memory_start)
    found = [g]
    for _ in range(pulses):
        change, memory = cell.pulse.mean_step_uS(g, memory)
        g = (g + change).clamp(cell.g_min_uS, cell.g_max_uS)
        found.append(g)
    return torch.stack(found)


def pulses_for(cell: Cell, target_uS: Tensor) -> Tensor:
    """Number of pulses from RESET whose mean effect comes nearest to each target, int64."""
    curve = mean_curve_uS(cell)
    middles = (curve[1:] + curve[:-1]) / 2
    return torch.bucketize(target_uS.contiguous(), middles)


At = Tensor | slice


def _blocks(where: Tensor | None, cells: Cells) -> Iterator[tuple[At, int]]:
    """Flat numbers, or all, in parts, with their sizes."""
    if where is not None:
        yield from ((part, len(part)) for part in where.split(BLOCK) if len(part))
        return
    total = cells.g_uS.numel()
    for start in range(0, total, BLOCK):
        end = min(start + BLOCK, total)
        yield slice(start, end), end - start


def _put(
    cell: Cell,
    cells: Cells,
    at: At,
    g_uS: Tensor,
    aimed_uS: Tensor,
    now_s: float,
    generator: torch.Generator,
) -> None:
    """Write down new conductances, clamped, with the time and new exponents."""
    cells.g_uS.view(-1)[at] = g_uS.clamp(cell.g_min_uS, cell.g_max_uS)
    cells.written_s.view(-1)[at] = now_s
    if cell.drift is not None:
        cells.nu.view(-1)[at] = cell.drift.exponents(aimed_uS, generator)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)
