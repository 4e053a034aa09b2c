"""Tables of forgetting: what is chosen and on what, what is kept, what is shown; the commands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from spikebridge.base.records import UsageError, to_plain
from spikebridge.cli import main as cli
from spikebridge.report import continual as continual_page
from spikebridge.report import page, still, study_tables
from spikebridge.runs import continual, rundir, training
from spikebridge.runs.environment import Environment
from spikebridge.runs.transfer import MEASURES, SequenceResult
from spikebridge.settings.config import Config, from_dict, override
from spikebridge.studies import catalog, compare, plan, tune
from spikebridge.studies.catalog import Entry, find
from spikebridge.studies.catalog.continual import FORGETTING
from spikebridge.studies.comparison import RuleContrast, Summary
from spikebridge.studies.contrasts import paired
from spikebridge.studies.summary import by_role

TINY = {"hidden": (24,), "batch_size": 32, "tasks": 3, "fisher_samples": 30, "threads": 1}
RESULTS = Path(__file__).parents[2] / "docs" / "results"


def tiny(**more: Any) -> Entry:
    entry = find("grapes-forgetting-permuted")
    given = {
        "data": "digits8x8",
        "settings": TINY | {"protocol": "permuted"},
        "grid": {"lr": (0.02, 0.05)},
        "rows": entry.rows[:3],
    }
    return dataclasses.replace(entry, **(given | more))


def table(entry: Entry, out: Path, seeds: range | list[int], jobs: int = 1) -> Summary:
    """What `reproduce` does, without its words."""
    contenders = tune.tune(entry, plan.of_entry(entry), out, seeds=seeds)
    planned = plan.plan(contenders, seeds, out, jobs=jobs)
    return compare.compare(
        planned, out, jobs=jobs, about=entry.title, more=lambda: by_role(entry, planned, out)
    )


def sequence_of(directory: Path) -> SequenceResult:
    sequence = rundir.read_result(directory).sequence
    assert sequence is not None
    return sequence


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A small table, with its page and pictures."""
    out = tmp_path_factory.mktemp("table")
    content = table(tiny(), out, range(3))
    still.write(content, out, tiny().source)
    page.write(out)
    return out, content


def test_the_rows_are_the_means_of_their_runs(made: tuple[Path, Summary]) -> None:
    out, content = made
    assert to_plain(content) == rundir.read_json(out / compare.COMPARE, "")
    for row, of_role in zip(content.rows, content.learning, strict=True):
        runs = [sequence_of(out / name) for name in row.runs]
        assert row.test_mean == row.of_tasks.measures["average_accuracy"].mean
        for name in MEASURES:
            values = [getattr(run.measures, name) for run in runs]
            assert row.of_tasks.measures[name].values == tuple(values)
            assert row.of_tasks.measures[name].mean == pytest.approx(sum(values) / 3)
        for k in range(3):
            for j in range(3):
                mean = sum(run.matrix[k][j] for run in runs) / 3
                assert row.of_tasks.matrix[k][j] == pytest.approx(mean)
        configs = [rundir.read_config(out / name) for name in row.runs]
        assert all(config.train.lr == of_role.chosen["lr"] for config in configs)


def test_a_seed_has_the_same_tasks_and_first_weights_in_all_rows(
    made: tuple[Path, Summary],
) -> None:
    out, content = made
    for seed in range(3):
        folders = [out / row.runs[seed] for row in content.rows]
        runs = [sequence_of(folder) for folder in folders]
        assert len({tuple(run.first) for run in runs}) == 1
        configs = [rundir.read_config(folder) for folder in folders]
        orders = [[p.order.tolist() for p in continual.sequence(c)[1:]] for c in configs]
        assert orders[0] == orders[1] == orders[2]
        assert {config.sequence.sequence_seed for config in configs} == {seed}
        assert len({tuple(map(tuple, run.matrix)) for run in runs}) == 3


def test_differences_are_paired_by_seed(made: tuple[Path, Summary]) -> None:
    _, content = made
    rows = {row.role: row.compared for row in content.learning}
    assert {c.against for c in content.contrasts} == {"gain", "plain"}
    assert len(content.contrasts) == 2 * len(MEASURES)
    for one in content.contrasts:
        expected = paired(rows["grapes"][one.of], rows[one.against][one.of])
        assert (one.mean, one.low, one.high) == (
            expected.mean,
            expected.low,
            expected.high,
        )


