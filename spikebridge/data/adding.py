"""The adding problem: a memory of a few steps among many, without any data file."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from spikebridge.data.task import Batch, Readout, Task, check_split, sample_batches
from spikebridge.settings.tasks import AddingConfig

MARKED_BITS, MARKED_NUMBERS = 9, 2
HELD = 2_000
"""Sequences that validate, and as many that test."""
NEAR = 0.04
"""A sum that is off by less counts as solved."""
SOLVED = "solved, a sum off by less than 0.04"
# Of two numbers in [0, 1).
MEAN, SD = 1.0, 6**-0.5


class Adding(Task):
    """Add up what stands at the marked steps of a sequence (T, 2): values, and marks of 1.

    adding-bits is the binary adding of the public benchmark NeuroSeqBench: values are 0 or 1 by
    even chance, nine steps anywhere are marked, and the class is the number of ones among these, 0
    to 9, each class as often; loss: cross-entropy, score: accuracy.  Its 50,000 sequences to train
    and 2,000 to test are ours in number, 2,000 more validate.

    adding-numbers: values in [0, 1), two marked steps anywhere, and the answer is the sum, less its
    mean 1 and divided by its standard deviation 1 / sqrt(6); loss: squared error, score: RMSE, 1
    for the mean as the answer.  `views` counts sums that are off by less than 0.04.

    The answer is read from the last step.  No sequence occurs twice, in one split or in two.
    Source: Hochreiter, Schmidhuber 1997, Neural Computation 9:1735.
    """

    name = "adding"
    input_size = 2
    readout: Readout = "last"

    def __init__(self, config: AddingConfig) -> None:
        self.config = config
        self.metric = "accuracy" if config.data == "adding-bits" else "rmse"
        sizes = {"train": config.sequences, "valid": HELD, "test": HELD}
        x, answers = _drawn(config, sum(sizes.values()))
        ends = np.cumsum(list(sizes.values()))[:-1]
        parts = zip(np.split(x, ends), np.split(answers, ends), strict=True)
        self._splits = {
            split: (torch.from_numpy(part), torch.from_numpy(answer))
            for split, (part, answer) in zip(sizes, parts, strict=True)
        }
        self.output_size = MARKED_BITS + 1 if self.metric == "accuracy" else 1
        if self.metric == "rmse":
            test = self._splits["test"][1].double()
            self.baselines = {"the mean": float(test.square().mean().sqrt())}

    def size(self, split: str) -> int:
        """Number of sequences of a split."""
        return len(self._splits[check_split(split)][1])

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x (T, B, 2) and target (B,) int64 or (B, 1) float32, mask None."""
        samples = sample_batches(self.size(split), split, batch_size, generator)
        x, answers = self._splits[split]
        return (
            Batch(x[chosen].transpose(0, 1).float().contiguous(), answers[chosen], None)
            for chosen in samples
        )

    def score(self, output: Tensor, batch: Batch) -> tuple[float, int]:
        """(correct answers, or squared errors; their number); of the view: sums that are near."""
        if self.metric == "rmse" or not batch.target.is_floating_point():
            return super().score(output, batch)
        output, target = self.answers(output, batch)
        return float(((output - target).abs() * SD < NEAR).sum()), target.numel()

    def views(self) -> Mapping[str, Task]:
        """Of numbers, the share of sequences that are solved."""
        if self.metric == "accuracy":
            return {}
        other = copy.copy(self)
        other.metric, other.baselines = "accuracy", {}
        return {SOLVED: other}

    def in_units(self, output: Tensor) -> Tensor:
        """Probabilities of the classes, or sums."""
        numbers = self.config.data == "adding-numbers"
        return output.double() * SD + MEAN if numbers else super().in_units(output)


def _drawn(config: AddingConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences x (n, T, 2) and their answers, all different."""
    draw = _bits if config.data == "adding-bits" else _numbers
    # RandomState is numpy's generator whose stream is frozen for good (NEP 19).
    random = np.random.RandomState(config.draw_seed)
    x, answers = draw(random, np.arange(count), config.steps)
    while len(again := _repeated(x)):
        x[again], answers[again] = draw(random, again, config.steps)
    return x, answers


def _repeated(x: np.ndarray) -> np.ndarray:
    """The numbers of sequences that stand further ahead already."""
    keys = x.reshape(len(x), -1)
    if x.dtype == np.uint8:
        keys = np.packbits(keys, axis=1)
    rows = np.ascontiguousarray(keys).view(f"V{keys.shape[1] * keys.itemsize}").ravel()
    _, first = np.unique(rows, return_index=True)
    return np.setdiff1d(np.arange(len(x)), first)


def _places(random: np.random.RandomState, count: int, steps: int, marked: int) -> np.ndarray:
    """Different steps (n, marked) each choice by even chance."""
    return random.random_sample((count, steps)).argpartition(marked, axis=1)[:, :marked]


def _bits(
    random: np.random.RandomState, which: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sequence k has k mod 10 ones at its marked steps, so that each split is balanced."""
    count, answers = len(which), which % (MARKED_BITS + 1)
    x = np.zeros((count, steps, 2), np.uint8)
    x[..., 0] = random.random_sample((count, steps)) < 0.5
    # The order within `argpartition` is not random: which of the steps hold ones is drawn anew.
    places = _places(random, count, steps, MARKED_BITS)
    ones = random.random_sample((count, MARKED_BITS)).argsort(1) < answers[:, None]
    np.put_along_axis(x[..., 0], places, ones.astype(np.uint8), 1)
    np.put_along_axis(x[..., 1], places, 1, 1)
    return x, answers.astype(np.int64)


def _numbers(
    random: np.random.RandomState, which: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    x = np.zeros((len(which), steps, 2), np.float32)
    x[..., 0] = random.random_sample((len(which), steps))
    places = _places(random, len(which), steps, MARKED_NUMBERS)
    np.put_along_axis(x[..., 1], places, 1, 1)
    sums = np.take_along_axis(x[..., 0], places, 1).sum(1, dtype=np.float64)
    return x, ((sums - MEAN) / SD)[:, None].astype(np.float32)
