"""Forecasts: reading tables, parts in time, streams that carry their state, baselines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.toy_data import write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebridge import data as tasks
from spikebridge.cli import main as cli
from spikebridge.data.files import DataError
from spikebridge.data.forecast import Forecast, fill_forward
from spikebridge.data.tables import read_table
from spikebridge.data.task import SPLITS, stream_chunks
from spikebridge.nn.network import build
from spikebridge.runs import evaluation, rundir
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.tasks import ForecastConfig


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task_of(path: Path, **more: Any) -> Forecast:
    return Forecast(ForecastConfig(file=str(path), **more))


def ramp(path: Path, rows: int = 400) -> Path:
    """A table whose first column is the row's number and whose second column jumps about."""
    noise = np.random.default_rng(0).normal(size=rows).round(4)
    return write_table(path / "ramp.csv", {"row": range(rows), "noise": noise.tolist()})


def row_numbers(task: Forecast, values: torch.Tensor) -> torch.Tensor:
    """Which rows these values (..., 2) of the ramp come from."""
    return (values[..., 0].double() * task.sd[0] + task.mean[0]).round().long()


# Tables


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_without_numbers_or_a_name_are_left_out(tmp_path: Path, delimiter: str) -> None:
    columns = {
        "": [0, 1, 2, 3],
        "time, UTC": ["2024-01-01", "2024-01-02", "2024-01-03", ""],
        "a": ["1", "-2.5e3", " 3 ", "4"],
        "empty": ["", "NaN", "n/a", ""],
        "b; c": ["", "0.5", "nan", "NULL"],
    }
    table = read_table(write_table(tmp_path / "t.csv", columns, delimiter))
    assert table.names == ("a", "b; c")
    np.testing.assert_array_equal(table.values[:, 0], [1, -2500, 3, 4])
    np.testing.assert_array_equal(table.values[:, 1], [np.nan, 0.5, np.nan, np.nan])
    unnamed = "the one without a name at place 1"
    assert table.left_out == (unnamed, "time, UTC", "empty")


def test_files_of_spreadsheets(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffTemperatur;n\r\n3,5;1\r\n\r\n-1;2\r\n".encode())
    table = read_table(path)
    assert table.names == ("Temperatur", "n")
    np.testing.assert_array_equal(table.values, [[3.5, 1], [-1, 2]])


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.lists(st.one_of(st.none(), st.integers(-9, 9)), min_size=2, max_size=2), min_size=1)
)
def test_missing_values_take_the_last_known_one(rows: list[list[int | None]]) -> None:
    rows.append([1, 1])  # a column has at least one value
    values = np.array([[np.nan if v is None else v for v in row] for row in rows])
    filled, count = fill_forward(values)
    assert count == np.isnan(values).sum()
    for column in range(2):
        last = next(row[column] for row in rows if row[column] is not None)
        for row, value in zip(rows, filled, strict=True):
            last = last if row[column] is None else row[column]
            assert value[column] == last


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("Zeit;Temp, C\n1;2,5\n2;2,6\n", ("Zeit", "Temp, C"), [[1, 2.5], [2, 2.6]]),
        ("a;b,c\n1,2\n3,4\n", ("a;b", "c"), [[1, 2], [3, 4]]),
        ("a,b;c,d;e\n1;2;3\n1;2;3\n", ("a,b", "c,d", "e"), [[1, 2, 3]] * 2),
        ("\n\na,b\n1,2\n\n3,4\n", ("a", "b"), [[1, 2], [3, 4]]),
        ("day,2019,2020\n1,2,3\n", ("day", "2019", "2020"), [[1, 2, 3]]),
        ("day,v\n2020_01_01,2\n2020_01_02,3\n", ("v",), [[2], [3]]),
    ],
)
def test_what_parts_the_fields_is_what_fits_the_rows(
    tmp_path: Path, text: str, names: tuple[str, ...], values: list[list[float]]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    table = read_table(path)
    assert table.names == names
    np.testing.assert_array_equal(table.values, values)


def test_an_empty_line_of_a_single_column_is_a_missing_value(tmp_path: Path) -> None:
    """Were it left out, all later rows would move up in time."""
    path = tmp_path / "t.csv"
    path.write_text("v\n1\n2\n\n\n5\n\n", encoding="utf-8")
    np.testing.assert_array_equal(read_table(path).values[:, 0], [1, 2, np.nan, np.nan, 5])


def test_numbers_whose_spread_overflows_are_refused(tmp_path: Path) -> None:
    rows = [1e200 if row % 2 else -1e200 for row in range(60)]
    path = write_table(tmp_path / "t.csv", {"fine": range(60), "huge": rows})
    with pytest.raises(DataError, match=r"column huge .* found a mean of .*another unit"):
        task_of(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a header line with a name for each column; found the line ''"),
        ("1,2\n3,4\n", "a header line .*; found the line '1, 2'; name each column"),
        ("a,a\n3,4\n", "found the name a twice"),
        ("a,b\n1,2\n3\n4,5\n", "2 fields in each row; found 1 in line 3"),
        ("a,b\n1,2\n3,4,5\n", "2 fields in each row; found 3 in line 3"),
        ("a,b\nx,y\nz,w\n", "a column of numbers; found a, b, none of them of numbers, in 2 rows"),
        ("a\n", "none of them of numbers, in 0 rows"),
        ("1,5;2,5\n1,6;2,6\n", "a header line .*; found the line '1,5, 2,5'"),
        ("\n\n", "a header line with a name for each column; found the line ''"),
        ("a\n1\n2\nthree\n", "a finite number in column a; found 'three' in line 4"),
        ("a\n1\ninf\n3\n", "a finite number in column a; found 'inf' in line 3"),
        (b"a\n\x81\x00\n", "one that cannot be read"),
    ],
)
def test_damaged_tables(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"t.csv: expected .*{message}"):
        read_table(path)


