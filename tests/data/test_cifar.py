"""CIFAR-10: its binary format, where it is found, and what becomes of it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toy_data import cifar_archive, cifar_records

from spikebridge import data as tasks
from spikebridge.base.records import ConfigError
from spikebridge.data import cifar, files
from spikebridge.data.files import DataError, Source
from spikebridge.data.images import Digits, mirrored
from spikebridge.data.task import SPLITS
from spikebridge.nn.network import load_network
from spikebridge.report import example_charts
from spikebridge.report.page import write
from spikebridge.runs import rundir, training
from spikebridge.runs.load import load_run
from spikebridge.settings.config import override, preset
from spikebridge.settings.tasks import COLOUR, DigitsConfig

RECORD = 3073
PARTS = {"cifar10/data_batch_1.bin": 20, "cifar10/test_batch_first1000.bin": 9}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def source(data: bytes) -> Source:
    return Source("http://127.0.0.1:9/none", len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that $SPIKEBRIDGE_DATA names, with a toy archive whose checksum is known."""
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    data = cifar_archive()
    (folder / Path(cifar.ARCHIVE).name).write_bytes(data)
    monkeypatch.setitem(files.SOURCES, cifar.ARCHIVE, source(data))
    for name, count in PARTS.items():
        monkeypatch.setitem(files.PARTS, name, source(cifar_records(count, seed=50 + count)))
    monkeypatch.setenv(files.VARIABLE, str(folder.parent))
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    return folder


def add_parts(folder: Path) -> None:
    for name, count in PARTS.items():
        (folder.parent / name).write_bytes(cifar_records(count, seed=50 + count))


# --- the format ---


def test_a_record_is_a_class_and_three_planes_row_by_row() -> None:
    planes = np.arange(3072, dtype=np.uint8)  # wraps round, but neighbours differ
    one = bytes([7]) + planes.tobytes()
    part = cifar.parse(one + bytes([0]) + bytes(3072), "x")
    assert part.labels.tolist() == [7, 0]
    assert part.pixels.shape == (2, 3, 32, 32)
    for colour, row, column in ((0, 0, 0), (0, 0, 31), (0, 1, 0), (1, 0, 0), (2, 31, 31)):
        at = colour * 1024 + row * 32 + column
        assert part.pixels[0, colour, row, column] == planes[at]
    assert not part.pixels[1].any()


@pytest.mark.parametrize("kept", [0, 1, RECORD - 1, RECORD + 1, 2 * RECORD - 1])
def test_a_file_of_another_length_is_refused(kept: int) -> None:
    with pytest.raises(DataError, match=f"batch.bin: expected .*3,073 bytes; found {kept:,} bytes"):
        cifar.parse(cifar_records(2)[:kept], "batch.bin")


@pytest.mark.parametrize("label", [10, 255])
def test_a_class_above_nine_is_refused(label: int) -> None:
    data = bytearray(cifar_records(5))
    data[3 * RECORD] = label
    with pytest.raises(DataError, match=f"labels 0 to 9; found label {label} at image 3"):
        cifar.parse(bytes(data), "batch.bin")


# --- the archive ---


