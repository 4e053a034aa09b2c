"""Experiments: the same bits after any interruption, and rules for what lies in a folder."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spikebridge import checkpoint, environment, evaluation, experiment, published, rundir, tasks
from spikebridge.config import Config, override, preset, to_dict
from spikebridge.kernels import native
from spikebridge.network import LayerTrace, Observation, load_network
from spikebridge.records import RunError, UsageError
from spikebridge.tasks.base import Batch
from spikebridge.tasks.digits import Digits

TINY = {"hidden": (8,), "steps": 4, "epochs": 3, "batch_size": 256, "threads": 1, "dropout": 0.2}


def tiny(unit: str = "snu", **settings: Any) -> Config:
    return override(preset("digits", unit), **(TINY | settings))


def left(directory: Path) -> dict[str, Any]:
    """All that a run has left which must repeat bit for bit."""
    epochs = [json.loads(line) for line in (directory / rundir.METRICS).read_text().splitlines()]
    for record in epochs:
        del record["seconds"]
    result = json.loads((directory / rundir.RESULT).read_text())
    del result["seconds"]
    tensors = {
        f"{name}/{key}": value.numpy().tobytes()
        for name in (rundir.MODEL, rundir.CHECKPOINT)
        for key, value in load_file(directory / name).items()
    }
    with np.load(directory / rundir.EXAMPLES, allow_pickle=False) as archive:
        arrays = {name: archive[name].tobytes() for name in archive.files}
    return {"epochs": epochs, "result": result, "tensors": tensors, "examples": arrays}


class Interrupting(experiment.Silent):
    """Raises KeyboardInterrupt at a moment."""

    def __init__(self, epoch: int, share: float | None = None) -> None:
        self.at, self.share = epoch, share

    def batch(self, epoch: int, share: float) -> None:
        if self.share is not None and epoch == self.at and share >= self.share:
            raise KeyboardInterrupt

    def epoch(self, record: dict[str, Any]) -> None:
        if self.share is None and record["epoch"] == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    experiment.run(tiny(), directory)
    return directory


@pytest.fixture
def complete(tmp_path: Path, whole: Path) -> Path:
    """A copy of it that a test may damage."""
    directory = tmp_path / "run"
    directory.mkdir()
    for path in whole.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


def test_the_same_seed_gives_the_same_bits_and_another_one_others(
    tmp_path: Path, whole: Path
) -> None:
    experiment.run(tiny(), tmp_path / "again")
    assert left(tmp_path / "again") == left(whole)
    experiment.run(tiny(seed=1), tmp_path / "other")
    assert left(tmp_path / "other")["tensors"] != left(whole)["tensors"]


def test_two_threads_give_the_same_bits_too(tmp_path: Path) -> None:
    config = tiny(threads=2, hidden=(64, 64), batch_size=64, epochs=1)
    for name in ("one", "two"):
        experiment.run(config, tmp_path / name)
    assert left(tmp_path / "one") == left(tmp_path / "two")


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_resume_equals_uninterrupted(
    tmp_path: Path, whole: Path, epoch: int, share: float | None
) -> None:
    directory = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        experiment.run(tiny(), directory, progress=Interrupting(epoch, share))
    assert not rundir.is_complete(directory)
    experiment.run(tiny(), directory, resume=True)
    assert left(directory) == left(whole)


SETTINGS = [
    {"unit": "softsnu", "optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.01},
    {"unit": "recurrent-snu", "schedule": "onecycle", "same_mask": True},
    {"unit": "snu", "optimizer": "sgd", "clip_norm": 0, "train_decay": True, "coding": "rows"},
    {"unit": "lstm", "coding": "current", "patience": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s["unit"])
def test_resume_equals_uninterrupted_for_all_that_has_state(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = tiny(**settings)
    experiment.run(config, tmp_path / "whole")
    for epoch, share in ((1, None), (3, 0.5)):
        with pytest.raises(KeyboardInterrupt):
            experiment.run(
                config, tmp_path / "run", resume=True, progress=Interrupting(epoch, share)
            )
    experiment.run(config, tmp_path / "run", resume=True)
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


def write_half(tensors: dict[str, Tensor], path: Path, *_: object) -> None:
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{half of a file")


PLACES = [
    (checkpoint, "save_file", 1, write_half),
    (checkpoint, "save_file", 2, write_half),
    (rundir.os, "replace", 5, lambda *_: None),  # the first checkpoint, written but not in place
    (rundir.os, "replace", 6, lambda *_: None),  # in place, but the metrics are not
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
        experiment.run(tiny(), directory)
    monkeypatch.undo()
    assert not rundir.is_complete(directory)
    assert not list(directory.glob(".*"))
    experiment.run(tiny(), directory, resume=True)
    assert left(directory) == left(whole)


KILLER = """
import json, os, signal, sys, time
import torch
torch.set_num_threads(1)  # before a fork, so that no pool of threads is lost in it
from spikebridge import experiment
from spikebridge.config import from_dict

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
    experiment.run(config, tmp_path / "run", resume=True)
    experiment.run(config, tmp_path / "whole")
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_a_complete_run_is_kept(complete: Path) -> None:
    before = left(complete)
    with pytest.raises(UsageError, match=r"a complete run.*--resume.*--overwrite"):
        experiment.run(tiny(), complete)
    result = experiment.run(tiny(), complete, resume=True)
    assert result == rundir.read_result(complete)
    assert result.to_dict() == json.loads((complete / rundir.RESULT).read_text())
    assert left(complete) == before