def test_missing_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pass --file"):
        Forecast(ForecastConfig())
    with pytest.raises(DataError, match="No such file or directory; mend the path"):
        task_of(tmp_path / "none.csv")
    with pytest.raises(DataError, match="Is a directory"):
        task_of(tmp_path)


# Parts, targets, scale


def test_targets_are_named_and_known(tmp_path: Path) -> None:
    path = ramp(tmp_path)
    assert task_of(path).output_names == ("row", "noise")
    one = task_of(path, targets=("noise",))
    assert (one.input_size, one.output_size, one.output_names) == (2, 1, ("noise",))
    for targets in (("nois",), ("row", "row")):
        with pytest.raises(DataError, match=r"found columns of numbers: row, noise; mend --targ"):
            task_of(path, targets=targets)


@pytest.mark.parametrize(
    "settings",
    [
        {"horizon": 300},
        {"valid_share": 1e-4},
        {"test_share": 1e-4},
        {"horizon": 9, "rows": (9, 9, 9)},
    ],
)
def test_too_short_for_what_is_asked(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"a row to predict .*; found (400|27) rows, of them"):
        task_of(ramp(tmp_path), **settings)


@pytest.mark.parametrize("horizon", [1, 7])
def test_each_row_is_predicted_once_from_the_row_so_far_before(
    tmp_path: Path, horizon: int
) -> None:
    task = task_of(ramp(tmp_path), horizon=horizon, steps=6)
    first = {"train": horizon, "valid": 280, "test": 340}
    last = {"train": 280, "valid": 340, "test": 400}
    for split in SPLITS:
        batches = list(task.batches(split, 4, seeded()))
        rows = torch.cat([row_numbers(task, b.target).flatten() for b in batches])
        assert task.size(split) == last[split] - first[split]
        wanted = torch.arange(first[split], last[split])
        if split == "train":  # what does not divide by four streams is left out at the beginning
            wanted = wanted[len(wanted) % 4 :]
        assert torch.equal(rows.sort().values, wanted)
        for batch in batches:
            assert batch.mask is None
            ahead = row_numbers(task, batch.target) - row_numbers(task, batch.x)
            assert (ahead == horizon).all()


def test_the_scale_is_that_of_the_training_rows(tmp_path: Path) -> None:
    rows = 200
    level = [5.0] * 140 + [6.0] * 60
    path = write_table(tmp_path / "t.csv", {"up": range(rows), "level": level})
    task = task_of(path)
    assert task.mean.tolist() == [69.5, 5]
    assert task.sd[0] == pytest.approx(math.sqrt((140**2 - 1) / 12))
    assert task.sd[1] == 1
    (batch,) = task.batches("test", 1, seeded())
    assert (batch.target[..., 1] == 1).all()


