"""Sequences of your own, from .npz files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikebridge.base.metrics import MetricName
from spikebridge.base.quantities import plural
from spikebridge.data import answers
from spikebridge.data.files import DataError, check_folder, one_file
from spikebridge.data.npz_files import Samples, read_samples
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
from spikebridge.settings.tasks import NpzConfig


class Npz(Task):
    """Classify, or predict numbers; once per sample, or at each step: y decides.

    Numbers to predict are put on the scale of the training data, so that each output has mean 0 and
    standard deviation 1 there; `mean` and `sd` (O,) lead back.  Inputs are left as they are.
    Without valid.npz one training sample in ten validates, always the same ones.  See
    `spikebridge.data.npz_files` for what a file holds; sequences of several lengths come with a
    mask, padded to the longest of their batch.
    """

    name = "npz"

    def __init__(self, config: NpzConfig) -> None:
        self.config = config
        folder = Path(config.data_dir).expanduser()
        self._splits = read_splits(folder if config.data_dir else None, config)
        train = self._splits["train"]
        self._describe(train)
        if self.metric == "rmse":
            self.output_size = train.y.shape[-1]
            numbers = train.answers
            constant = numbers.amax(0) == numbers.amin(0)
            self.mean = numbers.double().mean(0)
            self.sd = torch.where(constant, 1.0, numbers.double().std(0, correction=0))
            for name, part in self._splits.items():
                self._splits[name] = self._standardised(part)
            rms = self._splits["test"].answers.double().square().mean().sqrt()
            self.baselines = {"mean of the training data": float(rms)}
        else:
            classes = {split: part.y for split, part in self._splits.items()}
            self.output_size = 1 + max(int(part.max()) for part in classes.values())
        self.notes = tuple(self._remarks())

    def _describe(self, train: Samples) -> None:
        self.kind = train.kind
        self.input_size = train.x.shape[2]
        each = train.kind.endswith("at each step")
        self.readout: Readout = "each" if each else self.config.readout
        self.metric: MetricName = "accuracy" if train.kind.startswith("class") else "rmse"

    def size(self, split: str) -> int:
        """Number of samples of a split."""
        return len(self._splits[check_split(split)].x)

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x (T, B, I); target (B,), (T, B), (B, O) or (T, B, O).

        mask is None where all sequences of the data are equally long, else T is that of the longest
        of the batch.
        """
        samples = sample_batches(self.size(split), split, batch_size, generator)
        return (self._batch(self._splits[split], i) for i in samples)

    def _batch(self, split: Samples, index: Tensor) -> Batch:
        x, target, mask = split.x[index], split.y[index], None
        if split.padded:
            lengths = split.lengths[index]
            longest = int(lengths.max())
            mask = torch.arange(longest).unsqueeze(1) < lengths
            x = x[:, :longest]
            target = target[:, :longest] if self.readout == "each" else target
        if self.readout == "each":
            target = target.transpose(0, 1).contiguous()
        return Batch(x.transpose(0, 1).float().contiguous(), target, mask)

    def _standardised(self, part: Samples) -> Samples:
        return part._replace(y=((part.y.double() - self.mean) / self.sd).float())

    def _remarks(self) -> Iterator[str]:
        """What was read, and what a user should know of it."""
        counts = [f"{len(self._splits[split].x):,} to {_WHAT[split]}" for split in SPLITS]
        lengths = torch.cat([part.lengths for part in self._splits.values()])
        low, high = int(lengths.min()), int(lengths.max())
        steps = plural(high, "step") if low == high else f"{low:,} to {high:,} steps"
        asked = f"{self.kind}, one of {self.output_size:,}"
        if self.metric == "rmse":
            asked = f"{self.output_size:,} {self.kind}"
        yield f"read {', '.join(counts)}: {steps}, {self.input_size:,} inputs; asked: {asked}"
        for split, part in self._splits.items():
            if part.unanswered:
                yield (
                    f"{plural(part.unanswered, 'sample')} to {_WHAT[split]} without a class (-1) "
                    "left out"
                )
        classes = torch.cat([part.answers for part in self._splits.values()])
        if self.kind == "class at each step" and (without := int((classes == UNKNOWN).sum())):
            share = 100 * without / len(classes)
            yield f"{share:.3g} % of the steps have no class (-1): not judged"
        if self.metric == "accuracy":
            yield from answers.remarks({split: part.y for split, part in self._splits.items()})

    # Another file, with what training left

    def scaling(self) -> dict[str, Any]:
        """What `other` needs to know of the training data, as JSON has it."""
        sizes = {"kind": self.kind, "inputs": self.input_size, "outputs": self.output_size}
        if self.metric != "rmse":
            return sizes
        return sizes | {"mean": self.mean.tolist(), "sd": self.sd.tolist()}

    @classmethod
    def other(cls, config: NpzConfig, path: Path, scaling: Mapping[str, Any] | None) -> Npz:
        """The samples of one more file as the split "test", all of them and in their order.

        Args:
            config: of the run.
            path: an .npz file, or a folder with test.npz or a single one; y may be missing.
            scaling: as the run's `scaling` was; None reads the training data again.

        Raises DataError, also where inputs or answers are others than those of the training.
        """
        scaling = cls(config).scaling() if scaling is None else scaling
        path = one_file(path, "npz", "test.npz")
        like = _like(scaling)
        part = read_samples(path, config.answers, like, every=True)
        if part.described() != like.described():
            actual, remedy = part.described(), "give a file with the same inputs and kind of y"
            raise DataError(path, f"{like.described()}, as in training", actual, remedy)
        task = cls.__new__(cls)
        task.config, task.output_size = config, int(scaling["outputs"])
        task._describe(like)
        task.answered = part.answered and bool((part.y != UNKNOWN).any())
        if task.metric == "rmse":
            task.mean = torch.tensor(scaling["mean"], dtype=torch.float64)
            task.sd = torch.tensor(scaling["sd"], dtype=torch.float64)
            part = task._standardised(part)
        elif (high := int(part.y.max())) >= task.output_size:
            actual, remedy = f"class {high}", "leave out samples that training had no class for"
            raise DataError(path, f"classes 0 to {task.output_size - 1}", actual, remedy)
        task._splits = {"test": part}
        return task

    def in_units(self, output: Tensor) -> Tensor:
        """Outputs (..., O) as the files have them: numbers in their units, or probabilities."""
        if self.metric != "rmse":
            return super().in_units(output)
        return output.double() * self.sd + self.mean


