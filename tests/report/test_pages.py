"""What a reader would stumble over on a page: axes, hidden points, units, captions, commands."""

from __future__ import annotations

import html
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.tiny_runs import tiny

from spikebridge import report
from spikebridge.base.metrics import METRICS
from spikebridge.cli import main as cli
from spikebridge.report import cell_charts, compare_charts, run_charts
from spikebridge.report.theme import Chart
from spikebridge.runs import evaluation, rundir, training
from spikebridge.runs import training as experiment
from spikebridge.runs.load import load_run
from spikebridge.settings.config import Config, preset, to_dict

ACCURACY = METRICS["accuracy"]


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    shown = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", shown)).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "run"
    experiment.run(tiny(epochs=1), directory)
    return directory


@pytest.mark.parametrize("epochs", [1, 2, 5, 8, 9, 17, 40, 99, 1000, 12345])
def test_each_epoch_on_the_axis_is_whole_and_named_once(epochs: int) -> None:
    chart = Chart(300)
    run_charts.epoch_axis(chart, epochs)
    axis = chart.layout["xaxis"]
    ticks = [axis["tick0"] + k * axis["dtick"] for k in range(epochs // axis["dtick"] + 1)]
    shown = [format(tick, axis["tickformat"]) for tick in ticks]
    assert len(set(shown)) == len(shown)
    assert 2 <= len(shown) <= 9


def test_every_axis_of_epochs_is_such_a_one(run: Path) -> None:
    found = load_run(run)
    row: Any = SimpleNamespace(runs=[found], look="snu", label="SNU")
    charts = [
        run_charts.loss_curves(found),
        run_charts.metric_curve(found),
        compare_charts.learning([row], "train_loss", ACCURACY, "loss"),
        cell_charts.epoch_bars([(1, 3.0)], "pulses", "snu"),
    ]
    for chart in charts:
        assert chart is not None
        assert chart.layout["xaxis"]["dtick"] == 1


def test_equal_points_do_not_hide_one_another(run: Path) -> None:
    rows: list[Any] = [
        SimpleNamespace(
            runs=[load_run(run)],
            look=unit,
            label=unit,
            facts=SimpleNamespace(parameters=5, test_mean=0.5, test_std=None),
        )
        for unit in ("snu", "softsnu", "lstm")
    ]
    for chart in (
        compare_charts.learning(rows, "valid", ACCURACY, "accuracy"),
        compare_charts.cost(rows, ACCURACY, "parameters", "parameters"),
    ):
        assert chart is not None
        marks = [trace["marker"] for trace in chart.traces]
        sizes = [mark["size"] for mark in marks]  # drawn in this order: later ones lie on top
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == 3
        assert len({mark["symbol"] for mark in marks}) == 3
    seeds: Any = SimpleNamespace(
        runs=[],
        look="snu",
        label="SNU",
        facts=SimpleNamespace(tests=(0.5,) * 5, test_mean=0.5, test_std=None, published=None),
    )
    chart = compare_charts.dots([seeds], ACCURACY)
    assert chart is not None
    assert len(set(chart.traces[0]["y"])) == 5
    loss = run_charts.loss_curves(load_run(run))
    assert loss is not None
    training, validation = (trace["marker"] for trace in loss.traces[:2])
    assert training["symbol"] == "circle-open"
    assert training["size"] > validation["size"]


def test_energies_on_a_logarithmic_axis_are_dots() -> None:
    hardware: Any = {"a": SimpleNamespace(total_pJ=11e3), "b": SimpleNamespace(total_pJ=400e3)}
    chart = cell_charts.energy_bars(hardware, "snu", "image")
    assert chart is not None
    assert chart.layout["xaxis"]["type"] == "log"
    (trace,) = chart.traces
    assert (trace["type"], trace["mode"]) == ("scatter", "markers+text")
    assert "logarithmic" in chart.layout["xaxis"]["title"]["text"]


def test_the_threshold_is_the_networks_own(run: Path) -> None:
    network = evaluation.trained(run)[1]
    stored = network.layers[0].unit.threshold.detach().numpy()
    assert np.array_equal(load_run(run).examples.threshold[1], stored)  # type: ignore[union-attr]
    told = " Dotted: the threshold."
    page = text_of(report.write(run).read_text(encoding="utf-8"))
    assert told.strip() in page
    assert "as far as the spikes" not in page


def test_files_without_thresholds_tell_them_by_their_spikes(run: Path, tmp_path: Path) -> None:
    for path in run.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with np.load(run / rundir.EXAMPLES) as arrays:
        kept = {name: arrays[name] for name in arrays.files if "threshold" not in name}
    np.savez(tmp_path / rundir.EXAMPLES, **kept)
    page = text_of(report.write(tmp_path).read_text(encoding="utf-8"))
    assert "the threshold, as far as the spikes of all examples in the file tell it" in page
    kept["layer1_threshold"] = np.zeros(3)  # of other neurons
    np.savez(tmp_path / rundir.EXAMPLES, **kept)
    assert load_run(tmp_path).examples.threshold == {}  # type: ignore[union-attr]


def test_the_page_of_tasks_in_turn_repeats_itself_nowhere_and_says_how_to(tmp_path: Path) -> None:
    settings = {"tasks": 2, "method": "ewc", "strength": 30.0, "hidden": (5,), "threads": 1}
    config = preset("digits", "relu", protocol="permuted", **settings)
    training.run(config, tmp_path / "run")
    page = text_of(report.write(tmp_path / "run").read_text(encoding="utf-8"))
    assert page.count("Column: tested on which") == 1
    assert "points lost by earlier tasks" in page
    assert re.search(r"forgetting -?\d+\.\d\d points", page)
    (line,) = re.findall(r"Repeat this run .* spikebridge (train digits .*?) It was started", page)
    parsed = cli.parse(shlex.split(line))
    assert Config(**{part: getattr(parsed, part) for part in to_dict(config)}) == config


def test_wide_tables_keep_their_first_column_and_say_that_they_go_on() -> None:
    css = (Path(report.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    (rule,) = re.findall(r"\.scroll \{(.*?)\}", css, re.DOTALL)
    assert "overflow-x: auto" in rule
    assert rule.count("local") == 2  # what covers the shadow at either end
    assert rule.count("scroll") == 2
    assert re.search(r"\.scroll tr > :first-child \{[^}]*position: sticky; left: 0", css)


def details_of(page: str, title: str) -> list[str]:
    """The names in one of the tables under "All details"."""
    (block,) = re.findall(rf"<summary>{title}</summary>(.*?)</details>", page, re.DOTALL)
    return re.findall(r'<th scope="row">(.*?)</th>', block)


def test_settings_without_a_use_stand_apart(run: Path, tmp_path: Path) -> None:
    page = report.write(run).read_text(encoding="utf-8")
    used = details_of(page, "Configuration")
    unused = details_of(page, "Configuration: settings without a use in this run")
    assert {"task.data", "model.unit", "train.lr"} <= set(used)
    assert {name.partition(".")[0] for name in unused} == {
        "cells", "crossbar", "pulses", "learning",
    }  # fmt: skip
    every = to_dict(load_run(run).config)
    assert len(used) + len(unused) == sum(len(part) for part in every.values())
    training.run(tiny(epochs=1, cells="pcm", pairs=2), tmp_path / "loop")
    page = report.write(tmp_path / "loop").read_text(encoding="utf-8")
    assert {"cells.cells", "crossbar.pairs"} <= set(details_of(page, "Configuration"))


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        (
            {"rule": "dfa", "grapes": "propagated", "unit": "relu", "hidden": (8, 8)},
            ["DFA + GRAPES", "Direct feedback", "on its way down", "grapes_clip yes"],
        ),
        ({"rule": "ostl"}, ["OSTL", "Online, exact within a layer", "rule ostl"]),
    ],
)
def test_a_learning_rule_has_its_section(
    tmp_path: Path, run: Path, settings: dict[str, Any], shown: list[str]
) -> None:
    training.run(tiny(epochs=2, **settings), tmp_path)
    page = text_of(report.write(tmp_path).read_text(encoding="utf-8"))
    assert "Learning rule:" in page
    for part in (*shown, "Size of the changes"):
        assert part in page
    assert "Learning rule:" not in report.write(run).read_text(encoding="utf-8")