def test_overwrite_starts_anew_and_touches_nothing_else(complete: Path) -> None:
    (complete / "notes.txt").write_text("mine")
    (complete / ".result.json.part").write_text("left behind by a killed process")
    (complete / rundir.REPORT).write_text("old")
    experiment.run(tiny(seed=5), complete, overwrite=True)
    assert rundir.read_result(complete).seed == 5
    assert (complete / "notes.txt").read_text() == "mine"
    assert not (complete / rundir.REPORT).exists()
    assert not list(complete.glob(".*"))
    with pytest.raises(UsageError, match="exclude each other"):
        experiment.run(tiny(), complete, overwrite=True, resume=True)


def test_an_incomplete_run_wants_a_decision(complete: Path) -> None:
    (complete / rundir.RESULT).unlink()
    with pytest.raises(UsageError, match=r"an incomplete run.*--resume.*--overwrite"):
        experiment.run(tiny(), complete)


@pytest.mark.parametrize("is_complete", [True, False])
def test_resume_with_other_settings_names_them(complete: Path, is_complete: bool) -> None:
    if not is_complete:
        (complete / rundir.RESULT).unlink()
    expected = r"lr \(0\.02 there, 0\.5 asked for\), seed \(0 there, 7 asked for\)"
    with pytest.raises(UsageError, match=expected):
        experiment.run(tiny(lr=0.5, seed=7), complete, resume=True)


def test_missing_data_cost_nothing(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: object) -> None:
        raise UsageError("no data")

    monkeypatch.setattr(tasks, "load", missing)
    with pytest.raises(UsageError, match="no data"):
        experiment.run(tiny(seed=1), complete, overwrite=True)
    assert rundir.read_result(complete).seed == 0
    with pytest.raises(UsageError, match="no data"):
        experiment.run(tiny(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_backend_that_cannot_serve_is_found_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "missing", "there was no compiler")
    with pytest.raises(UsageError, match=r"backend=native.*there was no compiler"):
        experiment.run(tiny(backend="native"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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
    experiment.run(tiny(hidden=(9,), epochs=1), other)
    (other / rundir.CHECKPOINT).replace(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncated, "damaged"),
        (damage_empty, "damaged"),
        (damage_bit, "checksum"),
        (damage_version, "expected spikebridge-checkpoint version 1, found .* version 9"),
        (damage_shapes, r"has shape \(9.*needs \(8"),
    ],
)
def test_a_damaged_checkpoint(complete: Path, damage: Callable[[Path], None], message: str) -> None:
    (complete / rundir.RESULT).unlink()
    path = complete / rundir.CHECKPOINT
    damage(path)
    with pytest.raises(checkpoint.CheckpointError, match=message) as caught:
        experiment.run(tiny(), complete, resume=True)
    assert str(path) in str(caught.value)
    assert "--overwrite" in str(caught.value)


def test_a_network_file_is_no_checkpoint(complete: Path) -> None:
    (complete / rundir.RESULT).unlink()
    (complete / rundir.MODEL).replace(complete / rundir.CHECKPOINT)
    with pytest.raises(checkpoint.CheckpointError, match="expected spikebridge-checkpoint"):
        experiment.run(tiny(), complete, resume=True)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"task": "digits"}', '{"x": 1}'])