def test_the_best_on_validation_is_chosen_by_other_seeds(
    made: tuple[Path, Summary],
) -> None:
    out, content = made
    trials = tune.Tuning.read(out).trials
    assert {trial.seed for trial in trials} == set(tune.SEEDS)
    for row in content.learning:
        means = {}
        for rate in (0.02, 0.05):
            mine = [t.valid for t in trials if t.row == row.name and t.settings == {"lr": rate}]
            assert len(mine) == 2
            means[rate] = sum(mine) / 2
        assert row.chosen == {"lr": max(means, key=means.__getitem__)}
        assert row.at_edge == ["lr"]  # of two values both are ends
    one = trials[0]
    row = next(r for r in tiny().rows if r.name == one.row)
    seeds = {"seed": one.seed, "sequence_seed": one.seed}
    assert training.validation(override(tiny().config(row), **one.settings, **seeds)) == one.valid


def test_what_is_done_is_not_done_again(
    made: tuple[Path, Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, content = made

    def never(*args: Any, **more: Any) -> Any:
        raise AssertionError("it was done already")

    monkeypatch.setattr(training, "validation", never)
    monkeypatch.setattr(training, "run", never)
    assert table(tiny(), out, range(3)) == content
    fewer = table(tiny(), out, [1])
    assert fewer.rows[0].n == 1
    assert fewer.contrasts[0].low is None
    section = study_tables.section(fewer)
    assert section is not None
    assert "one seed" in section.markdown()
    table(tiny(), out, range(3))


def test_a_table_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, plain = tiny(rows=tiny().rows[:1]), training.validation
    rates = []

    def stopped(config: Any) -> Any:
        rates.append(config.train.lr)
        if len(rates) == 3:
            raise KeyboardInterrupt
        return plain(config)

    monkeypatch.setattr(training, "validation", stopped)
    with pytest.raises(KeyboardInterrupt):
        table(entry, tmp_path, [0])
    assert len(tune.Tuning.read(tmp_path).trials) == 2
    table(entry, tmp_path, [0])
    assert rates == [0.02, 0.02, 0.05, 0.05, 0.05]
    # Runs with other settings would mix two tables.
    other = dataclasses.replace(entry, settings=entry.settings | {"hidden": (16,)})
    with pytest.raises(UsageError, match=r"other settings: hidden .* --overwrite"):
        table(other, tmp_path, [0])


def test_trials_that_diverge_are_not_chosen(tmp_path: Path) -> None:
    entry = tiny(rows=tiny().rows[:1], grid={"lr": (1e-3, 1e30)})
    content = table(entry, tmp_path, [0])
    assert content.learning[0].chosen == {"lr": 1e-3}
    trials = tune.Tuning.read(tmp_path).trials
    assert [t.valid is None for t in trials] == [False, False, True, True]


def test_a_grid_may_hold_strengths_of_a_method(tmp_path: Path) -> None:
    row = dataclasses.replace(FORGETTING[0].rows[3], grid={"strength": (3.0, 30.0, 300.0)})
    content = table(tiny(rows=(row,), grid={"lr": (0.02,)}), tmp_path, [0])
    chosen = content.learning[0].chosen
    assert rundir.read_config(tmp_path / "ewc-0").sequence.strength == chosen["strength"]
    assert content.learning[0].at_edge == (["strength"] if chosen["strength"] != 30 else [])


def test_seeds_of_trials_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="take other seeds"):
        table(tiny(), tmp_path, [0, 1000])


@pytest.mark.parametrize("entry", FORGETTING, ids=lambda e: e.name)
def test_entries_have_configs_and_grids_that_rise(entry: Entry) -> None:
    assert find(entry.name) is entry
    for row in entry.rows:
        config = entry.config(row)
        assert (config.sequence.tasks, config.train.threads) == (5, 1)
        assert entry.config(row, quick=True).sequence.tasks == 2
        for values in {**entry.grid, **row.grid}.values():
            assert list(values) == sorted(set(values))
    assert [row.role for row in entry.rows] == ["plain", "gain", "grapes", "ewc", "si"]


@pytest.mark.parametrize("entry", FORGETTING, ids=lambda e: e.name)
def test_the_tables_in_the_documents_have_the_settings_of_their_entries(entry: Entry) -> None:
    """They were made when a sequence had a config of its own."""
    content = json.loads((RESULTS / f"{entry.name}.json").read_text(encoding="utf-8"))
    config = override(entry.config(entry.rows[0]), **content["rows"][0]["chosen"])
    assert from_dict(content["config"]) == config
    for row, made in zip(entry.rows, content["rows"], strict=True):
        assert (row.name, row.label, row.role) == (made["name"], made["label"], made["role"])
        assert made["chosen"].keys() == {**entry.grid, **row.grid}.keys()


def test_the_page_shows_all_rows_and_loads_nothing(made: tuple[Path, Summary]) -> None:
    out, content = made
    text = (out / rundir.REPORT).read_text(encoding="utf-8")
    assert "http-equiv" in text
    assert "<link rel=stylesheet" not in text
    for row in content.rows:
        assert text.count(row.label) > 3
        assert continual_page.spread(row.of_tasks.measures["forgetting"]) in text
    several = f"There are 6 intervals of 95 % here; {study_tables.CORRECTED}."
    markdown = (out / still.TABLE).read_text(encoding="utf-8")
    for shown in (text, markdown):
        assert several in shown
    for name in ("plot.png", "tasks.png", "contrasts.png"):
        assert (out / name).stat().st_size > 10_000
    for row in content.rows:
        assert markdown.count(f"| {row.label} |") == 3
    # A run of the table has a page of its own.
    own = page.write(out / "grapes-0").read_text(encoding="utf-8")
    assert "Learning rule: backpropagation + GRAPES" in own
    assert f"{100 * sequence_of(out / 'grapes-0').measures.forgetting:.2f}" in own


def test_a_difference_is_judged_by_what_is_better() -> None:
    def one(measure: str, low: float | None, high: float) -> str:
        words = dict.fromkeys(("group", "role", "against", "label", "other"), "")
        mean = ((low or 0.0) + high) / 2
        contrast = RuleContrast(mean, low, high, 3, of=measure, corrected=0.01, **words)
        return study_tables.judged(contrast, True)

    assert one("forgetting", -0.2, -0.1) == "better"
    assert one("average_accuracy", -0.2, -0.1) == "worse"
    assert one("average_accuracy", 0.1, 0.2) == "better"
    assert one("unseen", -0.1, 0.2) == "not known to differ"
    assert one("forgetting", None, 0.2).startswith("unknown")


def test_processes_give_the_same_as_one(tmp_path: Path) -> None:
    entry = tiny(rows=tiny().rows[:1], grid={"lr": (0.02,)})
    one, two = (table(entry, tmp_path / str(jobs), [0, 1], jobs) for jobs in (1, 2))
    assert one.learning[0].chosen == {"lr": 0.02}
    assert one.rows[0].sequence == two.rows[0].sequence


def test_the_command_writes_a_run_and_says_what_came_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*more: str) -> tuple[int, str, str]:
        flags = ["--unit", "relu", "--hidden", "16", "--lr", "0.02", "--tasks", "2"]
        out = ["--out", str(tmp_path / "run")]
        code = cli.main(["train", "digits", "--protocol", "permuted", *flags, *out, *more])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, err = call("--grapes", "propagated", "--no-report")
    assert code == 0, err
    assert "ReLU, backpropagation + GRAPES" in out
    assert "after task 2" in out
    content = json.loads(call("--grapes", "propagated", "--resume", "--json")[1])
    assert content["sequence"] == to_plain(sequence_of(tmp_path / "run"))
    assert Path(content["report"]).exists()
    code, _, err = call()
    assert code == 2
    assert "other settings: grapes" in err


def test_reproduce_writes_and_prints_a_quick_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tiny(name="grapes-forgetting-split", quick={"hidden": (8,), "tasks": 2})
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    flags = ["--quick", "--jobs", "1", "--out", str(tmp_path)]
    assert cli.main(["reproduce", entry.name, *flags]) == 0
    said = capsys.readouterr()
    assert "2 tasks one after the other" in said.out
    assert "3 runs in" in said.err
    for name in ("table.md", "plot.png", "tasks.png", rundir.REPORT):
        assert (tmp_path / name).exists()
        assert str(tmp_path / name) in said.out
    assert "GRAPES against equal gain" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **more: Any) -> Any:
        rundir.begin(tmp_path, Config(), Environment())
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "run", interrupted)
    words = ["train", "digits", "--protocol", "split", "--overwrite", "--out", str(tmp_path)]
    assert cli.main(words) == 130
    again = f"spikebridge train digits --protocol split --out {tmp_path}"
    assert again in capsys.readouterr().err
