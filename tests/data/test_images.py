"""Images of the user's own, distortions, and convolutions from the command line."""

from __future__ import annotations

import gzip
import shlex
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from spikebridge.cli import main as cli
from spikebridge.data.files import DataError
from spikebridge.data.images import Digits, distorted, read_folder
from spikebridge.runs import rundir
from spikebridge.settings.config import data_name
from spikebridge.settings.tasks import DigitsConfig


def idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_set(folder: Path, classes: int = 3, train: int = 240, test: int = 60) -> Path:
    """Bright squares in one of several corners: a set that can be learned at once."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.RandomState(0)
    for name, count in (("train", train), ("t10k", test)):
        labels = draw.randint(0, classes, count)
        images = draw.randint(0, 60, (count, 12, 12))
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[6 * row + 1 : 6 * row + 5, 6 * column + 1 : 6 * column + 5] += 190
        idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        idx(folder / f"{name}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "squares")


def test_any_idx_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    below = Digits(DigitsConfig(data="idx", data_dir=f"~/{folder.name}"))
    assert below.size("train") == 220
    task = Digits(DigitsConfig(data="idx", data_dir=str(folder), steps=3))
    assert (task.input_size, task.output_size, task.image) == (144, 3, (1, 12, 12))
    assert [task.size(split) for split in ("train", "valid", "test")] == [220, 20, 60]
    batch = next(task.batches("test", 8, torch.Generator().manual_seed(0)))
    assert batch.x.shape == (3, 8, 144)
    again = read_folder(folder)
    assert np.array_equal(again["train"].labels, read_folder(folder)["train"].labels)


def test_the_same_command_takes_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = (
        f"train digits --data-dir {folder} --hidden 16 --channels 4 --kernel-size 3 --norm "
        f"--steps 4 --epochs 8 --lr 2e-2 --batch-size 32 --elastic 0.5 --threads 1 --out {out} "
        "--dropout 0"
    )
    assert cli.main(shlex.split(line)) == 0
    config = rundir.read_config(out)
    assert data_name(config) == "squares"
    assert config.task.data == "idx"
    assert rundir.read_result(out).test > 0.8
    assert set(rundir.read_result(out).firing_rates) == {"layer1", "layer2"}
    # The folder stands in the run's settings, and need not be said again with --data.
    assert cli.main(shlex.split(f"train digits --data idx --out {out} --resume --no-report")) == 0


def test_sets_that_are_not_as_they_must_be(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "none")
    (folder / "test-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match="one idx file with t10k or test and images in its name"):
        read_folder(folder)
    (folder / "test-images-idx3-ubyte").unlink()
    idx(folder / "t10k-images-idx3-ubyte.gz", np.zeros((60, 5, 5)))
    with pytest.raises(DataError, match="images of one size"):
        read_folder(folder)


def test_distortions_bend_by_what_they_say() -> None:
    """A ramp of grey tells how far each pixel was moved."""
    size = 28
    ramp = torch.linspace(0, 1, size).expand(size, size).repeat(400, 1, 1)
    bent = distorted(ramp, 0.0001, torch.Generator().manual_seed(0))
    plain = (bent - ramp)[:, 10:18, 10:18] * (size - 1)
    bent = distorted(ramp, 2.0, torch.Generator().manual_seed(0))
    # The same turns and scales as before, so that what differs is the elastic part, here its x.
    moved = (bent - ramp)[:, 10:18, 10:18] * (size - 1) - plain
    assert float(moved.square().mean().sqrt()) == pytest.approx(2.0 / 2**0.5, rel=0.25)
    assert float(moved.mean().abs()) < 0.2


def test_distortions_keep_what_an_image_is() -> None:
    images = torch.zeros(16, 28, 28)
    images[:, 8:20, 12:16] = 1.0
    bent = distorted(images, 1.0, torch.Generator().manual_seed(1))
    assert bent.shape == images.shape
    assert float(bent.min()) >= 0
    assert float(bent.max()) <= 1
    ink = bent.sum((1, 2)) / images.sum((1, 2))
    assert bool(((ink > 0.6) & (ink < 1.5)).all())
    assert not torch.equal(bent[0], bent[1])
    again = distorted(images, 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(bent, again)


def test_only_training_images_are_distorted(folder: Path) -> None:
    plain = Digits(DigitsConfig(data="idx", data_dir=str(folder), coding="current", steps=1))
    bent = Digits(
        DigitsConfig(data="idx", data_dir=str(folder), coding="current", steps=1, elastic=2.0)
    )
    for split, same in (("train", False), ("valid", True), ("test", True)):
        pair = [
            next(task.batches(split, 50, torch.Generator().manual_seed(3)))
            for task in (plain, bent)
        ]
        assert torch.equal(pair[0].target, pair[1].target)
        assert torch.equal(pair[0].x, pair[1].x) is same
