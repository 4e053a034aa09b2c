"""Arrays in .npz files: checked against the file before memory is taken; never a pickle."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from spikebridge.base.storage import replace

MOST_BYTES = 1 << 31
"""Of all arrays of a file that spikebridge has written."""


class ArchiveError(ValueError):
    """Why a file holds no arrays that can be read."""


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, compressed, whole or not at all."""

    def write(part: Path) -> None:
        with part.open("wb") as file:  # given a name, numpy would add .npz to it
            np.savez_compressed(file, allow_pickle=False, **arrays)

    replace(path, write)


def read_arrays(
    path: Path, wanted: Container[str] | None = None, *, most_bytes: int | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a file, by name.

    Args:
        path: an .npz file.
        wanted: names of those to read; None reads all.
        most_bytes: what they may take together; None for no limit.

    Raises OSError where the file cannot be opened, MemoryError where the arrays are too large for
    this machine, and ArchiveError for all that is wrong with its content.
    """
    # Opened here because zipfile, as numpy, leaves a file that is no archive open.
    with path.open("rb") as file:
        try:
            return _read(file, wanted, most_bytes)
        except MemoryError:
            raise
        except OSError as error:
            if error.errno is not None:
                raise
            raise ArchiveError(str(error)) from error  # bz2 says so that data are damaged
        except ArchiveError:
            raise
        # Broken headers and streams lead to most kinds of error that there are.
        except Exception as error:
            raise ArchiveError(str(error) or type(error).__name__) from error


def _read(
    file: IO[bytes], wanted: Container[str] | None, most_bytes: int | None
) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = {}
    total = 0
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if wanted is not None and name not in wanted:
                continue
            total += info.file_size
            if most_bytes is not None and total > most_bytes:
                raise ArchiveError(f"its arrays take more than {most_bytes:,} bytes")
            with archive.open(info) as member:
                _check_size(name, member, info.file_size)
            with archive.open(info) as member:
                result[name] = np.lib.format.read_array(member, allow_pickle=False)
                member.read(1)  # at the end the checksum is compared
    return result


def _check_size(name: str, member: IO[bytes], size: int) -> None:
    """ArchiveError unless an array takes what its member holds: numpy would allocate it first."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    else:
        raise ArchiveError(f"the array {name!r} is of version {version} of the format")
    if dtype.hasobject:
        raise ArchiveError(f"the array {name!r} holds Python objects, which may run code")
    if min(shape, default=0) < 0:
        raise ArchiveError(f"the array {name!r} has the shape {shape}")
    claimed, held = math.prod(shape) * dtype.itemsize, size - member.tell()
    if claimed != held:
        raise ArchiveError(
            f"the array {name!r} of shape {shape} takes {claimed:,} bytes, {held:,} are there"
        )