def test_the_archive_is_read_in_its_order_and_nothing_is_written(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    train, test = cifar.read()
    assert sorted(folder.rglob("*")) == before
    wanted = [cifar.parse(cifar_records(20, seed=n), "") for n in range(1, 6)]
    np.testing.assert_array_equal(train.pixels, np.concatenate([part.pixels for part in wanted]))
    np.testing.assert_array_equal(train.labels, np.concatenate([part.labels for part in wanted]))
    np.testing.assert_array_equal(test.pixels, cifar.parse(cifar_records(30, seed=6), "").pixels)


@pytest.mark.parametrize("kept", [0, 10, 1000, -2000])
def test_an_archive_that_is_cut_off(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(cifar_archive()[:kept])
    with pytest.raises(DataError, match=r"cut.tar.gz: expected .*; get a fresh copy"):
        cifar.unpack(path, (*cifar.TRAIN, cifar.TEST))


def test_an_archive_without_a_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(cifar_archive({"data_batch_1.bin": b"1"}))
    with pytest.raises(DataError, match=r"expected test_batch.bin in cifar-10.*found 1 of 2 files"):
        cifar.unpack(path, (cifar.TRAIN[0], cifar.TEST))
    path.write_bytes(cifar_archive(folder="elsewhere"))
    with pytest.raises(DataError, match="found 0 of 1 files"):
        cifar.unpack(path, (cifar.TEST,))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_a_link_in_the_archive_is_not_followed(tmp_path: Path, kind: bytes) -> None:
    path, packed = tmp_path / "x.tar.gz", io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        link = tarfile.TarInfo(f"{cifar.FOLDER}/{cifar.TEST}")
        link.type, link.linkname = kind, "/etc/passwd"
        archive.addfile(link)
    path.write_bytes(packed.getvalue())
    with pytest.raises(DataError, match="found 0 of 1 files"):
        cifar.unpack(path, (cifar.TEST,))


# --- where it is found ---


def test_the_small_set_is_cut_from_the_archive_or_is_its_two_parts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "SMALL_TEST", 7)
    train, test = cifar.read_small()
    full_train, full_test = cifar.read()
    np.testing.assert_array_equal(train.pixels, full_train.pixels[:20])
    np.testing.assert_array_equal(test.pixels, full_test.pixels[:7])
    assert len(test.labels) == 7
    add_parts(folder)
    train, test = cifar.read_small()
    assert (len(train.labels), len(test.labels)) == (20, 9)
    np.testing.assert_array_equal(train.pixels, cifar.parse(cifar_records(20, 70), "").pixels)
    (folder / Path(cifar.ARCHIVE).name).unlink()  # which is not asked for
    cifar.read_small()


def test_a_part_that_is_not_the_known_one_is_an_error(folder: Path) -> None:
    add_parts(folder)
    (folder / "data_batch_1.bin").write_bytes(cifar_records(20))
    with pytest.raises(DataError, match=r"data_batch_1.bin: expected 61,460 bytes with sha256"):
        cifar.read_small()


@pytest.mark.parametrize("data", COLOUR)
def test_without_files_the_remedy_is_told(folder: Path, data: str) -> None:
    (folder / Path(cifar.ARCHIVE).name).unlink()
    with pytest.raises(DataError, match=r"put the file at cifar10/cifar-10-binary.tar.gz in a"):
        tasks.load(DigitsConfig(data=data))  # type: ignore[arg-type]


# --- the task ---


@pytest.mark.parametrize("data", COLOUR)
def test_splits_are_disjoint_whole_and_always_the_same(folder: Path, data: str) -> None:
    add_parts(folder)
    task, again = (Digits(DigitsConfig(data=data, coding="current", steps=1)) for _ in range(2))  # type: ignore[arg-type]
    train, test = cifar.read() if data == "cifar10" else cifar.read_small()
    assert task.size("valid") == len(train.labels) // 10
    assert task.size("test") == len(test.labels)
    assert (task.image, task.input_size, task.output_size) == ((3, 32, 32), 3072, 10)
    assert task.output_names == cifar.NAMES
    rows = {split: {image.numpy().tobytes() for image in task._pixels[split]} for split in SPLITS}
    assert len(rows["train"]) + len(rows["valid"]) == len(train.labels)
    assert rows["train"] | rows["valid"] == {image.tobytes() for image in train.pixels}
    assert all(torch.equal(task._pixels[split], again._pixels[split]) for split in SPLITS)


def test_codings_of_a_colour_image(folder: Path) -> None:
    config = DigitsConfig(data="cifar10", coding="current", steps=3, gain=0.5)
    _, test = cifar.read()
    pixels = torch.from_numpy(test.pixels[:6]) / 255
    current = next(iter(Digits(config).batches("test", 6, seeded())))
    torch.testing.assert_close(current.x, (0.5 * pixels).flatten(1).expand(3, -1, -1))
    assert current.target.tolist() == [0, 1, 2, 3, 4, 5]
    rate = dataclasses.replace(config, coding="rate", steps=300)
    spikes = next(iter(Digits(rate).batches("test", 6, seeded()))).x
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert (spikes.mean(0) - 0.5 * pixels.flatten(1)).abs().max() < 6 * 0.5 / math.sqrt(300)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coding": "rows"}, "coding=rows, data=cifar10: .*pass --coding current"),
        ({"elastic": 2.0}, "elastic=2.0, data=cifar10: .* leave --elastic out"),
    ],
)
def test_what_does_not_go_with_colour(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DigitsConfig(data="cifar10", **settings)


@pytest.mark.parametrize("shape", [(400, 5, 7), (400, 3, 4, 4)])
def test_half_of_the_images_are_mirrored(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    found = mirrored(images, seeded())
    other = torch.tensor([not torch.equal(a, b) for a, b in zip(found, images, strict=True)])
    torch.testing.assert_close(found[other], images[other].flip(-1), rtol=0, atol=0)
    assert 140 < int(other.sum()) < 260  # of 400, six standard deviations


def test_only_training_images_are_mirrored() -> None:
    plain = DigitsConfig(coding="current", steps=1)
    for split in SPLITS:
        one, two = (
            next(iter(Digits(config).batches(split, 64, seeded())))
            for config in (plain, dataclasses.replace(plain, flip=True))
        )
        assert torch.equal(one.target, two.target)
        assert torch.equal(one.x, two.x) == (split != "train")


# --- runs and their pages ---


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    small = {"channels": (4,), "hidden": (16,), "epochs": 8, "batch_size": 16, "threads": 1}
    config = override(preset("digits", "relu", "cifar10"), **small)
    result = training.run(config, tmp_path / "run")
    assert result.test > 0.8  # the colour and the place of the bright band tell the class
    return tmp_path / "run"


def test_a_network_of_convolutions_learns_colours_and_its_page_shows_them(run: Path) -> None:
    network = load_network(run / rundir.MODEL)
    assert network.layers[0].array.array.in_shape == (3, 32, 32)
    write(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    examples = load_run(run).examples
    assert examples is not None
    assert examples.output_names == cifar.NAMES
    shown = cifar.NAMES[int(examples.target[0])]
    assert f"This is of class {shown}. The network answers class" in page
    assert "CIFAR-10" in page
    image = example_charts.digit_image(examples, 0)
    assert image is not None
    wanted = examples.x[0, 0].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_allclose(image, wanted / wanted.max(), rtol=1e-6)
    assert example_charts.png(image) in page


def test_bars_have_the_names_of_the_classes() -> None:
    output = np.full(3, 1 / 3)
    chart = example_charts.class_bars(output, 1, "relu", "class", ("cat", "<b>", "dog"))
    assert chart is not None
    assert chart.traces[0]["x"] == ["cat", "&lt;b&gt;", "dog"]
    without = example_charts.class_bars(output, 1, "relu", "class", ("cat",))
    assert without.traces[0]["x"] == [0, 1, 2]


@pytest.mark.data
def test_the_small_set_as_published() -> None:
    root = Path(os.environ.get(files.VARIABLE, ""))
    missing = [name for name in cifar.SMALL_FILES if not (root / name).exists()]
    if missing or not os.environ.get(files.VARIABLE):
        pytest.skip(f"{(missing or cifar.SMALL_FILES)[0]} is not under $SPIKEBRIDGE_DATA")
    task = tasks.load(DigitsConfig(data="cifar10-small", coding="current", steps=1))
    assert [task.size(split) for split in SPLITS] == [9_000, 1_000, 1_000]
    counts = sum(task._labels[split].bincount() for split in ("train", "valid"))
    assert counts.tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    assert task._labels["test"][:6].tolist() == [3, 8, 8, 0, 6, 6]  # cat, ship, ship, airplane
    batch = next(iter(task.batches("test", 1000, seeded())))
    means = batch.x.view(1000, 3, -1).mean((0, 2))
    # Those of the whole set are 0.491, 0.482, 0.447.
    torch.testing.assert_close(means, torch.tensor([0.491, 0.482, 0.447]), rtol=0, atol=0.02)
