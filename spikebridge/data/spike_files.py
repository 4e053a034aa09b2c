"""Recordings that are spikes, as the Heidelberg digits and Spiking Speech Commands are: HDF5.

A file holds spikes/times (n arrays of seconds), spikes/units (n arrays of numbers from 0) and
labels (n).  Source: Cramer, Stradmann, Schemmel, Zenke 2020, arXiv 1910.07407.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from spikebridge.base.records import UsageError
from spikebridge.data.files import FRESH_COPY, DataError, single, visible
from spikebridge.data.task import SPLITS

ENDINGS = (".h5", ".hdf5")
MOST_UNITS, LONGEST_S = 65_536, 60.0


class Trains(NamedTuple):
    """Many recordings, cut into steps."""

    cells: np.ndarray  # (spikes, 2) int32: step and unit, recording after recording
    starts: np.ndarray  # (n + 1,) int64
    lengths: np.ndarray  # (n,) int64, steps
    classes: np.ndarray  # (n,) int64
    units: int

    @property
    def size(self) -> int:
        return len(self.classes)

    def cells_of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps and units of a recording."""
        t, unit = self.cells[self.starts[number] : self.starts[number + 1]].T.astype(np.int64)
        return t, unit

    def take(self, chosen: np.ndarray) -> Trains:
        """Some recordings."""
        parts = [self.cells[self.starts[i] : self.starts[i + 1]] for i in chosen.tolist()]
        starts = np.cumsum([0, *map(len, parts)])
        cells = np.concatenate(parts)
        return Trains(cells, starts, self.lengths[chosen], self.classes[chosen], self.units)


def train_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by split, told by their names; empty where there is none.

    Raises DataError.
    """
    there = [path for path in visible(folder) if path.suffix.lower() in ENDINGS]
    if not there:
        return {}
    given = {}
    for split in SPLITS:
        named = [path for path in there if split in path.stem.lower()]
        if named or split != "valid":
            what = f"a single .h5 file whose name holds {split}"
            given[split] = single(named, folder, what, "name the files so")
    return given


def read_trains(path: Path, step_ms: float) -> Trains:
    """The recordings of a file, spikes of a unit in a step as one.  Raises DataError."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{path.name} is read by h5py, which is not installed; pip install 'spikebridge[hdf5]'"
        ) from error
    expected = "an HDF5 file with spikes/times, spikes/units and labels"
    try:
        with h5py.File(path, "r") as file:
            times, units = file["spikes/times"][:], file["spikes/units"][:]
            classes = np.asarray(file["labels"][:])
    except (
        OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError,
    ) as error:  # fmt: skip
        raise DataError(path, expected, f"none ({error})", FRESH_COPY) from error
    count = len(classes)
    if not count or classes.ndim != 1 or classes.dtype.kind not in "iu" or classes.min() < 0:
        raise DataError(path, "labels (n,) of whole numbers from 0", "others", FRESH_COPY)
    if not len(times) == len(units) == count:
        actual = f"{len(times):,}, {len(units):,} and {count:,}"
        raise DataError(path, "as many times, units and labels", actual, FRESH_COPY)
    parts = [
        _cells(path, n, *pair, step_ms) for n, pair in enumerate(zip(times, units, strict=True))
    ]
    lengths = [int(part[:, 0].max()) + 1 if len(part) else 1 for part in parts]
    cells = np.concatenate(parts)
    if not len(cells):
        raise DataError(path, "at least one spike", "none", FRESH_COPY)
    starts = np.cumsum([0, *map(len, parts)])
    highest = int(cells[:, 1].max()) + 1
    return Trains(cells, starts, np.array(lengths), classes.astype(np.int64), highest)


def _cells(
    path: Path, number: int, times: np.ndarray, units: np.ndarray, step_ms: float
) -> np.ndarray:
    """Steps and units (spikes, 2) of a recording, each pair once."""
    seconds, units = np.asarray(times, np.float64), np.asarray(units)
    whole = seconds.ndim == 1 and seconds.shape == units.shape and units.dtype.kind in "iuf"
    if whole and seconds.size:
        whole = bool(np.isfinite(seconds).all() and seconds.min() >= 0)
        whole = whole and seconds.max() <= LONGEST_S
        whole = whole and units.min() >= 0 and units.max() < MOST_UNITS
    if not whole:
        expected = (
            f"times of 0 to {LONGEST_S:g} s and as many units of 0 to {MOST_UNITS - 1:,} in "
            f"recording {number}"
        )
        raise DataError(path, expected, "others", FRESH_COPY)
    cells = np.stack([seconds * 1000 / step_ms, units.astype(np.float64)], 1).astype(np.int32)
    return np.unique(cells, axis=0)
