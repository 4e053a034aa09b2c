"""Recordings of an event camera (N-MNIST) as sequences of frames."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from spikebridge.data import files
from spikebridge.data.files import FRESH_COPY, VARIABLE, DataError, is_twin, read_bytes
from spikebridge.data.task import Batch, Task, check_split, permutation, sample_batches
from spikebridge.settings.tasks import EventsConfig

FOLDER = "nmnist"
SIDE = 34
CLASSES = 10
EVENT_BYTES = 5
# The data set's own readers take an event at y = 240 as a mark that the clock has gone on by so
# much, not as a pixel.  None of the recordings that we have seen holds one.
_MARK_Y, _MARK_US = 240, 2**13
_LAYOUT = "a folder with recordings Train/0/*.bin to Train/9/*.bin and Test/0/*.bin to Test/9/*.bin"
_SOURCE = (
    "get N-MNIST from https://www.garrickorchard.com/datasets/n-mnist (Orchard et al. 2015), "
    "unpack Train.zip and Test.zip there"
)


class EventList(NamedTuple):
    """The events of one recording, in the order of the file."""

    x: np.ndarray  # (n,) uint8, 0 to 33 from left to right
    y: np.ndarray  # (n,) uint8, 0 to 33 from top to bottom
    on: np.ndarray  # (n,) bool, whether the pixel grew brighter
    time_us: np.ndarray  # (n,) int64, microseconds since the recording began


class Recordings(NamedTuple):
    """Many recordings, cut into frames: what is kept of an event is its cell in (T, 2, H, W)."""

    cells: np.ndarray  # (events,) uint16 or uint32, recording after recording
    starts: np.ndarray  # (n + 1,) int64: recording i holds cells[starts[i]:starts[i + 1]]
    labels: np.ndarray  # (n,) int64, 0..9


class Events(Task):
    """Classify a recording from T frames; loss: cross-entropy, score: accuracy.

    A frame covers 1/T of the time from the start of the recording to its last event.  An input (I,)
    is a flattened image (2, H, W): pixels that grew darker, then pixels that grew brighter.  One
    part in `folds` of each class's recordings of Train, whatever the seed the same ones, validates.
    """

    name = "events"
    output_size = CLASSES

    def __init__(self, config: EventsConfig) -> None:
        self.config = config
        folder = Path(config.data_dir).expanduser() if config.data_dir else find_recordings()
        listed = {part: list_recordings(folder, part) for part in ("Train", "Test")}
        side = -(-SIDE // config.shrink)
        self.image = (2, side, side)
        self.input_size = 2 * side * side
        train, test = (read_recordings(file, config) for file in listed.values())
        self._recordings = {"train": train, "valid": train, "test": test}
        training, validating = split_by_class(train.labels, config.fold, config.folds)
        everything = np.arange(len(test.labels))
        self._samples = {"train": training, "valid": validating, "test": everything}

    def size(self, split: str) -> int:
        """Number of recordings of a split."""
        return len(self._samples[check_split(split)])

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x (T, B, 2 H W), target (B,) int64, mask None."""
        parts = sample_batches(self.size(split), split, batch_size, generator)
        recordings, samples = self._recordings[split], self._samples[split]
        return (self._batch(recordings, samples[part.numpy()]) for part in parts)

    def _batch(self, recordings: Recordings, chosen: np.ndarray) -> Batch:
        bounds = zip(recordings.starts[chosen], recordings.starts[chosen + 1], strict=True)
        parts = [recordings.cells[start:end] for start, end in bounds]
        frame, pixel = np.divmod(np.concatenate(parts).astype(np.int64), self.input_size)
        sample = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        place = torch.from_numpy((frame * len(parts) + sample) * self.input_size + pixel)
        x = torch.zeros(self.config.steps * len(parts) * self.input_size)
        if self.config.coding == "binary":
            x.index_fill_(0, place, 1.0)
        else:
            x.index_add_(0, place, torch.ones(len(place)))
        labels = torch.from_numpy(recordings.labels[chosen])
        return Batch(x.view(self.config.steps, len(parts), self.input_size), labels, None)


def find_recordings() -> Path:
    """The folder nmnist under $SPIKEBRIDGE_DATA, else in the cache.  Raises DataError."""
    remedy = (
        f"{_SOURCE} and pass --data-dir with the folder, or name it {FOLDER} and set {VARIABLE} "
        "to the folder that holds it"
    )
    return files.known_folder(FOLDER, _LAYOUT, remedy)