_WHAT = {"train": "train", "valid": "validate", "test": "test"}


def _like(scaling: Mapping[str, Any]) -> Samples:
    """Samples of the shapes of the training data, none of them."""
    each = scaling["kind"].endswith("at each step")
    numbers = scaling["kind"].startswith("numbers")
    shape = (0, *[1] * each, *[int(scaling["outputs"])] * numbers)
    kind = torch.float32 if numbers else torch.int64
    x = torch.empty(0, 1, int(scaling["inputs"]))
    lengths = torch.empty(0, dtype=torch.int64)
    return Samples(x, torch.empty(shape, dtype=kind), scaling["kind"], lengths)


def read_splits(folder: Path | None, config: NpzConfig) -> dict[str, Samples]:
    """train.npz, test.npz and, where it is there, valid.npz, checked against one another."""
    expected = "a folder with train.npz, test.npz and perhaps valid.npz"
    if folder is None:
        raise DataError("--data-dir", expected, "none", "pass --data-dir with that folder")
    check_folder(folder, expected, "mend --data-dir")
    given = {split: folder / f"{split}.npz" for split in SPLITS}
    if not given["valid"].exists():
        del given["valid"]
    train = read_samples(given.pop("train"), config.answers)
    splits = {"train": train}
    for split, path in given.items():
        splits[split] = actual = read_samples(path, config.answers, train)
        if actual.described() != train.described():
            expected = f"{train.described()}, as in train.npz"
            remedy = "save all files with the same inputs and kind of y"
            raise DataError(path, expected, actual.described(), remedy)
    if "valid" not in splits:
        splits["train"], splits["valid"] = _split_off(train, folder / "train.npz")
    return splits


def _split_off(train: Samples, path: Path) -> tuple[Samples, Samples]:
    """What trains and what validates of the samples in train.npz."""
    count = len(train.x)
    if count < 2:
        actual, remedy = "1 sample", "save more samples, or a valid.npz beside it"
        raise DataError(path, "at least 2 samples, one of them for validation", actual, remedy)
    trains, validates = map(train.take, held_out(count))
    return trains, validates._replace(unanswered=0)
