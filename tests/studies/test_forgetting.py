"""Tables of forgetting: what is chosen and on what, what is kept, what is told; the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from spikebridge.base.records import RunError, UsageError
from spikebridge.cli import main as cli
from spikebridge.report import continual_text, page
from spikebridge.report.wording import CORRECTED
from spikebridge.runs import continual, rundir
from spikebridge.runs.transfer import MEASURES
from spikebridge.settings.continual import override
from spikebridge.studies import forgetting, forgetting_tuning
from spikebridge.studies.catalog import continual as entries
from spikebridge.studies.catalog.continual import FORGETTING, ForgettingEntry, ForgettingRow, find
from spikebridge.studies.contrasts import paired

TINY = {"data": "digits8x8", "hidden": (24,), "batch_size": 32, "tasks": 3, "fisher_samples": 30}


def tiny(**more: Any) -> ForgettingEntry:
    rows = find("grapes-forgetting-permuted").rows[:3]
    given = {"settings": TINY, "grid": {"lr": (0.02, 0.05)}, "rows": rows}
    return dataclasses.replace(find("grapes-forgetting-permuted"), **(given | more))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A small table, with its page and picture."""
    out = tmp_path_factory.mktemp("table")
    content = forgetting.compare(tiny(), out, seeds=range(3))
    continual_text.write(content, out)
    page.write(out)
    return out, content


def test_the_rows_are_the_means_of_their_runs(made: tuple[Path, dict[str, Any]]) -> None:
    out, content = made
    assert content == rundir.read_json(out / forgetting.FORGETTING, "")
    for row in content["rows"]:
        runs = [continual.read_outcome(out / f"{row['name']}-{seed}") for seed in range(3)]
        for name in MEASURES:
            values = [getattr(run.measures, name) for run in runs]
            assert row["measures"][name]["values"] == values
            assert row["measures"][name]["mean"] == pytest.approx(sum(values) / 3)
        for k in range(3):
            for j in range(3):
                mean = sum(run.matrix[k][j] for run in runs) / 3
                assert row["matrix"][k][j] == pytest.approx(mean)
        assert all(run.config.train.lr == row["chosen"]["lr"] for run in runs)


def test_a_seed_has_the_same_tasks_and_first_weights_in_all_rows(
    made: tuple[Path, dict[str, Any]],
) -> None:
    out, content = made
    for seed in range(3):
        runs = [continual.read_outcome(out / f"{row['name']}-{seed}") for row in content["rows"]]
        assert len({tuple(run.first) for run in runs}) == 1
        orders = [
            [part.order.tolist() for part in continual.sequence(run.config)[1:]] for run in runs
        ]
        assert orders[0] == orders[1] == orders[2]
        assert len({tuple(map(tuple, run.matrix)) for run in runs}) == 3


def test_differences_are_paired_by_seed(made: tuple[Path, dict[str, Any]]) -> None:
    _, content = made
    rows = {row["role"]: row["measures"] for row in content["rows"]}
    assert {c["against"] for c in content["contrasts"]} == {"gain", "plain"}
    assert len(content["contrasts"]) == 2 * len(MEASURES)
    for one in content["contrasts"]:
        ours, theirs = (rows[role][one["measure"]]["values"] for role in ("grapes", one["against"]))
        found = paired(ours, theirs)
        assert (one["mean"], one["low"], one["high"]) == (found.mean, found.low, found.high)


def test_the_best_on_validation_is_chosen_by_other_seeds(
    made: tuple[Path, dict[str, Any]],
) -> None:
    out, content = made
    trials = rundir.read_json(out / forgetting_tuning.TUNING, "")["trials"]
    assert {trial["seed"] for trial in trials} == {1000, 1001}
    for row in content["rows"]:
        means = {}
        for rate in (0.02, 0.05):
            mine = [
                t["valid"]
                for t in trials
                if t["row"] == row["name"] and t["settings"] == {"lr": rate}
            ]
            assert len(mine) == 2
            means[rate] = sum(mine) / 2
        assert row["chosen"] == {"lr": max(means, key=means.__getitem__)}
        assert row["at_edge"] == ["lr"]  # of two values both are ends
    one = trials[0]
    row = next(r for r in tiny().rows if r.name == one["row"])
    config = override(tiny().config(row, one["seed"]), **one["settings"])
    assert continual.validate(config) == one["valid"]