def test_missing_values_are_counted(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", {"a": ["", "", 1, "", *range(96)], "b": range(100)})
    task = task_of(path)
    assert task.notes[1:] == ("3 of 200 values are missing and repeat the one before: a 3",)
    values = (task._rows[:, 0].double() * task.sd[0] + task.mean[0]).round()
    assert values[:5].tolist() == [1, 1, 1, 1, 0]


# Streams


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.integers(0, 1000))
def test_chunks_are_whole_and_as_many_in_each_epoch(length: int, steps: int, seed: int) -> None:
    for generator in (None, seeded(seed)):
        chunks = stream_chunks(length, steps, generator)
        assert len(chunks) == -(-length // steps)
        assert [t for start, end in chunks for t in range(start, end)] == list(range(length))
        sizes = [end - start for start, end in chunks]
        assert all(1 <= size <= steps for size in sizes[:-1])
        assert 1 <= sizes[-1] <= (steps if generator is None else 2 * steps - 1)


def test_streams_go_on_from_chunk_to_chunk(tmp_path: Path) -> None:
    task = task_of(ramp(tmp_path), steps=10)
    for split in SPLITS:
        streams: list[torch.Tensor] = []
        for batch in task.batches(split, 8, seeded()):
            streams.append(row_numbers(task, batch.x))
        rows = torch.cat(streams)
        assert (rows.diff(dim=0) == 1).all()
        assert rows.shape[1] == (8 if split == "train" else 1)
    assert task.count_batches(8) == len(list(task.batches("train", 8, seeded(3)))) == 4
    # A stream is at least a chunk long, however many are asked for.
    assert next(iter(task.batches("train", 400, seeded()))).x.shape[1] == 27
    assert task_of(ramp(tmp_path), steps=1000).count_batches(32) == 1


def test_the_generator_decides_where_training_is_cut(tmp_path: Path) -> None:
    task = task_of(ramp(tmp_path), steps=10)

    def cuts(split: str, generator: torch.Generator) -> list[int]:
        return [len(batch.x) for batch in task.batches(split, 4, generator)]

    assert cuts("train", seeded(1)) == cuts("train", seeded(1))
    generator = seeded(1)
    assert len({tuple(cuts("train", generator)) for _ in range(50)}) == 10
    assert cuts("valid", seeded(1)) == cuts("valid", seeded(2))
    with pytest.raises(ValueError, match="split='dev'"):
        task.batches("dev", 1, seeded())
    with pytest.raises(ValueError, match=r"batch_size=0.*at least 1"):
        task.batches("train", 0, seeded())


def test_the_state_is_carried_over_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spikebridge.data import forecast

    task = task_of(ramp(tmp_path))
    network = build(ModelConfig(unit="lstm", hidden=(6,)), 2, 2, "each")
    scores = []
    for steps in (1000, 7):
        monkeypatch.setattr(forecast, "JUDGED_STEPS", steps)
        scores.append(evaluation.evaluate(network, task, "test", 32, seeded()))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    monkeypatch.setattr(Forecast, "carries_state", False)
    forgetful = evaluation.evaluate(network, task, "test", 32, seeded())
    assert forgetful != pytest.approx(scores[1], rel=1e-5)


# Another table


@pytest.mark.parametrize("saved", [True, False])
def test_another_table_comes_on_the_scale_of_training(tmp_path: Path, saved: bool) -> None:
    path = ramp(tmp_path)
    config = ForecastConfig(file=str(path), horizon=3, targets=("noise",))
    task = Forecast(config)
    noise = np.random.default_rng(1).normal(size=600).round(4)
    columns = {"more": range(600), "noise": noise.tolist(), "row": range(1000, 1600)}
    new = write_table(tmp_path / "new.csv", columns, delimiter=";")
    scaling = json.loads(json.dumps(task.scaling())) if saved else None
    if saved:
        path.unlink()
    other = tasks.other(config, new, scaling)
    batches = list(other.batches("test", 8, seeded()))
    assert len(batches) > 1
    x, target, mask = (torch.cat([batch[k] for batch in batches]) for k in range(3))  # type: ignore[arg-type]
    assert (row_numbers(task, x)[:, 0] == torch.arange(1000, 1600)).all()
    assert mask[:, 0].tolist() == [True] * 597 + [False] * 3
    shown = other.in_units(target)[:, 0, 0].numpy()
    np.testing.assert_allclose(shown[:597], noise[3:], atol=1e-5)
    assert other.size("test") == 600
    assert other.answered
    network = build(ModelConfig(unit="snu", hidden=(4,)), 2, 1, "each")
    score = evaluation.evaluate(network, other, "test", 8, seeded())
    with torch.no_grad():
        output, _ = network(x)
    error = (output - target)[:597].square().mean().sqrt()
    assert score.metric == pytest.approx(float(error), rel=1e-5)


def test_another_table_must_have_the_columns_of_training(tmp_path: Path) -> None:
    config = ForecastConfig(file=str(ramp(tmp_path)))
    scaling = Forecast(config).scaling()
    new = write_table(tmp_path / "new.csv", {"row": range(9), "else": range(9)})
    with pytest.raises(
        DataError, match=r"the columns of the training: row, noise; .*without noise"
    ):
        tasks.other(config, new, scaling)
    new = write_table(tmp_path / "new.csv", {"row": [""] * 9, "noise": range(9)})
    with pytest.raises(DataError, match="without row"):
        tasks.other(config, new, scaling)
    (tmp_path / "two").mkdir()
    with pytest.raises(DataError, match=r"a single \.csv file; found none; name the file"):
        tasks.other(config, tmp_path / "two", scaling)


def test_a_run_keeps_its_scale(tmp_path: Path) -> None:
    path, out = ramp(tmp_path), tmp_path / "run"
    words = (
        f"train forecast --file {path} --hidden 4 --epochs 1 --threads 1 --no-report --out {out}"
    )
    assert cli.main(words.split()) == 0
    task = task_of(path)
    assert json.loads((out / rundir.SCALING).read_text(encoding="utf-8")) == task.scaling()


# What a forecast is measured against


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9))
def test_a_shifted_copy_is_known_in_advance(
    tmp_path_factory: pytest.TempPathFactory, lag: int
) -> None:
    """A column that repeats another one `lag` rows later: who passes the input on is right."""
    path = tmp_path_factory.getbasetemp() / "lag.csv"
    source = np.random.default_rng(0).normal(size=400).round(6)
    copy = np.concatenate([source[:lag], source[:-lag]])
    write_table(path, {"source": source.tolist(), "copy": copy.tolist()})
    task = task_of(path, targets=("copy",), horizon=lag)
    to_copy = (torch.from_numpy(task.sd), torch.from_numpy(task.mean))
    for split in ("valid", "test"):
        for batch in task.batches(split, 1, seeded()):
            plain = batch.x[..., :1].double() * to_copy[0][0] + to_copy[1][0]
            answer = ((plain - to_copy[1][1]) / to_copy[0][1]).float()
            total, count = task.score(answer, batch)
            assert total / count < 1e-8
    assert task.baselines["nothing changes"] > 1
    assert task.baselines["mean of the training data"] == pytest.approx(1, abs=0.25)


