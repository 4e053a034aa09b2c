"""Sequences of your own, from .npz files."""

from __future__ import annotations

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spikebridge.metrics import MetricName
from spikebridge.task_configs import NpzConfig
from spikebridge.tasks.base import SPLITS, Batch, Readout, Task, check_split, sample_batches
from spikebridge.tasks.files import DataError

# More are taken for a mistake, such as y holding the numbers of rows: each costs a row of weights.
MOST_CLASSES = 100_000
# Which samples train and which validate must never depend on a run's seed.
_SPLIT_SEED = 1812
_VALID_SHARE = 0.1
_VERBS = {"valid": "validate on", "test": "test on"}
_NAMED = 5  # classes, of those that are never trained
_SHAPES = (
    "y of whole numbers (n,) or (n, T): classes; or of floating-point numbers (n, O) or "
    "(n, T, O): numbers to predict"
)
_SAVE = "save it by numpy.savez(path, x=x, y=y)"
# What numpy and its archive raise at broken files.  Arrays of objects are pickles, which may run
# code: numpy refuses them by a ValueError.
_DAMAGED = (
    ValueError,
    EOFError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)

Kind = Literal["class", "class at each step", "numbers", "numbers at each step"]


class Samples(NamedTuple):
    """What a file holds."""

    x: Tensor  # (n, T, I) float32, or uint8 where that is what the file has
    y: Tensor  # (n,) or (n, T) int64, (n, O) or (n, T, O) float32
    kind: Kind

    def take(self, index: np.ndarray) -> Samples:
        """The samples of the given numbers."""
        chosen = torch.from_numpy(index)
        return Samples(self.x[chosen], self.y[chosen], self.kind)


