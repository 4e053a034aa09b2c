"""Interrupted and earlier runs: equal bits after a resume, what may be touched, damage."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_runs import left, tiny
from safetensors import safe_open
from safetensors.torch import save_file

from spikebridge import data as tasks
from spikebridge.base import storage
from spikebridge.base import tensors as tensor_files
from spikebridge.base.records import RunError, UsageError, to_plain
from spikebridge.base.tensors import digest
from spikebridge.runs import checkpoint, evaluation, rundir, training
from spikebridge.settings.config import to_dict
from spikebridge.studies import compare, plan


class Interrupting(training.Silent):
    """Raises KeyboardInterrupt at a moment."""

    def __init__(self, epoch: int, share: float | None = None) -> None:
        self.at, self.share = epoch, share

    def batch(self, epoch: int, share: float) -> None:
        if self.share is not None and epoch == self.at and share >= self.share:
            raise KeyboardInterrupt

    def epoch(self, record: Any) -> None:
        if self.share is None and record.epoch == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    training.run(tiny(), directory)
    return directory


@pytest.fixture
def complete(tmp_path: Path, whole: Path) -> Path:
    """A copy of it that a test may damage."""
    directory = tmp_path / "run"
    directory.mkdir()
    for path in whole.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_resume_equals_uninterrupted(
    tmp_path: Path, whole: Path, epoch: int, share: float | None
) -> None:
    directory = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        training.run(tiny(), directory, progress=Interrupting(epoch, share))
    assert not rundir.is_complete(directory)
    training.run(tiny(), directory, resume=True)
    assert left(directory) == left(whole)


SETTINGS = [
    {"unit": "softsnu", "optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.01},
    {"unit": "recurrent-snu", "schedule": "onecycle", "same_mask": True},
    {"unit": "snu", "optimizer": "sgd", "clip_norm": 0, "train_decay": True, "coding": "rows"},
    {"unit": "lstm", "coding": "current", "patience": 2},
    {"unit": "relu", "norm": True, "centre": True, "optimizer": "sgd"},
    {"unit": "snu", "hidden": (8, 8), "rule": "fa", "grapes": "propagated", "grapes_clip": False},
    {"unit": "relu", "hidden": (8, 8, 8), "rule": "dfa", "grapes": "outgoing"},
    {"unit": "recurrent-softsnu", "rule": "drtp", "grapes": "local", "grapes_control": "gain"},
    {"unit": "snu", "rule": "ostl", "hidden": (8, 8)},
    {"unit": "recurrent-snu", "rule": "eprop"},
    {"unit": "snu", "grapes": "propagated", "cells": "accumulation", "epsilon": 0.05},
    {"unit": "snu", "grapes": "propagated", "weight_noise": 0.05},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_resume_equals_uninterrupted_for_all_that_has_state(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = tiny(**settings)
    training.run(config, tmp_path / "whole")
    for epoch, share in ((1, None), (3, 0.5)):
        with pytest.raises(KeyboardInterrupt):
            training.run(config, tmp_path / "run", resume=True, progress=Interrupting(epoch, share))
    training.run(config, tmp_path / "run", resume=True)
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def stopping(call: int, real: Callable, before: Callable[..., None] = lambda *_: None) -> Callable:
    """`real`, but the call of that number is interrupted after `before`."""
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            before(*args)
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    return wrapped


PLACES = [
    (tensor_files, "save", 1, lambda *_: None),
    (tensor_files, "save", 2, lambda *_: None),
    (storage.os, "fsync", 4, lambda *_: None),  # the first checkpoint, in its temporary file
    (storage.os, "replace", 5, lambda *_: None),  # the first checkpoint, written but not in place
    (storage.os, "replace", 6, lambda *_: None),  # in place, but the metrics are not
    (evaluation, "observe", 1, lambda *_: None),
    (evaluation, "write_examples", 1, lambda *_: None),
    (rundir, "write_json", 3, lambda *_: None),  # the result
]


@pytest.mark.parametrize(("module", "name", "call", "before"), PLACES)
def test_resume_after_an_interruption_while_something_is_written(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    call: int,
    before: Callable,
) -> None:
    directory = tmp_path / "run"
    monkeypatch.setattr(module, name, stopping(call, getattr(module, name), before))
    with pytest.raises(KeyboardInterrupt):
        training.run(tiny(), directory)
    monkeypatch.undo()
    assert not rundir.is_complete(directory)
    assert not list(directory.glob(".*"))
    training.run(tiny(), directory, resume=True)
    assert left(directory) == left(whole)


KILLER = """
import json, os, signal, sys, time
import torch
torch.set_num_threads(1)  # before a fork, so that no pool of threads is lost in it
from spikebridge.runs import training as experiment
from spikebridge.settings.config import from_dict

