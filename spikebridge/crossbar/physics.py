"""Parts of a cell model: what pulses, writes, time and reads do to a conductance.

Frozen parameter records with pure functions.  Conductances are in microsiemens, times in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NANDAKUMAR_2018 = (
    "Nandakumar et al. 2018, J. Appl. Phys. 124:152135, constants as in the public simulation "
    "srnn-pcm by Y. Demirag"
)
ICECS_2019 = "Nandakumar et al. 2019, ICECS, constants as in aihwkit's PCMLikeNoiseModel"
FRONTIERS_2020 = (
    "Nandakumar et al. 2020, Front. Neurosci., fitted in aihwkit's PCMPresetDevice; 10 uS per unit "
    "of its weight"
)


class Pulse(Protocol):
    """What one SET pulse does."""

    @property
    def history_start(self) -> float:
        """Memory after RESET."""
        ...

    def step(self, g_uS: Tensor, history: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """New conductance, not yet clamped, and new history, of (n,) cells and N(0, 1) draws."""
        ...

    def mean_step_uS(self, g_uS: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        """Mean change and the new history."""
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

    @property
    def slow(self) -> bool:
        """Whether reads at the same time see the same noise, rather than each its own."""
        ...

    def sigma_uS(self, g_uS: Tensor, written_uS: Tensor, elapsed_s: Tensor) -> Tensor:
        """Standard deviation of a read, of the conductance now and as it was written."""
        ...


@dataclass(frozen=True)
class Accumulation:
    """Partial SET pulses whose effect falls with the conductance and with earlier pulses.

    Per pulse P <- P exp(-1 / history_pulses), with P = 1 after RESET, and a change drawn from
    N(mean_slope G + mean_offset + mean_history P, (sd_slope G + sd_offset + sd_history P)^2).
    """

    history_pulses: float = 2.6
    """Pulses over which the effect of RESET fades, 1."""
    mean_slope: float = -0.084
    """uS per uS."""
    mean_offset_uS: float = 0.880
    mean_history_uS: float = 1.40
    sd_slope: float = 0.091
    """uS per uS."""
    sd_offset_uS: float = 0.260
    sd_history_uS: float = 2.15
    history_start: float = 1.0
    """P after RESET."""
    source: str = NANDAKUMAR_2018

    def mean_step_uS(self, g_uS: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        history = history * math.exp(-1 / self.history_pulses)
        return (
            self.mean_slope * g_uS + self.mean_offset_uS + self.mean_history_uS * history,
            history,
        )

    def sigma_uS(self, g_uS: Tensor, history: Tensor) -> Tensor:
        """Spread of a pulse, of the conductance before it and the history after it."""
        return self.sd_slope * g_uS + self.sd_offset_uS + self.sd_history_uS * history

    def step(self, g_uS: Tensor, history: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        change, history = self.mean_step_uS(g_uS, history)
        return g_uS + change + self.sigma_uS(g_uS, history) * noise, history


@dataclass(frozen=True)
class ExponentialSteps:
    """Pulses whose mean step falls exponentially with the conductance; no history.

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
    history_start: float = 0.0
    source: str = FRONTIERS_2020

    def mean_step_uS(self, g_uS: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        return self.step_uS * (1 + self.rise * torch.exp(-g_uS / self.fall_uS)), history

    def sigma_uS(self, g_uS: Tensor, history: Tensor) -> Tensor:
        """Spread of a pulse, of the conductance before it."""
        change, _ = self.mean_step_uS(g_uS, history)
        return self.spread * (change.abs() + self.spread_floor_uS + self.spread_slope * g_uS)

    def step(self, g_uS: Tensor, history: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        change, _ = self.mean_step_uS(g_uS, history)
        return g_uS + change + self.sigma_uS(g_uS, history) * noise, history


@dataclass(frozen=True)
class EqualSteps:
    """Every pulse changes the conductance by the same amount, exactly."""

    step_uS: float
    history_start: float = 0.0

    def mean_step_uS(self, g_uS: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(g_uS, self.step_uS), history

    def step(self, g_uS: Tensor, history: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return g_uS + self.step_uS, history


@dataclass(frozen=True)
class Verified:
    """Program-and-verify: reaches the target with an error of known spread.

    sigma = (c0 + c1 x + c2 x^2) g_max / 25 uS, x = target / g_max.
    """

    g_max_uS: float = 25.0
    c0_uS: float = 0.26348
    c1_uS: float = 1.9650
    c2_uS: float = -1.1731
    source: str = ICECS_2019

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
        return (mean + self.sd_nu(g_uS) * normal(g_uS, generator)).abs()

    def factor(self, elapsed_s: Tensor, nu: Tensor) -> Tensor:
        return ((elapsed_s + self.offset_s).clamp_min(self.t0_s) / self.t0_s) ** -nu


@dataclass(frozen=True)
class LinearNoise:
    """Reads scatter with sigma = slope G + floor."""

    slope: float = 0.03
    """uS per uS."""
    floor_uS: float = 0.13
    slow: bool = False
    source: str = NANDAKUMAR_2018

    def sigma_uS(self, g_uS: Tensor, written_uS: Tensor, elapsed_s: Tensor) -> Tensor:
        return self.slope * g_uS + self.floor_uS


@dataclass(frozen=True)
class NoiseOneOverF:
    """Low-frequency noise, accumulated from the write to the read: one draw for each time.

    sigma = G q sqrt(ln((t + t_read) / (2 t_read))), t = elapsed + t0,
    q = min(q_max, q_scale / max((G_written / g_max)^q_power, 1e-3)).
    """

    g_max_uS: float = 25.0
    q_scale: float = 0.0088
    q_power: float = 0.65
    q_max: float = 0.2
    t_read_s: float = 250e-9
    t0_s: float = 20.0
    slow: bool = True
    source: str = ICECS_2019

    def sigma_uS(self, g_uS: Tensor, written_uS: Tensor, elapsed_s: Tensor) -> Tensor:
        x = (written_uS / self.g_max_uS).clamp_min(0)
        q = (self.q_scale / (x**self.q_power).clamp_min(1e-3)).clamp_max(self.q_max)
        t = elapsed_s + self.t0_s
        return g_uS.abs() * q * ((t + self.t_read_s) / (2 * self.t_read_s)).log().sqrt()


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draws of N(0, 1), as many as `like` has entries."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)
