"""Data files: found, verified, downloaded, refused; and the idx format."""

from __future__ import annotations

import contextlib
import gc
import gzip
import hashlib
import math
import os
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers.real_data import real
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebridge.data import files
from spikebridge.data.files import DataError, Source, fetch, parse_idx, read_idx
from spikebridge.data.images import read_images

NAME = "toy/toy-idx1-ubyte.gz"
CODES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    """The idx file of an array, written from the format's description."""
    header = bytes([0, 0, code, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(CODES[code]).tobytes()


UNPACKED = idx(np.arange(40) % 10)
PACKED = gzip.compress(UNPACKED, mtime=0)


class Host:
    """A web server on 127.0.0.1 that sends one body, counts requests, and may cut the body off."""

    def __init__(self) -> None:
        self.body: bytes | None = PACKED
        self.missing_bytes = 0
        self.requests = 0
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.requests += 1
                if host.body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(host.body)))
                self.end_headers()
                self.wfile.write(host.body[: len(host.body) - host.missing_bytes])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/{NAME}"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host of the toy file, an empty cache, and no $SPIKEBRIDGE_DATA."""
    host = Host()
    thread = threading.Thread(target=host.server.serve_forever, args=(0.01,))
    thread.start()
    source = Source(
        host.url,
        len(PACKED),
        hashlib.sha256(PACKED).hexdigest(),
        len(UNPACKED),
        hashlib.sha256(UNPACKED).hexdigest(),
    )
    monkeypatch.setitem(files.SOURCES, NAME, source)
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv(files.VARIABLE, raising=False)
    for proxy in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(proxy, "127.0.0.1")
    yield host
    host.server.shutdown()
    thread.join()
    host.server.server_close()