config, directory, delays = from_dict(json.loads(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3])
killed = 0
for delay in delays:
    pid = os.fork()
    if not pid:
        experiment.run(config, directory, resume=True)
        os._exit(0)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
print(killed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_resume_after_kill_at_any_moment(tmp_path: Path) -> None:
    config, chance = tiny(epochs=40), random.Random(1)
    delays = [chance.uniform(0.02, 0.4) for _ in range(8)]
    arguments = [json.dumps(to_dict(config)), str(tmp_path / "run"), json.dumps(delays)]
    killed = subprocess.check_output([sys.executable, "-c", KILLER, *arguments], text=True)
    assert int(killed) >= 2
    training.run(config, tmp_path / "run", resume=True)
    training.run(config, tmp_path / "whole")
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_a_complete_run_is_kept(complete: Path) -> None:
    before = left(complete)
    with pytest.raises(UsageError, match=r"a complete run.*resume=True.*overwrite=True"):
        training.run(tiny(), complete)
    result = training.run(tiny(), complete, resume=True)
    assert result == rundir.read_result(complete)
    assert to_plain(result) == json.loads((complete / rundir.RESULT).read_text())
    assert left(complete) == before


def test_overwrite_starts_anew_and_touches_nothing_else(complete: Path) -> None:
    (complete / "notes.txt").write_text("mine")
    (complete / ".result.json.part").write_text("left behind by a killed process")
    (complete / rundir.REPORT).write_text("old")
    training.run(tiny(seed=5), complete, overwrite=True)
    assert rundir.read_result(complete).seed == 5
    assert (complete / "notes.txt").read_text() == "mine"
    assert not (complete / rundir.REPORT).exists()
    assert not list(complete.glob(".*"))
    with pytest.raises(UsageError, match="exclude each other"):
        training.run(tiny(), complete, overwrite=True, resume=True)


def test_an_incomplete_run_wants_a_decision(complete: Path) -> None:
    (complete / rundir.RESULT).unlink()
    with pytest.raises(UsageError, match=r"an incomplete run.*resume=True.*overwrite=True"):
        training.run(tiny(), complete)


@pytest.mark.parametrize("is_complete", [True, False])
def test_resume_with_other_settings_names_them(complete: Path, is_complete: bool) -> None:
    if not is_complete:
        (complete / rundir.RESULT).unlink()
    expected = r"lr \(0\.02 there, 0\.5 asked for\), seed \(0 there, 7 asked for\)"
    with pytest.raises(UsageError, match=expected):
        training.run(tiny(lr=0.5, seed=7), complete, resume=True)


def test_missing_data_cost_nothing(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: object) -> None:
        raise UsageError("no data")

    monkeypatch.setattr(tasks, "load", missing)
    with pytest.raises(UsageError, match="no data"):
        training.run(tiny(seed=1), complete, overwrite=True)
    assert rundir.read_result(complete).seed == 0
    with pytest.raises(UsageError, match="no data"):
        training.run(tiny(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def damage_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


def damage_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"version":"1"', b'"version":"9"'))


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_shapes(path: Path) -> None:
    """A checkpoint of a wider network in its place."""
    other = path.parent.parent / "wider"
    training.run(tiny(hidden=(9,), epochs=1), other)
    (other / rundir.CHECKPOINT).replace(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncated, "damaged"),
        (damage_empty, "damaged"),
        (damage_bit, "checksum"),
        (damage_version, "checkpoint 9', this version reads 'spikebridge-checkpoint 1'"),
        (damage_shapes, r"other settings: model.hidden \(\[9\] there, \[8\] here\), train.epochs"),
    ],
)
def test_a_damaged_checkpoint(complete: Path, damage: Callable[[Path], None], message: str) -> None:
    (complete / rundir.RESULT).unlink()
    path = complete / rundir.CHECKPOINT
    damage(path)
    with pytest.raises(checkpoint.CheckpointError, match=message) as caught:
        training.run(tiny(), complete, resume=True)
    assert str(path) in str(caught.value)
    assert "--overwrite" in str(caught.value)


def test_a_network_file_is_no_checkpoint(complete: Path) -> None:
    (complete / rundir.RESULT).unlink()
    (complete / rundir.MODEL).replace(complete / rundir.CHECKPOINT)
    with pytest.raises(
        checkpoint.CheckpointError, match="this version reads 'spikebridge-checkpoint 1'"
    ):
        training.run(tiny(), complete, resume=True)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"task": "digits"}', '{"x": 1}'])
