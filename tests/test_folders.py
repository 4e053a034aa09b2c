"""Folders as people have them: files of torchvision, QMNIST and EMNIST, twins that a Mac left."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_data import npz_arrays, write_recordings

from spikebridge import environment, tasks
from spikebridge.records import ConfigError
from spikebridge.task_configs import DigitsConfig, EventsConfig, MusicConfig, NpzConfig, TextConfig
from spikebridge.tasks.digits import Digits
from spikebridge.tasks.files import VARIABLE, DataError
from spikebridge.tasks.music import locate
from spikebridge.tasks.text import find_texts

TWIN = b"\0\5\x16\7" + b"\0" * 60
CODES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(CODES[code]).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (24, 4, 6))
LABELS = np.arange(24) % 5


def write(
    folder: Path,
    names: tuple[str, str] = ("train-{}", "t10k-{}"),
    labels: np.ndarray = LABELS,
    code: int = 0x08,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name.format("images-idx3-ubyte")).write_bytes(idx(IMAGES))
        (folder / name.format("labels-idx1-ubyte")).write_bytes(idx(labels, code))
    return folder


def twins(folder: Path) -> None:
    """What macOS leaves beside the files of a disk that is not its own."""
    for path in list(folder.rglob("*")):
        path.with_name("._" + path.name).write_bytes(TWIN)
    (folder / "._.DS_Store").write_bytes(TWIN)


def task_of(folder: Path, **more: bool) -> Digits:
    return Digits(DigitsConfig(data="idx", data_dir=str(folder), coding="current", steps=1, **more))


def shown(task: Digits) -> tuple[torch.Tensor, list[int]]:
    (batch,) = task.batches("test", 100, torch.Generator())
    return batch.x[0], batch.target.tolist()


@pytest.fixture
def plain(tmp_path: Path) -> tuple[torch.Tensor, list[int]]:
    return shown(task_of(write(tmp_path / "plain")))


def test_a_file_packed_and_unpacked_is_one(
    tmp_path: Path, plain: tuple[torch.Tensor, list[int]]
) -> None:
    folder = write(tmp_path / "FashionMNIST" / "raw")
    for path in list(folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    for given in (folder, folder.parent):
        pixels, labels = shown(task_of(given))
        assert torch.equal(pixels, plain[0])
        assert labels == plain[1]
    for path in folder.glob("*ubyte"):
        path.unlink()
    assert shown(task_of(folder))[1] == plain[1]


def test_twins_of_a_mac_are_no_data(
    tmp_path: Path, plain: tuple[torch.Tensor, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "idx")
    twins(folder)
    assert shown(task_of(folder))[1] == plain[1]
    recordings = write_recordings(tmp_path / "events")
    before = tasks.load(EventsConfig(data_dir=str(recordings))).size("train")
    for path in list(recordings.rglob("*.bin")):
        path.with_name("._" + path.name).write_bytes(TWIN)
    assert tasks.load(EventsConfig(data_dir=str(recordings))).size("train") == before
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("train", "valid", "test"):
        (texts / f"{name}.txt").write_text("a b c", encoding="utf-8")
    twins(texts)
    assert [path.name for path in find_texts(texts).values()] == [
        "train.txt", "valid.txt", "test.txt"
    ]  # fmt: skip
    assert TextConfig(data="files", data_dir=str(texts))
    songs = tmp_path / "songs"
    songs.mkdir()
    (songs / "mine.mat").write_bytes(b"")
    twins(songs)
    assert locate(MusicConfig(data="mat", data_dir=str(songs))).name == "mine.mat"


def test_twins_beside_and_within_npz_files_are_no_data(tmp_path: Path) -> None:
    import zipfile

    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", **npz_arrays("class", 9))
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "a") as archive:
            archive.writestr("__MACOSX/._x.npy", TWIN)
            archive.writestr("._y.npy", TWIN)
    twins(tmp_path)
    config = NpzConfig(data_dir=str(tmp_path))
    scaling = tasks.load(config).scaling()
    (tmp_path / "test.npz").rename(tmp_path / "new.npz")
    (tmp_path / "train.npz").unlink()
    assert tasks.other(config, tmp_path, scaling).size("test") == 9


@pytest.mark.parametrize("code", CODES)
def test_labels_of_every_type(
    tmp_path: Path, code: int, plain: tuple[torch.Tensor, list[int]]
) -> None:
    assert shown(task_of(write(tmp_path / "idx", code=code)))[1] == plain[1]


def test_labels_of_qmnist(tmp_path: Path, plain: tuple[torch.Tensor, list[int]]) -> None:
    rows = np.stack([LABELS, *[np.arange(24) * k for k in range(1, 8)]], axis=1)
    folder = tmp_path / "QMNIST"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"qmnist-{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
        packed = gzip.compress(idx(rows, 0x0C))
        (folder / f"qmnist-{name}-labels-idx2-int.gz").write_bytes(packed)
        (folder / f"qmnist-{name}-labels.tsv.gz").write_bytes(gzip.compress(b"label\twriter\n"))
    assert shown(task_of(folder))[1] == plain[1]


@pytest.mark.parametrize(
    ("labels", "code", "message"),
    [
        (LABELS - 1, 0x0C, "labels 0 to 9,999; found label -1"),
        (LABELS * 100_000, 0x0C, "found label 400000"),
        (LABELS + 0.5, 0x0E, "24 labels, whole numbers; found shape"),
        (np.stack([LABELS] * 3, axis=1), 0x0C, r"found shape \(24, 3\) of int32"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: np.ndarray, code: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(write(tmp_path / "idx", labels=labels, code=code))


def test_images_of_emnist_are_turned_on_demand(
    tmp_path: Path, plain: tuple[torch.Tensor, list[int]]
) -> None:
    names = ("emnist-letters-train-{}", "emnist-letters-test-{}")
    folder = write(tmp_path / "emnist", names, labels=LABELS + 1)
    as_stored, upright = task_of(folder), task_of(folder, transpose=True)
    assert torch.equal(shown(as_stored)[0], plain[0])
    turned = plain[0].view(-1, 4, 6).transpose(1, 2).flatten(1)
    assert torch.equal(shown(upright)[0], turned)
    assert upright.image == (1, 6, 4)
    told = "EMNIST stores images with rows and columns exchanged"
    assert [note.startswith(told) for note in as_stored.notes] == [True, False]
    zero = "class 0 never occurs: its output is of no use; classes are numbered from 0"
    assert upright.notes == (zero,)
    assert upright.baselines.keys() == {"the most frequent class of the training data"}
    with pytest.raises(ConfigError, match=r"transpose=True, data=mnist: .*leave --transpose out"):
        DigitsConfig(data="mnist", transpose=True)


def test_several_sets_in_a_folder_are_told_apart_by_the_user(tmp_path: Path) -> None:
    folder = write(tmp_path / "emnist", ("emnist-letters-train-{}", "emnist-letters-test-{}"))
    write(folder, ("emnist-digits-train-{}", "emnist-digits-test-{}"))
    with pytest.raises(DataError, match=r"put the four files of one set into a folder of their"):
        task_of(folder)


def test_info_says_what_parts_of_cifar_are_enough_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr("spikebridge.tasks.files.cache_folder", lambda: tmp_path / "cache")

    def told() -> str:
        found = environment.data_folders()
        assert found["cifar10"].startswith("not there")
        return found["cifar10-small"]

    assert told() == "not there; downloaded when it is needed"
    (tmp_path / "data_batch_1.bin").write_bytes(b"")
    assert told() == (
        f"data_batch_1.bin lies in {tmp_path}, and it needs test_batch_first1000.bin (the first "
        "3,073,000 bytes of test_batch.bin) beside it, or a download"
    )
    (tmp_path / "test_batch_first1000.bin").write_bytes(b"")
    assert told().endswith("data_batch_1.bin and test_batch_first1000.bin are enough for it")
    (tmp_path / "data_batch_1.bin").unlink()
    assert told().startswith("test_batch_first1000.bin lies in")
