"""A few short pieces of random notes, in the file format of the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

TOY_LENGTHS = {"traindata": (5, 2, 9, 4, 4, 7, 3), "validdata": (6, 3, 3), "testdata": (2, 8, 5)}


def toy_songs(lengths: dict[str, tuple[int, ...]] = TOY_LENGTHS) -> dict[str, list[np.ndarray]]:
    random = np.random.default_rng(0)
    return {
        key: [(random.random((length, 88)) < 0.1).astype(np.uint8) for length in lengths]
        for key, lengths in lengths.items()
    }


def write_mat(path: Path, songs: dict[str, list[np.ndarray]]) -> Path:
    cells = {key: np.empty((1, len(list_)), object) for key, list_ in songs.items()}
    for key, list_ in songs.items():
        for i, song in enumerate(list_):
            cells[key][0, i] = song
    savemat(path, cells)
    return path
