"""Comparisons: units x seeds, kept runs, several processes, failures."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spikebridge.base.metrics import METRICS
from spikebridge.base.records import RunError, UsageError, from_content, to_plain
from spikebridge.cli import tables
from spikebridge.report import compare_page
from spikebridge.report import page as pages
from spikebridge.runs import environment, rundir, training
from spikebridge.runs.results import Epoch
from spikebridge.settings.config import Config, override, preset
from spikebridge.studies import compare, plan
from spikebridge.studies.comparison import Compared, Summary
from spikebridge.studies.plan import Contender

TINY = {"hidden": (8,), "steps": 4, "epochs": 2, "batch_size": 256, "threads": 1}


def tiny(*units: str, **settings: Any) -> list[Contender]:
    configs = [override(preset("digits", unit), **(TINY | settings)) for unit in units]
    return [plan.of_unit(config) for config in configs]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A comparison of two units over two seeds."""
    directory = tmp_path_factory.mktemp("compare")
    planned = plan.plan(tiny("snu", "recurrent-softsnu"), [0, 3], directory)
    return directory, compare.compare(planned, directory)


def test_compare_json(done: tuple[Path, Summary]) -> None:
    directory, content = done
    assert json.loads((directory / compare.COMPARE).read_text()) == to_plain(content)
    facts = {n: getattr(content, n) for n in ("task", "data", "metric", "higher_is_better")}
    assert facts == {
        "task": "digits",
        "data": "digits8x8",
        "metric": "accuracy",
        "higher_is_better": True,
    }
    assert [row.label for row in content.rows] == ["SNU", "recurrent soft SNU"]
    for row in content.rows:
        assert row.runs == (f"{row.unit}-0", f"{row.unit}-3")
        results = [rundir.read_result(directory / name) for name in row.runs]
        assert row.tests == tuple(result.test for result in results)
        assert row.n == 2
        assert row.test_mean == pytest.approx(sum(row.tests) / 2)
        assert row.test_std == pytest.approx(statistics.stdev(row.tests))
        assert row.parameters == results[0].parameters
        assert [result.seed for result in results] == [0, 3]
    assert (content.rows[0].spikes_mean or 0) > 0
    assert content.rows[1].spikes_mean is None


def test_the_test_judged_otherwise_stands_beside_it(
    tmp_path: Path, done: tuple[Path, Summary]
) -> None:
    shutil.copytree(done[0], tmp_path / "again")
    for seed, value in ((0, 0.5), (3, 0.7)):
        file = tmp_path / "again" / f"snu-{seed}" / rundir.RESULT
        facts = json.loads(file.read_text())
        facts["figures"] = {
            "half of it": {"metric": "accuracy", "value": value},
            "the same": {"metric": "accuracy", "value": facts["test"]},
        }
        file.write_text(json.dumps(facts))
    planned = plan.plan(tiny("snu", "recurrent-softsnu"), [0, 3], tmp_path / "again")
    content = compare.compare(planned, tmp_path / "again")
    assert [list(row.figures) for row in content.rows] == [["half of it"], []]
    assert content.rows[0].figures["half of it"].mean == pytest.approx(0.6)
    rows = [Compared(row, []) for row in content.rows]
    text = compare_page.results(rows, METRICS["accuracy"], True).markdown()
    assert "| half of it |" in text.splitlines()[0]
    assert "60.00 ± 14.14" in text
    assert "the same" not in text