def test_a_damaged_result(complete: Path, text: str) -> None:
    (complete / rundir.RESULT).write_text(text)
    with pytest.raises(RunError, match=r"result\.json: .*--overwrite"):
        training.run(tiny(), complete, resume=True)


@pytest.mark.parametrize("text", ["{", '{"model": {"units": "snu"}}'])
def test_a_damaged_config(complete: Path, text: str) -> None:
    (complete / rundir.CONFIG).write_text(text)
    with pytest.raises(UsageError, match=r"config\.json"):
        training.run(tiny(), complete, resume=True)


def crafted(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the progress and the tensors of a checkpoint, under a right checksum."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    progress = json.loads(metadata["progress"])
    change(progress, tensors)
    text = progress.pop("text", None) or json.dumps(progress)
    metadata |= {"progress": text, "sha256": digest(tensors, text)}
    save_file(tensors, path, metadata)


def with_record(**values: Any) -> Callable:
    return lambda progress, tensors: progress["history"][0].update(values)


def without(*keys: str) -> Callable:
    def change(progress: dict[str, Any], tensors: dict[str, Any]) -> None:
        for key in keys:
            (progress if key in progress else tensors).pop(key)

    return change


def with_tensor(name: str, value: Any) -> Callable:
    return lambda progress, tensors: tensors.update({name: value})


HOSTILE = {
    "no step": without("step"),
    "no history": without("history"),
    "step is text": lambda progress, _: progress.update(step="3"),
    "step is true": lambda progress, _: progress.update(step=True),
    "step below 0": lambda progress, _: progress.update(step=-1),
    "history is a number": lambda progress, _: progress.update(history=3),
    "history of numbers": lambda progress, _: progress.update(history=[1, 2]),
    "settings are a list": lambda progress, _: progress.update(settings=[1]),
    "no JSON": lambda progress, _: progress.update(text="{"),
    "a list": lambda progress, _: progress.update(text="[]"),
    "null": lambda progress, _: progress.update(text="null"),
    "deep": lambda progress, _: progress.update(text="[" * 100_000),
    "epoch 7": with_record(epoch=7),
    "loss is text": with_record(train_loss="0.5"),
    "loss is NaN": with_record(train_loss=float("nan")),
    "no loss": lambda progress, _: progress["history"][0].pop("valid_loss"),
    "best is text": with_record(best="yes"),
    "valid is null": with_record(valid=None),
    "seconds beyond floats": with_record(seconds=10**400),
    "no generator": without("rng/torch"),
    "no generator of data": without("rng/data"),
    "generator too short": with_tensor("rng/torch", torch.zeros(3, dtype=torch.uint8)),
    "generator of floats": with_tensor("rng/data", torch.zeros(5056)),
    "garbage for a generator": with_tensor("rng/data", torch.full((5056,), 255).byte()),
    "a weight of bytes": with_tensor("model/readout.linear.bias", torch.zeros(10).to(torch.int8)),
    "no best weight": without("best/readout.linear.bias"),
    "a moment by name": with_tensor("optimizer/x/exp_avg", torch.zeros(())),
    "a moment too many": with_tensor("optimizer/99/exp_avg", torch.zeros(())),
    "a moment below 0": with_tensor("optimizer/-1/exp_avg", torch.zeros(())),
    "a moment without a name": with_tensor("optimizer/0", torch.zeros(())),
    "an unknown moment": with_tensor("optimizer/0/exp", torch.zeros(())),
    "a missing moment": without("optimizer/0/exp_avg"),
    "a moment of whole numbers": with_tensor("optimizer/0/step", torch.tensor(3)),
    "two counts": with_tensor("more/averaged", torch.tensor([1, 2])),
    "a count that is no number": with_tensor("more/averaged", torch.tensor(0.5)),
    "an average of nobody": with_tensor("average/x", torch.tensor(0.5)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_with_a_right_checksum_and_wrong_contents(complete: Path, name: str) -> None:
    (complete / rundir.RESULT).unlink()
    path = complete / rundir.CHECKPOINT
    crafted(path, HOSTILE[name])
    with pytest.raises(checkpoint.CheckpointError) as caught:
        training.run(tiny(), complete, resume=True)
    assert str(path) in str(caught.value)
    assert "--overwrite" in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"lr": 0.005}, {"seed": 2, "lr": 0.005}, {"eval_seed": 7}]
)
def test_the_checkpoint_of_another_run_is_refused(complete: Path, change: dict[str, Any]) -> None:
    other = complete.parent / "other"
    training.run(tiny(**change), other)
    (complete / rundir.RESULT).unlink()
    (other / rundir.CHECKPOINT).replace(complete / rundir.CHECKPOINT)
    with pytest.raises(checkpoint.CheckpointError) as caught:
        training.run(tiny(), complete, resume=True)
    for name, value in change.items():
        assert f"train.{name} ({value} there, " in str(caught.value)


