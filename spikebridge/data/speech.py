"""Spoken words: .wav files by way of an ear, and recordings that are spikes already (.h5)."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from spikebridge.base.archives import ArchiveError, read_arrays, write_arrays
from spikebridge.data import answers, files, sound
from spikebridge.data.files import (
    FRESH_COPY,
    VARIABLE,
    DataError,
    check_folder,
    is_twin,
    known_folder,
    visible,
)
from spikebridge.data.spike_files import Trains, read_trains, train_files
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
from spikebridge.settings.tasks import SpeechConfig

FOLDER = "speech"
LAYOUT = (
    "a folder with train.csv, valid.csv and test.csv (columns file and class) and the .wav files "
    "that they name, or with .h5 files whose names hold train and test"
)
_CACHED = 1  # counts up where features are computed otherwise


class Words(NamedTuple):
    """Some recordings as sequences of different lengths, one behind the other."""

    steps: np.ndarray  # (all steps, bands) float32
    ends: np.ndarray  # (n,) int64: where each recording ends
    classes: np.ndarray  # (n,) int64, UNKNOWN for none


class Speech(Task):
    """Classify a recording; loss: cross-entropy, score: accuracy.

    Of .wav files, `front` makes sequences of log-mel energies, each band with mean 0 and deviation
    1 over the training steps, or of spikes (`sound.spikes`).  Splits are as the .csv files say.
    Recordings that are spikes already are cut into steps, 1 where a unit spikes in a step; without
    a file for validation one training recording in ten validates (`permutation(n)`).  Recordings
    of several lengths come with a mask.
    """

    name = "speech"

    def __init__(self, config: SpeechConfig) -> None:
        self.config, self.readout = config, _readout(config)
        if config.data_dir:
            folder = check_folder(Path(config.data_dir).expanduser(), LAYOUT, "mend --data-dir")
        else:
            remedy = f"pass --data-dir with that folder, or name it {FOLDER} under ${VARIABLE}"
            folder = known_folder(FOLDER, LAYOUT, remedy)
        given = train_files(folder)
        self.kind = "spikes" if given else config.front
        self._splits: dict[str, Words | Trains]
        if given:
            self._read_spikes(given)
        else:
            self._read_sound(folder)
        classes = {split: torch.from_numpy(part.classes) for split, part in self._splits.items()}
        if not self.output_names:
            self.output_size = 1 + max(int(part.max()) for part in classes.values())
        self.notes = (self._remark(), *answers.remarks(classes))

    def _read_spikes(self, given: Mapping[str, Path]) -> None:
        trains = {split: read_trains(path, self.config.step_ms) for split, path in given.items()}
        train = trains["train"]
        if "valid" not in trains:
            if train.size < 2:
                path, remedy = given["train"], "give more of them, or a file for validation"
                raise DataError(path, "at least 2 recordings, one to validate", "1", remedy)
            trains["train"], trains["valid"] = map(train.take, held_out(train.size))
        self.input_size = max(part.units for part in trains.values())
        self._splits = {split: trains[split] for split in SPLITS}

    def _read_sound(self, folder: Path) -> None:
        listed = {split: read_list(folder, split) for split in SPLITS}
        names = Counter(name for part in listed.values() for name, _ in part)
        if twice := [name for name, count in names.items() if count > 1]:
            actual = f"{twice[0]} twice"
            raise DataError(folder, "each recording in a single split, once", actual, "mend it")
        self.output_names = tuple(sorted({word for _, word in listed["train"]}))
        self.output_size, self.input_size = len(self.output_names), self.config.bands
        words = {split: self._heard(folder, part) for split, part in listed.items()}
        train = words["train"].steps
        self.level = train.mean(0, dtype=np.float64)
        spread = train.std(0, dtype=np.float64)
        # A band that is silent in all of training stays so, whatever comes.
        quiet = spread == 0 if self.kind == "mel" else self.level == 0
        self.sd = np.where(quiet, np.inf, spread)
        if self.kind == "cochlea":
            self.level = np.where(quiet, np.inf, self.level)
        self._splits = {split: self._scaled(part) for split, part in words.items()}

    def _heard(self, folder: Path, listed: list[tuple[str, str]]) -> Words:
        """The features of recordings, before they are put on the scale of training."""
        places = {word: place for place, word in enumerate(self.output_names)}
        unknown = [word for _, word in listed if word and word not in places]
        if unknown:
            expected = f"words of train.csv: {', '.join(places)}"
            raise DataError(folder, expected, unknown[0], "leave out words that none trains")
        classes = [places[word] if word else UNKNOWN for _, word in listed]
        steps, ends = features(folder, [name for name, _ in listed], self.config)
        return Words(steps, ends, np.array(classes, np.int64))

    def _scaled(self, words: Words) -> Words:
        if self.kind == "mel":
            scaled = ((words.steps - self.level) / self.sd).astype(np.float32)
        else:
            parts = np.split(words.steps, words.ends[:-1])
            step_ms = self.config.step_ms
            scaled = np.concatenate([sound.spikes(part, self.level, step_ms) for part in parts])
        return words._replace(steps=scaled)

    def _remark(self) -> str:
        lengths = np.concatenate([_lengths(part) for part in self._splits.values()])
        counts = ", ".join(f"{self.size(split):,} to {split}" for split in SPLITS)
        low, high = int(lengths.min()), int(lengths.max())
        steps = f"{high:,}" if low == high else f"{low:,} to {high:,}"
        what = {"mel": "log-mel energies", "cochlea": "spikes of a cochlea"}.get(
            self.kind, "spikes"
        )
        return f"read {counts}: {steps} steps of {self.input_size:,} {what}"

    def size(self, split: str) -> int:
        """Number of recordings of a split."""
        return len(self._splits[check_split(split)].classes)

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x (T, B, I) and target (B,), T the longest of the batch.

        mask is None where all recordings of the split are equally long.
        """
        samples = sample_batches(self.size(split), split, batch_size, generator)
        part = self._splits[split]
        even = len(set(_lengths(part).tolist())) == 1
        return (self._batch(part, chosen.numpy(), even) for chosen in samples)

    def _batch(self, part: Words | Trains, chosen: np.ndarray, even: bool) -> Batch:
        lengths = _lengths(part)[chosen]
        x = torch.zeros(int(lengths.max()), len(chosen), self.input_size)
        for place, number in enumerate(chosen.tolist()):
            if isinstance(part, Words):
                end, length = int(part.ends[number]), int(lengths[place])
                x[:length, place] = torch.from_numpy(part.steps[end - length : end])
            else:
                t, unit = part.cells_of(number)
                x[torch.from_numpy(t), place, torch.from_numpy(unit)] = 1.0
        mask = torch.arange(len(x)).unsqueeze(1) < torch.from_numpy(lengths)
        return Batch(x, torch.from_numpy(part.classes[chosen]), None if even else mask)

    # Other recordings, with what training left

    def scaling(self) -> dict[str, Any]:
        """What `other` needs to know of the training data, as JSON has it."""
        if self.kind == "spikes":
            return {"inputs": self.input_size, "outputs": self.output_size}
        numbers = {"level": self.level.tolist(), "sd": self.sd.tolist()}
        finite = {
            name: [v if np.isfinite(v) else None for v in part] for name, part in numbers.items()
        }
        return {"words": list(self.output_names), **finite}

    @classmethod
    def other(cls, config: SpeechConfig, path: Path, scaling: Mapping[str, Any] | None) -> Speech:
        """Other recordings as the split "test", on the scale of training.

        Args:
            config: of the run.
            path: an .h5 file; or a folder with test.csv, or else with .wav files, whose words are
                then not known.
            scaling: as the run's `scaling` was; None reads the training data again.

        Raises DataError.
        """
        if scaling is None:
            scaling = cls(config).scaling()
        task = cls.__new__(cls)
        task.config, task.readout = config, _readout(config)
        task.kind = config.front if "words" in scaling else "spikes"
        if task.kind == "spikes":
            named = train_files(path) if path.is_dir() else {}
            part = read_trains(named.get("test") or files.one_file(path, "h5"), config.step_ms)
            task.input_size, task.output_size = int(scaling["inputs"]), int(scaling["outputs"])
            if part.units > task.input_size or part.classes.max() >= task.output_size:
                expected = f"{task.input_size:,} units and {task.output_size:,} classes at most"
                actual = f"{part.units:,} and {1 + part.classes.max():,}"
                raise DataError(path, expected, actual, "give recordings like those of training")
            task._splits = {"test": part}
            return task
        task.output_names, task.input_size = tuple(scaling["words"]), config.bands
        task.output_size = len(task.output_names)
        task.level, task.sd = (
            np.array([np.inf if v is None else v for v in scaling[name]])
            for name in ("level", "sd")
        )
        folder = check_folder(path.expanduser(), "a folder with recordings", "mend --data-dir")
        listed = read_list(folder, "test") if (folder / "test.csv").exists() else _found(folder)
        task._splits = {"test": task._scaled(task._heard(folder, listed))}
        task.answered = bool((task._splits["test"].classes != UNKNOWN).any())
        return task


