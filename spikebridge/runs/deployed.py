"""What lies in a run of its life on memory cells: memory.json and chip.safetensors, checked.

Every fault raises ReportError with the file, what is wrong with it and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikebridge.base.quantities import number
from spikebridge.base.records import RunError
from spikebridge.energy.costs import CostRow
from spikebridge.runs import rundir
from spikebridge.runs.fields import Fields
from spikebridge.runs.load import REPEAT, ReportError
from spikebridge.settings.crossbar import programmed


@dataclass(frozen=True)
class Layer:
    """A weight matrix on its tiles."""

    name: str
    shape: tuple[int, ...]
    tiles: tuple[int, ...]
    cells: int
    error: float
    """Root mean square of what was read back less what was meant, over that of the latter."""


@dataclass(frozen=True)
class Look:
    """What cells hold at one time."""

    time_s: float
    counts: np.ndarray
    """(bins,) cells by conductance, from 0 to the top of the range."""


@dataclass(frozen=True)
class Points:
    """Some cells, each with what was aimed at and what is read."""

    target_uS: np.ndarray
    read_uS: np.ndarray


@dataclass(frozen=True)
class Level:
    """Many cells programmed to one conductance, over the times of the drift."""

    target_uS: float
    mean_uS: np.ndarray
    sd_uS: np.ndarray


@dataclass(frozen=True)
class Hardware:
    """What an inference costs on one kind of hardware."""

    name: str
    total_pJ: float
    seconds_s: float
    parts: tuple[CostRow, ...]


@dataclass(frozen=True)
class Deployed:
    """The content of memory.json."""

    metric: str
    device: str
    source: str
    settings: dict[str, Any]
    cells: int
    samples: int
    software: float
    times_s: tuple[float, ...]
    plain: np.ndarray
    """(chips, times) the metric without compensation."""
    compensated: np.ndarray
    layers: tuple[Layer, ...]
    top_uS: float
    looks: tuple[Look, ...]
    programmed: tuple[Points, ...]
    at_top: float
    at_bottom: float
    drift_s: np.ndarray
    drift: tuple[Level, ...]
    hardware: tuple[Hardware, ...]
    """The crossbar first."""
    training: tuple[Hardware, ...] = ()
    """What the whole training cost, for a run that was trained on cells."""

    @property
    def chips(self) -> int:
        return len(self.plain)

    def setting(self, name: str) -> float:
        """A number among the settings of the hardware; 0 where there is none."""
        return number(self.settings.get(name)) or 0.0


def load(directory: Path) -> Deployed | None:
    """The memory.json of a run; None where the run was not programmed."""
    path = directory / rundir.MEMORY
    if not path.exists():
        return None
    remedy = f"program the run again with `spikebridge program {directory}`"
    try:
        return _deployed(Fields(rundir.read_json(path, remedy), "the file"))
    except RunError as error:
        raise ReportError(str(error)) from error
    except ValueError as error:
        raise ReportError(f"{path}: {error}; {remedy}") from error


def load_counts(directory: Path, name: str) -> np.ndarray | None:
    """A count of every cell, (cells,), such as "pulses", from chip.safetensors.

    None where there is no such file, or the devices in it do not count.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / rundir.CHIP
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            keys = [key for key in file.keys() if key.endswith(f"/device.{name}")]  # noqa: SIM118
            found = [file.get_tensor(key).ravel() for key in keys]
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ReportError(f"{path}: it is damaged or cannot be read ({error}); {REPEAT}") from error
    if not found or not sum(map(len, found)):
        return None
    counts = np.concatenate(found)
    if counts.dtype.kind not in "iu" or counts.min() < 0:
        raise ReportError(f"{path}: 'device.{name}' holds no counts; {REPEAT}")
    return counts


def _deployed(file: Fields) -> Deployed:
    times = file.array("times_s", None)
    if times[0] < 0 or (np.diff(times) <= 0).any():
        raise ValueError('"times_s" do not rise from 0 or more')
    plain = file.array("plain", None, len(times))
    device, limits, drift = file.fields("device"), file.fields("limits"), file.fields("drift")
    histograms, drift_s = file.fields("histograms"), drift.array("times_s", None)
    if drift_s[0] <= 0 or (np.diff(drift_s) <= 0).any():
        raise ValueError('"times_s" of "drift" do not rise from above 0')
    top = histograms.number("top_uS")
    if top <= 0:
        raise ValueError('"top_uS" is not above 0')
    return Deployed(
        metric=file.text("metric"),
        device=device.text("name"),
        source=device.text("source"),
        settings=programmed(file.fields("memory").value),
        cells=file.count("cells"),
        samples=file.count("samples"),
        software=file.number("software"),
        times_s=tuple(times.tolist()),
        plain=plain,
        compensated=file.array("compensated", *plain.shape),
        layers=tuple(map(_layer, file.objects("layers"))),
        top_uS=top,
        looks=tuple(
            Look(look.number("time_s", 0), look.array("cells", None))
            for look in histograms.objects("at")
        ),
        programmed=tuple(map(_points, file.objects("programmed"))),
        at_top=limits.number("at_top", 0),
        at_bottom=limits.number("at_bottom", 0),
        drift_s=drift_s,
        drift=tuple(_level(curve, len(drift_s)) for curve in drift.objects("curves")),
        hardware=_hardware(file.fields("energy").fields("hardware")),
        training=_training(file),
    )


def _training(file: Fields) -> tuple[Hardware, ...]:
    if file.value.get("training") is None:
        return ()
    return _hardware(file.fields("training").fields("hardware"))


def _layer(row: Fields) -> Layer:
    return Layer(
        row.text("name"),
        tuple(row.array("shape", None).astype(int).tolist()),
        tuple(row.array("tiles", None).astype(int).tolist()),
        row.count("cells"),
        row.number("error", 0),
    )


def _points(row: Fields) -> Points:
    target = row.array("target_uS", None)
    return Points(target, row.array("read_uS", len(target)))


def _level(row: Fields, times: int) -> Level:
    return Level(row.number("target_uS"), row.array("mean_uS", times), row.array("sd_uS", times))


def _hardware(found: Fields) -> tuple[Hardware, ...]:
    if not found.value:
        raise ValueError('"hardware" is empty')
    return tuple(costs(name, found.fields(name)) for name in found.value)


def costs(name: str, found: Fields) -> Hardware:
    """Energy, time and parts of one kind of hardware, or of one end of a range."""
    parts = tuple(
        CostRow(
            row.text("part"),
            row.number("count", 0),
            row.number("unit_pJ", 0),
            row.count("node_nm"),
            row.text("source"),
            row.text("mark"),
            row.number("energy_pJ", 0),
        )
        for row in found.objects("rows")
    )
    return Hardware(name, found.number("total_pJ", 0), found.number("seconds_s", 0), parts)