def test_complete_runs_are_kept_and_new_ones_added(
    done: tuple[Path, Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, content = done
    ran = []
    real = training.run
    monkeypatch.setattr(training, "run", lambda c, d, **k: ran.append(d.name) or real(c, d, **k))
    planned = plan.plan(tiny("snu", "recurrent-softsnu"), [0, 3], directory)
    assert plan.is_complete(planned)
    assert compare.compare(planned, directory) == content
    assert ran == []
    planned = plan.plan(tiny("snu", "lstm"), [0], directory)
    more = compare.compare(planned, directory)
    assert ran == ["lstm-0"]
    assert [row.test_std for row in more.rows] == [None, None]
    compare.compare(planned, directory, overwrite=True)
    assert ran == ["lstm-0", "snu-0", "lstm-0"]


def test_other_settings_are_refused(done: tuple[Path, Summary]) -> None:
    directory, _ = done
    planned = plan.plan(tiny("snu", lr=0.5), [0], directory)
    with pytest.raises(UsageError, match=r"snu-0: .*lr \(.* there, 0\.5 asked for\)"):
        compare.compare(planned, directory)


class Heard(training.Silent):
    def __init__(self, name: str, told: list[tuple]) -> None:
        self.name, self.told = name, told

    def begin(self, config: Config, done: int) -> None:
        self.told.append((self.name, "begin", done))

    def epoch(self, record: Epoch) -> None:
        self.told.append((self.name, "epoch", record.epoch))

    def end(self) -> None:
        self.told.append((self.name, "end"))


def test_several_processes_give_the_same_bits_and_are_followed(
    done: tuple[Path, Summary], tmp_path: Path
) -> None:
    told: list[tuple] = []
    planned = plan.plan(tiny("snu", "recurrent-softsnu"), [0, 3], tmp_path)
    content = compare.compare(planned, tmp_path, jobs=2, progress=lambda name: Heard(name, told))
    for row, other in zip(content.rows, done[1].rows, strict=True):
        assert row.tests == other.tests
        assert row.spikes_mean == other.spikes_mean
    for run in planned:
        mine = [event[1:] for event in told if event[0] == run.name]
        assert mine[0][0] == "begin"
        assert mine[-1] == ("end",)
        assert mine[0][1] + len(mine) - 2 == 2  # every epoch is in the beginning or told


def test_a_process_that_is_killed_costs_no_more_than_its_run(tmp_path: Path) -> None:
    def kill() -> None:
        while len(list(tmp_path.glob("*/config.json"))) < 2:
            time.sleep(0.01)
        multiprocessing.active_children()[0].kill()

    planned = plan.plan(tiny("snu", epochs=2000), [0, 1], tmp_path)
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RunError, match=r"2 of 2 runs failed.*\n  snu-0: its process was killed"):
        compare.compare(planned, tmp_path, jobs=2)
    killer.join()
    for _ in range(1000):  # what was killed is gone only when the system has seen to it
        if not multiprocessing.active_children():
            break
        time.sleep(0.01)
    assert not multiprocessing.active_children()


def test_threads_are_shared_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cores", lambda: 8)
    free, fixed = tiny("snu", threads=0), tiny("snu", threads=3)

    def threads(contenders: list[Contender], jobs: int) -> int:
        return plan.plan(contenders, [0], tmp_path, jobs=jobs)[0].config.train.threads

    assert threads(free, 1) == 0
    assert threads(free, 3) == 2
    assert threads(free, 20) == 1
    assert threads(fixed, 2) == 3
    training.run(override(free[0].config, threads=2, epochs=1), tmp_path / "snu-0")
    assert threads(free, 1) == 2


@pytest.mark.parametrize(
    ("units", "seeds", "jobs", "message"),
    [
        ([], [0], 1, "at least one unit"),
        (["snu"], [], 1, "at least one unit and one seed"),
        (["snu", "snu"], [0], 1, "unit snu is given twice"),
        (["snu"], [1, 0, 1], 1, "seed 1 is given twice"),
        (["snu"], [0], 0, "jobs=0"),
    ],
)
def test_plans_that_make_no_sense(
    tmp_path: Path, units: list[str], seeds: list[int], jobs: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan.plan(tiny(*units), seeds, tmp_path, jobs=jobs)


def test_a_run_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable = training.run

    def run(config: Config, directory: Path, **more: Any) -> Any:
        if config.train.seed == 1:
            raise RunError("the loss became nan")
        return real(config, directory, **more)

    monkeypatch.setattr(training, "run", run)
    planned = plan.plan(tiny("snu", epochs=1), [0, 1, 2], tmp_path)
    with pytest.raises(RunError, match=r"1 of 3 runs failed.*\n  snu-1: the loss became nan"):
        compare.compare(planned, tmp_path)
    assert [run.complete for run in planned] == [True, False, True]
    assert not (tmp_path / compare.COMPARE).exists()


def test_the_page_is_written_again_only_after_a_change(
    done: tuple[Path, Summary],
) -> None:
    directory, _ = done
    planned = plan.plan(tiny("snu", "recurrent-softsnu"), [0, 3], directory)
    compare.compare(planned, directory)
    pages.refresh(directory)
    page = directory / rundir.REPORT
    assert "recurrent soft SNU" in page.read_text(encoding="utf-8")
    before = page.stat().st_mtime_ns
    time.sleep(0.01)
    compare.compare(planned, directory)
    pages.refresh(directory)
    assert page.stat().st_mtime_ns == before
    compare.compare(planned[:2], directory)
    pages.refresh(directory)
    assert page.stat().st_mtime_ns > before
    page.unlink()
    pages.refresh(directory)
    assert page.exists()


def test_the_table_reads_as_people_write() -> None:
    content = {
        "task": "music",
        "data": "jsb",
        "metric": "nll",
        "higher_is_better": False,
        "rows": [
            {
                "unit": "snu",
                "label": "SNU",
                "n": 1,
                "tests": [8.7212],
                "runs": ["snu-0"],
                "test_mean": 8.7212,
                "test_std": None,
                "valid_mean": 8.8,
                "parameters": 26638,
                "operations": 26400,
                "seconds_median": 31.26,
                "spikes_mean": 812.4,
                "published": {"value": 8.72, "source": "a paper"},
            }
        ],
    }
    file = io.StringIO()
    Console(width=140, file=file).print(tables.table(from_content(Summary, content)))
    for word in (
        "nats per frame), lower is better",
        "8.721 ",
        "8.800",
        "26,638",
        "812",
        "8.720",
    ):
        assert word in file.getvalue()
