"""Polyphonic music: predict the next frame of 88 notes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spikebridge.base.metrics import MetricName
from spikebridge.data import mat
from spikebridge.data.files import (
    FRESH_COPY,
    DataError,
    check_folder,
    fetch,
    is_known,
    single,
    visible,
)
from spikebridge.data.task import SPLITS, Batch, Readout, Task, check_split, sample_batches
from spikebridge.settings.tasks import MusicConfig

NOTES = mat.NOTES
_KEYS = dict(zip(SPLITS, mat.KEYS, strict=True))
_FILES = {
    "jsb": "polymusic/JSB_Chorales.mat",
    "nottingham": "polymusic/Nottingham.mat",
    "musedata": "polymusic/MuseData.mat",
    "piano": "polymusic/Piano_midi.mat",
}


class Music(Task):
    """Predict frame t + 1 from frames up to t.

    Loss and score count, per frame, the sum over the 88 notes of the binary cross-entropy in nats;
    both are means over real frames only: what stands at padding counts neither in the value nor in
    the gradient.  Songs come from `path`, a file with the layout of JSB_Chorales.mat, where given.

    With config.frames > 0 long training songs are cut into excerpts, each a sample of its own; see
    `excerpts`.  Songs are kept as a list and padded batch by batch, to the longest of the batch: in
    MuseData most songs have some hundred frames and a few have thousands.
    """

    name = "music"
    input_size = NOTES
    output_size = NOTES
    readout: Readout = "each"
    metric = cast(MetricName, MusicConfig.METRIC)

    def __init__(self, config: MusicConfig, path: Path | None = None) -> None:
        self.config = config
        songs = read_songs(locate(config) if path is None else path)
        self.prior = note_log_odds(songs["train"])
        songs["train"] = [part for song in songs["train"] for part in excerpts(song, config.frames)]
        self._splits = {split: [torch.from_numpy(song) for song in songs[split]] for split in songs}

    def size(self, split: str) -> int:
        """Number of songs of a split; of excerpts, where training songs are cut."""
        return len(self._splits[check_split(split)])

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x and target (T, B, 88), mask (T, B); T = longest song of the batch - 1."""
        samples = sample_batches(self.size(split), split, batch_size, generator)
        songs = self._splits[split]
        return (_side_by_side([songs[i] for i in chosen.tolist()]) for chosen in samples)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Nats per real frame; output (T, B, 88) logits."""
        logits, target = self.answers(output, batch)
        total = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return total / len(logits)

    def score(self, output: Tensor, batch: Batch) -> tuple[float, int]:
        """(nats, real frames)."""
        logits, target = self.answers(output, batch)
        nats = F.binary_cross_entropy_with_logits(logits.detach(), target, reduction="none")
        return float(nats.sum(dtype=torch.float64)), len(logits)


def locate(config: MusicConfig) -> Path:
    """The file that holds the songs of a config, downloaded if need be; raises DataError."""
    if config.data in _FILES:
        return fetch(_FILES[config.data])
    folder = Path(config.data_dir).expanduser()
    remedy = "pass the folder of one such file by --data-dir"
    wanted = "a folder with exactly one .mat file"
    files = [
        path
        for path in visible(check_folder(folder, wanted, remedy))
        if path.suffix.lower() == ".mat"
    ]
    return single(files, folder, wanted, remedy)


def excerpts(song: np.ndarray, frames: int) -> list[np.ndarray]:
    """A song (length, 88) in nearly equal parts of 2 to `frames` frames; whole where frames = 0.

    Each part begins with the frame that the one before ended with.  That frame is predicted at the
    end of one part and only heard in the next, so every frame but the song's first is predicted
    exactly once: cutting loses memory of what came before, and no frame.
    """
    predicted = len(song) - 1
    if frames == 0 or len(song) <= frames:
        return [song]
    parts = math.ceil(predicted / (frames - 1))
    ends = [predicted * part // parts for part in range(parts + 1)]
    return [song[start : end + 1] for start, end in pairwise(ends)]


def note_log_odds(songs: Sequence[np.ndarray]) -> Tensor:
    """Log odds (88,) that a note sounds in a frame to predict; every count has one added to it."""
    sounding = sum(song[1:].sum(axis=0, dtype=np.int64) for song in songs)
    frames = sum(len(song) - 1 for song in songs)
    odds = (sounding + 1) / (frames - sounding + 1)
    return torch.from_numpy(np.log(odds)).float()


def read_songs(path: Path) -> dict[str, list[np.ndarray]]:
    """Songs (length, 88) uint8 of 0 and 1, by split, from a .mat file laid out as JSB_Chorales.mat.

    The file holds the cell arrays traindata, validdata and testdata; column k is MIDI note 21 + k,
    in that of JSB an octave above where it should sound (`MusicConfig.lowest`).
    Raises DataError.
    """
    try:
        stat = path.stat()
        actual = _songs(path.resolve(), stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError as error:
        raise DataError(path, "a .mat file", "no such file", FRESH_COPY) from error
    except OSError as error:
        why = f"a file that cannot be read ({error.strerror})"
        raise DataError(path, "a whole .mat file", why, FRESH_COPY) from error
    except mat.MatError as error:
        raise DataError(path, error.expected, error.actual, FRESH_COPY) from error
    return {split: list(actual[key]) for split, key in _KEYS.items()}


# Reading a stranger's file takes a process, so it is done once.
@lru_cache(maxsize=4)
def _songs(path: Path, size_bytes: int, mtime_ns: int) -> mat.Songs:
    return (mat.songs_of if is_known(path) else mat.songs_apart)(path)


def _side_by_side(songs: list[Tensor]) -> Batch:
    """Songs (length, 88) uint8 as one batch, with zeros after their end."""
    x = pad_sequence([song[:-1] for song in songs]).float()
    target = pad_sequence([song[1:] for song in songs]).float()
    lengths = torch.tensor([len(song) - 1 for song in songs])
    return Batch(x, target, torch.arange(len(x)).unsqueeze(1) < lengths)
