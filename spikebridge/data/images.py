"""Images as sequences: spikes at a rate or by a threshold, a current, rows, or single pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spikebridge.base.chance import bernoulli
from spikebridge.data import answers, cifar
from spikebridge.data.cifar import Images
from spikebridge.data.files import (
    DataError,
    check_folder,
    fetch,
    looks_like_idx,
    read_idx,
    single,
    visible,
)
from spikebridge.data.task import Batch, Task, check_split, permutation, sample_batches
from spikebridge.settings.tasks import COLOUR, DigitsConfig

CLASSES = 10
# More are taken for a mistake: each costs a row of weights.
MOST_CLASSES = 10_000
QMNIST_COLUMNS = 8
MNIST_VALID = 5_000
DIGITS8X8_PEAK = 16
MNIST_PEAK = 255


class Digits(Task):
    """Classify an image from a sequence of T steps; loss: cross-entropy, score: accuracy.

    Args:
        config: which images, and how they become sequences.
        images: by split, instead of all those that the config names.
    """

    name = "digits"

    def __init__(self, config: DigitsConfig, images: dict[str, Images] | None = None) -> None:
        self.config = config
        splits = read(config) if images is None else images
        self._peak = DIGITS8X8_PEAK if config.data == "digits8x8" else MNIST_PEAK
        self._pixels = {split: torch.from_numpy(images.pixels) for split, images in splits.items()}
        self._labels = {
            split: torch.from_numpy(images.labels.astype(np.int64))
            for split, images in splits.items()
        }
        *colours, rows, columns = splits["train"].pixels.shape[1:]
        by_rows, pixels = config.coding == "rows", math.prod((*colours, rows, columns))
        self.steps: int = rows if by_rows else pixels if config.serial else config.steps
        self.input_size: int = columns if by_rows else 1 if config.serial else pixels
        self.image = None if config.serial else (math.prod(colours), rows, columns)
        self._order = torch.from_numpy(permutation(pixels, config.permutation))
        if config.data in COLOUR:
            self.output_names = cifar.NAMES
        self.output_size = 1 + max(int(labels.max()) for labels in self._labels.values())
        if config.data == DigitsConfig.OWN_DATA:
            self.notes = (*_stored(config), *answers.remarks(self._labels))
        # Row by row, the class is known only once the last row has been seen.  Of single pixels the
        # mean over all steps is read, as in the public table of permuted pixels.
        self.readout = "last" if by_rows else "mean"

    def size(self, split: str) -> int:
        """Number of images of a split."""
        return len(self._labels[check_split(split)])

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x (T, B, I), target (B,) int64, mask None."""
        samples = sample_batches(self.size(split), split, batch_size, generator)
        pixels, labels = self._pixels[split], self._labels[split]
        steps = self.config.steps_test if split != "train" else 0
        bent = self.config.elastic if split == "train" else 0.0
        mirror = self.config.flip and split == "train"

        def batch(i: Tensor) -> Batch:
            images = pixels[i].float().div_(self._peak)
            if bent:
                images = distorted(images, bent, generator)
            if mirror:
                images = mirrored(images, generator)
            return Batch(self._encode(images, steps or self.steps, generator), labels[i], None)

        return map(batch, samples)

    def _encode(self, images: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """Sequences (T, B, I) from images (B, ..., rows, columns) in [0, 1]."""
        value = images if self.config.gain == 1 else images * self.config.gain
        if self.config.coding == "rows":
            return value.transpose(0, 1).contiguous()
        value = value.flatten(1)
        if self.config.serial:
            value = value[:, self._order] if self.config.coding == "permuted" else value
            return value.t().unsqueeze(2).contiguous()
        if self.config.coding == "threshold":
            value = value.ge(0.5).to(value.dtype)
            return value.expand(steps, -1, -1).contiguous()
        if self.config.coding == "current":
            return value.expand(steps, -1, -1).contiguous()
        return bernoulli(value, steps, generator)


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, ..., columns), half of them, by chance, with left and right exchanged."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.view(-1, *[1] * (images.dim() - 1)), images.flip(-1), images)


