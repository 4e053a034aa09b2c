"""Arrays from damaged and hostile .npz files."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spikebridge.base.archives import ArchiveError, read_arrays


def member(header: str, data: bytes = bytes(24)) -> bytes:
    """An .npy file with any header."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def archive(path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("x.npy", content)
    return path


def header(shape: str = "(3,)", dtype: str = "<f8") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


def test_arrays_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    given: dict[str, Any] = {
        "x": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "none": np.zeros((0, 4), np.float32),
        "one": np.array(3, np.uint8),
        "names": np.array(["a", "bc"]),
    }
    for save in (np.savez, np.savez_compressed):
        save(path, **given)
        found = read_arrays(path)
        assert list(found) == list(given)
        for name, value in given.items():
            assert found[name].dtype == value.dtype
            assert np.array_equal(found[name], value)
        assert list(read_arrays(path, ("x", "y"))) == ["x"]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        archive(path, member(header()), method)
        assert np.array_equal(read_arrays(path)["x"], np.zeros(3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (member(header("(1000000000000000,)")), "takes 8,000,000,000,000,000 bytes, 24 are there"),
        (member(header("(2,)")), "takes 16 bytes, 24 are there"),
        (member(header("(-3,)")), "shape"),
        (member(header("(" + "9" * 90 + ",)")), "bytes, 24 are there"),
        (member(header("(3,)", "|O")), "Python objects"),
        (member("{'descr': '<f8', ("), "."),
        (member("-" * 100 + "1"), "."),
        (member("{}"), "."),
        (b"no array", "."),
        (b"", "."),
    ],
)
def test_what_numpy_stumbles_over_is_one_error(
    content: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveError, match=message):
        read_arrays(archive(tmp_path / "a.npz", content))


def test_arrays_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, a=np.zeros(100_000), b=np.zeros(100_000))
    assert len(read_arrays(path, most_bytes=1_700_000)) == 2
    with pytest.raises(ArchiveError, match="more than 1,000,000 bytes"):
        read_arrays(path, most_bytes=1_000_000)


def test_other_methods_and_locked_members_are_refused(tmp_path: Path) -> None:
    whole = archive(tmp_path / "a.npz", member(header())).read_bytes()
    entry = whole.index(b"PK\x01\x02")
    for local, central, value in ((8, 10, 97), (6, 8, 1)):  # an unknown method; encrypted
        changed = bytearray(whole)
        changed[local], changed[entry + central] = value, value
        (tmp_path / "b.npz").write_bytes(bytes(changed))
        with pytest.raises(ArchiveError, match=r"compression|encrypted"):
            read_arrays(tmp_path / "b.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_data_are_one_error(method: int, tmp_path: Path) -> None:
    draw, file = np.random.default_rng(0), io.BytesIO()
    np.lib.format.write_array(file, draw.standard_normal(300))
    whole = archive(tmp_path / "a.npz", file.getvalue(), method).read_bytes()
    right, refused = read_arrays(tmp_path / "a.npz")["x"], 0
    for at in draw.integers(60, whole.index(b"PK\x01\x02"), 40):
        changed = bytearray(whole)
        changed[at] ^= 0x55
        (tmp_path / "b.npz").write_bytes(bytes(changed))
        try:  # some bits of a stream mean nothing
            assert np.array_equal(read_arrays(tmp_path / "b.npz")["x"], right)
        except ArchiveError:
            refused += 1
    assert refused > 30


def test_what_cannot_be_opened_is_an_os_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(OSError, match=r"No such file|Is a directory"):
            read_arrays(path)
