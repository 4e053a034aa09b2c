"""Handwritten digits as sequences: spikes at a rate, a constant current, or row by row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spikebridge.task_configs import DigitsConfig
from spikebridge.tasks.base import (
    Batch,
    Task,
    check_split,
    sample_batches,
)
from spikebridge.tasks.files import DataError, fetch, read_idx

CLASSES = 10
MNIST_VALID = 5_000
DIGITS8X8_PEAK = 16
MNIST_PEAK = 255
# Which images train and which judge must never depend on a run's seed, nor on library versions.
_SPLIT_SEED = 1812


class Images(NamedTuple):
    """Grey images of digits with their classes."""

    pixels: np.ndarray  # (n, rows, columns) uint8
    labels: np.ndarray  # (n,) uint8, 0..9

    def take(self, index: np.ndarray) -> Images:
        """The images of the given numbers."""
        return Images(self.pixels[index], self.labels[index])


class Digits(Task):
    """Classify a digit from a sequence of T steps; loss: cross-entropy, score: accuracy."""

    name = "digits"
    output_size = CLASSES

    def __init__(self, config: DigitsConfig) -> None:
        self.config = config
        splits = read_mnist() if config.data == "mnist" else read_digits8x8()
        self._peak = MNIST_PEAK if config.data == "mnist" else DIGITS8X8_PEAK
        self._pixels = {split: torch.from_numpy(images.pixels) for split, images in splits.items()}
        self._labels = {
            split: torch.from_numpy(images.labels.astype(np.int64))
            for split, images in splits.items()
        }
        rows, columns = splits["train"].pixels.shape[1:]
        by_rows = config.coding == "rows"
        self.steps: int = rows if by_rows else config.steps
        self.input_size: int = columns if by_rows else rows * columns
        # Row by row, the class is known only once the last row has been seen.
        self.readout = "last" if by_rows else "mean"

    def size(self, split: str) -> int:
        """Number of images of a split."""
        return len(self._labels[check_split(split)])

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x (T, B, I), target (B,) int64, mask None."""
        samples = sample_batches(self.size(split), split, batch_size, generator)
        pixels, labels = self._pixels[split], self._labels[split]
        return (Batch(self._encode(pixels[i], generator), labels[i], None) for i in samples)

    def _encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Sequences (T, B, I) from images (B, rows, columns)."""
        value = pixels.float().div_(self._peak).mul_(self.config.gain)
        if self.config.coding == "rows":
            return value.transpose(0, 1).contiguous()
        value = value.flatten(1)
        if self.config.coding == "current":
            return value.expand(self.steps, -1, -1).contiguous()
        return bernoulli(value, self.steps, generator)


def bernoulli(probability: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Spikes (T, B, I), 0 or 1 in float32, with probability (B, I) in [0, 1], fresh at each step.

    Four draws come from one 64-bit random word, 15 bits each, which is several times faster than
    a float each.  A draw r in 0..32767 spikes where r < k with k = round(32768 p), so p is rounded
    to a multiple of 2**-15 (off by at most 1.6e-5): 0 never spikes and 1 always does.
    """
    shape = (steps, *probability.shape)
    count = steps * probability.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    words &= 0x7FFF_7FFF_7FFF_7FFF
    draws = words.view(torch.int16)[:count].view(shape)
    # r <= k - 1 rather than r < k: k = 32768 does not fit into 16 bits with a sign, k - 1 does.
    highest = probability.mul(32768).round_().sub_(1).to(torch.int16)
    return torch.le(draws, highest, out=torch.empty(shape))


def read_digits8x8() -> dict[str, Images]:
    """The 1,797 digits of 8 x 8 pixels (0..16) that come with scikit-learn, split 60/20/20 %.

    Each class is split in these shares to within two images, always in the same way.
    Source: Alpaydin, Kaynak 1998, "Optical recognition of handwritten digits" (test part), UCI.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = Images(raw.images.astype(np.uint8), raw.target.astype(np.uint8))
    order = _permutation(len(images.labels))
    by_class = order[np.argsort(images.labels[order], kind="stable")]
    turn = np.arange(len(by_class)) % 5
    parts = {"train": turn < 3, "valid": turn == 3, "test": turn == 4}
    return {split: images.take(np.sort(by_class[part])) for split, part in parts.items()}


def read_mnist() -> dict[str, Images]:
    """MNIST, 28 x 28 pixels (0..255): 55,000 to train, 5,000 to validate, 10,000 to test."""
    train, test = (
        read_images(
            fetch(f"mnist/{part}-images-idx3-ubyte.gz"), fetch(f"mnist/{part}-labels-idx1-ubyte.gz")
        )
        for part in ("train", "t10k")
    )
    order = _permutation(len(train.labels))
    return {
        "train": train.take(order[:-MNIST_VALID]),
        "valid": train.take(order[-MNIST_VALID:]),
        "test": test,
    }


def read_images(images: Path, labels: Path) -> Images:
    """Images and their classes from a pair of idx files.  Raises DataError."""
    pixels, classes = read_idx(images), read_idx(labels)
    remedy = "use the images and labels that belong together"
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        found = f"shape {pixels.shape} of {pixels.dtype}"
        raise DataError(images, "images (n, rows, columns) of uint8", found, remedy)
    if classes.shape != pixels.shape[:1] or classes.dtype != np.uint8:
        found = f"shape {classes.shape} of {classes.dtype}"
        raise DataError(labels, f"{len(pixels):,} labels of uint8", found, remedy)
    if classes.max() >= CLASSES:
        raise DataError(labels, "labels 0 to 9", f"label {classes.max()}", remedy)
    return Images(pixels, classes)


def _permutation(size: int) -> np.ndarray:
    # RandomState is numpy's generator whose stream is frozen for good (NEP 19).
    return np.random.RandomState(_SPLIT_SEED).permutation(size)
