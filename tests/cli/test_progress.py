"""How long it takes in all: guessed from a few batches, refined while runs go on."""

from __future__ import annotations

import io
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_runs import tiny

from spikebridge import data as tasks
from spikebridge.base.records import UsageError
from spikebridge.cli import main as cli
from spikebridge.cli import progress
from spikebridge.cli.compare import ahead
from spikebridge.nn.kernels import native, ops
from spikebridge.runs import training
from spikebridge.runs.results import Epoch
from spikebridge.settings.config import override
from spikebridge.settings.model import ModelConfig
from spikebridge.studies import plan

TINY = "--hidden 8 --steps 4 --epochs 2 --batch-size 256 --threads 1"


def whole(jobs: int = 1) -> progress.Whole:
    epochs = {"snu-0": 10, "snu-1": 10, "lstm-0": 5}
    alike = {"snu-0": "snu", "snu-1": "snu", "lstm-0": "lstm"}
    return progress.Whole(epochs, alike, {"snu": 1.0, "lstm": 4.0}, jobs)


def test_before_anything_is_measured_guesses_count() -> None:
    assert whole().seconds_left() == 10 + 10 + 20
    assert whole(jobs=2).seconds_left() == 20
    assert whole(jobs=8).seconds_left() == 20  # no sooner than the longest run
    assert whole().text() == "0/3 runs done, 40 s left in all"


def test_what_is_measured_corrects_all_guesses() -> None:
    told = whole()
    told.begin("snu-0", 0)
    told.epoch("snu-0", 2.0)  # twice the guess: so will be the others
    assert told.seconds_left() == pytest.approx(9 * 2 + 10 * 2 + 5 * 8)
    told.epoch("snu-0", 4.0)
    assert told.seconds_left() == pytest.approx(8 * 3 + 10 * 3 + 5 * 12)
    told.begin("lstm-0", 0)
    told.epoch("lstm-0", 1.0)  # now known itself
    assert told.seconds_left() == pytest.approx(8 * 3 + 10 * 3 + 4 * 1)


def test_runs_that_go_on_or_end_sooner() -> None:
    told = whole()
    told.begin("snu-0", 7)
    assert told.seconds_left() == 3 + 10 + 20
    told.end("lstm-0")
    assert told.text() == "1/3 runs done, 13 s left in all"


def test_what_nobody_knows_is_not_told() -> None:
    told = progress.Whole({"a": 3, "b": 2}, {}, {"a": 1.0})
    assert told.seconds_left() is None
    assert told.text() == "0/2 runs done"
    told.epoch("b", 5.0)
    assert told.seconds_left() == 3 + 5


def test_lines_tell_what_is_left_of_all() -> None:
    stream = io.StringIO()
    with progress.display(stream, whole()) as display:
        run = display("snu-0")
        run.begin(override(tiny(), epochs=10), 0)
        run.epoch(Epoch(epoch=1, train_loss=1.0, valid=0.5, best=True, seconds=1.0))
        run.end()
    assert stream.getvalue() == (
        "snu-0  epoch 1/10  loss 1.0000  valid 0.5000 *  1.0 s  0/3 runs done, 39 s left in all\n"
    )


def test_bars_have_one_for_all() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress.display(stream, whole()) as display:
        run = display("snu-0")
        run.begin(override(tiny(), epochs=10), 0)
        run.epoch(Epoch(epoch=1, train_loss=1.0, valid=0.5, best=True, seconds=1.0))
        assert display.bars.tasks[0].completed == 1  # type: ignore[attr-defined]
        assert display.bars.tasks[0].total == 25  # type: ignore[attr-defined]
        run.end()
    assert "in all" in stream.getvalue()
    assert "1/3 runs done" in stream.getvalue()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"unit": "lstm"},
        {"unit": "snu", "cells": "accumulation", "epsilon": 0.05},
        {"unit": "snu", "rule": "ostl"},
        {"unit": "snu", "grapes": "propagated"},
    ],
)
def test_a_rehearsal_says_seconds_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(**settings)
    before = torch.get_rng_state()
    found = training.rehearse(config, tasks.load(config.task))
    assert 0 < found.epoch_s < 60
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(tmp_path.iterdir())


def test_it_grows_with_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(clock)))
    config = tiny()
    task = tasks.load(config.task)
    once = training.rehearse(config, task, limit_s=1e9).epoch_s
    judged = training.FORWARD_SHARE * task.size("valid") / task.size("train")
    assert once == pytest.approx(task.count_batches(config.train.batch_size) * (1 + judged))


@pytest.fixture
def adaptive_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a unit of one's own is: all of ours have a kernel."""
    monkeypatch.setattr(ops, "STEPS", [step for step in ops.STEPS if step.name != "adaptation"])


@pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
def test_units_without_a_kernel_are_named(adaptive_without_a_kernel: None) -> None:
    assert training.looped_by(ModelConfig(unit="snu", recurrent=True)) is None
    assert training.looped_by(ModelConfig(unit="lstm")) is None
    assert training.looped_by(ModelConfig(unit="adaptive-snu"), "compiled") is None
    adaptive = training.looped_by(ModelConfig(unit="adaptive-snu"))
    assert adaptive == "AdaptiveUnit (adaptation) has no native kernel"


@pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
def test_commands_say_it_at_the_beginning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    adaptive_without_a_kernel: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = f"compare digits {TINY} --units snu adaptive-snu --seeds 0 1 --out cmp --no-report"
    assert cli.main(shlex.split(line)) == 0
    said = capsys.readouterr().err
    loops = "adaptive-snu runs in the Python loop, which is slower: AdaptiveUnit (adaptation) has"
    assert loops in said
    total = re.search(r"4 trainings of 2 epochs, about (.+) in all, by a few batches", said)
    assert total
    assert said.index(total[0]) < said.index("epoch 1/2")
    assert said.count("left in all") == 8
    assert cli.main(shlex.split(line)) == 0  # nothing is left to be done, or told
    assert "trainings" not in capsys.readouterr().err
    line = f"train digits {TINY} --unit adaptive-snu --out one --no-report"
    assert cli.main(shlex.split(line)) == 0
    assert loops in capsys.readouterr().err


def test_missing_data_end_a_comparison_before_it_begins(tmp_path: Path) -> None:
    config = tiny()
    contender = plan.of_unit(config)
    planned = plan.plan([contender], [0], tmp_path / "cmp")
    bad = [
        replace(run, config=override(run.config, data="idx", data_dir=str(tmp_path / "none")))
        for run in planned
    ]
    with pytest.raises(UsageError, match="none"):
        ahead(bad, 1, overwrite=False)
    assert not (tmp_path / "cmp").exists()


def test_a_search_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    told = progress.Trials(8)
    assert told.left(3) == "about 50 s left in all"  # two were done before
    assert told.left(4) == "about 40 s left in all"
