"""What a task is: batches of sequences, a loss and a score; and what all tasks share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spikebridge.base.metrics import METRICS, MetricName

Readout = Literal["mean", "last", "each"]

SPLITS = ("train", "valid", "test")
VALID_SHARE = 0.1
UNKNOWN = -1
"""Stands in a target of classes where there is no answer: such a one is not judged."""


class Batch(NamedTuple):
    """Some samples, time-major, on the CPU; all T steps are real where mask is None.

    The real steps of a sample come first, padding behind them; what stands there changes nothing.
    """

    x: Tensor  # (T, B, I) float32, or (T, B) int64 symbols
    target: Tensor  # (B,) or (T, B) int64 classes, UNKNOWN for none; (B, O) or (T, B, O) float32
    mask: Tensor | None  # (T, B) bool, True at real steps

    @property
    def counted(self) -> int:
        """What a task's loss is a mean over: samples, or real time steps, that have an answer."""
        numbers = self.target.is_floating_point()
        # Of two dimensions, classes are one per step and numbers are one row per sample.
        per_step = self.target.dim() == (3 if numbers else 2)
        if not numbers:
            known = self.target != UNKNOWN
            return int((known & self.mask if per_step and self.mask is not None else known).sum())
        if per_step and self.mask is not None:
            return int(self.mask.sum())
        return self.x.shape[0] * self.x.shape[1] if per_step else self.x.shape[1]


class Task:
    """Data and how to judge an output on them; subclass it for a task of your own.

    A subclass sets `input_size` and `output_size` and has `size` and `batches`; everything else has
    a default: classification of whole samples from the mean over time.  Where the target holds
    numbers, `metric` is to be "rmse": regression.
    """

    name: str = "own"
    input_size: int
    output_size: int
    readout: Readout = "mean"
    """How the network reduces over time: to (B, O) for mean and last, (T, B, O) for each."""
    metric: MetricName = "accuracy"
    symbols: bool = False
    """Whether inputs are whole numbers (T, B) in [0, input_size)."""
    image: tuple[int, int, int] | None = None
    """(C, H, W) where an input (I,) is a flattened image, for convolutions."""
    carries_state: bool = False
    """Whether a batch goes on where the last one stopped, so that the state is carried over."""

    prior: Tensor | None = None
    """(O,) outputs that are right before anything was seen, from the training data; the readout's
    bias starts there."""
    part: str = ""
    """What a sample has several of, such as heartbeats: energy is given for each of them, too.
    `parts_in` counts them."""
    output_names: tuple[str, ...] = ()
    """What the outputs (O,) are called on a page, where they have names."""
    baselines: Mapping[str, float] = MappingProxyType({})
    """The metric on the test set of simple ways to answer, such as "the last value again"."""
    notes: tuple[str, ...] = ()
    """What a user should know of the data, such as columns that were left out."""
    answered: bool = True
    """Whether there are answers to judge by; a file that is only to be predicted may have none."""

    def symbol_names(self) -> list[str] | None:
        """What the symbols stand for, by number, kept beside the model; None without symbols."""
        return None

    def signature(self) -> Tensor:
        """(k,) float64 numbers by which a run that goes on knows its data again.

        Sizes, a digest of the symbols, and means over the first samples of validation, whose last
        digits may differ between machines.
        """
        names = "\n".join(self.symbol_names() or []).encode()
        numbers = [self.size(split) for split in SPLITS]
        numbers.append(int.from_bytes(hashlib.sha256(names).digest()[:6], "big"))
        batch = next(iter(self.batches("valid", 8, torch.Generator().manual_seed(0))))
        means = []
        for part in (batch.x, batch.target):
            flat = part.double().flatten()
            means += [flat.mean(), (flat * torch.arange(len(flat)).cos()).mean()]
        return torch.tensor([*numbers, *means], dtype=torch.float64)

    def scaling(self) -> dict[str, Any] | None:
        """What `tasks.other` needs of the training data, as JSON has it; None is nothing."""
        return None

    def in_units(self, output: Tensor) -> Tensor:
        """Outputs (..., O) as the data have their answers: probabilities, or numbers."""
        return output.double().softmax(-1) if self.metric == "accuracy" else output.double()

    def parts_in(self, batch: Batch) -> int:
        """How many of `part` a batch has."""
        return 0

    def views(self) -> Mapping[str, Task]:
        """The same data judged otherwise, by what is judged; a finished run is tested so, too."""
        return {}

    def placed(self, split: str, answers: np.ndarray) -> np.ndarray:
        """All answers of a split in the units of the data (n, ...), where `in_units` leaves them
        relative to something that is not the same for all."""
        return answers

    def compared(self, baselines: Mapping[str, float] | None = None) -> list[str]:
        """The baselines (None: the task's own) as a sentence, where there are any."""
        metric = METRICS[self.metric]
        baselines = self.baselines if baselines is None else baselines
        unit = " %" if metric.unit == "%" else ""
        shown = [f"{name} {metric.figure(value)}{unit}" for name, value in baselines.items()]
        return [f"for comparison, test {metric.name}: {', '.join(shown)}"] if shown else []

    @property
    def higher_is_better(self) -> bool:
        return METRICS[self.metric].higher_is_better

    def size(self, split: str) -> int:
        """Number of samples (images, songs) of a split: train, valid or test."""
        raise NotImplementedError

    def count_batches(self, batch_size: int) -> int:
        """Number of training batches in an epoch."""
        return math.ceil(self.size("train") / batch_size)

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Every sample of the split once, the last batch smaller where they do not divide.

        train comes in an order drawn from the generator, valid and test in a fixed one.  Random
        inputs are drawn from the generator, batch by batch, so the same generator state gives the
        same bits.
        """
        raise NotImplementedError

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar to minimise, a mean over what counts; output holds logits, or numbers."""
        output, target = self.answers(output, batch)
        if target.is_floating_point():
            return F.mse_loss(output, target)
        return F.cross_entropy(output, target)

    def score(self, output: Tensor, batch: Batch) -> tuple[float, int]:
        """(total, count); the metric of a split is made of the sum of totals over that of counts.

        See `metrics.from_mean`.  Raises ValueError where accuracy is asked of targets that are
        numbers: a mean of squared errors under that name would keep the worst epoch.
        """
        output, target = self.answers(output, batch)
        if target.is_floating_point():
            if self.metric == "accuracy":
                raise ValueError(
                    f"metric='accuracy': the targets of {self.name} are numbers and not classes; "
                    "set metric = 'rmse' in the task, or give it a score of its own"
                )
            return float((output - target).square().sum(dtype=torch.float64)), target.numel()
        return float((output.argmax(-1) == target).sum()), target.numel()

    def answers(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Output (n, O) in at least float32 and target (n,) or (n, O) of all that counts.

        Padding does not count, nor does a class that is `UNKNOWN`.
        """
        target = batch.target
        shape = tuple(target.shape)
        wanted = shape if target.is_floating_point() else (*shape, self.output_size)
        output = as_logits(output, wanted, self.readout)
        if self.readout == "each":
            output, target = output.flatten(0, 1), target.flatten(0, 1)
        counts = batch.mask.flatten() if self.readout == "each" and batch.mask is not None else None
        if not target.is_floating_point() and bool((target == UNKNOWN).any()):
            known = target != UNKNOWN
            counts = known if counts is None else counts & known
        if counts is not None:
            # Taken out rather than multiplied by the mask: even an inf or nan at padding must not
            # reach the loss or the gradient.
            chosen = counts.nonzero().squeeze(1)
            output, target = output.index_select(0, chosen), target.index_select(0, chosen)
        return output, target.to(output.dtype) if target.is_floating_point() else target


def known_again(there: Tensor, here: Tensor) -> bool:
    """Whether two signatures are of the same data: sizes and symbols exactly, means nearly."""
    exact = len(SPLITS) + 1
    return (
        (there.shape, there.dtype) == (here.shape, here.dtype)
        and torch.equal(there[:exact], here[:exact])
        and torch.allclose(there[exact:], here[exact:], rtol=1e-3, atol=1e-3)
    )


def check_split(split: str) -> str:
    """The split itself; ValueError where there is none of that name."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: no such split; choose one of {', '.join(SPLITS)}")
    return split