def test_baselines_are_scores_of_such_answers(tmp_path: Path) -> None:
    task = task_of(ramp(tmp_path), horizon=3)
    totals = {"nothing changes": 0.0, "mean of the training data": 0.0}
    count = 0
    for batch in task.batches("test", 1, seeded()):
        answers = (batch.x, torch.zeros_like(batch.target))
        for name, answer in zip(totals, answers, strict=True):
            totals[name] += task.score(answer, batch)[0]
        count += batch.target.numel()
    for name, total in totals.items():
        assert task.baselines[name] == pytest.approx((total / count) ** 0.5)


def test_the_command_learns_and_draws_the_forecast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    t = np.arange(1500)
    wave = np.sin(2 * np.pi * t / 24).round(4)
    dates = [f"day {k}" for k in t]
    columns = {"date": dates, "<b>wave": wave.tolist(), "cos": np.cos(2 * np.pi * t / 24).tolist()}
    path, out = write_table(tmp_path / "waves.csv", columns), tmp_path / "run"
    flags = "--horizon 6 --steps 20 --hidden 32 --epochs 25 --lr 2e-2 --batch-size 8 --threads 1"
    words = ["train", "forecast", "--file", str(path), *flags.split(), "--out", str(out), "--json"]
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["data"], result["metric"]) == ("waves", "rmse")
    read, left, compared = result["notes"]
    assert read.startswith("read waves.csv: 1,500 rows, 2 columns of numbers: <b>wave, cos (utf-8")
    assert left == "columns left out, for they hold no numbers: date (text)"
    assert compared.startswith("for comparison, test RMSE: nothing changes ")
    assert result["test"] < 0.7 * task_of(path, horizon=6).baselines["nothing changes"]
    with np.load(out / rundir.EXAMPLES, allow_pickle=False) as arrays:
        assert arrays["output_names"].tolist() == ["<b>wave", "cos"]
        assert arrays["output"].shape == arrays["target"].shape == (225, 1, 2)
    page = (out / rundir.REPORT).read_text(encoding="utf-8")
    assert "Truth and prediction over time" in page
    assert "Rows 1 to 225 of the test set: RMSE" in page
    assert "Each value was predicted 6 rows before it came" in page
    assert "standard deviations" in page
    assert "Columns left out, for they hold no numbers: date (text)." in page
    assert "all hidden layers, per row" in page
    assert "<b>wave" not in page