def test_a_checkpoint_without_settings_is_known_by_its_epochs(complete: Path, whole: Path) -> None:
    """As versions before wrote them."""
    other = complete.parent / "other"
    training.run(tiny(lr=0.005), other)
    path = complete / rundir.CHECKPOINT
    for place in (complete, other):
        crafted(place / rundir.CHECKPOINT, without("settings"))
    (complete / rundir.RESULT).unlink()
    mine = path.read_bytes()
    (other / rundir.CHECKPOINT).replace(path)
    with pytest.raises(checkpoint.CheckpointError, match=r"not those of metrics\.jsonl"):
        training.run(tiny(), complete, resume=True)
    path.write_bytes(mine)
    assert training.run(tiny(), complete, resume=True).test == rundir.read_result(whole).test


def test_settings_that_a_later_version_knows_do_not_stop_a_run(complete: Path, whole: Path) -> None:
    crafted(
        complete / rundir.CHECKPOINT,
        lambda progress, _: progress["settings"]["train"].pop("eval_seed"),
    )
    (complete / rundir.RESULT).unlink()
    assert training.run(tiny(), complete, resume=True).test == rundir.read_result(whole).test


def test_shapes_are_checked_where_settings_say_nothing(complete: Path) -> None:
    other = complete.parent / "wider"
    training.run(tiny(hidden=(9,), epochs=1), other)
    crafted(other / rundir.CHECKPOINT, without("settings"))
    (complete / rundir.RESULT).unlink()
    (complete / rundir.METRICS).unlink()
    (other / rundir.CHECKPOINT).replace(complete / rundir.CHECKPOINT)
    with pytest.raises(checkpoint.CheckpointError, match=r"has shape \(9.*needs \(8"):
        training.run(tiny(), complete, resume=True)


@pytest.mark.parametrize("more", [{"overwrite": True}, {"resume": True}, {}])
def test_a_run_never_overwrites_the_one_that_it_starts_from(
    complete: Path, more: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = left(complete)
    monkeypatch.chdir(complete.parent)
    (complete.parent / "link").symlink_to(complete)
    for start, out in (("run", complete), (str(complete), "link"), ("run/../link/.", "./run")):
        with pytest.raises(UsageError, match=r"over the one that it starts from.*--out"):
            training.run(tiny(start=start, seed=1), out, **more)
    contender = plan.of_unit(tiny(start="out/snu-1"))
    planned = plan.plan([contender], [0, 1], Path("out"))
    with pytest.raises(UsageError, match=r"over the one that it starts from"):
        compare.compare(planned, Path("out"), overwrite=True)
    assert not Path("out").exists()
    assert left(complete) == before
