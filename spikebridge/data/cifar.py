"""CIFAR-10 in its binary format: the official archive, or parts of it that lie there unpacked."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spikebridge.data.files import FRESH_COPY, DataError, fetch, find

__all__ = ["NAMES", "Images", "parse", "read", "read_small", "unpack"]

NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
ARCHIVE = "cifar10/cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
SMALL_TEST = 1_000
SMALL_FILES = (f"cifar10/{TRAIN[0]}", f"cifar10/test_batch_first{SMALL_TEST}.bin")


class Images(NamedTuple):
    """Images with their classes."""

    pixels: np.ndarray  # (n, rows, columns) or, in colour, (n, 3, rows, columns) uint8
    labels: np.ndarray  # (n,) uint8 or int64, from 0

    def take(self, index: np.ndarray | slice) -> Images:
        """The images of the given numbers."""
        return Images(self.pixels[index], self.labels[index])


def read() -> tuple[Images, Images]:
    """All 50,000 images to train and 10,000 to test.  Raises DataError."""
    parts = _of_archive((*TRAIN, TEST))
    joined = [np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True)]
    return Images(*joined), parts[-1]


def read_small() -> tuple[Images, Images]:
    """The 10,000 images of the first training file and the first 1,000 to test.

    From those two parts where they lie under $SPIKEBRIDGE_DATA, else from the archive.  Raises
    DataError.
    """
    own = [path for name in SMALL_FILES if (path := find(name)) is not None]
    if len(own) == len(SMALL_FILES):
        train, test = (parse(path.read_bytes(), path) for path in own)
        return train, test
    train, test = _of_archive((TRAIN[0], TEST))
    return train, test.take(slice(SMALL_TEST))


def _of_archive(names: Sequence[str]) -> list[Images]:
    path = fetch(ARCHIVE)
    return [parse(data, f"{path}:{name}") for name, data in unpack(path, names).items()]


def unpack(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Some files of the archive, in the order asked for; in memory, nothing is written to disk.

    Raises DataError where the archive is damaged or has no such files.
    """
    actual: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix(f"{FOLDER}/")
                content = archive.extractfile(member) if member.isfile() else None
                if name in names and content is not None:
                    actual[name] = content.read()
                if len(actual) == len(names):
                    break
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(path, "a whole .tar.gz file", f"damaged ({error})", FRESH_COPY) from error
    missing = [name for name in names if name not in actual]
    if missing:
        expected = f"{', '.join(missing)} in {FOLDER}"
        raise DataError(path, expected, f"{len(actual)} of {len(names)} files", FRESH_COPY)
    return {name: actual[name] for name in names}


def parse(data: bytes, name: str | Path) -> Images:
    """The images that bytes hold; name is for error messages.

    Format: for each image a byte with the class, then 1,024 bytes each of red, green and blue, row
    by row.  Raises DataError.  Source: Krizhevsky 2009, the data set's page, "Binary version".
    """
    if not data or len(data) % RECORD_BYTES:
        expected = f"one or more images of {RECORD_BYTES:,} bytes"
        raise DataError(name, expected, f"{len(data):,} bytes", FRESH_COPY)
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 0].copy()
    if labels.max() >= len(NAMES):
        expected = f"labels 0 to {len(NAMES) - 1}"
        place = int((labels >= len(NAMES)).argmax())
        raise DataError(name, expected, f"label {labels[place]} at image {place}", FRESH_COPY)
    return Images(records[:, 1:].reshape(-1, *SHAPE).copy(), labels)
