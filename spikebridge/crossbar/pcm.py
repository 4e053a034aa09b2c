"""Physics of phase-change memory cells: frozen parameter records and pure functions of them.

A `Cell` says how a cell answers to a SET pulse, to programming with verification, to time and to
being read; each part may be missing or ideal.  `Cells` is the state of many of them.  Conductances
are in microsiemens, times in seconds, and every draw comes from a generator that is passed in.
Policy, that is when to write what, lives elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from spikebridge.crossbar.physics import (
    FRONTIERS_2020,
    ICECS_2019,
    NANDAKUMAR_2018,
    Accumulation,
    Ageing,
    Drift,
    EqualSteps,
    ExponentialSteps,
    Levels,
    LinearNoise,
    Noise,
    NoiseOneOverF,
    Pulse,
    Verified,
    Write,
    normal,
)

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

# Cells that are worked on at once: what a block needs stays in the nearer caches, and no operation
# is so large that torch shares it among threads, which costs more than it saves.
BLOCK = 1 << 14
MOST_PULSES = 2000


@dataclass(frozen=True)
class Cell:
    """A kind of memory cell: what a part leaves out does not happen.

    Args:
        name: as in `--cells`.
        g_max_uS: conductance that no write exceeds.
        g_min_uS: conductance that no write falls below.
        reset_uS, reset_spread: mean after RESET, and its spread from write to write over the mean.
        pulse: what SET pulses do; None where the model knows none.
        write: what programming with verification reaches; None: RESET and a number of SET pulses.
        drift, noise: what time and reads do; None: nothing.
        overshoot: writes may end above g_max_uS, which then only bounds their targets.
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
    overshoot: bool = False
    source: str = field(default="", kw_only=True)


ACCUMULATION = Cell(
    "accumulation",
    g_max_uS=12.0,
    g_min_uS=0.1,
    reset_uS=0.1,
    reset_spread=0.1,
    pulse=Accumulation(),
    drift=Drift(t0_s=38.6, nu_start=0.04, source=NANDAKUMAR_2018),
    noise=LinearNoise(),
    source=NANDAKUMAR_2018,
)
ACCUMULATION_2020 = Cell(
    "accumulation-2020",
    g_max_uS=20.0,
    reset_uS=0.1,
    reset_spread=1.0,
    pulse=ExponentialSteps(),
    source=FRONTIERS_2020,
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
        source=ICECS_2019,
    ),
    noise=NoiseOneOverF(),
    overshoot=True,
    source=ICECS_2019,
)


def ideal(levels: int = 0, *, pulse_uS: float = 0.0, g_max_uS: float = 25.0) -> Cell:
    """A cell without error, noise and drift.

    Args:
        levels: values that it can hold, evenly spaced from 0 to g_max_uS, at least 2; 0 = any.
        pulse_uS: what a pulse adds; by default a level, or 1/1000 of the range without levels.
        g_max_uS: its range.
    """
    if levels == 1 or levels < 0:
        raise ValueError(f"levels={levels}: a cell holds at least 2 values, or any (0)")
    if not (g_max_uS > 0 and pulse_uS >= 0):
        raise ValueError(
            f"g_max_uS={g_max_uS}, pulse_uS={pulse_uS}: a range above 0 and pulses that raise"
        )
    step = pulse_uS or g_max_uS / ((levels - 1) if levels else 1000)
    name = f"ideal, {levels} levels" if levels else "ideal"
    return Cell(
        name, g_max_uS, pulse=EqualSteps(step), write=Levels(g_max_uS, levels), source="arithmetic"
    )


class Cells(NamedTuple):
    """State of many cells, each tensor of the same shape; changed in place by what is below."""

    g_uS: Tensor
    """Conductance as it was written, before drift and read noise."""
    written_s: Tensor
    """Time of the last write."""
    nu: Tensor
    """Drift exponent."""
    history: Tensor
    """What a pulse model remembers of earlier pulses."""


def fresh(cell: Cell, shape: tuple[int, ...], generator: torch.Generator) -> Cells:
    """Devices that have just been RESET, at time 0, float32."""
    state = Cells(*(torch.zeros(shape) for _ in Cells._fields))
    # float32 would know the time to 2 s only after a year.
    state = state._replace(written_s=torch.zeros(shape, dtype=torch.float64))
    reset(cell, state, None, 0.0, generator)
    return state


def reset(
    cell: Cell, cells: Cells, where: Tensor | None, now_s: float, generator: torch.Generator
) -> None:
    """RESET pulses on the cells whose flat numbers are given, (n,), or on all."""
    start = cell.pulse.history_start if cell.pulse is not None else 0.0
    for at, size in _blocks(where, cells):
        level = torch.full((size,), cell.reset_uS)
        if cell.reset_spread:
            level *= 1 + cell.reset_spread * normal(level, generator)
        _put(cell, cells, at, level, level, now_s, generator)
        cells.history.view(-1)[at] = start


