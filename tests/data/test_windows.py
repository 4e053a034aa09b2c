"""Windows of a table: which rows they hold, simple answers, predictions, the customary numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.real_data import real
from helpers.toy_data import write_table

from spikebridge import data as tasks
from spikebridge import load_network
from spikebridge.base.records import ConfigError
from spikebridge.cli import main as cli
from spikebridge.data.files import DataError
from spikebridge.data.task import SPLITS
from spikebridge.data.windows import Windows
from spikebridge.runs import rundir
from spikebridge.settings.tasks import ForecastConfig

ROWS: dict[str, Any] = {"look_back": 24, "horizon": 5, "rows": (60, 40, 40)}
FLAGS = "--look-back 24 --horizon 5 --rows 60 40 40 --hidden 4 --epochs 1 --threads 1"


def table(folder: Path, rows: int = 150, places: tuple[str, ...] = ("a", "b")) -> Path:
    t = np.arange(rows)
    columns = {"a": 100.0 + t, "b": np.sin(t / 3) + t / 50}
    return write_table(folder / "rows.csv", {name: columns[name].tolist() for name in places})


def load(path: Path, **settings: Any) -> Windows:
    task = tasks.load(ForecastConfig(file=str(path), **{**ROWS, **settings}))
    assert isinstance(task, Windows)
    return task


def whole(task: Windows, split: str) -> tasks.Batch:
    (batch,) = task.batches(split, 999, torch.Generator().manual_seed(0))
    return batch


def test_each_window_lies_in_its_part(tmp_path: Path) -> None:
    task = load(table(tmp_path), anchor="none", targets=("a",))
    assert [task.size(split) for split in SPLITS] == [60 - 24 - 5 + 1, 40 - 5 + 1, 40 - 5 + 1]
    starts = {}
    for split in SPLITS:
        batch = whole(task, split)
        seen = batch.x[..., 0].double() * task.sd[0] + task.mean[0] - 100
        ahead = task.in_units(batch.target) - 100
        starts[split] = sorted(ahead[:, 0].round().int().tolist())
        torch.testing.assert_close(seen[-1] + 1, ahead[:, 0], atol=1e-3, rtol=0)
        torch.testing.assert_close(seen[0] + 24, ahead[:, 0], atol=1e-3, rtol=0)
        torch.testing.assert_close(ahead[:, 0] + 4, ahead[:, 4], atol=1e-3, rtol=0)
    assert starts["train"] == list(range(24, 56))
    assert starts["valid"] == list(range(60, 96))
    assert starts["test"] == list(range(100, 136))
    assert task.mean[0] == pytest.approx(100 + 59 / 2)


def test_an_anchor_shifts_and_changes_no_error(tmp_path: Path) -> None:
    path = table(tmp_path)
    plain, anchored = load(path, anchor="none"), load(path)
    assert plain.baselines == anchored.baselines
    x, y = whole(plain, "test"), whole(anchored, "test")
    torch.testing.assert_close(y.x, x.x - x.x[-1])
    last = x.x[-1].repeat(1, 5)
    torch.testing.assert_close(y.target, x.target - last)
    output = torch.zeros_like(y.target)
    total, count = plain.score(output + last, x)
    assert anchored.score(output, y) == (pytest.approx(total, rel=1e-4), count)
    absolute = anchored.views()["of the same answers"]
    expected = float(y.target.double().abs().sum())
    assert absolute.score(output, y) == (pytest.approx(expected), count)
    assert anchored.metric == "mse"


def test_simple_answers_are_what_they_say(tmp_path: Path) -> None:
    task = load(table(tmp_path), anchor="none")
    batch = whole(task, "test")
    again = batch.x[:5].transpose(0, 1).flatten(1)  # 24 rows before the first five
    total, count = task.score(again, batch)
    assert task.baselines["last 24 rows again"] == pytest.approx(total / count, rel=1e-5)
    assert task.baselines["linear map of 24 rows"] < 1e-3, "a line and a wave are linear"
    assert "last 24 rows again" not in load(tmp_path / "rows.csv", look_back=12).baselines


def test_a_run_and_its_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out, file = table(tmp_path), tmp_path / "run", tmp_path / "p.csv"
    assert cli.main(f"train forecast --file {path} {FLAGS} --out {out}".split()) == 0
    assert "test MAE, of the same answers: " in capsys.readouterr().out
    result = rundir.read_result(out)
    assert result.metric == "mse"
    assert set(result.baselines) == {"linear map of 24 rows", "last 24 rows again"}
    assert "MSE" in (out / rundir.REPORT).read_text(encoding="utf-8")
    task, network = load(path), load_network(out / rundir.MODEL)
    for place, first, count in (("", 100, 36), (f"--file {path}", 24, 127)):
        assert cli.main(f"predict {out} {place} --out {file}".split()) == 0
        head, *lines = file.read_text().splitlines()
        assert head.startswith("row,a +1,b +1,a +2,")
        assert [int(line.split(",")[0]) for line in lines] == list(range(first, first + count))
        given = np.array([[float(v or "nan") for v in line.split(",")[1:]] for line in lines])
        # Up to the end of the table there are answers, and beyond it predictions.
        assert np.isfinite(given[:, :10]).all()
        assert np.isnan(given[:, 10:]).sum() == (2 * (5 + 4 + 3 + 2 + 1) if place else 0)
        given = given[np.arange(100, 136) - first]
        np.testing.assert_allclose(given[:, 10], np.arange(200, 236), atol=1e-3)
        with torch.no_grad():
            answer = network(whole(task, "test").x)[0].double().numpy()[:, 0]
        expected = answer * task.sd[0] + np.arange(199, 235)
        np.testing.assert_allclose(given[:, 0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": (60, 40, 60)}, "160 rows, as --rows says; found 150"),
        ({"rows": (28, 40, 40)}, "parts with 24 rows to see and 5 to predict"),
        ({"rows": (60, 4, 40)}, "parts with 24 rows to see"),
        ({"targets": ("c",)}, "each named once as a target: c"),
    ],
)
def test_tables_that_are_too_short(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(table(tmp_path), **settings)


def test_another_table_must_fit(tmp_path: Path) -> None:
    config = ForecastConfig(file=str(table(tmp_path)), **ROWS)
    scaling = Windows(config).scaling()
    (tmp_path / "other").mkdir()
    for rows, places, message in (
        (23, ("a", "b"), "at least 24 rows; found 23"),
        (99, ("a",), "without b"),
    ):
        path = table(tmp_path / "other", rows, places)
        with pytest.raises(DataError, match=message):
            tasks.other(config, path, scaling)


def test_what_follows_the_last_row_is_predicted_and_not_judged(tmp_path: Path) -> None:
    config = ForecastConfig(file=str(table(tmp_path)), **ROWS)
    scaling = Windows(config).scaling()
    (tmp_path / "other").mkdir()
    for rows in (24, 26):
        task = tasks.other(config, table(tmp_path / "other", rows), scaling)
        assert isinstance(task, Windows)
        assert (task.size("test"), task.answered) == (rows - 23, rows > 24)
        batch = whole(task, "test")
        assert batch.x.isfinite().all()
        known = batch.target.isfinite()
        assert known.sum(1).tolist() == [2 * n for n in range(rows - 24, -1, -1)]
        output = torch.ones_like(batch.target)
        errors = (1 - batch.target[known]).double()
        assert task.score(output, batch) == (
            pytest.approx(float(errors.square().sum())),
            len(errors),
        )
        absolute = task.views()["of the same answers"]
        assert absolute.score(output, batch)[0] == pytest.approx(float(errors.abs().sum()))


def test_rows_are_three() -> None:
    with pytest.raises(ConfigError, match=r"rows=\[1, 2\]: three numbers above 0"):
        ForecastConfig(rows=(1, 2))


@pytest.mark.data
def test_the_customary_numbers_on_real_data() -> None:
    path = real("ett/ETTh1.csv") / "ett/ETTh1.csv"
    task = load(path, look_back=336, horizon=96, rows=(8640, 2880, 2880))
    assert [task.size(split) for split in SPLITS] == [8209, 2785, 2785]
    assert task.baselines == {
        "linear map of 336 rows": pytest.approx(0.3702, abs=1e-4),
        "last 24 rows again": pytest.approx(0.5122, abs=1e-4),
    }
