"""The catalog, `reproduce`, `evaluate`: tables that one command makes again."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spikebridge.base.metrics import METRICS
from spikebridge.base.records import UsageError, from_content
from spikebridge.cli import main as cli
from spikebridge.nn.network import build
from spikebridge.report.run_charts import log_ticks
from spikebridge.report.still import TABLE, write
from spikebridge.report.wording import metric_text
from spikebridge.runs import rundir, training
from spikebridge.settings.config import override, preset, variant_of
from spikebridge.settings.names import BASELINES
from spikebridge.settings.published import Printed
from spikebridge.studies import catalog, compare, plan
from spikebridge.studies.catalog import CATALOG, Entry, Row
from spikebridge.studies.comparison import Summary

# Symbols or notes of each table whose recurrent units are as large as each other, not as wide.
BY_PARAMETERS = {  # inputs and outputs
    "ptb-words": (10_000, 10_000),
    "ptb-characters": (51, 51),
    "nottingham": (88, 88),
    "musedata": (88, 88),
    "piano": (88, 88),
    "ptb-words-level": (10_000, 10_000),
    "ptb-characters-level": (51, 51),
    "nottingham-level": (88, 88),
    "musedata-level": (88, 88),
    "piano-level": (88, 88),
    "jsb-level": (88, 88),
    "mnist-rows-level": (28, 10),
}
RESULTS = Path(__file__).parents[2] / "docs" / "results"
TINY = {"hidden": (8,), "steps": 4, "epochs": 1, "batch_size": 256, "threads": 1}


SMALL = Entry(
    name="small",
    title="Two units on small digits",
    source="ours",
    task="digits",
    data="digits8x8",
    rows=(
        Row("snu"),
        Row("snu", {"weight_bits": 3}, name="rounded", label="SNU, 3 bits"),
    ),
    settings=TINY | {"epochs": 2},
    seeds=2,
    minutes=0.1,
    by_steps=(2, 1),
    quick={"epochs": 1},
)


def spikebridge(line: str) -> int:
    return cli.main(shlex.split(line))


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "CATALOG", (SMALL, *CATALOG))


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_every_entry_is_whole(entry: Entry) -> None:
    contenders = plan.of_entry(entry)
    assert len({one.name for one in contenders}) == len({one.label for one in contenders})
    assert len(contenders) == len(entry.rows)
    assert entry.source
    assert entry.minutes > 0, "nobody has measured what it takes"
    for row, one in zip(entry.rows, contenders, strict=True):
        assert variant_of(one.config.model) == row.unit
        quick = entry.config(row, quick=True)
        assert quick.train.epochs <= one.config.train.epochs


def test_units_of_an_entry_have_equal_widths() -> None:
    for entry in CATALOG:
        for group in {row.group for row in entry.rows}:
            rows = [row for row in entry.rows if row.group == group]
            models = [entry.config(row).model for row in rows]
            for convolutional in (False, True):
                widths = {m.hidden for m in models if bool(m.channels) == convolutional}
                # Where rows name their widths, titles or labels say so.
                free = any("hidden" in row.settings for row in rows)
                assert len(widths) <= 1 or free, entry.name


@pytest.mark.parametrize("name", BY_PARAMETERS)
def test_largest_recurrent_units_have_equally_many_parameters(name: str) -> None:
    entry, numbers = catalog.find(name), dict[str, int]()
    inputs, outputs = BY_PARAMETERS[name]
    for row in entry.rows:
        config, text = entry.config(row), entry.task == "text"
        if "recurrent" in row.unit or row.unit in BASELINES:
            model = build(config.model, inputs, outputs, "each", symbols=text)
            number = sum(p.numel() for p in model.parameters())
            kind = row.name if name.endswith("-level") else row.unit
            numbers[kind] = max(number, numbers.get(kind, 0))
    assert len(numbers) > 1
    assert max(numbers.values()) < 1.02 * min(numbers.values())


# What the public table's networks have; inputs, outputs.
BUDGETS = {
    "sequence-adding": (18_186, 2, 10),
    "sequence-adding-recurrent": (34_570, 2, 10),
    "sequence-psmnist": (85_130, 1, 10),
    "sequence-psmnist-recurrent": (154_762, 1, 10),
    "sequence-ptb": (4_700_000, 10_000, 10_000),
    "sequence-ptb-recurrent": (6_000_000, 10_000, 10_000),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_rows_of_the_public_benchmark_stay_within_its_budgets(name: str) -> None:
    entry, (budget, inputs, outputs) = catalog.find(name), BUDGETS[name]
    for row in entry.rows:
        config, text = entry.config(row), entry.task == "text"
        model = build(config.model, inputs, outputs, "each", symbols=text)
        number = sum(p.numel() for p in model.parameters())
        assert 0.96 * budget < number <= budget, (row.label, number)
    assert len({len(entry.grid | row.grid) for row in entry.rows}) == 1


@pytest.mark.parametrize("name", BUDGETS)
def test_the_table_of_the_public_benchmark_has_13_neurons(name: str) -> None:
    entry = catalog.find(name)
    neurons = [line for line in entry.printed if line.label != "LIF, e-prop"]
    assert len(neurons) == 13
    best = {"ptb": min, "adding": max, "psmnist": max}[name.split("-")[1]]
    figures = {
        "ptb": (104.10, 97.22),
        "adding": (1.0, 1.0),
        "psmnist": (0.9776, 0.9766),
    }[name.split("-")[1]]
    for column, figure in zip(("feed-forward", "recurrent"), figures, strict=True):
        known = [line.values[column] for line in neurons if column in line.values]
        assert best(known) == pytest.approx(figure)


def test_what_a_table_takes_is_said_before_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = (Printed("LIF", {"feed-forward": 0.5, "recurrent": 0.25}), Printed("PLIF", {}))
    rows = tuple(replace(row, epoch_s=3600.0) for row in SMALL.rows)
    tuned = replace(SMALL, name="told", grid={"lr": (1e-2, 2e-2)}, printed=printed, rows=rows)
    tuned = replace(tuned, by_steps=(), trial={"epochs": 1})
    monkeypatch.setattr(catalog, "CATALOG", (tuned,))
    assert spikebridge("reproduce told --jobs 1 --count 1") == 0
    said = capsys.readouterr().err
    assert "SNU: 4 trials x 1 epoch, 1 run x 2 epochs, 6.0 h left on one core" in said
    assert "in all 12 of 12 epochs to do, about 12.0 h with --jobs 1" in said
    out = Path("runs/reproduce-told")
    table = (out / TABLE).read_text(encoding="utf-8")
    assert "### As published" in table
    assert "| LIF | 50.00 | 25.00 |" in table
    assert "As published" in (out / rundir.REPORT).read_text(encoding="utf-8")
    assert spikebridge("reproduce told --jobs 1 --count 2") == 0
    said = capsys.readouterr().err
    assert "SNU: 4 trials x 1 epoch (4 done), 2 runs x 2 epochs (1 done), 2.0 h left" in said
    assert "in all 4 of 16 epochs to do" in said


@pytest.mark.parametrize(
    "limits", [(0.88, 50), (1.05, 1.4), (0.9, 3), (1, 100), (0.02, 0.021), (99, 101), (1e-3, 1)]
)
def test_ticks_of_a_logarithmic_axis_leave_room_for_each_other(limits: tuple) -> None:
    low, high = limits
    ticks = log_ticks(low, high)
    assert 4 <= len(ticks) <= 13
    assert all(low <= tick <= high for tick in ticks)
    places = [math.log(tick / low) / math.log(high / low) for tick in ticks]
    assert min(b - a for a, b in itertools.pairwise(places)) > 0.04


def test_a_value_that_diverged_is_shown_by_its_power_of_ten() -> None:
    assert METRICS["perplexity"].figure(999_999.0) == "999999.00"
    assert METRICS["perplexity"].figure(1.2345e300) == "1.23e+300"
    assert metric_text(METRICS["nll"], 1e9) == "1e+09\u00a0nats per frame"


def recorded() -> list[tuple[Entry, list[dict[str, Any]]]]:
    """The entries whose tables are kept, with the rows of these."""
    tables = [(entry, RESULTS / f"{entry.name}.json") for entry in CATALOG]
    read = [(entry, json.loads(path.read_text())) for entry, path in tables if path.exists()]
    return [(entry, table["rows"]) for entry, table in read if "rows" in table]


@pytest.mark.parametrize(("entry", "rows"), [pytest.param(*r, id=r[0].name) for r in recorded()])
def test_the_list_promises_no_less_time_than_the_recorded_runs_took(
    entry: Entry, rows: list[dict[str, Any]]
) -> None:
    # Tables of forgetting were recorded with a name of their own for it.
    seconds = sum(row.get("seconds_median", row.get("seconds")) * row["n"] for row in rows)
    assert entry.minutes > 0.9 * seconds / 2 / 60, "on two cores"


def test_names_are_unique() -> None:
    names = [entry.name for entry in CATALOG]
    assert len(names) == len(set(names))
    with pytest.raises(
        UsageError, match=r"'mnist': there is no such entry; `spikebridge reproduce --list`"
    ):
        catalog.find("mnist")


def test_reproduce_writes_table_plot_and_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge("reproduce small --jobs 1") == 0
    said = capsys.readouterr()
    out = Path("runs/reproduce-small")
    content = json.loads((out / compare.COMPARE).read_text())
    assert [row["label"] for row in content["rows"]] == ["SNU", "SNU, 3 bits"]
    assert all(row["n"] == 2 for row in content["rows"])
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "| SNU, 3 bits | " in table
    assert "unknown |" in table  # no figure has been published
    page = (out / rundir.REPORT).read_text(encoding="utf-8")
    for picture in ("plot.png", "steps.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
        assert f"plot: {out / picture}" in said.out
    assert "Two units on small digits" in page
    assert "Test accuracy against time steps" in page
    for row in content["rows"]:
        found = [json.loads((out / name / rundir.STEPS).read_text()) for name in row["runs"]]
        assert row["by_steps"]["steps"] == [1, 2]
        for at, mean in enumerate(row["by_steps"]["means"]):
            assert mean == pytest.approx(sum(one["test"][at] for one in found) / 2)
    tested = [path.stat().st_mtime_ns for path in sorted(out.glob(f"*/{rundir.STEPS}"))]
    assert "about 0 min on 2 cores" in said.err
    assert spikebridge("reproduce small --jobs 1 --json") == 0
    said = capsys.readouterr()
    assert "4 are complete" in said.err
    assert json.loads(said.out) == content
    again = [path.stat().st_mtime_ns for path in sorted(out.glob(f"*/{rundir.STEPS}"))]
    assert again == tested
    assert len(tested) == 4


def test_quick_is_quick_and_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge("reproduce small --quick --jobs 1") == 0
    runs = sorted(path.name for path in Path("runs/reproduce-small-quick").iterdir())
    assert {"rounded-0", "snu-0"} <= set(runs)
    config = rundir.read_config(Path("runs/reproduce-small-quick/snu-0"))
    assert config.train.epochs == 1
    assert not list(Path("runs").rglob(rundir.STEPS))
    assert spikebridge("reproduce small --count 1 --jobs 1") == 0
    assert not Path("runs/reproduce-small/snu-1").exists()


def test_the_list_says_what_each_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge("reproduce --list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(CATALOG)
    assert spikebridge("reproduce --list --json") == 0
    rows = json.loads(capsys.readouterr().out)["entries"]
    assert [row["name"] for row in rows] == [entry.name for entry in (SMALL, *CATALOG)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("reproduce", "no entry is named; `spikebridge reproduce --list`"),
        ("reproduce nothing", "'nothing': there is no such entry"),
        ("reproduce small --count -1", "count=-1: a number of seeds"),
        ("search digits --trials 0", "trials=0: it must be at least 1"),
        ("evaluate nowhere", "nowhere: there is no complete run in it"),
    ],
)
def test_wrong_usage(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge(line) == 2
    assert message in capsys.readouterr().err


def content(metric: str) -> Summary:
    value = 0.9 if metric == "accuracy" else 90.0
    rows: list[dict[str, Any]] = [
        {
            "unit": "snu",
            "label": "SNU",
            "n": 2,
            "test_mean": value,
            "test_std": value / 100,
            "tests": [value * 0.99, value * 1.01],
            "valid_mean": value,
            "parameters": 1000,
            "operations": 2000,
            "seconds_median": 70.0,
            "spikes_mean": None,
            "published": {"value": value, "source": "a paper"},
            "by_steps": {
                "trained_with": 4,
                "steps": [1, 4],
                "means": [value * 0.9, value],
                "stds": [None, value / 100],
            },
            "runs": [],
        }
    ]
    head = {"task": "t", "data": "d", "metric": metric, "higher_is_better": metric == "accuracy"}
    return from_content(Summary, head | {"rows": rows, "title": "T"})


@pytest.mark.parametrize("metric", METRICS)
def test_still_pictures_of_every_metric(metric: str, tmp_path: Path) -> None:
    pictures = write(content(metric), tmp_path, "here")
    assert [path.name for path in pictures] == ["plot.png", "steps.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    table = (tmp_path / TABLE).read_text(encoding="utf-8")
    assert "- a paper" in table
    assert METRICS[metric].figure(content(metric).rows[0].test_mean) in table


def test_a_table_on_hardware_exports_and_programs_every_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hard = replace(
        SMALL, name="hard", rows=SMALL.rows[:1], chip={"max_steps": 4}, cells={"cells": "ideal"}
    )
    monkeypatch.setattr(catalog, "CATALOG", (hard,))
    assert spikebridge(f"reproduce hard --quick --jobs 1 --out {tmp_path}") == 0
    run = tmp_path / "snu-0"
    assert (run / rundir.DIGITAL).exists()
    assert (run / rundir.MEMORY).exists()
    table = (tmp_path / TABLE).read_text(encoding="utf-8")
    integer = json.loads((run / rundir.DIGITAL).read_text())["integer"]
    assert f"| {METRICS['accuracy'].figure(integer)} |" in table
    for text in ("### On the digital chip", "with 64 lanes", "### In memory", "of the model ideal"):
        assert text in table
    assert "with global drift compensation" in table
    assert "x 2 chips" in table
    stamps = [path.stat().st_mtime_ns for path in (run / rundir.DIGITAL, run / rundir.MEMORY)]
    assert spikebridge(f"reproduce hard --quick --jobs 1 --out {tmp_path}") == 0
    assert [p.stat().st_mtime_ns for p in (run / rundir.DIGITAL, run / rundir.MEMORY)] == stamps
    capsys.readouterr()


# --- accuracy against time steps ---


def test_evaluate_at_other_numbers_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    config = override(preset("digits"), **(TINY | {"epochs": 4, "steps": 6, "hidden": (32,)}))
    result = training.run(config, "run")
    assert spikebridge("evaluate run --steps 6 1 30") == 0
    assert "30 " in capsys.readouterr().out
    found = json.loads((Path("run") / rundir.STEPS).read_text())
    assert found["steps"] == [1, 6, 30]
    assert found["test"][1] == result.test  # the same steps, the same draws
    assert found["test"][2] > found["test"][0]
    assert found["spikes_per_inference"][2] > found["spikes_per_inference"][0]
    page = (Path("run") / rundir.REPORT).read_text(encoding="utf-8")
    assert "time steps at test" in page


def test_steps_at_test_are_a_setting(tmp_path: Path) -> None:
    config = override(preset("digits"), **(TINY | {"steps": 3, "steps_test": 9}))
    longer = training.run(config, tmp_path / "longer")
    shorter = training.run(override(config, steps_test=0), tmp_path / "shorter")
    assert longer.spikes_per_inference is not None
    assert shorter.spikes_per_inference is not None
    assert longer.spikes_per_inference > 1.5 * shorter.spikes_per_inference


def test_steps_are_no_choice_for_music(tmp_path: Path) -> None:
    from spikebridge.trained.by_steps import by_steps

    config = override(preset("digits"), **(TINY | {"coding": "rows"}))
    training.run(config, tmp_path / "rows")
    with pytest.raises(UsageError, match="have as many steps as the data give"):
        by_steps(tmp_path / "rows", [1, 2])
