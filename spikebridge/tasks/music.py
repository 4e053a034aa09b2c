"""Polyphonic music: predict the next frame of 88 notes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spikebridge.metrics import MetricName
from spikebridge.task_configs import MusicConfig
from spikebridge.tasks.base import (
    Batch,
    Readout,
    Task,
    check_split,
    sample_batches,
)
from spikebridge.tasks.files import DataError, fetch

NOTES = 88
_KEYS = {"train": "traindata", "valid": "validdata", "test": "testdata"}
_FRESH_COPY = "get a fresh copy of the file"


class Padded(NamedTuple):
    """Songs beside one another, with zeros after their end; T = frames to predict, longest song."""

    x: Tensor  # (T, n, 88) uint8
    target: Tensor  # (T, n, 88) uint8, the frame after x
    lengths: Tensor  # (n,) int64 frames to predict: one less than the song has


class Music(Task):
    """Predict frame t + 1 from frames up to t.

    Loss and score count, per frame, the sum over the 88 notes of the binary cross-entropy in nats;
    both are means over real frames only: what stands at padding counts neither in the value nor in
    the gradient.  Songs come from `path`, a file with the layout of JSB_Chorales.mat, where given.
    """

    name = "music"
    input_size = NOTES
    output_size = NOTES
    readout: Readout = "each"
    metric: MetricName = "nll"

    def __init__(self, config: MusicConfig, path: Path | None = None) -> None:
        self.config = config
        songs = read_songs(fetch("polymusic/JSB_Chorales.mat") if path is None else path)
        self._splits = {split: _pad(songs[split]) for split in songs}

    def size(self, split: str) -> int:
        """Number of songs of a split."""
        return len(self._splits[check_split(split)].lengths)

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x and target (T, B, 88), mask (T, B); T = longest song of the batch - 1."""
        samples = sample_batches(self.size(split), split, batch_size, generator)
        return (_select(self._splits[split], i) for i in samples)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Nats per real frame; output (T, B, 88) logits."""
        logits, target = self._answers(output, batch)
        total = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return total / len(logits)

    def score(self, output: Tensor, batch: Batch) -> tuple[float, int]:
        """(nats, real frames)."""
        logits, target = self._answers(output, batch)
        nats = F.binary_cross_entropy_with_logits(logits.detach(), target, reduction="none")
        return float(nats.sum(dtype=torch.float64)), len(logits)


def read_songs(path: Path) -> dict[str, list[np.ndarray]]:
    """Songs (length, 88) uint8 of 0 and 1, by split, from a .mat file laid out as JSB_Chorales.mat.

    The file holds the cell arrays traindata, validdata and testdata; column k is MIDI note 21 + k.
    Raises DataError.
    """
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            contents = loadmat(file, variable_names=list(_KEYS.values()))
    except FileNotFoundError as error:
        raise DataError(path, "a .mat file", "no such file", _FRESH_COPY) from error
    except Exception as error:  # on damaged files scipy raises whatever its parser stumbles over
        found = f"a file that cannot be read ({type(error).__name__}: {error})"
        raise DataError(path, "a whole .mat file", found, _FRESH_COPY) from error
    songs = {}
    for split, key in _KEYS.items():
        cells = contents.get(key)
        if not isinstance(cells, np.ndarray) or cells.dtype != object or cells.size == 0:
            found = "none" if cells is None else f"{type(cells).__name__} {np.shape(cells)}"
            raise DataError(path, f"a cell array {key} of songs", found, _FRESH_COPY)
        songs[split] = [
            _checked(song, path, f"{key} song {number}")
            for number, song in enumerate(cells.ravel(), start=1)
        ]
    return songs


def _checked(song: np.ndarray, path: Path, which: str) -> np.ndarray:
    def wrong(expected: str, found: str) -> DataError:
        return DataError(path, f"{which} {expected}", found, _FRESH_COPY)

    if song.ndim != 2 or song.shape[1] != NOTES:
        raise wrong(f"of shape (length, {NOTES})", f"shape {song.shape}")
    if len(song) < 2:
        raise wrong("of at least 2 frames, one to hear and one to predict", f"{len(song)} frames")
    if song.dtype.kind not in "buif" or not np.isin(song, (0, 1)).all():
        raise wrong("of zeros and ones", f"other values, of {song.dtype}")
    return song.astype(np.uint8)


def _pad(songs: list[np.ndarray]) -> Padded:
    lengths = torch.tensor([len(song) - 1 for song in songs])
    x = torch.zeros(int(lengths.max()), len(songs), NOTES, dtype=torch.uint8)
    target = torch.zeros_like(x)
    for i, song in enumerate(songs):
        frames = torch.from_numpy(song)
        x[: len(song) - 1, i] = frames[:-1]
        target[: len(song) - 1, i] = frames[1:]
    return Padded(x, target, lengths)


def _select(songs: Padded, index: Tensor) -> Batch:
    lengths = songs.lengths[index]
    steps = int(lengths.max())
    x = songs.x[:steps].index_select(1, index).float()
    target = songs.target[:steps].index_select(1, index).float()
    return Batch(x, target, torch.arange(steps).unsqueeze(1) < lengths)