def check_batch_size(batch_size: int) -> None:
    """ValueError where it is no number of samples."""
    if batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size}: the number of samples per batch must be at least 1; "
            "pass --batch-size 32"
        )


def permutation(size: int, which: int = 0) -> np.ndarray:
    """An order of samples that hangs on no run's seed: which of them train and which validate."""
    # RandomState is numpy's generator whose stream is frozen for good (NEP 19).
    return np.random.RandomState(1812 + which).permutation(size)


def held_out(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of at least 2 samples train and which validate, one in ten; in the order of the data.

    The same ones whatever the seed (`permutation(size)`).
    """
    order = permutation(size)
    held = max(1, round(VALID_SHARE * size))
    return np.sort(order[held:]), np.sort(order[:held])


def sample_batches(
    size: int, split: str, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Sample numbers 0..size-1 of a split in batches; train is shuffled by the generator."""
    check_batch_size(batch_size)
    shuffled = check_split(split) == "train"
    order = torch.randperm(size, generator=generator) if shuffled else torch.arange(size)
    return order.split(batch_size)


def stream_chunks(
    length: int, steps: int, generator: torch.Generator | None = None
) -> list[tuple[int, int]]:
    """First and last + 1 of the steps in each chunk of a stream: `steps`, at the end fewer.

    With a generator the first chunk has 1 to `steps`, drawn from it, and the last one up to
    `steps` - 1 more: as many chunks come out as without, because schedules count on their number.
    """
    first = steps
    if generator is not None:
        first = int(torch.randint(1, steps + 1, (), generator=generator))
    cuts = [first + steps * k for k in range(-(-length // steps) - 1)]
    return list(pairwise([0, *cuts, length]))


def as_logits(output: Tensor, shape: tuple[int, ...], readout: Readout) -> Tensor:
    """The output in at least float32, for a loss; ValueError where it has another shape."""
    if output.shape != shape:
        raise ValueError(
            f"output shape {tuple(output.shape)}: the task needs logits of shape {shape}; "
            f"build the network with the task's output size and readout={readout!r}"
        )
    return output.to(torch.promote_types(output.dtype, torch.float32))
