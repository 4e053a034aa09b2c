"""Small data sets in the formats that users bring: recordings of events, .npz files, tables."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat, wavfile

Event = tuple[int, int, bool, int]
KINDS = ("class", "class at each step", "numbers", "numbers at each step")


def encode(events: Sequence[Event]) -> bytes:
    """Events (x, y, brighter, microseconds) as N-MNIST has them on disk."""
    return b"".join(
        bytes([x, y, (on << 7) | (time >> 16), (time >> 8) & 255, time & 255])
        for x, y, on, time in events
    )


def write_recordings(folder: Path, train: int = 4, test: int = 1) -> Path:
    """Recordings whose class is where most of their events are, in N-MNIST's layout."""
    random = np.random.default_rng(0)
    number = 0
    for part, count in (("Train", train), ("Test", test)):
        for digit in range(10):
            (folder / part / str(digit)).mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                number += 1
                times = np.sort(random.integers(0, 300_000, 60)).tolist()
                events = [
                    (3 * digit + int(random.integers(5)), int(random.integers(34)), i % 2 == 0, t)
                    for i, t in enumerate(times)
                ]
                path = folder / part / str(digit) / f"{(number * 389) % 1009:05d}.bin"
                path.write_bytes(encode(events))
    return folder


def cifar_records(count: int, seed: int = 0) -> bytes:
    """Images of CIFAR-10's binary format whose class is the colour and place of a bright band."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.uint8) % 10
    pixels = random.integers(0, 90, (count, 3, 32, 32), dtype=np.uint8)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[label % 3, 8 * (label // 3) : 8 * (label // 3) + 8] += 150
    return np.concatenate([labels[:, None], pixels.reshape(count, -1)], axis=1).tobytes()


def cifar_archive(
    parts: dict[str, bytes] | None = None, folder: str = "cifar-10-batches-bin"
) -> bytes:
    """A .tar.gz like the official one; by default five files of 20 images and one of 30 to test."""
    if parts is None:
        parts = {f"data_batch_{n}.bin": cifar_records(20, seed=n) for n in (4, 2, 1, 3, 5)}
        parts |= {"test_batch.bin": cifar_records(30, seed=6)}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in {"readme.html": b"read me", **parts}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def npz_arrays(kind: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """x (n, 6, 3) of 0 and 1, and y of each kind that follows from it."""
    x = np.random.default_rng(seed).random((count, 6, 3)) < 0.4
    numbers = x.cumsum(axis=1).astype(np.float64)
    y = {
        "class": np.minimum(x[:, :, 0].sum(axis=1), 4) // 2,
        "class at each step": x[:, :, 0] + 2 * x[:, :, 1].astype(np.int16),
        "numbers": 100.0 + 7 * numbers[:, -1, :2],
        "numbers at each step": numbers[:, :, :2].astype(np.float32),
    }[kind]
    return {"x": x, "y": y}


def write_npz(folder: Path, kind: str, valid: bool = False, train: int = 23) -> Path:
    """train.npz, test.npz and perhaps valid.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "train.npz", **npz_arrays(kind, train))
    np.savez(folder / "test.npz", **npz_arrays(kind, 9, seed=1))
    if valid:
        np.savez(folder / "valid.npz", **npz_arrays(kind, 7, seed=2))
    return folder


def write_table(path: Path, columns: dict[str, Sequence[object]], delimiter: str = ",") -> Path:
    """A CSV file with a header line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def heartbeats(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """x (n, 12, 4) of spikes and y (n, 12, 6), the first steps without a class."""
    random = np.random.default_rng(seed)
    x = random.choice([-1, 0, 1], (count, 12, 4), p=[0.1, 0.8, 0.1]).astype(np.int16)
    y = np.eye(6, dtype=np.uint8)[np.abs(x).cumsum(1).sum(2) % 6]
    y[:, : 1 + seed] = 0
    return {"x": x, "y": y, "max_i": np.full((count, 1), 12, np.uint16)}


def write_heartbeats(folder: Path) -> Path:
    """QTDB_train.mat and QTDB_test.mat as those of the QT Database are laid out."""
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "QTDB_train.mat", heartbeats(20))
    savemat(folder / "QTDB_test.mat", heartbeats(5, seed=1))
    return folder


def tone(hz: float, seconds: float = 0.2, rate: int = 8000, seed: int = 0) -> np.ndarray:
    """A tone in noise, int16."""
    noise = np.random.default_rng(seed).normal(0, 0.05, round(seconds * rate))
    wave = np.sin(2 * np.pi * hz * np.arange(len(noise)) / rate)
    return np.asarray(20_000 * (0.5 * wave + noise), np.int16)


def write_words(folder: Path, hz: Sequence[float] = (300, 900, 2500)) -> Path:
    """A folder per word, whose word is the pitch of a tone, with the three lists."""
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        rows = []
        for word, pitch in zip(("low", "middle", "high"), hz, strict=True):
            (folder / word).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                name = f"{word}/{split}_{number}.wav"
                wavfile.write(folder / name, 8000, tone(pitch, seed=len(rows)))
                rows.append((name, word))
        files, words = zip(*rows, strict=True)
        write_table(folder / f"{split}.csv", {"file": files, "class": words})
    return folder
