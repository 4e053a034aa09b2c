"""The best network so far of a run that was cut off: written, loaded, used, and then forgotten."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_runs import left, tiny
from helpers.toy_music import toy_songs, write_mat
from safetensors.torch import load_file
from test_resume import Interrupting

from spikebridge import data as tasks
from spikebridge.base.chance import generator
from spikebridge.base.records import UsageError
from spikebridge.cli import main as cli
from spikebridge.nn.network import load_network
from spikebridge.runs import evaluation, rundir, training
from spikebridge.runs.optimizers import best_epoch
from spikebridge.runs.results import Epoch
from spikebridge.settings.config import Config, preset

WARNS = "the run is not complete; this is its best network so far"
KINDS: list[dict[str, Any]] = [
    {"unit": "snu", "ema": 0.9},
    {"unit": "recurrent-softsnu", "weight_noise": 0.05},
    {"unit": "snu", "weight_bits": 4},
    {"unit": "lstm"},
    {"unit": "snu", "grapes": "propagated"},
    {"unit": "snu", "cells": "accumulation", "epsilon": 0.05},
    {"unit": "snu", "cells": "accumulation", "epsilon": 0.05, "adc_bits": 6, "dac_bits": 6},
]


def cut_off(config: Config, directory: Path, epoch: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        training.run(config, directory, resume=True, progress=Interrupting(epoch, 0.5))


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_best_so_far_is_a_network_and_changes_nothing(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = tiny(**settings)
    training.run(config, tmp_path / "whole")
    cut_off(config, tmp_path / "run", 3)
    assert not rundir.is_complete(tmp_path / "run")
    with pytest.warns(UserWarning, match=WARNS):
        _, network = evaluation.trained(tmp_path / "run")
    lines = (tmp_path / "run" / rundir.METRICS).read_text().splitlines()
    history = [Epoch.of(line) for line in lines]
    assert [epoch.metric for epoch in history] == ["accuracy"] * 2
    if "cells" not in settings:  # a read of cells has noise of its own
        judge = generator(config.train.eval_seed, "valid")
        task = tasks.load(config.task)
        score = evaluation.evaluate(network, task, "valid", config.train.batch_size, judge)
        assert score.metric == history[best_epoch(history) - 1].valid
    if "weight_noise" in settings:
        assert not any("parametrizations" in name for name in network.state_dict())
    training.run(config, tmp_path / "run", resume=True)
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_nothing_is_there_before_the_first_epoch_is_done(tmp_path: Path) -> None:
    cut_off(tiny(), tmp_path / "run", 1)
    assert not (tmp_path / "run" / rundir.MODEL).exists()
    with pytest.raises(UsageError, match="there is no complete run in it; name a finished run"):
        evaluation.trained(tmp_path / "run")


def test_only_a_better_epoch_replaces_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training._Run, "_is_best", lambda run, _: len(run.state.history) == 1)
    cut_off(tiny(epochs=4), tmp_path / "run", 4)
    tensors = load_file(tmp_path / "run" / rundir.CHECKPOINT)
    stored = load_network(tmp_path / "run" / rundir.MODEL).state_dict()
    assert all(torch.equal(value, tensors[f"best/{name}"]) for name, value in stored.items())
    assert any(not torch.equal(value, tensors[f"model/{name}"]) for name, value in stored.items())


def test_a_network_that_was_lost_comes_back_with_the_run(tmp_path: Path) -> None:
    cut_off(tiny(), tmp_path / "run", 2)
    before = load_network(tmp_path / "run" / rundir.MODEL).state_dict()
    (tmp_path / "run" / rundir.MODEL).unlink()
    cut_off(tiny(), tmp_path / "run", 2)
    again = load_network(tmp_path / "run" / rundir.MODEL).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in before.items())


def test_commands_use_it_and_the_run_that_goes_on_forgets_what_they_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cut_off(tiny(), Path("run"), 3)
    for line in (
        "evaluate run --steps 2 4",
        "export run --samples 32 --no-report",
        "complexity run --samples 32",
        "predict run",
        "program run --chips 1 --times 20 --samples 32 --no-report",
    ):
        with pytest.warns(UserWarning, match=WARNS):
            assert cli.main(shlex.split(line)) == 0, line
    words = "-m spikebridge complexity run --samples 32 --overwrite"
    command = [sys.executable, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == f"spikebridge: run: {WARNS}\n"
    none = (rundir.RTL, rundir.PREDICTIONS[1])
    made = [Path("run") / name for name in rundir.MADE if name not in none]
    assert all(path.exists() for path in made)
    training.run(tiny(), Path("run"), resume=True)
    assert not any(path.exists() for path in made)


def test_music_of_a_run_that_was_cut_off_is_composed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write_mat(tmp_path / "mine" / "songs.mat", toy_songs())
    settings = {"data_dir": str(tmp_path / "mine"), "hidden": (5,), "epochs": 3, "threads": 1}
    cut_off(preset("music", "snu", "mat", **settings), tmp_path / "run", 2)
    with pytest.warns(UserWarning, match=WARNS):
        assert (
            cli.main(["compose", str(tmp_path / "run"), "--frames", "4", "--prompt-frames", "2"])
            == 0
        )
    assert (tmp_path / "run" / rundir.COMPOSITION[0]).exists()


def test_text_of_a_run_that_was_cut_off_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"my.{split}.txt").write_text("some words and some more\n" * 20)
    settings = {"data_dir": str(tmp_path), "hidden": (5,), "epochs": 3, "threads": 1}
    cut_off(preset("text", "softsnu", "files", **settings), tmp_path / "run", 2)
    with pytest.warns(UserWarning, match=WARNS):
        assert cli.main(["sample", "text", str(tmp_path / "run"), "--length", "3"]) == 0
    assert len(capsys.readouterr().out.split()) >= 1


def test_a_search_writes_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.network, "save_network", None)  # a call would fail
    assert training.validate(tiny(epochs=1))