class Npz(Task):
    """Classify, or predict numbers; once per sample, or at each step: y decides.

    Numbers to predict are put on the scale of the training data, so that each output has mean 0 and
    standard deviation 1 there; `mean` and `sd` (O,) lead back.  Inputs are left as they are.
    Without valid.npz one training sample in ten validates, always the same ones.
    """

    name = "npz"

    def __init__(self, config: NpzConfig) -> None:
        self.config = config
        folder = Path(config.data_dir).expanduser()
        self._splits = read_splits(folder if config.data_dir else None)
        train = self._splits["train"]
        self.input_size = train.x.shape[2]
        each = train.kind.endswith("at each step")
        self.readout: Readout = "each" if each else config.readout
        self.metric: MetricName = "accuracy" if train.kind.startswith("class") else "rmse"
        if self.metric == "rmse":
            self.output_size = train.y.shape[-1]
            self._standardise()
        else:
            self.output_size = 1 + max(int(part.y.max()) for part in self._splits.values())
            self.notes = tuple(_never_trained(self._splits))

    def size(self, split: str) -> int:
        """Number of samples of a split."""
        return len(self._splits[check_split(split)].x)

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x (T, B, I); target (B,), (T, B), (B, O) or (T, B, O); mask None."""
        samples = sample_batches(self.size(split), split, batch_size, generator)
        return (self._batch(self._splits[split], i) for i in samples)

    def _batch(self, split: Samples, index: Tensor) -> Batch:
        target = split.y[index]
        if self.readout == "each":
            target = target.transpose(0, 1).contiguous()
        return Batch(split.x[index].transpose(0, 1).float().contiguous(), target, None)

    def _standardise(self) -> None:
        train = self._splits["train"].y.flatten(0, -2).double()
        constant = train.amax(0) == train.amin(0)
        self.mean = train.mean(0)
        self.sd = torch.where(constant, 1.0, train.std(0, correction=0))
        for name, part in self._splits.items():
            y = ((part.y.double() - self.mean) / self.sd).float()
            self._splits[name] = part._replace(y=y)
        test = self._splits["test"].y.double()
        self.baselines = {"mean of the training data": float(test.square().mean().sqrt())}


def read_splits(folder: Path | None) -> dict[str, Samples]:
    """train.npz, test.npz and, where it is there, valid.npz, checked against one another."""
    expected = "a folder with train.npz, test.npz and perhaps valid.npz"
    if folder is None:
        raise DataError("--data-dir", expected, "none", "pass --data-dir with that folder")
    if not folder.is_dir():
        raise DataError(folder, expected, "no such folder", "mend --data-dir")
    given = {split: folder / f"{split}.npz" for split in SPLITS}
    if not given["valid"].exists():
        del given["valid"]
    splits = {split: read_samples(path) for split, path in given.items()}
    train = splits["train"]
    for split, found in splits.items():
        if _described(found) != _described(train):
            raise DataError(
                given[split],
                f"{_described(train)}, as in train.npz",
                _described(found),
                "save all files with the same inputs and kind of y",
            )
    if "valid" not in splits:
        splits["train"], splits["valid"] = _split_off(train, given["train"])
    return splits


def _never_trained(splits: dict[str, Samples]) -> Iterator[str]:
    """A sentence for each split with classes that no training sample has."""
    trained = splits["train"].y.unique()
    for split, part in splits.items():
        never = ~torch.isin(part.y, trained)
        if never.any():
            classes = part.y[never].unique().tolist()
            shown = ", ".join(map(str, classes[:_NAMED]))
            more = f" and {len(classes) - _NAMED:,} more" if len(classes) > _NAMED else ""
            yield (
                f"{100 * float(never.double().mean()):.3g} % of the answers to {_VERBS[split]} are "
                f"of classes that no sample trains and no network can learn: {shown}{more}"
            )


def _described(samples: Samples) -> str:
    what = f"x (n, T, {samples.x.shape[2]}) and y of one {samples.kind}"
    if samples.kind.startswith("class"):
        return what
    return what.replace("one numbers", f"{samples.y.shape[-1]} numbers")


def _split_off(train: Samples, path: Path) -> tuple[Samples, Samples]:
    """What trains and what validates of the samples in train.npz."""
    count = len(train.x)
    if count < 2:
        found, remedy = "1 sample", "save more samples, or a valid.npz beside it"
        raise DataError(path, "at least 2 samples, one of them for validation", found, remedy)
    # RandomState is numpy's generator whose stream is frozen for good (NEP 19).
    order = np.random.RandomState(_SPLIT_SEED).permutation(count)
    held = max(1, round(_VALID_SHARE * count))
    return train.take(np.sort(order[held:])), train.take(np.sort(order[:held]))


def read_samples(path: Path) -> Samples:
    """x and y of one file, checked.  Raises DataError."""
    arrays = _arrays(path)
    x, y = arrays["x"], arrays["y"]
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            expected = f"an array {name} of numbers"
            raise DataError(path, expected, f"one of {array.dtype}", _SAVE)
        if array.dtype.kind == "f" and not _finite(array):
            found, remedy = "NaN, infinite or larger values in it", "fill or remove such samples"
            raise DataError(path, f"{name} of finite numbers in float32", found, remedy)
    if x.ndim != 3 or 0 in x.shape:
        expected = "x of shape (n, T, I), each at least 1"
        raise DataError(path, expected, f"shape {x.shape}", "give x a sample, a time and an input")
    kind = _kind_of(path, x, y)
    if kind.startswith("class"):
        return Samples(_plain(x), torch.from_numpy(y.astype(np.int64)), kind)
    return Samples(_plain(x), torch.from_numpy(y.astype(np.float32)), kind)


def _kind_of(path: Path, x: np.ndarray, y: np.ndarray) -> Kind:
    """What y asks for, by its shape and type."""
    whole = y.dtype.kind in "biu"
    per_step = y.shape[:2] == x.shape[:2]
    if y.shape[:1] == x.shape[:1] and 0 not in y.shape:
        if whole and (y.ndim == 1 or (y.ndim == 2 and per_step)):
            _check_classes(path, y)
            return "class" if y.ndim == 1 else "class at each step"
        if y.ndim == 2 and not whole:
            return "numbers"
        if y.ndim == 3 and per_step:
            return "numbers at each step"
    expected = f"{_SHAPES}, with n = {x.shape[0]:,} and T = {x.shape[1]:,} as x has"
    remedy = "give y another shape, or convert it by .astype"
    raise DataError(path, expected, f"y of shape {y.shape} and type {y.dtype}", remedy)


def _check_classes(path: Path, y: np.ndarray) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= MOST_CLASSES:
        raise DataError(
            path,
            f"classes numbered from 0, at most {MOST_CLASSES:,} of them",
            f"numbers from {low:,} to {high:,}",
            "number the classes from 0, or save numbers to predict as floats (n, 1)",
        )


def _finite(array: np.ndarray) -> bool:
    # A NaN is not at most anything, so one comparison finds all that float32 cannot hold.
    return bool((np.abs(array) <= np.finfo(np.float32).max).all())


def _plain(x: np.ndarray) -> Tensor:
    """As torch can hold it; bytes stay bytes, four times smaller than what batches are made of."""
    small = x.dtype.kind == "b" or x.dtype == np.uint8
    return torch.from_numpy(x.astype(np.uint8 if small else np.float32))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays x and y of a file."""
    try:
        # Opened here because numpy leaves a file that is no archive open.
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            names = archive.files
            found = {str(name): archive[name] for name in ("x", "y") if name in names}
    except OSError as error:
        raise DataError(path, "an .npz file", str(error.strerror or error), _SAVE) from error
    except MemoryError as error:
        have = f"more than there is ({error})"
        raise DataError(path, "arrays that fit into memory", have, "give fewer samples") from error
    except _DAMAGED as error:
        expected = "a whole .npz file with arrays of numbers"
        raise DataError(path, expected, f"one that cannot be read ({error})", _SAVE) from error
    found = {name: array for name, array in found.items() if isinstance(array, np.ndarray)}
    if len(found) < 2:
        have = ", ".join(sorted(names)) or "none"
        raise DataError(path, "the arrays x and y", f"these arrays: {have}", _SAVE)
    return found