def test_a_damaged_result(complete: Path, text: str) -> None:
    (complete / rundir.RESULT).write_text(text)
    with pytest.raises(RunError, match=r"result\.json: .*--overwrite"):
        experiment.run(tiny(), complete, resume=True)


@pytest.mark.parametrize("text", ["{", '{"model": {"units": "snu"}}'])
def test_a_damaged_config(complete: Path, text: str) -> None:
    (complete / rundir.CONFIG).write_text(text)
    with pytest.raises(UsageError, match=r"config\.json"):
        experiment.run(tiny(), complete, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, directory, calls = tiny(), tmp_path / "run", []
    real = Digits.loss

    def loss(self: Digits, output: Tensor, batch: Batch) -> Tensor:
        calls.append(1)
        value = real(self, output, batch)
        return value * math.nan if len(calls) == 9 else value  # in epoch 2

    monkeypatch.setattr(Digits, "loss", loss)
    with pytest.raises(RunError, match=r"loss became nan in epoch 2.*after epoch 1 is kept.*--lr"):
        experiment.run(config, directory)
    assert len(calls) == 9
    assert len((directory / rundir.METRICS).read_text().splitlines()) == 1
    monkeypatch.undo()
    experiment.run(config, directory, resume=True)


def test_a_learning_rate_that_is_far_too_high(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"became (nan|inf) in epoch"):
        experiment.run(tiny(lr=1e37, clip_norm=0, unit="softsnu"), tmp_path / "run")


def judged(monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]]) -> None:
    """Let validation give these (metric, loss)."""
    coming = iter(scores)

    def evaluate(*_: object) -> evaluation.Score:
        metric, loss = next(coming)
        return evaluation.Score(loss, metric)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)


def test_early_stopping_and_the_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment.run(tiny(epochs=2, schedule="constant"), tmp_path / "two")
    judged(monkeypatch, [(0.5, 1.0), (0.7, 1.0), (0.6, 0.1), (0.7, 1.0), (0.9, 0.0)])
    result = experiment.run(tiny(epochs=9, patience=2, schedule="constant"), tmp_path / "run")
    assert (result.best_epoch, result.epochs, result.valid) == (2, 4, 0.7)
    checkpoints = [load_file(tmp_path / name / rundir.CHECKPOINT) for name in ("two", "run")]
    model = load_file(tmp_path / "run" / rundir.MODEL)
    for name, value in model.items():
        assert torch.equal(value, checkpoints[0][f"model/{name}"])
        assert torch.equal(value, checkpoints[1][f"best/{name}"])


def test_equal_metrics_are_decided_by_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, [(0.5, 1.0), (0.5, 0.9), (0.5, 0.9)])
    assert experiment.run(tiny(), tmp_path / "run").best_epoch == 2


def test_the_test_set_is_judged_once_by_the_saved_network(whole: Path) -> None:
    config, result = tiny(), rundir.read_result(whole)
    task = tasks.load(config.task)
    network = load_network(whole / rundir.MODEL)
    score, activity = evaluation.observe(
        network, task, "test", config.train.batch_size, experiment.generator(1000, "test")
    )
    assert score == (result.test_loss, result.test)
    assert activity.spikes_per_inference == result.spikes_per_inference
    assert activity.firing_rates == result.firing_rates
    spikes = result.firing_rates["layer1"] * 8 * config.task.steps  # type: ignore[union-attr]
    assert spikes == pytest.approx(result.spikes_per_inference)


def test_units_without_spikes_have_an_activity(tmp_path: Path) -> None:
    result = experiment.run(tiny("softsnu", epochs=1), tmp_path / "run")
    assert (result.spikes_per_inference, result.firing_rates) == (None, {})
    assert 0 < result.mean_activity["layer1"] < 1


