"""Tables of learning rules: tuned on validation only, compared seed by seed, shown."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from spikebridge.base.records import ConfigError, RunError, UsageError, to_plain
from spikebridge.cli import main as cli
from spikebridge.data.images import Digits
from spikebridge.report import study_tables
from spikebridge.runs import rundir, training
from spikebridge.settings.learning import LearningConfig
from spikebridge.studies import catalog, compare, plan, tune
from spikebridge.studies.catalog import CATALOG, Entry, Row
from spikebridge.studies.catalog.learning import LEARNING
from spikebridge.studies.comparison import RuleContrast, RuleResult, Summary
from spikebridge.studies.contrasts import paired
from spikebridge.studies.slowness import slowness

EMPTY = Summary(task="digits", data="mnist", metric="accuracy", higher_is_better=True, rows=())
TINY = {"hidden": (16,), "epochs": 3, "batch_size": 128, "threads": 1}
GRAPES = {"grapes": "propagated"}
SMALL = Entry(
    name="small-rules",
    title="GRAPES on small digits",
    source="ours",
    task="digits",
    data="digits8x8",
    rows=(
        Row("relu", {}, "bp-plain", "BP", "bp", "plain"),
        Row("relu", GRAPES | {"grapes_control": "gain"}, "bp-gain", "BP, gain", "bp", "gain"),
        Row("relu", GRAPES, "bp-grapes", "BP, GRAPES", "bp", "grapes", {"lr": (0.05,)}),
    ),
    settings=TINY,
    grid={"lr": (0.02, 0.1)},
    trial={"epochs": 1},
    seeds=2,
    minutes=0.1,
    quick={"epochs": 2},
)


def spikebridge(line: str) -> int:
    return cli.main(shlex.split(line))


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "CATALOG", (SMALL, *CATALOG))


# --- the table ---


def test_reproduce_tunes_compares_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge("reproduce small-rules --jobs 1") == 0
    said = capsys.readouterr()
    out = Path("runs/reproduce-small-rules")
    tuned = json.loads((out / tune.TUNING).read_text())
    # Two rates for two rows and one for the third, two seeds each, none of them of the runs.
    assert len(tuned["trials"]) == 2 * (2 + 2 + 1)
    assert {record["seed"] for record in tuned["trials"]} == set(tune.SEEDS)
    assert tuned["chosen"]["bp-grapes"] == {"lr": 0.05}
    for name, chosen in tuned["chosen"].items():
        mine = [record for record in tuned["trials"] if record["row"] == name]
        means = {
            rate: np.mean([r["valid"] for r in mine if r["settings"]["lr"] == rate])
            for rate in {r["settings"]["lr"] for r in mine}
        }
        assert means[chosen["lr"]] == max(means.values())
        for seed in range(SMALL.seeds):
            assert rundir.read_config(out / f"{name}-{seed}").train.lr == chosen["lr"]
            assert rundir.read_config(out / f"{name}-{seed}").train.epochs == 3
    content = json.loads((out / compare.COMPARE).read_text())
    rows = {row["role"]: row for row in content["learning"]}
    assert set(rows) == {"plain", "gain", "grapes"}
    for contrast in content["contrasts"]:
        assert contrast["role"] == "grapes"
        expected = paired(rows["grapes"][contrast["of"]], rows[contrast["against"]][contrast["of"]])
        assert {name: contrast[name] for name in to_plain(expected)} == to_plain(expected)
    assert [one["of"] for one in content["contrasts"]] == ["tests", "slowness"] * 2
    for row in rows.values():
        assert row["slowness_mean"] == pytest.approx(np.mean(row["slowness"]))
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "BP, GRAPES against BP, gain" in table
    assert "lr 0.05" in table
    assert (out / "contrasts.png").read_bytes().startswith(b"\x89PNG")
    page = (out / rundir.REPORT).read_text(encoding="utf-8")
    assert "Seed by seed" in page
    assert "bp-plain  lr=0.02  seed 1000  valid 0." in said.err
    # All of it lies there: nothing is done again.
    assert spikebridge("reproduce small-rules --jobs 1 --json") == 0
    said = capsys.readouterr()
    assert "6 are complete" in said.err
    assert "seed 1000" not in said.err
    assert json.loads(said.out) == content


def test_tuning_never_reads_the_test_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = Digits.batches

    def batches(self: Digits, split: str, *more: Any) -> Any:
        assert split != "test"
        return real(self, split, *more)

    monkeypatch.setattr(Digits, "batches", batches)
    tune.tune(SMALL, plan.of_entry(SMALL), tmp_path, quick=True)
    assert [path.name for path in tmp_path.iterdir()] == [tune.TUNING]


def test_tuning_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried: list[Any] = []

    def validation(config: Any) -> float:
        if len(tried) == 3:
            raise KeyboardInterrupt
        tried.append(config)
        return 0.5 + config.train.lr

    monkeypatch.setattr(training, "validation", validation)
    contenders = plan.of_entry(SMALL)
    with pytest.raises(KeyboardInterrupt):
        tune.tune(SMALL, contenders, tmp_path)
    before = len(tried)
    tried.clear()
    monkeypatch.setattr(training, "validation", lambda config: 0.5 + config.train.lr)
    tuned = tune.tune(SMALL, contenders, tmp_path)
    content = json.loads((tmp_path / tune.TUNING).read_text())
    assert len(content["trials"]) == 10 > before
    assert [one.config.train.lr for one in tuned] == [0.1, 0.1, 0.05]


def test_trials_of_other_settings_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def validation(config: Any) -> float:
        return 1 / config.train.lr

    monkeypatch.setattr(training, "validation", validation)
    tune.tune(SMALL, plan.of_entry(SMALL), tmp_path)
    other = Entry(**{**vars(SMALL), "settings": TINY | {"hidden": (8,)}})
    more = Entry(**{**vars(SMALL), "grid": {"lr": (0.02, 0.1, 0.3)}})
    longer = Entry(**{**vars(SMALL), "trial": {"epochs": 2}})
    for entry, anew, expected in (
        (other, False, 10),
        (other, False, 0),
        (SMALL, False, 10),  # those of the other settings have taken their place
        (more, False, 4),
        (longer, False, 10),
        (longer, True, 10),
    ):
        told: list[Any] = []
        contenders = plan.of_entry(entry)
        tune.tune(
            entry, contenders, tmp_path, anew=anew, tell=lambda *one, told=told: told.append(one)
        )
        assert len(told) == expected


def test_of_equal_values_the_first_is_taken_whatever_comes_in_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def backwards(work: Any, todo: Any, jobs: int) -> Any:
        return ((key, 0.5) for key, _ in reversed(todo))

    monkeypatch.setattr(tune.processes, "results", backwards)
    tuned = tune.tune(SMALL, plan.of_entry(SMALL), tmp_path)
    assert [one.config.train.lr for one in tuned] == [0.02, 0.02, 0.05]


def test_a_choice_at_the_edge_of_its_grid_is_marked() -> None:
    row = SMALL.rows[0]
    assert tune.at_edge(SMALL, row, {"lr": 0.1}) == ["lr"]
    wide = Entry(**{**vars(SMALL), "grid": {"lr": (0.02, 0.1, 0.3)}})
    assert not tune.at_edge(wide, row, {"lr": 0.1})
    assert not tune.at_edge(SMALL, SMALL.rows[2], {"lr": 0.05})  # there was nothing to choose
    learning = RuleResult("bp", "BP", "", "plain", {"lr": 0.1}, ["lr"], (0.5,))
    section = study_tables.section(replace(EMPTY, learning=(learning,)))
    assert section is not None
    text = section.markdown()
    assert "lr 0.1*" in text
    assert "a better one may lie beyond" in text


def test_a_rate_that_fails_is_never_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def validation(config: Any) -> float:
        if config.train.lr == 0.1 and config.train.seed == tune.SEEDS[1]:
            raise RunError("the loss became nan")
        return config.train.lr

    monkeypatch.setattr(training, "validation", validation)
    tuned = tune.tune(SMALL, plan.of_entry(SMALL), tmp_path)
    assert tuned[0].config.train.lr == 0.02
    monkeypatch.setattr(training, "validation", lambda config: 1 / 0)
    none = Entry(**{**vars(SMALL), "grid": {"lr": (0.1,)}, "rows": SMALL.rows[:1]})

    def fails(config: Any) -> float:
        raise RunError("the loss became nan")

    monkeypatch.setattr(training, "validation", fails)
    with pytest.raises(RunError, match="bp-plain: all trials failed; give it a grid of lower"):
        tune.tune(none, plan.of_entry(none), tmp_path / "none")


def test_trials_in_several_processes_are_those_of_one(tmp_path: Path) -> None:
    """With one thread each, which is what several processes get."""
    one = tune.tune(SMALL, plan.of_entry(SMALL), tmp_path / "one")
    two = tune.tune(SMALL, plan.of_entry(SMALL), tmp_path / "two", jobs=2)
    assert [a.config for a in one] == [b.config for b in two]
    trials = [
        sorted(json.loads((tmp_path / name / tune.TUNING).read_text())["trials"], key=repr)
        for name in ("one", "two")
    ]
    assert trials[0] == trials[1]


@pytest.mark.parametrize("entry", LEARNING, ids=lambda entry: entry.name)
def test_every_comparison_of_grapes_has_its_controls(entry: Entry) -> None:
    groups = {row.group for row in entry.rows}
    for group in groups:
        mine = {row.role: row for row in entry.rows if row.group == group}
        if "grapes" not in mine:
            continue
        assert set(mine) == {"plain", "gain", "grapes"}
        configs = {role: entry.config(row) for role, row in mine.items()}
        assert configs["plain"].learning.grapes == "none"
        assert configs["gain"].learning.grapes == configs["grapes"].learning.grapes
        assert configs["gain"].learning.grapes_control == "gain"
        # The same rates for all three, and all else alike.
        assert len({repr(row.grid or entry.grid) for row in mine.values()}) == 1
        for name in ("task", "model", "train", "cells", "crossbar", "pulses"):
            assert len({repr(getattr(config, name)) for config in configs.values()}) == 1
        assert len({config.learning.rule for config in configs.values()}) == 1


# --- in words ---


def contrast(
    mean: float, low: float | None, high: float | None, of: str = "tests", corrected: float = 0.05
) -> RuleContrast:
    words = dict.fromkeys(("group", "role", "against", "label", "other"), "")
    return RuleContrast(mean, low, high, 3, of=of, corrected=corrected, **words)


@pytest.mark.parametrize(
    ("one", "higher", "word"),
    [
        (contrast(0.1, 0.05, 0.15), True, "better"),
        (contrast(0.1, 0.05, 0.15), False, "worse"),
        (contrast(-0.1, -0.15, -0.05), False, "better"),
        (contrast(-0.1, -0.15, -0.05, "slowness"), True, "better"),
        (contrast(0.1, 0.05, 0.15, "slowness"), True, "worse"),
        (contrast(0.1, -0.05, 0.25), True, "not known to differ"),
        (contrast(0.1, 0.05, 0.15, corrected=0.06), True, "perhaps better, not after corr"),
        (contrast(0.1, None, None), True, "unknown, one seed"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(
    one: RuleContrast, higher: bool, word: str
) -> None:
    assert study_tables.judged(one, higher).startswith(word)


def test_tables_without_rules_say_nothing_of_them() -> None:
    assert study_tables.section(EMPTY) is None


# --- slowness ---


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=30), st.floats(0.0, 0.2))
def test_no_other_slowness_fits_better(curve: list[float], chance: float) -> None:
    found = slowness(curve, chance)
    values = np.array([chance, *curve])
    e = np.arange(len(values))

    def misfit(s: float) -> float:
        fitted = np.where(e > 0, values.max() * e / (s + e + 1e-12), 0.0)
        return float(np.square(values - fitted).sum())

    assert found.highest == values.max()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert misfit(found.slowness) <= misfit(found.slowness * factor) + 1e-6


def test_faster_curves_are_less_slow() -> None:
    curves = [[0.9 * e / (s + e) for e in range(1, 20)] for s in (0.1, 0.3, 1.0, 3.0)]
    found = [slowness(curve, 0.1).slowness for curve in curves]
    assert found == sorted(found)
    assert all(slowness(curve, 0.1).error < 0.2 for curve in curves)


def test_slowness_of_the_published_code() -> None:
    """The same least squares as scipy's curve_fit without bounds from 0.5, the published way."""
    from scipy.optimize import curve_fit

    curve = [0.9, 0.95, 0.965, 0.972, 0.976, 0.979, 0.98]
    values = np.array([0.1, *curve])

    def fitted(e: np.ndarray, s: float) -> np.ndarray:
        return values.max() * e / (s + e)

    (expected,), covariance = curve_fit(fitted, np.arange(8.0), values, p0=0.5)
    found = slowness(curve, 0.1)
    assert found.slowness == pytest.approx(expected, rel=1e-3)
    assert found.error == pytest.approx(float(covariance[0, 0] ** 0.5), rel=1e-2)


def test_one_epoch_has_no_slowness() -> None:
    with pytest.raises(UsageError, match="a curve of 1 epochs has no slowness"):
        slowness([0.9], 0.1)


# --- settings ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grapes_control": "gain"}, "there is no GRAPES to be controlled"),
        ({"rule": "ostl", "grapes": "local"}, "online rules form gradients by themselves"),
        ({"feedback_seed": -1}, "it must be at least 0"),
        ({"rule": "hebb"}, "rule='hebb': expected one of"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LearningConfig(**given)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "backpropagation"),
        ({"grapes": "propagated"}, "backpropagation + GRAPES"),
        ({"rule": "dfa", "grapes": "outgoing"}, "DFA + GRAPES (outgoing)"),
        ({"grapes": "local", "grapes_control": "gain"}, "backpropagation + equal gain"),
        ({"rule": "eprop"}, "e-prop"),
    ],
)
def test_names_of_rules(settings: dict[str, Any], name: str) -> None:
    assert LearningConfig(**settings).name == name