def _readout(config: SpeechConfig) -> Readout:
    return config.readout


def _lengths(part: Words | Trains) -> np.ndarray:
    return np.diff(part.ends, prepend=0) if isinstance(part, Words) else part.lengths


def read_list(folder: Path, split: str) -> list[tuple[str, str]]:
    """The recordings of a split with their words, as train.csv and so on name them.

    Raises DataError.
    """
    path = folder / f"{split}.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise DataError(folder, LAYOUT, f"no {path.name}", "mend --data-dir") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, "a table in UTF-8", str(error), FRESH_COPY) from error
    listed = [(row.get("file") or "", row.get("class") or "") for row in rows]
    if not listed:
        raise DataError(path, "at least one recording", "none", FRESH_COPY)
    for line, (name, word) in enumerate(listed, start=2):
        place = PurePosixPath(name)
        if not name or not word or place.is_absolute() or ".." in place.parts:
            expected = "columns file and class, each file by its place below the folder"
            raise DataError(path, expected, f"{name!r}, {word!r} in line {line}", "mend the line")
    return listed


def _found(folder: Path) -> list[tuple[str, str]]:
    """All .wav files of a folder and of those in it, of unknown words."""
    folders = [folder, *sorted(place for place in folder.iterdir() if place.is_dir())]
    listed = [
        (file.relative_to(folder).as_posix(), "")
        for place in folders
        for file in visible(place)
        if file.suffix.lower() == ".wav" and not is_twin(file.name)
    ]
    if not listed:
        raise DataError(folder, "a folder with .wav files", "none", "mend --data-dir")
    return listed