def list_recordings(folder: Path, part: str) -> list[tuple[Path, int]]:
    """The files of Train or Test with their classes, ordered by name.  Raises DataError.

    Names are the numbers of MNIST's images, so that this order mixes the classes.
    """
    actual = [
        (path, digit)
        for digit in range(CLASSES)
        for path in (folder / part / str(digit)).glob("*.bin")
        if not is_twin(path.name)
    ]
    counts = np.bincount([digit for _, digit in actual], minlength=CLASSES)
    least = 2 if part == "Train" else 0  # one of each class validates
    if not actual or counts.min() < least:
        have = ", ".join(map(str, counts)) + f" recordings of 0 to 9 in {part}"
        state = have if folder.is_dir() else "no such folder"
        if (folder / f"{part}.zip").exists():
            state = f"{part}.zip, which is not unpacked"
        expected = _LAYOUT + ("" if not least else f", at least {least} of each digit in {part}")
        raise DataError(folder, expected, state, _SOURCE)
    return sorted(actual, key=lambda item: (item[0].name, item[1]))


def split_by_class(labels: np.ndarray, fold: int, folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the samples that train and of those that validate: a part of each class.

    Over all folds each sample validates once, where a class has at least `folds` samples.
    """
    validates = np.zeros(len(labels), bool)
    for label in range(CLASSES):
        members = np.flatnonzero(labels == label)
        order = permutation(len(members), label)
        start, end = (round(part * len(members) / folds) for part in (fold, fold + 1))
        validates[members[order[start : max(start + 1, end)]]] = True
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def read_recordings(listed: Sequence[tuple[Path, int]], config: EventsConfig) -> Recordings:
    """All recordings, each file read once.  Raises DataError.

    The 60,000 of N-MNIST hold about 250 million events: half a gigabyte at two bytes each, where
    steps x pixels allow that.
    """
    most = sum(_size(path) for path, _ in listed) // EVENT_BYTES
    largest = config.steps * 2 * (-(-SIDE // config.shrink)) ** 2
    cells = np.empty(most, np.uint16 if largest <= 2**16 else np.uint32)
    starts = np.zeros(len(listed) + 1, np.int64)
    for number, (path, _) in enumerate(listed):
        start = starts[number]
        actual = to_cells(read_events(path), config)
        cells[start : start + len(actual)] = actual
        starts[number + 1] = start + len(actual)
    labels = np.array([digit for _, digit in listed], np.int64)
    return Recordings(cells[: starts[-1]], starts, labels)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        actual = f"a link to nothing ({os.readlink(path)})" if path.is_symlink() else error.strerror
        raise DataError(path, "a recording", str(actual), FRESH_COPY) from error


def to_cells(events: EventList, config: EventsConfig) -> np.ndarray:
    """For each event (n,) the number of its cell in (T, 2, H, W), squares of pixels as one."""
    side = -(-SIDE // config.shrink)
    frame = events.time_us * config.steps // (events.time_us.max() + 1)
    row, column = (place.astype(np.int64) // config.shrink for place in (events.y, events.x))
    return ((frame * 2 + events.on) * side + row) * side + column


def read_events(path: Path) -> EventList:
    """The events of a .bin file.  Raises DataError.

    An event is 40 bits, big-endian: x (8), y (8), polarity (1: brighter), time in microseconds
    (23).  Source: Orchard et al. 2015, "Converting static image datasets to spiking neuromorphic
    datasets using saccades", and the data set's page.
    """
    raw = np.frombuffer(read_bytes(path, "a recording"), np.uint8)
    if raw.size % EVENT_BYTES or not raw.size:
        expected = f"events of {EVENT_BYTES} bytes each, at least one"
        raise DataError(path, expected, f"{raw.size:,} bytes", FRESH_COPY)
    x, y, high, middle, low = raw.reshape(-1, EVENT_BYTES).T
    time = (high & 0x7F).astype(np.int64) << 16 | middle.astype(np.int64) << 8 | low
    mark = y == _MARK_Y
    if mark.any():
        time += _MARK_US * mark.cumsum()
        x, y, high, time = (part[~mark] for part in (x, y, high, time))
    if not len(x) or max(x.max(), y.max()) >= SIDE:
        actual = f"up to x = {x.max()}, y = {y.max()}" if len(x) else "no event"
        raise DataError(path, f"events with x and y of 0 to {SIDE - 1}", actual, FRESH_COPY)
    return EventList(x, y, high >= 0x80, time)
