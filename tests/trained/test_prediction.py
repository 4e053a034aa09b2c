"""`predict`: a trained network on other data, its metric and its predictions in a file."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_runs import tiny
from helpers.toy_data import KINDS, npz_arrays, write_npz

import spikebridge as package
from spikebridge.base.records import UsageError
from spikebridge.cli import main as cli
from spikebridge.data.files import DataError
from spikebridge.nn.network import load_network
from spikebridge.runs import rundir, training
from spikebridge.trained import prediction

FAST = "--hidden 6 --epochs 2 --threads 1 --no-report"
HELD = 11


def spikebridge(line: str) -> int:
    return cli.main(shlex.split(line))


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained(kind: str, **more: Any) -> None:
    write_npz(Path("mine"), kind)
    assert spikebridge(f"train npz --data-dir mine --out run {FAST}") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_other_samples(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(kind)
    arrays = npz_arrays(kind, HELD, seed=9)
    np.savez("new.npz", **arrays)
    Path("mine/train.npz").unlink()  # what training left is enough
    capsys.readouterr()
    assert spikebridge("predict run --data-dir new.npz --json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == "run/predictions.npz"

    network = load_network("run/model.safetensors").eval()
    x = torch.from_numpy(arrays["x"].astype(np.float32)).transpose(0, 1)
    with torch.no_grad():
        output, _ = network(x)
    output = output.double()
    if kind.endswith("step"):
        output = output.transpose(0, 1)
    with np.load("run/predictions.npz") as found:
        predicted, target = found["prediction"], found["target"]
        classes = found.get("class")
    np.testing.assert_allclose(target, arrays["y"], rtol=1e-5, atol=1e-5)
    if kind.startswith("class"):
        np.testing.assert_allclose(predicted, output.softmax(-1).numpy(), rtol=1e-5, atol=1e-6)
        assert np.array_equal(classes, output.argmax(-1).numpy())
        assert told["metric"] == "accuracy"
        assert told["value"] == pytest.approx(float((classes == arrays["y"]).mean()))
    else:
        scaling = json.loads(Path("run/scaling.json").read_text())
        mean, sd = np.array(scaling["mean"]), np.array(scaling["sd"])
        np.testing.assert_allclose(predicted, output.numpy() * sd + mean, rtol=1e-5, atol=1e-5)
        error = (predicted - arrays["y"]) / sd
        assert told["metric"] == "rmse"
        assert told["value"] == pytest.approx(float(np.sqrt((error**2).mean())), rel=1e-4)


@pytest.mark.parametrize("kind", ["class", "class at each step", "numbers"])
def test_without_answers_and_as_a_table(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    trained(kind)
    arrays = npz_arrays(kind, HELD, seed=9)
    lengths = np.arange(HELD) % 6 + 1
    np.savez("new.npz", x=arrays["x"], lengths=lengths)
    capsys.readouterr()
    assert spikebridge("predict run --data-dir new.npz --out out/p.csv") == 0
    assert "11 samples, without answers to judge by" in capsys.readouterr().out
    with Path("out/p.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    found = package.predict("run", "new.npz")
    assert found.target is None
    assert found.value is None
    outputs = [f"{'y' if kind == 'numbers' else 'p'}{k}" for k in range(found.prediction.shape[-1])]
    each = kind.endswith("step")
    head = ["sample", *["step"] * each, *["class"] * (kind != "numbers"), *outputs]
    assert lines[0] == head
    assert len(lines) - 1 == (lengths.sum() if each else HELD)
    for line in lines[1:]:
        place = tuple(map(int, line[: 1 + each]))
        values = np.array(line[-len(outputs) :], float)
        np.testing.assert_allclose(values, found.prediction[place], rtol=1e-6)
        if kind != "numbers":
            assert int(line[1 + each]) == values.argmax()
    if each:
        beyond = np.arange(6) >= lengths[:, None]
        assert np.isnan(found.prediction[beyond]).all()
        assert (found.chosen[beyond] == -1).all()
    np.savez("short.npz", x=arrays["x"][:1, :3])  # alone or padded in a batch: the same
    one = package.predict("run", "short.npz").prediction
    np.savez("both.npz", x=arrays["x"][:2], lengths=[3, 6])
    two = package.predict("run", "both.npz").prediction
    np.testing.assert_allclose(two[:1, :3] if each else two[:1], one, rtol=1e-5, atol=1e-6)


def test_of_a_table_each_row_is_predicted_some_rows_ahead(
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = np.stack([np.arange(200.0) % 12, np.sin(np.arange(200))], axis=1)
    body = "".join(f"{a:.4f},{b:.4f}\n" for a, b in values)
    Path("old.csv").write_text("level,wave\n" + body)
    line = f"train forecast --file old.csv --targets level --horizon 2 --steps 10 --out run {FAST}"
    assert spikebridge(line) == 0
    rows = "".join(f"{b:.4f},x,{a:.4f}\n" for a, b in values[:30])
    Path("new.csv").write_text("wave,name,level\n" + rows)  # another order, and one column more
    capsys.readouterr()
    assert spikebridge("predict run --file new.csv") == 0
    said = capsys.readouterr().out
    assert "30 rows, rmse: " in said
    with Path("run/predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["row"]) for line in lines] == list(range(2, 32))
    known = [line["target level"] for line in lines]
    np.testing.assert_allclose(np.array(known[:28], float), values[2:30, 0], atol=1e-4)
    assert known[28:] == ["", ""]  # beyond the end of the table
    predicted = np.array([line["level"] for line in lines], float)[:28]
    sd = values[: 200 - 30 - 30, 0].std()
    rmse = np.sqrt((((predicted - values[2:30, 0]) / sd) ** 2).mean())
    assert float(said.split("rmse: ")[1].split()[0]) == pytest.approx(rmse, abs=2e-4)
    own = package.predict("run")
    assert own.first == 170
    assert own.value == pytest.approx(rundir.read_result(Path("run")).test)


@pytest.mark.parametrize("split", ["test", "valid"])
def test_the_own_data_of_a_run_of_images(split: str) -> None:
    result = training.run(tiny(), Path("run"))
    found = package.predict("run", split=split)
    assert found.value == pytest.approx(getattr(result, split))
    assert found.prediction.shape[1] == 10
    assert found.target is not None
    assert float((found.chosen == found.target).mean()) == pytest.approx(found.value)
    found.write(Path("p.npz"))
    with np.load("p.npz") as arrays:
        assert np.array_equal(arrays["class"], found.chosen)


def test_a_run_that_was_cut_off_predicts_too() -> None:
    trained("numbers")
    before = package.predict("run").prediction
    Path("run/result.json").unlink()
    with pytest.warns(UserWarning, match="the run is not complete"):
        assert np.array_equal(package.predict("run").prediction, before)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nowhere", "nowhere: there is no complete run in it"),
        ("run --out p.txt", "p.txt: predictions are written as .npz or .csv"),
        ("run --data-dir nowhere.npz", "nowhere.npz"),
        ("run --data-dir narrow.npz --out ./narrow.npz", "it is among the data that are read"),
        ("run --out mine/test.npz", "it is among the data that are read"),
        ("run --data-dir a --file b", "--data-dir and --file name the same thing"),
        ("run --data-dir narrow.npz", "x (n, T, 3) and y of one class, as in training; found x"),
        ("run --data-dir narrow.npz --split valid", "other data are all tested"),
    ],
)
def test_what_cannot_be_predicted(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trained("class")
    np.savez("narrow.npz", x=np.zeros((4, 5, 2)))
    capsys.readouterr()
    assert spikebridge(f"predict {line}") == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert not list(Path("run").glob("predictions*"))


def test_images_of_another_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    training.run(tiny(), Path("run"))
    task = prediction._task

    def wider(*arguments: Any) -> Any:
        found = task(*arguments)
        found.input_size += 1
        return found

    monkeypatch.setattr(prediction, "_task", wider)
    with pytest.raises(DataError, match="64 inputs and 10 outputs, as in training; found 65 and"):
        package.predict("run")
    with pytest.raises(UsageError, match="split='train': choose test or valid"):
        package.predict("run", split="train")