def features(folder: Path, names: list[str], config: SpeechConfig) -> tuple[np.ndarray, np.ndarray]:
    """Features (all steps, bands) of recordings, and where each ends; kept in the user's cache.

    What is kept is known by the settings and by name, size and time of change of each file.
    Raises DataError.
    """
    settings = (_CACHED, config.front, config.bands, config.step_ms, config.rate_hz)
    key = hashlib.sha256(repr((settings, str(folder.resolve()))).encode())
    for name in names:
        try:
            stat = (folder / name).stat()
        except OSError as error:
            raise DataError(
                folder / name, "a recording", str(error.strerror), FRESH_COPY
            ) from error
        key.update(repr((name, stat.st_size, stat.st_mtime_ns)).encode())
    kept = files.cache_folder() / "speech" / f"{key.hexdigest()[:24]}.npz"
    try:
        arrays = read_arrays(kept, ("steps", "ends"))
        return arrays["steps"], arrays["ends"]
    except (OSError, ArchiveError, KeyError):  # none yet, or damaged
        pass
    ear = sound.log_mel if config.front == "mel" else sound.currents
    parts = [
        ear(
            sound.read_wav(folder / name, config.rate_hz),
            config.rate_hz,
            config.bands,
            config.step_ms,
        )
        for name in names
    ]
    steps, ends = np.concatenate(parts), np.cumsum([len(part) for part in parts])
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(kept, {"steps": steps, "ends": ends})
    except OSError:  # a cache that cannot be written costs time and nothing else
        pass
    return steps, ends
