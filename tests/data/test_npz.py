"""Sequences of one's own from .npz files, and a task of one's own in Python."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.toy_data import KINDS, npz_arrays, write_npz
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebridge.cli import main as cli
from spikebridge.data.files import DataError
from spikebridge.data.npz import Npz
from spikebridge.data.npz_files import read_samples
from spikebridge.data.task import SPLITS, Batch
from spikebridge.runs import rundir
from spikebridge.settings.tasks import NpzConfig


def task_of(folder: Path, **more: Any) -> Npz:
    return Npz(NpzConfig(data_dir=str(folder), **more))


def one_batch(task: Npz, split: str = "test") -> Batch:
    (batch,) = task.batches(split, 10_000, torch.Generator().manual_seed(0))
    return batch


@pytest.mark.parametrize("kind", KINDS)
def test_y_decides_what_is_asked(tmp_path: Path, kind: str) -> None:
    task = task_of(write_npz(tmp_path, kind), readout="last")
    each, numbers = kind.endswith("step"), kind.startswith("numbers")
    assert task.readout == ("each" if each else "last")
    assert task.metric == ("rmse" if numbers else "accuracy")
    sizes = {"class": 3, "class at each step": 4, "numbers": 2, "numbers at each step": 2}
    assert (task.input_size, task.output_size) == (3, sizes[kind])
    arrays, batch = npz_arrays(kind, 9, seed=1), one_batch(task)
    assert batch.x.dtype == torch.float32
    np.testing.assert_array_equal(batch.x, arrays["x"].transpose(1, 0, 2))
    assert batch.target.dtype == (torch.float32 if numbers else torch.int64)
    target = batch.target.transpose(0, 1) if each else batch.target
    if numbers:
        target = target * task.sd + task.mean
    np.testing.assert_allclose(target, arrays["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_answer_is_perfect(tmp_path: Path, kind: str) -> None:
    task = task_of(write_npz(tmp_path, kind))
    for batch in task.batches("test", 4, torch.Generator()):
        target = batch.target
        numbers = target.is_floating_point()
        output = (
            target
            if numbers
            else 50 * torch.nn.functional.one_hot(target, task.output_size).float()
        )
        assert task.loss(output, batch) < 1e-6
        total, count = task.score(output, batch)
        assert (total, count) == (0 if numbers else target.numel(), target.numel())


def test_numbers_count_in_standard_deviations_of_the_training_data(tmp_path: Path) -> None:
    folder = write_npz(tmp_path, "numbers", valid=True)
    arrays = npz_arrays("numbers", 23)
    arrays["y"] = np.concatenate([arrays["y"], np.full((23, 1), 0.1)], axis=1)  # a constant too
    np.savez(folder / "train.npz", **arrays)
    for name in ("valid", "test"):
        part = npz_arrays("numbers", 9, seed=1)
        np.savez(folder / f"{name}.npz", x=part["x"], y=np.pad(part["y"], ((0, 0), (0, 1))))
    task = task_of(folder)
    target = one_batch(task, "train").target.double()
    torch.testing.assert_close(target.mean(0), torch.zeros(3).double(), atol=1e-5, rtol=0)
    deviation = target.std(0, correction=0)
    torch.testing.assert_close(deviation, torch.tensor([1.0, 1, 0]).double(), atol=1e-5, rtol=0)
    test = one_batch(task)
    total, count = task.score(torch.zeros_like(test.target), test)
    assert (total / count) ** 0.5 == pytest.approx(task.baselines["mean of the training data"])


@pytest.mark.parametrize("valid", [True, False])
def test_splits_are_fixed_disjoint_and_whole(tmp_path: Path, valid: bool) -> None:
    folder = write_npz(tmp_path, "class", valid)
    arrays = npz_arrays("class", 23)
    arrays["x"] = np.arange(23 * 18).reshape(23, 6, 3)  # each sample tells its number
    np.savez(folder / "train.npz", **arrays)
    task, again = task_of(folder), task_of(folder)
    assert [task.size(split) for split in SPLITS] == ([23, 7, 9] if valid else [21, 2, 9])
    for split in SPLITS:
        assert torch.equal(one_batch(task, split).x, one_batch(again, split).x)
    seen = Counter(one_batch(task, "train").x[0, :, 0].tolist())
    if not valid:
        seen += Counter(one_batch(task, "valid").x[0, :, 0].tolist())
    assert seen == Counter(range(0, 23 * 18, 18))


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["?", "u1", "i2", "i8", "f2", "f4", ">f8"]),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_inputs_of_every_kind_arrive_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, kind: str, n: int, steps: int, inputs: int
) -> None:
    x = np.random.default_rng(0).integers(0, 100, (n, steps, inputs)).astype(kind)
    path = tmp_path_factory.getbasetemp() / "x.npz"
    np.savez_compressed(path, x=x, y=np.zeros(n, np.uint8))
    found = read_samples(path)
    np.testing.assert_array_equal(found.x.float(), x.astype(np.float32))
    assert found.x.element_size() == (1 if kind in ("?", "u1") else 4)


def change(**arrays: Any) -> Callable[[Path], None]:
    """Write train.npz anew, with some arrays replaced or (None) left out."""

    def spoil(folder: Path) -> None:
        changed = npz_arrays("class", 23) | arrays
        kept = {name: value for name, value in changed.items() if value is not None}
        np.savez(folder / "train.npz", **kept)

    return spoil


def write_bytes(content: bytes | None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "train.npz"
        path.unlink() if content is None else path.write_bytes(content)

    return spoil


def write_members(content: bytes, *names: str) -> Callable[[Path], None]:
    """An archive with members of these names and this content."""

    def spoil(folder: Path) -> None:
        with zipfile.ZipFile(folder / "train.npz", "w") as archive:
            for name in names:
                archive.writestr(name, content)

    return spoil


X = npz_arrays("class", 23)["x"].astype(float)
BROKEN = b"\x93NUMPY\x01\x00\x0a\x00{'descr': ("  # a header that breaks off in its middle


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write_bytes(None), "an .npz file; found No such file"),
        (write_bytes(b""), "one that cannot be read"),
        (write_bytes(b"PK\x03\x04 and no more"), "one that cannot be read"),
        (
            write_members(b"no array", "x", "y"),
            "one that cannot be read .*; save it by",
        ),
        (write_members(BROKEN, "x.npy", "y.npy"), "one that cannot be read"),
        (change(y=None), r"the arrays x and y; found these arrays: x; save it by"),
        (change(x=None, y=None, z=np.zeros(3)), "found these arrays: z"),
        (change(x=np.array([{}] * 23, object)), "array 'x' holds Python objects.*lengths=lengths"),
        (change(y=np.array([{}] * 23, object)), "array 'y' holds Python objects.*lengths=lengths"),
        (change(labels=np.zeros(23)), "found these arrays: labels, x, y; rename labels"),
        (change(y=np.array(["up", "down"] * 11 + ["up"])), r"np.unique\(y, return_inverse=True"),
        (change(x=X.astype(str)), "an array x of numbers; found one of <U"),
        (change(x=X * 1j), "an array x of numbers; found one of complex128"),
        (change(x=X[:, :, 0]), r"x of shape \(n, T, I\), each at least 1; found shape \(23, 6\)"),
        (change(x=X[:, :0]), r"found shape \(23, 0, 3\)"),
        (change(x=X[:0], y=np.zeros(0, int)), r"found shape \(0, 6, 3\)"),
        (change(x=np.where(X > 0, np.nan, X)), "x of finite numbers"),
        (change(x=np.where(X > 0, -np.inf, X)), "x of finite numbers"),
        (change(x=X * 1e300), "in float32; found NaN, infinite or larger"),
        (change(y=np.full((23, 2), np.nan)), "y of finite numbers"),
        (change(y=np.zeros(22, int)), r"n = 23 and T = 6 as x has; found y of shape \(22,\)"),
        (change(y=np.zeros(23)), r"found y of shape \(23,\) and type float64; save y.astype\(int"),
        (change(y=np.zeros((23, 1), int)), r"found y of shape \(23, 1\) .*; save y\[:, 0\]"),
        (change(y=np.zeros((23, 5), int)), r"found y of shape \(23, 5\) and type int64"),
        (change(y=np.zeros((23, 5, 2))), r"found y of shape \(23, 5, 2\)"),
        (change(y=np.zeros((23, 0))), r"found y of shape \(23, 0\)"),
        (change(y=np.float64(3)), r"found y of shape \(\)"),
        (change(y=np.arange(23) - 2), "classes numbered from 0.*found numbers from -2 to 20"),
        (change(y=np.full(23, -1)), "a class in y; found -1 alone"),
        (change(y=np.arange(23) * 10**9), "at most 100,000 of them"),
        (
            change(y=np.zeros((23, 2))),
            r"y of 2 numbers, as in train.npz; found x \(n, T, 3\) and y of one class; save all",
        ),
        (change(x=X[:, :, :2]), r"x \(n, T, 2\) and y of one class, as in train.npz; found x"),
        (change(x=X[:1], y=np.zeros(1, int)), "at least 2 samples, one of them for validation"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    folder = write_npz(tmp_path, "class")
    spoil(folder)
    with pytest.raises(DataError, match=message) as caught:
        task_of(folder)
    assert caught.value.file.endswith(".npz")


def test_the_folder_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.npz, test.npz and perhaps.*pass --data-dir"):
        Npz(NpzConfig())
    with pytest.raises(DataError, match="found no such folder; mend --data-dir"):
        task_of(tmp_path / "nowhere")


def test_classes_that_only_the_test_holds_count(tmp_path: Path) -> None:
    folder = write_npz(tmp_path, "class")
    arrays = npz_arrays("class", 9, seed=1)
    np.savez(folder / "test.npz", x=arrays["x"], y=arrays["y"] + 4)
    task = task_of(folder)
    assert task.output_size == 4 + arrays["y"].max() + 1
    notes = task.notes[1:]
    assert notes[0].startswith("100 % of the answers to test on are of classes that no sample")
    assert notes[1:] == (
        "class 3 never occurs: its output is of no use; classes are numbered from 0",
    )


def test_classes_that_are_never_trained_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_npz(tmp_path / "mine", "class at each step", valid=True)
    (read,) = task_of(folder).notes
    assert read == (
        "read 23 to train, 7 to validate, 9 to test: 6 steps, 3 inputs; asked: class at each step, "
        "one of 4"
    )
    for name, y in (("valid", [9, 8, 1, 1, 1, 1]), ("test", [11, 10, 9, 8, 7, 6])):
        np.savez(folder / f"{name}.npz", x=np.ones((4, 6, 3)), y=np.array([y] * 4))
    told = "are of classes that no sample trains and no network can learn"
    notes = [
        f"33.3 % of the answers to validate on {told}: 8, 9",
        f"100 % of the answers to test on {told}: 6, 7, 8, 9, 10 and 1 more",
        "classes 4, 5 never occur: their outputs are of no use; classes are numbered from 0",
    ]
    words = f"train npz --data-dir {folder} --hidden 4 --epochs 1 --threads 1 --no-report"
    assert cli.main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert all(note in said for note in notes)
    shown = rundir.read_result(tmp_path / "run").notes
    assert shown[0].startswith("read 23 to train")
    assert list(shown[1:4]) == notes
    assert shown[4].startswith("for comparison, test accuracy: largest class")


def test_a_class_that_only_validation_got_of_the_training_file_is_told(tmp_path: Path) -> None:
    folder, arrays = write_npz(tmp_path, "class"), npz_arrays("class", 23)
    told = []
    for number in range(23):
        y = np.where(np.arange(23) == number, 7, arrays["y"])
        np.savez(folder / "train.npz", x=arrays["x"], y=y)
        told += [note for note in task_of(folder).notes if "no network" in note]
    note = "50 % of the answers to validate on are of classes that no sample trains and no network"
    assert told == [f"{note} can learn: 7"] * 2, "two of the samples validate"


def test_a_batch_counts_samples_or_steps_even_where_sizes_agree() -> None:
    x = torch.zeros(4, 4, 4)
    counts = {
        16: [torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 4, 4)],
        4: [torch.zeros(4, dtype=torch.int64), torch.zeros(4, 4)],
    }
    for count, targets in counts.items():
        for target in targets:
            assert Batch(x, target, None).counted == count


SAID = {
    "class": "Predicted class",
    "class at each step": "Class at each step",
    "numbers": "Truth and prediction",
    "numbers at each step": "Truth and prediction over time",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_trains_and_writes_a_page(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_npz(tmp_path / "mine", kind, train=400), tmp_path / "run"
    flags = [
        "--hidden",
        "32",
        "--epochs",
        "15",
        "--lr",
        "2e-2",
        "--batch-size",
        "16",
        "--threads",
        "1",
        "--readout",
        "mean",
    ]
    words = ["train", "npz", "--data-dir", str(folder), *flags, "--out", str(out), "--json"]
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["data"] == "mine"
    if kind.startswith("numbers"):
        assert result["test"] < 0.85, "1 without learning"
        with np.load(out / rundir.EXAMPLES, allow_pickle=False) as arrays:
            assert arrays["output"].shape == arrays["target"].shape
            assert arrays["output"].min() < 0, "numbers, not probabilities"
    else:
        assert result["test"] > 0.75
    page = (out / rundir.REPORT).read_text(encoding="utf-8")
    assert f"<h3>{SAID[kind]}</h3>" in page
    assert "all hidden layers, per sample" in page
    assert "sequences of your own, mine" in page
    assert ("standard deviations" in page) == kind.startswith("numbers")


def test_the_example_of_a_task_of_ones_own_runs_and_learns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[2] / "examples" / "own_task.py"
    spec = importlib.util.spec_from_file_location("own_task", path)
    assert spec is not None
    assert spec.loader is not None
    own_task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own_task)
    result = own_task.main(tmp_path / "run", epochs=8, samples=2000)
    assert result.test > 0.8, "by chance 0.5"
    assert (result.task, result.data) == ("own", "xor")
    from spikebridge.report.page import write

    page = write(tmp_path / "run").read_text(encoding="utf-8")
    assert "SNU on xor" in page
    assert "This is of class" in page
    assert "train own" not in page, "no command can name a task of one's own"
    for line in ("complexity {0}", "program {0} --chips 1 --times 20", "export {0}"):
        assert cli.main(line.format(tmp_path / "run").split()) == 2
        assert "task='xor': it is an object in a program of yours" in capsys.readouterr().err