def test_what_is_done_is_not_done_again(
    made: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, content = made

    def never(*args: Any) -> Any:
        raise AssertionError("it was done already")

    monkeypatch.setattr(forgetting_tuning, "_validate", never)
    monkeypatch.setattr(forgetting, "_run", never)
    assert forgetting.compare(tiny(), out, seeds=range(3)) == content
    fewer = forgetting.compare(tiny(), out, seeds=[1])
    assert fewer["rows"][0]["n"] == 1
    assert fewer["contrasts"][0]["low"] is None
    assert "one seed" in continual_text.markdown(fewer)
    forgetting.compare(tiny(), out, seeds=range(3))


def test_a_table_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, plain = tiny(rows=tiny().rows[:1]), forgetting_tuning._validate
    calls = []

    def stopped(config: dict[str, Any]) -> Any:
        calls.append(config["train"]["lr"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(config)

    monkeypatch.setattr(forgetting_tuning, "_validate", stopped)
    with pytest.raises(KeyboardInterrupt):
        forgetting.compare(entry, tmp_path, seeds=[0])
    assert len(rundir.read_json(tmp_path / forgetting_tuning.TUNING, "")["trials"]) == 2
    forgetting.compare(entry, tmp_path, seeds=[0])
    assert calls == [0.02, 0.02, 0.05, 0.05, 0.05]
    # Other settings: their trials count no more, and their runs are done anew.
    other = dataclasses.replace(entry, settings={**TINY, "hidden": (16,)})
    content = forgetting.compare(other, tmp_path, seeds=[0])
    assert len(content["trials"]) == 4
    assert content["config"]["model"]["hidden"] == [16]


def test_trials_that_diverge_are_not_chosen(tmp_path: Path) -> None:
    rows = (ForgettingRow("plain", "plain", "plain"),)
    entry = tiny(rows=rows, grid={"lr": (1e-3, 1e30)})
    told: list[str] = []
    content = forgetting.compare(entry, tmp_path, seeds=[0], tell=told.append)
    assert content["rows"][0]["chosen"] == {"lr": 1e-3}
    assert [t["valid"] is None for t in content["trials"]] == [False, False, True, True]
    assert any("lower --lr" in text for text in told)
    with pytest.raises(RunError, match="all trials diverged"):
        forgetting.compare(
            dataclasses.replace(entry, grid={"lr": (1e29, 1e30)}), tmp_path / "b", seeds=[0]
        )


def test_a_table_of_another_grid_reports_the_trials_of_that_grid_alone(tmp_path: Path) -> None:
    rows = (ForgettingRow("ewc", "EWC", "ewc", {"method": "ewc"}, {"strength": (3.0, 30.0)}),)
    entry = tiny(rows=rows, grid={"lr": (0.02,)})
    forgetting.compare(entry, tmp_path, seeds=[0])
    path = tmp_path / forgetting_tuning.TUNING
    kept = rundir.read_json(path, "")
    for record in kept["trials"]:  # the best of all was 3, by far
        record["valid"] = 1.0 if record["settings"]["strength"] == 3 else 0.5
    rundir.write_json(path, kept)
    other = (dataclasses.replace(rows[0], grid={"strength": (30.0, 60.0, 300.0)}),)
    told: list[str] = []
    content = forgetting.compare(
        dataclasses.replace(entry, rows=other), tmp_path, seeds=[0], tell=told.append
    )
    assert [t["settings"]["strength"] for t in content["trials"]] == [30, 30, 60, 60, 300, 300]
    assert [t["valid"] for t in content["trials"]][:2] == [0.5, 0.5]  # not done again
    assert len([text for text in told if text.startswith("trial")]) == 4
    row = content["rows"][0]
    assert row["chosen"]["strength"] in (30.0, 60.0, 300.0)
    assert row["at_edge"] == (["strength"] if row["chosen"]["strength"] != 60 else [])
    assert "3 settings tried" in continual_text.markdown(content)
    config = continual.read_outcome(tmp_path / "ewc-0").config
    assert config.sequence.strength == row["chosen"]["strength"]


def test_of_equal_means_the_first_of_the_grid_is_chosen_and_anew_is_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tiny(rows=tiny().rows[:1], grid={"lr": (0.01, 0.02, 0.05)})
    valid = {0.01: 0.5, 0.02: 0.75, 0.05: 0.75}
    calls = []

    def known(plain: dict[str, Any]) -> float:
        calls.append(plain["train"]["lr"])
        return valid[plain["train"]["lr"]]

    monkeypatch.setattr(forgetting_tuning, "_validate", known)
    tell = calls.append

    def chosen(**more: Any) -> dict[str, float]:
        return forgetting_tuning.tune(entry, tmp_path, tell=tell, **more)["chosen"]["plain"]

    assert chosen() == {"lr": 0.02}
    path = tmp_path / forgetting_tuning.TUNING
    kept = rundir.read_json(path, "")
    rundir.write_json(path, kept | {"trials": kept["trials"][::-1]})  # as they came in
    calls.clear()
    assert chosen() == {"lr": 0.02}
    assert calls == []
    assert rundir.read_json(path, "") == kept
    valid[0.05] = 0.8
    assert chosen() == {"lr": 0.02}
    assert chosen(anew=True) == {"lr": 0.05}
    # What was written before trials held their settings does not count.
    for record in kept["trials"]:
        del record["config"]
    rundir.write_json(path, kept)
    assert chosen() == {"lr": 0.05}


def test_seeds_of_trials_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="take other seeds"):
        forgetting.compare(tiny(), tmp_path, seeds=[0, 1000])


@pytest.mark.parametrize("entry", FORGETTING, ids=lambda e: e.name)
def test_entries_have_configs_and_grids_that_rise(entry: ForgettingEntry) -> None:
    assert find(entry.name) is entry
    for row in entry.rows:
        config = entry.config(row, 3)
        assert config.train.seed == config.sequence.sequence_seed == 3
        assert config.sequence.tasks == 5
        assert entry.config(row, 0, quick=True).sequence.tasks == 2
        for values in {**entry.grid, **row.grid}.values():
            assert list(values) == sorted(set(values))
    assert [row.role for row in entry.rows] == ["plain", "gain", "grapes", "ewc", "si"]
    with pytest.raises(UsageError, match="choose one of"):
        find("nothing")


def test_the_page_shows_all_rows_and_loads_nothing(made: tuple[Path, dict[str, Any]]) -> None:
    out, content = made
    text = (out / rundir.REPORT).read_text(encoding="utf-8")
    assert "http-equiv" in text
    assert "<link rel=stylesheet" not in text
    for row in content["rows"]:
        assert text.count(row["label"]) > 3
        assert continual_text.spread(row["measures"]["forgetting"]) in text
    assert f"spikebridge reproduce {content['name']}" in text
    told = f"The table holds 6 intervals of 95 %; {CORRECTED}."
    for shown in (
        text,
        continual_text.markdown(content),
        "\n".join(continual_text.lines(content)),
    ):
        assert told in shown
    assert (out / "plot.png").stat().st_size > 10_000
    table = (out / "table.md").read_text(encoding="utf-8")
    for row in content["rows"]:
        assert f"| {row['label']} |" in table
    # A run of the table has a page of its own.
    own = page.write(out / "grapes-0").read_text(encoding="utf-8")
    assert "GRAPES" in own
    assert f"{100 * continual.read_outcome(out / 'grapes-0').measures.forgetting:.2f}" in own


def test_a_difference_is_judged_by_what_is_better() -> None:
    def one(measure: str, low: float, high: float) -> dict[str, Any]:
        clear = not low <= 0 <= high
        mean = (low + high) / 2
        found = {"measure": measure, "low": low, "high": high, "mean": mean, "clear": clear}
        return found | {"corrected": 0.01}

    assert continual_text.judged(one("forgetting", -0.2, -0.1)) == "better"
    assert continual_text.judged(one("average_accuracy", -0.2, -0.1)) == "worse"
    assert continual_text.judged(one("average_accuracy", 0.1, 0.2)) == "better"
    assert continual_text.judged(one("unseen", -0.1, 0.2)) == "not known to differ"
    assert continual_text.judged(one("forgetting", 0.1, 0.2) | {"low": None}).startswith("unknown")


def test_processes_give_the_same_as_one(tmp_path: Path) -> None:
    entry = tiny(rows=tiny().rows[:1], grid={"lr": (0.02,)})
    one, two = (
        forgetting.compare(entry, tmp_path / str(jobs), seeds=[0, 1], jobs=jobs) for jobs in (1, 2)
    )
    assert one["trials"] == []
    assert one["rows"][0]["chosen"] == {"lr": 0.02}
    for name in ("measures", "matrix", "first"):
        assert one["rows"][0][name] == two["rows"][0][name]


def test_the_command_writes_a_run_and_tells_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*more: str) -> tuple[int, str, str]:
        flags = ["--data", "digits8x8", "--hidden", "16", "--lr", "0.02", "--tasks", "2"]
        code = cli.main(["continual", *flags, "--out", str(tmp_path / "run"), *more])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, err = call("--grapes", "propagated", "--no-report")
    assert code == 0, err
    assert "ReLU, backpropagation + GRAPES" in out
    assert "after task 2" in out
    content = json.loads(call("--grapes", "propagated", "--resume", "--json")[1])
    assert content["matrix"] == continual.read_outcome(tmp_path / "run").matrix
    assert Path(content["report"]).exists()
    code, _, err = call()
    assert code == 2
    assert "--resume" in err


def test_reproduce_writes_and_prints_a_quick_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tiny(name="grapes-forgetting-split", quick={"hidden": (8,), "tasks": 2})
    monkeypatch.setattr(entries, "FORGETTING", (entry,))
    assert (
        cli.main(["reproduce", entry.name, "--quick", "--jobs", "1", "--out", str(tmp_path)]) == 0
    )
    said = capsys.readouterr()
    assert "GRAPES against equal gain" in said.out
    assert "run 3/3" in said.err
    for name in ("table.md", "plot.png", rundir.REPORT, forgetting.FORGETTING):
        assert (tmp_path / name).exists()
        assert name == forgetting.FORGETTING or str(tmp_path / name) in said.out


def test_ctrl_c_tells_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **more: Any) -> Any:
        rundir.begin(tmp_path, {}, {})
        raise KeyboardInterrupt

    monkeypatch.setattr(continual, "run", interrupted)
    assert cli.main(["continual", "--overwrite", "--out", str(tmp_path)]) == 130
    assert f"spikebridge continual --out {tmp_path} --resume" in capsys.readouterr().err
