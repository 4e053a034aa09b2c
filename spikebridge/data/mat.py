"""Songs and plain arrays out of .mat files, read in a process of its own.

scipy's reader trusts what a file says: damaged row numbers of a sparse matrix are written to, and a
small file can ask for any amount of memory.  Whatever becomes of the process that reads, the one
that asked gets arrays, or a reason.  Files that are known by their checksum are read in place.

As a script, `python mat.py FILE OUT [NAME ...]`, this is that other process; it knows nothing of
spikebridge.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

KEYS = ("traindata", "validdata", "testdata")
NOTES = 88
MOST_BYTES = 1 << 30  # of all songs, a byte for each note of each frame; of all plain arrays
MEMORY_BYTES, CPU_S, WALL_S = 6 << 30, 120, 600
WRONG = 3  # exit code: what is wrong was written

Songs = dict[str, list[np.ndarray]]
Arrays = dict[str, np.ndarray]


class MatError(ValueError):
    """What was expected of a file, and what was found."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(expected, actual)
        self.expected, self.actual = expected, actual


def songs_of(path: Path) -> Songs:
    """The songs (length, 88) uint8 of 0 and 1 of a file, by key.  Raises MatError and OSError."""
    contents = _contents(path, KEYS)
    songs: Songs = {}
    left = MOST_BYTES
    for key in KEYS:
        cells = contents.get(key)
        if not isinstance(cells, np.ndarray) or cells.dtype != object or cells.size == 0:
            result = "none" if cells is None else f"{type(cells).__name__} {np.shape(cells)}"
            raise MatError(f"a cell array {key} of songs", result)
        songs[key] = []
        for number, song in enumerate(cells.ravel(), start=1):
            songs[key].append(_checked(song, f"{key} song {number}", left))
            left -= songs[key][-1].size
    return songs


def arrays_of(path: Path, names: Sequence[str]) -> Arrays:
    """The arrays of numbers of those names in a file.  Raises MatError and OSError."""
    contents = _contents(path, names)
    arrays: Arrays = {}
    for name in names:
        array = contents.get(name)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
            actual = "none" if array is None else f"{type(array).__name__} {np.shape(array)}"
            raise MatError(f"an array {name} of numbers", actual)
        arrays[name] = np.ascontiguousarray(array)
    size = sum(array.nbytes for array in arrays.values())
    if size > MOST_BYTES:
        raise MatError(f"arrays of at most {MOST_BYTES:,} bytes together", f"{size:,} bytes")
    return arrays


def _contents(path: Path, names: Sequence[str]) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            contents = loadmat(file, variable_names=list(names))
    except FileNotFoundError:
        raise
    except (Exception, MemoryError) as error:  # scipy raises whatever its parser stumbles over
        raise _unreadable(f"{type(error).__name__}: {error}") from error
    return contents


def _checked(song: Any, which: str, most_bytes: int) -> np.ndarray:
    sparse = hasattr(song, "toarray")  # MATLAB keeps piano rolls, mostly zeros, as such matrices
    if not sparse and not isinstance(song, np.ndarray):
        raise MatError(f"{which} as a matrix", type(song).__name__)
    if song.ndim != 2 or song.shape[1] != NOTES:
        raise MatError(f"{which} of shape (length, {NOTES})", f"shape {song.shape}")
    if song.shape[0] < 2:
        expected = f"{which} of at least 2 frames, one to hear and one to predict"
        raise MatError(expected, f"{song.shape[0]} frames")
    if song.shape[0] * NOTES > most_bytes:
        expected = f"songs of at most {MOST_BYTES // NOTES:,} frames together"
        raise MatError(expected, f"{which} of {song.shape[0]:,} frames")
    if sparse:
        try:
            song.check_format(full_check=True)  # where there are numbers: toarray writes there
        except Exception as error:
            actual = f"places of its notes that are outside ({error})"
            raise MatError(f"{which} as a whole sparse matrix", actual) from error
        song = song.toarray()
    if song.dtype.kind not in "buif" or not np.isin(song, (0, 1)).all():
        raise MatError(f"{which} of zeros and ones", f"other values, of {song.dtype}")
    return song.astype(np.uint8)


def songs_apart(path: Path) -> Songs:
    """The same by another process, which may die of the file.  Raises MatError and OSError."""
    arrays = arrays_apart(path, ())
    return {key: np.split(arrays[key], arrays[f"{key}_ends"][:-1]) for key in KEYS}


def arrays_apart(path: Path, names: Sequence[str]) -> Arrays:
    """`arrays_of` by another process, which may die of the file; of no names, songs laid flat.

    Raises MatError and OSError.
    """
    from spikebridge.base.archives import read_arrays

    with path.open("rb"):  # a file that cannot be opened is no matter of its content
        pass
    with tempfile.TemporaryDirectory(prefix="spikebridge-") as folder:
        out = Path(folder) / "arrays"
        # -P: the folder of this file is no place for modules that scipy asks for.
        command = [sys.executable, "-P", __file__, str(path.absolute()), str(out), *names]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                timeout=WALL_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _unreadable(f"it takes longer than {WALL_S} s") from error
        if done.returncode == WRONG:
            raise MatError(*json.loads(out.read_text(encoding="utf-8")))
        if done.returncode < 0:
            raise _unreadable(f"reading it ended by {signal.Signals(-done.returncode).name}")
        if done.returncode:
            raise _unreadable(done.stderr.decode(errors="replace").strip()[-300:])
        return read_arrays(out)


def _unreadable(why: str) -> MatError:
    return MatError("a whole .mat file", f"a file that cannot be read ({why})")


def _flat(songs: Songs) -> Arrays:
    arrays: Arrays = {}
    for key, result in songs.items():
        arrays[key] = np.concatenate(result)
        arrays[f"{key}_ends"] = np.cumsum([len(song) for song in result])
    return arrays


def _main(path: Path, out: Path, names: Sequence[str]) -> int:
    try:
        import resource
    except ImportError:  # no limits on Windows
        pass
    else:
        for what, most in (("AS", MEMORY_BYTES), ("CPU", CPU_S), ("CORE", 0)):
            kind = getattr(resource, f"RLIMIT_{what}")
            _, hard = resource.getrlimit(kind)
            limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (limit, hard))
    try:
        arrays = arrays_of(path, names) if names else _flat(songs_of(path))
    except MatError as error:
        out.write_text(json.dumps([error.expected, error.actual]), encoding="utf-8")
        return WRONG
    with out.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