class Padded:
    """A task and a network in one: two songs of 3 and 1 real frames, spikes in every frame."""

    training, metric = False, "nll"

    def batches(self, *_: object) -> list[Batch]:
        mask = torch.tensor([[1, 1], [1, 0], [1, 0]], dtype=torch.bool)
        return [Batch(torch.zeros(3, 2, 4), torch.zeros(3, 2, 5), mask)]

    def observe(self, x: Tensor, membranes: bool = False) -> Observation:
        y = torch.ones(3, 2, 7)
        spiking = LayerTrace("a", y, None, True)
        dense = LayerTrace("b", -0.5 * y, None, False)
        return Observation(torch.zeros(3, 2, 5), (), (spiking, dense))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return torch.tensor(2.0)

    def score(self, output: Tensor, batch: Batch) -> tuple[float, int]:
        return 12.0, 4

    def eval(self) -> None:
        pass

    def train(self, mode: bool) -> None:
        pass


def test_padding_counts_nowhere(tmp_path: Path) -> None:
    padded: Any = Padded()
    score, activity = evaluation.observe(padded, padded, "test", 2, torch.Generator())
    assert score == (2.0, 3.0)
    assert activity == (4 * 7 / 2, {"layer1": 1.0}, {"layer2": 0.5})
    evaluation.write_examples(tmp_path / "x.npz", padded, padded, 2, torch.Generator())
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert archive["length"].tolist() == [3, 1]
        assert archive["target"].shape == archive["output"].shape == (3, 2, 5)


def test_examples(whole: Path) -> None:
    with np.load(whole / rundir.EXAMPLES, allow_pickle=False) as archive:
        found = {name: archive[name] for name in archive.files}
    shapes = {name: array.shape for name, array in found.items()}
    assert shapes == {
        "x": (4, 6, 64),
        "output": (6, 10),
        "target": (6,),
        "length": (6,),
        "layer1_y": (4, 6, 8),
        "layer1_s": (4, 6, 8),
    }
    assert len(set(found["target"].tolist())) == 6
    assert np.allclose(found["output"].sum(1), 1)
    assert set(np.unique(found["layer1_y"])) <= {0, 1}


def test_environment_names_no_folders_of_the_user(whole: Path) -> None:
    text = (whole / rundir.ENVIRONMENT).read_text()
    facts = json.loads(text)
    assert facts["threads"] == 1
    assert facts["torch"] == torch.__version__
    assert str(Path.home()) not in text
    assert environment.command(
        ["/home/ann/bin/spikebridge", "train", "--out=/home/ann/x", "~/y", "../z/w", "runs/a"]
    ) == ["spikebridge", "train", "--out=x", "y", "w", "runs/a"]


def test_learning_rates() -> None:
    def rates(schedule: str) -> list[float]:
        train = tiny(lr=1.0, schedule=schedule).train
        return [experiment.learning_rate(train, step, 20) for step in range(21)]

    assert rates("constant") == [1.0] * 21
    cosine = rates("cosine")
    assert (cosine[0], cosine[10]) == (1.0, pytest.approx(0.5))
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[20] == pytest.approx(0)
    onecycle = rates("onecycle")
    assert onecycle[:3] == [0.5, 1.0, 1.0]
    assert onecycle[2:] == sorted(onecycle[2:], reverse=True)
    assert min(onecycle[:20]) > 0


def test_published_figures() -> None:
    for (data, _), figures in published.PUBLISHED.items():
        assert sum(figure.headline for figure in figures) == 1
        for figure in figures:
            assert len(figure.source) > 20
            assert 5 < figure.value < 12 if data == "jsb" else 0.9 < figure.value < 1
    best = published.headline(preset("music", "recurrent-softsnu"))
    assert best is not None
    assert best["value"] == 8.39
    assert published.headline(preset("digits", "snu", "mnist")) is not None
    assert published.headline(override(preset("digits", "snu", "mnist"), coding="rows")) is None
    assert published.headline(preset("digits")) is None


def test_threads_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    experiment.run(tiny(threads=2, epochs=1), tmp_path / "run")
    assert torch.get_num_threads() == before
    assert json.loads((tmp_path / "run" / rundir.ENVIRONMENT).read_text())["threads"] == 2


def test_tensorboard_is_told_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []

    class Board:
        def add_scalar(self, name: str, value: float, epoch: int) -> None:
            told.append((name, epoch))

        def close(self) -> None:
            told.append(("closed", 0))

    monkeypatch.setattr(experiment, "_board", lambda *_: Board())
    experiment.run(tiny(epochs=1), tmp_path / "run")
    assert ("valid", 1) in told
    assert told[-1] == ("closed", 0)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    rundir.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        rundir.write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["file.json"]
