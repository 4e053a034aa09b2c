"""Heartbeats of the QT Database as spikes, with a class at each step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spikebridge.data import mat
from spikebridge.data.files import FRESH_COPY, DataError, check_folder, fetch, is_known
from spikebridge.data.task import (
    SPLITS,
    UNKNOWN,
    Batch,
    Readout,
    Task,
    check_split,
    held_out,
    sample_batches,
)
from spikebridge.settings.tasks import EcgConfig

INPUTS, CLASSES = 4, 6
FILES = {"train": "QTDB_train.mat", "test": "QTDB_test.mat"}
LABELLED = "labelled steps only"
PUBLISHED = "unlabelled steps as class 0, as published"
_ARRAYS = ("x", "y")
QR, RS = 2, 3
"""Classes before and after the R peak, of P, PQ, QR, RS, ST and TP."""


class Heartbeats(NamedTuple):
    """Some recordings."""

    x: Tensor  # (n, T, 4) int8: 1 where a lead crossed a level, -1 at a mark, 0 elsewhere
    y: Tensor  # (n, T) int64, 0 to 5, UNKNOWN where no class is given


class Ecg(Task):
    """The part of a heartbeat that each step belongs to; loss: cross-entropy, score: accuracy.

    Two leads of an electrocardiogram are encoded by level crossings as four trains of spikes.  One
    recording in ten of QTDB_train.mat validates, whatever the seed the same ones
    (`permutation(n)`).  Every tenth test step has no class.  The published figures count such a
    step as class 0, because an argmax over a row without a one is 0, and so do training,
    validation and test here, unless the config says `unlabelled="masked"`.  `views` judges both
    ways.
    """

    name = "ecg"
    input_size, output_size = INPUTS, CLASSES
    readout: Readout = "each"
    part = "heartbeat"

    def __init__(self, config: EcgConfig) -> None:
        self.config = config
        train, test = (_read(path) for path in _locate(config))
        if train.x.shape[1] != test.x.shape[1]:
            steps = f"{train.x.shape[1]:,} steps, as in {FILES['train']}"
            raise DataError(FILES["test"], steps, f"{test.x.shape[1]:,}", FRESH_COPY)
        trains, validates = (_taken(train, torch.from_numpy(p)) for p in held_out(len(train.x)))
        self._splits = {"train": trains, "valid": validates, "test": test}
        shares = [
            f"{100 * float((self._splits[split].y == UNKNOWN).double().mean()):.1f} % to {verb}"
            for split, verb in zip(SPLITS, ("train", "validate", "test"), strict=True)
        ]
        counted = "class 0" if config.unlabelled == "class0" else "no answer"
        self.notes = (f"steps without a class count as {counted}: {', '.join(shares)}",)

    def size(self, split: str) -> int:
        """Number of recordings of a split."""
        return len(self._splits[check_split(split)].x)

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x (T, B, 4) and target (T, B) int64, mask None."""
        samples = sample_batches(self.size(split), split, batch_size, generator)
        return (self._batch(_taken(self._splits[split], chosen)) for chosen in samples)

    def _batch(self, part: Heartbeats) -> Batch:
        y = part.y.clamp(min=0) if self.config.unlabelled == "class0" else part.y
        x = part.x.clamp(min=0) if self.config.coding == "binary" else part.x
        return Batch(x.transpose(0, 1).float().contiguous(), y.t().contiguous(), None)

    def parts_in(self, batch: Batch) -> int:
        """R peaks: steps of class RS that follow one of class QR."""
        before, after = batch.target[:-1], batch.target[1:]
        return int(((before == QR) & (after == RS)).sum())

    def views(self) -> Mapping[str, Task]:
        """The same recordings with the steps without a class left out, and as class 0."""
        return {LABELLED: self._judged("masked"), PUBLISHED: self._judged("class0")}

    def _judged(self, unlabelled: str) -> Ecg:
        other = copy.copy(self)
        other.config = replace(self.config, unlabelled=unlabelled)  # type: ignore[arg-type]
        return other


def _locate(config: EcgConfig) -> list[Path]:
    """The two files, those of `data_dir` or the known ones.  Raises DataError."""
    if not config.data_dir:
        return [fetch(f"qtdb/{name}") for name in FILES.values()]
    folder = Path(config.data_dir).expanduser()
    what = f"a folder with {' and '.join(FILES.values())}"
    check_folder(folder, what, "mend --data-dir")
    return [folder / name for name in FILES.values()]


def _read(path: Path) -> Heartbeats:
    """The recordings of a file: x (n, T, 4), and y (n, T, 6) with at most a single 1 in a row.

    Raises DataError.
    """
    try:
        read = mat.arrays_of if is_known(path) else mat.arrays_apart
        arrays = read(path, _ARRAYS)
    except FileNotFoundError as error:
        raise DataError(path, "a .mat file", "no such file", FRESH_COPY) from error
    except OSError as error:
        raise DataError(path, "a .mat file", str(error.strerror), FRESH_COPY) from error
    except mat.MatError as error:
        raise DataError(path, error.expected, error.actual, FRESH_COPY) from error
    x, y = (arrays[name] for name in _ARRAYS)
    shapes = f"x {x.shape} and y {y.shape}"
    fits = x.ndim == y.ndim == 3 and x.shape[:2] == y.shape[:2] and len(x) > 1
    if not fits or (x.shape[2], y.shape[2]) != (INPUTS, CLASSES) or not x.size:
        expected = f"x (n, T, {INPUTS}) and y (n, T, {CLASSES}), at least 2 recordings"
        raise DataError(path, expected, shapes, FRESH_COPY)
    if not np.isin(x, (-1, 0, 1)).all():
        raise DataError(path, "x of -1, 0 and 1", "other values", FRESH_COPY)
    if not np.isin(y, (0, 1)).all() or y.sum(-1, dtype=np.int64).max() > 1:
        raise DataError(path, "y with at most a single 1 in a row, else 0", "others", FRESH_COPY)
    classes = np.where(y.any(-1), y.argmax(-1), UNKNOWN)
    return Heartbeats(torch.from_numpy(x.astype(np.int8)), torch.from_numpy(classes))


def _taken(part: Heartbeats, chosen: Tensor) -> Heartbeats:
    return Heartbeats(part.x[chosen], part.y[chosen])