def distorted(images: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    """Images (B, rows, columns) bent by smooth random displacements, turned and scaled a little.

    pixels is the root mean square displacement; its field is white noise smoothed by a Gaussian of
    4 pixels.  Angles are up to 7.5 degrees and scales 0.9 to 1.1, uniformly.
    Source: Simard, Steinkraus, Platt 2003, "Best practices for convolutional neural networks".
    """
    count, rows, columns = images.shape
    noise = torch.randn(count, 2, rows, columns, generator=generator)
    # On images this small a product with a matrix is several times as fast as a convolution.
    noise = (_blur(rows) @ noise @ _blur(columns)).flatten(2)
    length = noise.square().flatten(1).mean(1).mul_(2).sqrt_().clamp_min_(1e-9)
    field = noise * (pixels / length).view(-1, 1, 1)
    angle, scale = torch.rand(2, count, generator=generator) * 2 - 1
    angle, scale = angle * (7.5 * math.pi / 180), 1 + 0.1 * scale
    cos, sin = scale * angle.cos(), scale * angle.sin()
    turn = torch.zeros(count, 2, 3)
    turn[:, 0, 0], turn[:, 0, 1], turn[:, 1, 0], turn[:, 1, 1] = cos, -sin, sin, cos
    grid = F.affine_grid(turn, [count, 1, rows, columns], align_corners=True)
    size = torch.tensor([max(columns - 1, 1), max(rows - 1, 1)]) / 2
    grid = grid + field.view(count, 2, rows, columns).permute(0, 2, 3, 1) / size
    return F.grid_sample(images[:, None], grid, align_corners=True)[:, 0].clamp_(0, 1)


def _blur(length: int) -> Tensor:
    """The matrix that smooths by a Gaussian of 4 pixels, cut at 3 of its widths, with 0 outside."""
    offsets = torch.arange(length)[:, None] - torch.arange(length)
    return torch.exp(-0.5 * (offsets / 4) ** 2).where(offsets.abs() <= 12, 0)


def read_digits8x8() -> dict[str, Images]:
    """The 1,797 digits of 8 x 8 pixels (0..16) that come with scikit-learn, split 60/20/20 %.

    Each class is split in these shares to within two images, always in the same way.
    Source: Alpaydin, Kaynak 1998, "Optical recognition of handwritten digits" (test part), UCI.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = Images(raw.images.astype(np.uint8), raw.target.astype(np.uint8))
    order = permutation(len(images.labels))
    by_class = order[np.argsort(images.labels[order], kind="stable")]
    turn = np.arange(len(by_class)) % 5
    parts = {"train": turn < 3, "valid": turn == 3, "test": turn == 4}
    return {split: images.take(np.sort(by_class[part])) for split, part in parts.items()}


def read(config: DigitsConfig) -> dict[str, Images]:
    """The images that a config names, by split.  Raises DataError."""
    if config.data == "mnist":
        return read_mnist()
    if config.data in COLOUR:
        return read_cifar10(small=config.data == "cifar10-small")
    if config.data == "digits8x8":
        return read_digits8x8()
    images = read_folder(Path(config.data_dir).expanduser())
    if config.transpose:
        images = {
            split: Images(np.ascontiguousarray(part.pixels.swapaxes(1, 2)), part.labels)
            for split, part in images.items()
        }
    return images


def _stored(config: DigitsConfig) -> Iterator[str]:
    """A word on how images lie in files that are known to hold them otherwise."""
    folder = _of_files(Path(config.data_dir).expanduser())
    if any("emnist" in path.name.lower() for path in visible(folder)) and not config.transpose:
        yield (
            "EMNIST stores images with rows and columns exchanged, and so they are shown to the "
            "network; pass --transpose to see them upright"
        )


def read_mnist() -> dict[str, Images]:
    """MNIST, 28 x 28 pixels (0..255): 55,000 to train, 5,000 to validate, 10,000 to test."""
    train, test = (
        read_images(
            fetch(f"mnist/{part}-images-idx3-ubyte.gz"),
            fetch(f"mnist/{part}-labels-idx1-ubyte.gz"),
            CLASSES,
        )
        for part in ("train", "t10k")
    )
    return _with_validation(train, test, MNIST_VALID)


def read_cifar10(*, small: bool) -> dict[str, Images]:
    """CIFAR-10, 32 x 32 pixels in three colours; a tenth of those to train validate.

    45,000 to train, 5,000 to validate and 10,000 to test; small: 9,000, 1,000 and 1,000.
    """
    train, test = cifar.read_small() if small else cifar.read()
    return _with_validation(train, test, len(train.labels) // 10)


def read_folder(folder: Path) -> dict[str, Images]:
    """Images of a folder with four idx files; a twelfth of those to train validate.

    A file's name says what it holds: train, or else t10k or test; images or labels.  A file that
    lies there packed (X.gz) and unpacked (X) is one.  Of a folder of torchvision's the files are
    those in its folder raw.
    """
    folder = _of_files(check_folder(folder, "a folder with idx files", "mend --data-dir"))
    parts = []
    for names in (("train",), ("t10k", "test")):
        images, labels = (_named(folder, names, what) for what in ("images", "labels"))
        parts.append(read_images(images, labels))
    train, test = parts
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        actual = f"{train.pixels.shape[1:]} to train, {test.pixels.shape[1:]} to test"
        raise DataError(folder, "images of one size", actual, "use files that belong together")
    if len(train.labels) < 2:
        raise DataError(folder, "at least 2 images to train", "1", "use a larger set")
    return _with_validation(train, test, max(1, len(train.labels) // 12))


def _named(folder: Path, names: tuple[str, ...], what: str) -> Path:
    fits: dict[str, Path] = {}
    for path in visible(folder):
        name = path.name.lower()
        if what in name and any(n in name for n in names) and looks_like_idx(path):
            fits.setdefault(path.name.removesuffix(".gz"), path)  # unpacked before packed
    expected = f"one idx file with {' or '.join(names)} and {what} in its name"
    remedy = "name the four files as MNIST's are"
    if fits:
        remedy = "put the four files of one set into a folder of their own"
    return single(list(fits.values()), folder, expected, remedy)


def _of_files(folder: Path) -> Path:
    """The folder itself, or where torchvision puts a set's files in it."""
    raw = folder / "raw"
    return raw if raw.is_dir() and not any(map(looks_like_idx, visible(folder))) else folder


def _with_validation(train: Images, test: Images, count: int) -> dict[str, Images]:
    order = permutation(len(train.labels))
    return {"train": train.take(order[:-count]), "valid": train.take(order[-count:]), "test": test}


def read_images(images: Path, labels: Path, classes: int = MOST_CLASSES) -> Images:
    """Images and their classes from a pair of idx files.  Raises DataError."""
    pixels, given = read_idx(images), read_idx(labels)
    remedy = "use the images and labels that belong together"
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        actual = f"shape {pixels.shape} of {pixels.dtype}"
        raise DataError(images, "images (n, rows, columns) of uint8", actual, remedy)
    if given.ndim == 2 and given.shape[1] == QMNIST_COLUMNS:
        given = given[:, 0]  # the others say whose digit it is, and where it comes from
    whole = given.dtype.kind in "iu" or bool((given == np.floor(given)).all())
    if given.shape != pixels.shape[:1] or not whole:
        actual = f"shape {given.shape} of {given.dtype}"
        raise DataError(labels, f"{len(pixels):,} labels, whole numbers", actual, remedy)
    if given.min() < 0 or given.max() >= classes:
        actual = f"label {(given.min() if given.min() < 0 else given.max()):g}"
        raise DataError(labels, f"labels 0 to {classes - 1:,}", actual, remedy)
    return Images(pixels, given if given.dtype == np.uint8 else given.astype(np.int64))