@pytest.fixture
def folder(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that $SPIKEBRIDGE_DATA names."""
    folder = tmp_path / "data"
    (folder / "toy").mkdir(parents=True)
    monkeypatch.setenv(files.VARIABLE, str(folder))
    return folder


def cached_files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("place", "content"),
    [
        (NAME, PACKED),
        (Path(NAME).name, PACKED),
        (NAME.removesuffix(".gz"), UNPACKED),
        (Path(NAME).stem, UNPACKED),
    ],
)
def test_found_in_the_data_folder(host: Host, folder: Path, place: str, content: bytes) -> None:
    (folder / place).write_bytes(content)
    assert fetch(NAME) == folder / place
    np.testing.assert_array_equal(read_idx(fetch(NAME)), np.arange(40) % 10)
    assert host.requests == 0


@pytest.mark.parametrize(
    ("place", "content", "kind"),
    [
        (NAME, b"", "empty"),
        (NAME, PACKED[:-7], "truncated"),
        (NAME, PACKED[:30] + b"x" + PACKED[31:], "changed"),
        (NAME.removesuffix(".gz"), UNPACKED[:-1], "truncated, unpacked"),
    ],
)
def test_damaged_file_in_the_data_folder(
    host: Host, folder: Path, place: str, content: bytes, kind: str
) -> None:
    (folder / place).write_bytes(content)
    with pytest.raises(DataError) as caught:
        fetch(NAME)
    error = caught.value
    whole = UNPACKED if "unpacked" in kind else PACKED
    assert error.file == str(folder / place)
    for described, data in ((error.expected, whole), (error.actual, content)):
        assert hashlib.sha256(data).hexdigest() in described
        assert f"{len(data)} bytes" in described
    assert host.url in error.remedy
    assert all(part in str(error) for part in (error.file, error.expected, error.actual))
    assert host.requests == 0, "a file of the user's is never passed over"


def test_unreadable_file_in_the_data_folder(folder: Path) -> None:
    (folder / NAME).mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        fetch(NAME)


def test_data_folder_must_exist(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"SPIKEBRIDGE_DATA.*no such folder.*unset"):
        fetch(NAME)
    (tmp_path / "file").touch()
    monkeypatch.setenv(files.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(DataError, match="found a file"):
        fetch(NAME)


def test_downloaded_once_then_cached(host: Host, tmp_path: Path) -> None:
    path = fetch(NAME)
    assert path == tmp_path / "cache" / NAME
    assert path.read_bytes() == PACKED
    assert fetch(NAME) == path
    assert host.requests == 1
    assert cached_files(tmp_path) == [path]


def test_an_empty_variable_and_an_empty_folder_lead_to_the_download(
    host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch(NAME).read_bytes() == PACKED
    monkeypatch.setenv(files.VARIABLE, "")
    assert fetch(NAME).read_bytes() == PACKED
    assert host.requests == 1


@pytest.mark.parametrize("damage", [b"", PACKED[:-3], PACKED[:30] + b"x" + PACKED[31:]])
def test_damaged_cache_is_downloaded_again(host: Host, tmp_path: Path, damage: bytes) -> None:
    path = fetch(NAME)
    path.write_bytes(damage)
    os.utime(path, ns=(1, 1))
    assert fetch(NAME).read_bytes() == PACKED
    assert host.requests == 2


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("old", [None, b"damaged"])
@pytest.mark.parametrize("failure", ["absent", "changed", "cut off", "short", "no host"])
def test_failed_download_leaves_nothing(
    host: Host, tmp_path: Path, failure: str, old: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if failure == "absent":
        host.body = None
    elif failure == "changed":
        host.body = PACKED + b"x"
    elif failure == "cut off":
        host.missing_bytes = 5
    elif failure == "short":
        host.body = PACKED[:-5]
    else:
        gone = Source("http://127.0.0.1:9/toy", 1, hashlib.sha256(b"x").hexdigest())
        monkeypatch.setitem(files.SOURCES, NAME, gone)
    cached = tmp_path / "cache" / NAME
    if old is not None:
        cached.parent.mkdir(parents=True)
        cached.write_bytes(old)
    with pytest.raises(DataError, match=r"download of http://127.* failed") as caught:
        fetch(NAME)
    assert caught.value.file == str(cached)
    assert files.SOURCES[NAME].sha256 in caught.value.expected
    assert ("no file" if old is None else hashlib.sha256(old).hexdigest()) in caught.value.actual
    assert "set SPIKEBRIDGE_DATA" in caught.value.remedy
    assert cached_files(tmp_path) == ([] if old is None else [cached])
    with pytest.raises(DataError):
        fetch(NAME)
    if failure == "absent":  # pooch does not close what it refuses: let that warning fall here
        del caught
        gc.collect()


def test_each_file_is_read_once_per_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / NAME
    path.write_bytes(PACKED)
    fetch(NAME)
    before = files._digest.cache_info().misses
    assert fetch(NAME) == path
    assert files._digest.cache_info().misses == before
    path.write_bytes(PACKED[:-1])
    with pytest.raises(DataError):
        fetch(NAME)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"name='mnist/x'.*polymusic/JSB_Chorales.mat"):
        fetch("mnist/x")


def test_cache_folder_is_the_users() -> None:
    assert "spikebridge" in str(files.cache_folder())


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(files.SOURCES))
def test_real_files(name: str) -> None:
    real(name)
    source = files.SOURCES[name]
    data = fetch(name).read_bytes()
    assert len(data) == source.size_bytes
    if source.url:
        assert source.url.startswith("https://")
        assert source.url.endswith(Path(name).name)
    else:
        assert name.partition("/")[0] in files._ELSEWHERE
    if name.endswith(".gz"):
        unpacked = gzip.decompress(data)
        assert len(unpacked) == source.unpacked_size_bytes
        assert hashlib.sha256(unpacked).hexdigest() == source.unpacked_sha256


# The idx format


@settings(deadline=None)
@given(
    code=st.sampled_from(sorted(CODES)),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_idx_round_trip(code: int, shape: list[int], seed: int) -> None:
    whole = np.random.default_rng(seed).integers(0, 120, shape)
    array = parse_idx(idx(whole, code), "toy")
    np.testing.assert_array_equal(array, whole)
    assert array.dtype == np.dtype(CODES[code]).newbyteorder("=")
    assert array.flags.writeable


@settings(deadline=None)
@given(st.integers(0, len(UNPACKED) - 1))
def test_idx_cut_anywhere_is_an_error(length: int) -> None:
    with pytest.raises(DataError, match="toy: expected"):
        parse_idx(UNPACKED[:length], "toy")


@settings(deadline=None)
@given(
    st.binary(max_size=60)
    | st.binary(max_size=60).map(lambda tail: bytes([0, 0, 8]) + tail)
    | st.binary(max_size=60).map(lambda tail: bytes([0, 0, 14, 2, 0, 0, 0]) + tail)
)
def test_idx_of_any_bytes_is_an_array_or_a_data_error(data: bytes) -> None:
    with contextlib.suppress(DataError):
        array = parse_idx(data, "toy")
        assert array.nbytes == len(data) - 4 - 4 * array.ndim
        assert math.prod(array.shape) == array.size > 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\x08", "at least 4 bytes; found 3 bytes"),
        (b"\0\x01" + UNPACKED[2:], "begins with bytes 00 00; found bytes 00 01"),
        (b"\0\0\x0a" + UNPACKED[3:], "type code, one of 0x08.*; found 0x0a"),
        (b"\0\0\x08\0" + UNPACKED[4:], "1 to 32 dimensions; found 0"),
        (b"\0\0\x08\xff" + UNPACKED[4:], "1 to 32 dimensions; found 255"),
        (b"\0\0\x08\x03" + UNPACKED[4:8], "header of 16 bytes for 3 dimensions; found 8"),
        (idx(np.zeros((0, 3))), r"at least 1; found shape \(0, 3\)"),
        (UNPACKED[:-1], r"48 bytes for shape \(40,\) of uint8; found 47 bytes"),
        (UNPACKED + b"x", r"48 bytes for shape \(40,\) of uint8; found 49 bytes"),
    ],
)
def test_idx_violations_are_named(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_idx(data, "toy")


@pytest.mark.parametrize("content", [PACKED[:-12], PACKED[:3], PACKED[:14] + b"\xff" * 40])
def test_damaged_gzip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "toy.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"toy.gz: expected a whole gzip.*{len(content)} bytes"):
        read_idx(path)


def test_a_packed_idx_file_is_unpacked_as_far_as_its_head_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    head = bytes([0, 0, 8, 2]) + (100).to_bytes(4, "big") * 2
    zeros = gzip.compress(bytes(1 << 20), mtime=0)
    for start, told in (
        (head, "more than that"),
        (bytes([0, 0, 8, 2]) + b"\xff" * 8, "at most 2,147,483,648 bytes in a packed file"),
        (b"no idx file at all", "which begins with bytes 00 00"),
        (b"", "an idx type code"),
    ):
        path.write_bytes(gzip.compress(start, mtime=0) + 64 * zeros)
        before = tracemalloc.get_traced_memory()[1] if tracemalloc.is_tracing() else 0
        tracemalloc.start()
        with pytest.raises(DataError, match=told):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] - before < 1 << 20
        tracemalloc.stop()
    whole = idx(np.arange(300).reshape(3, 100) % 7)
    for cut in range(1, 9):  # the checksum at the end is looked at
        path.write_bytes(gzip.compress(whole, mtime=0)[:-cut])
        with pytest.raises(DataError, match="do not unpack"):
            read_idx(path)
    path.write_bytes(gzip.compress(whole, mtime=0))
    assert np.array_equal(read_idx(path), np.arange(300).reshape(3, 100) % 7)


def test_missing_idx_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"toy.gz: expected an idx file; found No such file"):
        read_idx(tmp_path / "toy.gz")


def test_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    def write(name: str, array: np.ndarray) -> Path:
        (tmp_path / name).write_bytes(idx(array))
        return tmp_path / name

    pixels = write("images", np.arange(2 * 3 * 4).reshape(2, 3, 4))
    labels = write("labels", np.array([3, 9]))
    images = read_images(pixels, labels)
    assert images.pixels[1, 2, 3] == 23
    assert images.labels.tolist() == [3, 9]
    with pytest.raises(DataError, match=r"labels: expected images \(n, rows, columns\)"):
        read_images(labels, labels)
    with pytest.raises(DataError, match=r"more: expected 2 labels.*shape \(3,\)"):
        read_images(pixels, write("more", np.array([1, 2, 3])))
    with pytest.raises(DataError, match="labels 0 to 9; found label 10"):
        read_images(pixels, write("ten", np.array([1, 10])), classes=10)
