"""Models of phase-change memory cells: frozen parameter records.

A `Cell` says how a cell answers to a SET pulse, to programming with verification, to time and to
being read; each part may be missing or ideal.  `crossbar.cells` simulates many of them.
Conductances are in microsiemens, times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

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
)

__all__ = [
    "ACCUMULATION",
    "ACCUMULATION_2020",
    "ITERATIVE",
    "Accumulation",
    "Cell",
    "Drift",
    "ExponentialSteps",
    "Levels",
    "LinearNoise",
    "NoiseOneOverF",
    "Verified",
    "ideal",
]

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
