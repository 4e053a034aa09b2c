"""A cell of your own from a table of measured curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from spikebridge.base.records import UsageError, listed
from spikebridge.crossbar.pcm import Cell
from spikebridge.data import tables

__all__ = ["COLUMNS", "from_table", "read_table"]

COLUMNS = {
    "g_uS": "conductance at which the row was measured, rising from row to row",
    "pulse_mean_uS": "mean change by one SET pulse",
    "pulse_sd_uS": "its spread",
    "write_sd_uS": "error of programming with verification",
    "read_sd_uS": "spread of reads",
    "drift_nu": "mean drift exponent",
    "drift_nu_sd": "its spread from cell to cell",
}
Curve = tuple[float, ...]
LARGEST = 1e9  # uS or s: beyond any cell, and squares of it are finite in float32


@dataclass(frozen=True)
class _Table:
    """Straight lines between measured points, constant beyond them."""

    g_uS: Curve
    mean: Curve
    sd: Curve

    def at(self, g_uS: Tensor, values: Curve) -> Tensor:
        x = torch.tensor(self.g_uS, dtype=g_uS.dtype)
        y = torch.tensor(values, dtype=g_uS.dtype)
        place = g_uS.clamp(x[0], x[-1]).contiguous()
        right = torch.bucketize(place, x).clamp(1, len(x) - 1)
        share = (place - x[right - 1]) / (x[right] - x[right - 1])
        return torch.lerp(y[right - 1], y[right], share)


@dataclass(frozen=True)
class TablePulse(_Table):
    """SET pulses by measured mean and spread."""

    history_start: float = 0.0

    def mean_step_uS(self, g_uS: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        return self.at(g_uS, self.mean), history

    def step(self, g_uS: Tensor, history: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return g_uS + self.at(g_uS, self.mean) + self.at(g_uS, self.sd) * noise, history


@dataclass(frozen=True)
class TableWrite(_Table):
    """Programming with verification, by its measured error."""

    def reached(self, target_uS: Tensor, noise: Tensor) -> Tensor:
        return target_uS + self.at(target_uS, self.sd) * noise


@dataclass(frozen=True)
class TableDrift(_Table):
    """Drift by measured exponents: G (max(t, t0) / t0)^-nu."""

    t0_s: float = 1.0

    def exponents(self, g_uS: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(g_uS.shape, generator=generator, dtype=g_uS.dtype)
        return self.at(g_uS, self.mean) + self.at(g_uS, self.sd) * noise

    def factor(self, elapsed_s: Tensor, nu: Tensor) -> Tensor:
        return (elapsed_s.clamp_min(self.t0_s) / self.t0_s) ** -nu


@dataclass(frozen=True)
class TableNoise(_Table):
    """Read noise by its measured spread."""

    slow: bool = False

    def sigma_uS(self, g_uS: Tensor, written_uS: Tensor, elapsed_s: Tensor) -> Tensor:
        return self.at(g_uS, self.sd)


def read_table(path: str | Path, *, t0_s: float = 1.0) -> Cell:
    """A cell from a table in any usual dialect; see `from_table` and `spikebridge.data.tables`.

    Raises UsageError, also where a value is missing or is no number.
    """
    path = Path(path)
    table = tables.read_table(path, whole=True)
    columns = dict(zip(table.names, table.values.T.tolist(), strict=True))
    return from_table(columns, name=path.stem, t0_s=t0_s, source=path.name)


def from_table(
    columns: dict[str, Sequence[float]] | dict[str, list[float]],
    *,
    name: str = "measured",
    t0_s: float = 1.0,
    source: str = "measured",
) -> Cell:
    """A cell from measured curves.

    Args:
        columns: as in `COLUMNS`; g_uS must be there, what is left out does not happen.
        name, source: what tables call the cell, and where the numbers come from.
        t0_s: time after a write at which conductances were measured.

    Raises UsageError for unknown columns, lengths that differ, points that do not rise in float32,
    values that are not finite or absurd, negative spreads.
    """
    for key in columns:
        if key not in COLUMNS:
            raise UsageError(f"{name}: column {key!r} is not known; use {listed(COLUMNS)}")
    if not 0 < t0_s <= LARGEST:
        raise UsageError(f"{name}: t0_s={t0_s}: drift needs a time of reference above 0; pass 1")
    table = {key: tuple(float(v) for v in values) for key, values in columns.items()}
    g = table.get("g_uS", ())
    if len(g) < 2 or any(b <= a for a, b in pairwise(g)) or g[0] < 0:
        raise UsageError(f"{name}: g_uS needs two points or more, from 0 up and rising; got {g}")
    for key, values in table.items():
        if len(values) != len(g):
            raise UsageError(f"{name}: {key} has {len(values)} points, g_uS {len(g)}; give as many")
        _check_values(name, key, values)
    for low, high in pairwise(g):
        if torch.tensor(low) == torch.tensor(high):
            raise UsageError(
                f"{name}: g_uS={low!r} and {high!r} are the same number in float32, in which cells "
                "are simulated; leave one of the rows out"
            )
    nothing = (0.0,) * len(g)

    def pair(mean: str, sd: str) -> tuple[Curve, Curve] | None:
        if mean not in table and sd not in table:
            return None
        return table.get(mean, nothing), table.get(sd, nothing)

    pulses, drift = pair("pulse_mean_uS", "pulse_sd_uS"), pair("drift_nu", "drift_nu_sd")
    read, written = pair("", "read_sd_uS"), pair("", "write_sd_uS")
    return Cell(
        name,
        g_max_uS=g[-1],
        g_min_uS=g[0],
        reset_uS=g[0],
        pulse=None if pulses is None else TablePulse(g, *pulses),
        # Without pulses there must be some way to write: then without error.
        write=TableWrite(g, *(written or (nothing, nothing))) if written or not pulses else None,
        drift=None if drift is None else TableDrift(g, *drift, t0_s=t0_s),
        noise=None if read is None else TableNoise(g, *read),
        source=source,
    )


def _check_values(name: str, key: str, values: Curve) -> None:
    """UsageError for what leads to conductances that are not finite in float32, or makes no sense.

    Exponents of drift beyond 1 lead there too, after a time.
    """
    most = 1.0 if key.startswith("drift") else LARGEST
    for value in values:
        if not abs(value) < float("inf"):
            raise UsageError(f"{name}: {key} has a value that is not finite; leave that row out")
        if abs(value) > most:
            raise UsageError(
                f"{name}: {key} has the value {value:g}, and at most {most:g} makes sense; check "
                "its unit, or leave that row out"
            )
    if key.endswith(("sd_uS", "_sd")) and min(values, default=0.0) < 0:
        raise UsageError(f"{name}: {key} has a negative spread, {min(values)}; give it as >= 0")