def pulse(
    cell: Cell, cells: Cells, counts: Tensor, now_s: float, generator: torch.Generator
) -> None:
    """Blind SET pulses: counts, whole numbers of the shape of the cells, on top of what is there.

    Raises ValueError where the cell model knows no pulses.
    """
    if cell.pulse is None:
        raise ValueError(
            f"the cell model {cell.name!r} knows no single pulses; train on 'accumulation', or "
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
    g_uS, history = conductance(cell, now, now_s), now.history.clone()
    # The most pulses first: what still gets some then lies at the front, and needs no gathering.
    left, order = left.sort(descending=True)
    g, m = g_uS[order], history[order]
    last = int(left[0])
    ends = torch.searchsorted(-left, -torch.arange(1, last + 1), right=True).tolist()
    for end in ends:  # so many get a first, a second, .. pulse
        new, kept = cell.pulse.step(g[:end], m[:end], normal(g[:end], generator))
        g[:end], m[:end] = new.clamp_(cell.g_min_uS, cell.g_max_uS), kept
    g_uS[order], history[order] = g, m
    cells.history.view(-1)[at] = history
    _put(cell, cells, at, g_uS, g_uS, now_s, generator)


def write(
    cell: Cell,
    cells: Cells,
    where: Tensor | None,
    target_uS: Tensor,
    now_s: float,
    generator: torch.Generator,
) -> None:
    """Program the cells with the flat numbers `where` (n,), or all, to targets (n,).

    With verification where the model has it; otherwise by RESET and as many pulses as reach the
    target on average.
    """
    if not len(target_uS):
        return
    if cell.write is not None:
        blocks = zip(_blocks(where, cells), target_uS.split(BLOCK), strict=True)
        for (at, _), aimed in blocks:
            reached = cell.write.reached(aimed, normal(aimed, generator))
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
    return cells.g_uS * cell.drift.factor(_elapsed_s(cells, now_s), cells.nu)


def _elapsed_s(cells: Cells, now_s: float) -> Tensor:
    return (now_s - cells.written_s).to(cells.g_uS.dtype)


def expected(cell: Cell, cells: Cells, now_s: float) -> tuple[Tensor, Tensor | None]:
    """What reads at a time scatter around, and how far; None where they do not scatter."""
    mean = torch.empty_like(cells.g_uS)
    sigma = None if cell.noise is None else torch.empty_like(mean)
    for at, _ in _blocks(None, cells):
        block = Cells(*(part.view(-1)[at] for part in cells))
        g = conductance(cell, block, now_s)
        mean.view(-1)[at] = g
        if cell.noise is not None and sigma is not None:
            elapsed_s = _elapsed_s(block, now_s)
            sigma.view(-1)[at] = cell.noise.sigma_uS(g, block.g_uS, elapsed_s)
    return mean, sigma


def read(mean_uS: Tensor, sigma_uS: Tensor | None, generator: torch.Generator) -> Tensor:
    """Conductances as one read sees them, at least 0, of what is `expected`."""
    if sigma_uS is None:
        return mean_uS.clone()
    return normal(mean_uS, generator).mul_(sigma_uS).add_(mean_uS).clamp_min_(0)


@lru_cache
def mean_curve_uS(cell: Cell) -> Tensor:
    """Conductance after 0, 1, 2, .. pulses from RESET if each took its mean effect, (n,).

    As far as pulses still do a thousandth of what the strongest does, at most `MOST_PULSES`.
    Raises ValueError where the cell model knows no pulses.
    """
    if cell.pulse is None:
        raise ValueError(
            f"the cell model {cell.name!r} knows no single pulses; take 'accumulation'"
        )
    g, history = torch.tensor(cell.reset_uS), torch.tensor(cell.pulse.history_start)
    curve, strongest = [g], 0.0
    while len(curve) <= MOST_PULSES:
        change, history = cell.pulse.mean_step_uS(g, history)
        g = (g + change).clamp(cell.g_min_uS, cell.g_max_uS)
        rise = float(g - curve[-1])
        strongest = max(strongest, rise)
        if rise <= 1e-3 * strongest:
            break
        curve.append(g)
    return torch.stack(curve)


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
    top = None if cell.overshoot else cell.g_max_uS
    cells.g_uS.view(-1)[at] = g_uS.clamp(cell.g_min_uS, top)
    cells.written_s.view(-1)[at] = now_s
    if cell.drift is not None:
        cells.nu.view(-1)[at] = cell.drift.exponents(aimed_uS, generator)
