"""What a task is: batches of sequences, a loss and a score; and what all tasks share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Readout = Literal["mean", "last", "each"]
Metric = Literal["accuracy", "nll"]

SPLITS = ("train", "valid", "test")


class Batch(NamedTuple):
    """Some samples, time-major, on the CPU; all T steps are real where mask is None."""

    x: Tensor  # (T, B, I) float32
    target: Tensor  # (B,) int64 class, or (T, B, O) float32
    mask: Tensor | None  # (T, B) bool, True at real frames


class Task(Protocol):
    """Data and how to judge an output on them."""

    name: str
    input_size: int
    output_size: int
    readout: Readout
    """How the network reduces over time: to (B, O) for mean and last, (T, B, O) for each."""
    metric: Metric
    higher_is_better: bool

    def size(self, split: str) -> int:
        """Number of samples (images, songs) of a split: train, valid or test."""
        ...

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Every sample of the split once, the last batch smaller where they do not divide.

        train comes in an order drawn from the generator, valid and test in a fixed one.  Random
        inputs are drawn from the generator, batch by batch, so the same generator state gives the
        same bits.
        """
        ...

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar to minimise, a mean over what counts; output holds logits."""
        ...

    def score(self, output: Tensor, batch: Batch) -> tuple[float, int]:
        """(total, count); the metric of a split is the sum of totals over the sum of counts."""
        ...


def check_split(split: str) -> str:
    """The split itself; ValueError where there is none of that name."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: no such split; choose one of {', '.join(SPLITS)}")
    return split


def sample_batches(
    size: int, split: str, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Sample numbers 0..size-1 of a split in batches; train is shuffled by the generator."""
    if batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size}: the number of samples per batch must be at least 1; "
            "pass --batch-size 32"
        )
    shuffled = check_split(split) == "train"
    order = torch.randperm(size, generator=generator) if shuffled else torch.arange(size)
    return order.split(batch_size)


def as_logits(output: Tensor, shape: tuple[int, ...], readout: Readout) -> Tensor:
    """The output in at least float32, for a loss; ValueError where it has another shape."""
    if output.shape != shape:
        raise ValueError(
            f"output shape {tuple(output.shape)}: the task needs logits of shape {shape}; "
            f"build the network with the task's output size and readout={readout!r}"
        )
    return output.to(torch.promote_types(output.dtype, torch.float32))
