"""Experiments: repeatability, what stops a run, the test, activity, examples, learning rates."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_runs import left, tiny
from safetensors.torch import load_file
from torch import Tensor

from spikebridge import data as tasks
from spikebridge.base.records import RunError, UsageError
from spikebridge.data.images import Digits
from spikebridge.data.task import Batch
from spikebridge.nn.kernels import native
from spikebridge.nn.network import LayerTrace, Observation, build, load_network
from spikebridge.runs import environment, evaluation, optimizers, rundir
from spikebridge.runs import training as experiment
from spikebridge.settings import published
from spikebridge.settings.config import data_name, preset
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.tasks import TASKS


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    experiment.run(tiny(), directory)
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


def test_a_backend_that_cannot_serve_is_found_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "missing", "there was no compiler")
    with pytest.raises(UsageError, match=r"backend=native.*there was no compiler"):
        experiment.run(tiny(backend="native"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_update_whose_gradient_overflows_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, calls = experiment._Run._clip, []

    def overflowing(self: Any) -> Tensor:
        calls.append(None)
        if len(calls) > 1:
            return clip(self)
        for parameter in self.parameters:
            parameter.grad.fill_(math.inf)
        return torch.tensor(math.inf)

    monkeypatch.setattr(experiment._Run, "_clip", overflowing)
    experiment.run(tiny(), tmp_path / "run")
    lines = (tmp_path / "run" / rundir.METRICS).read_text().splitlines()
    assert [json.loads(line)["skipped"] for line in lines] == [1] + [0] * (len(lines) - 1)
    weights = load_file(tmp_path / "run" / rundir.MODEL)
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_an_average_goes_on_from_the_updates_that_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a step that was left out nothing entered it, before and after a stop."""
    clip = experiment._Run._clip

    def overflowing(self: Any) -> Tensor:
        return torch.tensor(math.inf) if self.state.step == 1 else clip(self)

    class Stop(experiment.Silent):
        def epoch(self, record: Any) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(experiment._Run, "_clip", overflowing)
    config = tiny(epochs=2, ema=0.999)
    whole = experiment.run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path / "cut", progress=Stop())
    experiment.run(config, tmp_path / "cut", resume=True)
    weights, again = (load_file(tmp_path / name / rundir.MODEL) for name in ("whole", "cut"))
    assert whole.epochs == 2
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_gradients_that_always_overflow_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment._Run, "_clip", lambda self: torch.tensor(math.nan))
    with pytest.raises(RunError, match="gradient norm of every update") as told:
        experiment.run(tiny(), tmp_path / "run")
    # A lower clip norm cannot mend an infinite one.
    assert str(told.value).endswith("and --surrogate-width 0.5 (now 1) or a lower --lr (now 0.02)")
    with pytest.raises(RunError, match=r"--reset gate \(now none\) or a lower --lr"):
        experiment.run(tiny(reset="none"), tmp_path / "none")
    with pytest.raises(RunError, match=r"--overwrite and a lower --lr \(now"):
        experiment.run(tiny(unit="lstm"), tmp_path / "lstm")


def test_what_is_advised_keeps_gradients_through_many_recurrent_steps_finite() -> None:
    """Weights as grown in training; 1,301 steps as in recordings of a heart."""
    x = torch.randn(1301, 8, 4, generator=torch.Generator().manual_seed(0)) * 0.7

    def norm(grown: float, **settings: Any) -> float:
        settings |= {"decay_to": 0.995, "train_decay": True}
        model = ModelConfig(hidden=(36,), recurrent=True, **settings)
        torch.manual_seed(1)
        network = build(model, 4, 6, "each")
        with torch.no_grad():
            network.layers[0].recurrent.mul_(grown)
        network(x)[0].square().mean().backward()
        grads = [p.grad.double() for p in network.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    assert not norm(4.0) < 1e6
    assert norm(4.0, surrogate_width=0.5) < 10
    # Without a reset gradients grow at smaller weights already.
    assert norm(2.0, reset="none") > 1e6
    assert norm(2.0) < 10


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
    assert score == (result.test_loss, result.test, result.baselines["largest class"])
    assert activity.spikes_per_inference == result.spikes_per_inference
    assert activity.firing_rates == result.firing_rates
    spikes = result.firing_rates["layer1"] * 8 * config.task.steps  # type: ignore[union-attr]
    assert spikes == pytest.approx(result.spikes_per_inference)


def test_units_without_spikes_have_an_activity(tmp_path: Path) -> None:
    result = experiment.run(tiny("softsnu", epochs=1), tmp_path / "run")
    assert (result.spikes_per_inference, result.firing_rates) == (None, {})
    assert 0 < result.mean_activity["layer1"] < 1


@pytest.mark.parametrize("unit", ["relu", "tanh"])
def test_units_without_memory_learn_and_have_an_activity(tmp_path: Path, unit: str) -> None:
    result = experiment.run(
        tiny(unit, hidden=(32,), batch_size=32, dropout=0.0, steps=1), tmp_path / "run"
    )
    assert result.test > 0.9
    assert (result.spikes_per_inference, result.firing_rates) == (None, {})
    assert 0 < result.mean_activity["layer1"] < 5
    with np.load(tmp_path / "run" / rundir.EXAMPLES, allow_pickle=False) as archive:
        assert "layer1_s" not in archive.files  # there is no membrane
        assert bool((archive["layer1_y"] < 0).any()) == (unit == "tanh")


class Padded:
    """A task and a network in one: two songs of 3 and 1 real frames, spikes in every frame."""

    training, metric, carries_state = False, "nll", False
    symbols, readout, output_names = False, "each", ()
    layers = ()

    def batches(self, *_: object) -> list[Batch]:
        mask = torch.tensor([[1, 1], [1, 0], [1, 0]], dtype=torch.bool)
        return [Batch(torch.zeros(3, 2, 4), torch.zeros(3, 2, 5), mask)]

    def observe(
        self, x: Tensor, state: Any = None, membranes: bool = False, mask: Any = None
    ) -> Observation:
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
    assert score == (2.0, 3.0, 0.0)
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
        "layer1_threshold": (8,),
    }
    stored = load_network(whole / rundir.MODEL).layers[0].unit.threshold.detach().numpy()
    assert np.array_equal(found["layer1_threshold"], stored)
    fired, above = found["layer1_y"] > 0, found["layer1_s"] > found["layer1_threshold"]
    assert np.array_equal(fired, above)
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
    started = Path(environment.__file__).parents[1] / "__main__.py"  # python -m spikebridge
    assert environment.command([str(started), "info"]) == ["spikebridge", "info"]
    assert environment.command(["/home/ann/__main__.py"]) == ["__main__.py"]


def test_learning_rates() -> None:
    def rates(schedule: str) -> list[float]:
        train = tiny(lr=1.0, schedule=schedule).train
        return [optimizers.learning_rate(train, step, 20) for step in range(21)]

    assert rates("constant") == [1.0] * 21
    cosine = rates("cosine")
    assert (cosine[0], cosine[10]) == (1.0, pytest.approx(0.5))
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[20] == pytest.approx(0)
    onecycle = rates("onecycle")
    assert onecycle[:3] == [0.5, 1.0, 1.0]
    assert onecycle[2:] == sorted(onecycle[2:], reverse=True)
    assert min(onecycle[:20]) > 0


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_sgd_keeps_its_momentum(momentum: float) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    wanted, running = weight.detach().clone(), torch.zeros_like(weight)
    train = tiny(optimizer="sgd", lr=0.1, momentum=momentum).train
    optimizer = optimizers.make_optimizer(train, [weight])
    for _ in range(4):
        weight.grad = torch.randn_like(weight)
        running = momentum * running + weight.grad
        wanted -= 0.1 * running
        optimizer.step()
    torch.testing.assert_close(weight.detach(), wanted)


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_gradients_are_scaled_down_to_the_limit_and_no_further(
    tmp_path: Path, limit: float
) -> None:
    run = experiment._Run(tiny(clip_norm=limit), tmp_path, experiment.Silent(), None)
    for number, parameter in enumerate(run.parameters[1:]):  # the first one has no gradient
        parameter.grad = torch.full_like(parameter, number + 1.0)
    before = torch.cat([p.grad.flatten() for p in run.parameters[1:]])
    assert float(run._clip()) == pytest.approx(float(before.norm()))
    after = torch.cat([p.grad.flatten() for p in run.parameters[1:]])
    if limit == 0.5:
        torch.testing.assert_close(after, before * (limit / before.norm()))
    else:
        assert torch.equal(after, before)


def test_published_figures() -> None:
    for (data, _), figures in published.PUBLISHED.items():
        assert figures
        for figure in figures:
            assert len(figure.source) > 20
            bounds = {
                "jsb": (5, 12),
                "nottingham": (2, 6),
                "ptb word": (40, 200),
                "ptb char": (1, 2),
                "qtdb": (0.8, 0.9),
            }
            name = " ".join(data.split()[:2])
            low, high = bounds.get(name, (0.9, 1))
            assert low < figure.value < high
    best = published.headline(preset("music", "recurrent-softsnu"))
    assert best is not None
    assert best.value == 8.39
    for unit, hidden, known in (
        ("snu", (256,) * 6, 0.9847),
        ("softsnu", (256,) * 3, 0.9850),
        ("snu", (100,), 0.9451),
        ("li-snu", (100,), 0.9382),
        ("binary-di", (512, 512), 0.98),
    ):
        told = published.headline(preset("digits", unit, "mnist", hidden=hidden))
        assert told is not None
        assert told.value == known, (unit, hidden)
    for unit in ("snu", "softsnu", "lstm"):  # of other shapes the chart says nothing
        assert published.headline(preset("digits", unit, "mnist", hidden=(256, 256))) is None
    rows = preset("digits", "snu", "mnist", hidden=(256,) * 6, coding="rows")
    assert published.headline(rows) is None
    for hidden in ((256,) * 6, (256,) * 3, (100,)):  # nor does any source of distortions
        bent = preset("digits", "snu", "mnist", hidden=hidden, elastic=1.0)
        assert published.headline(bent) is None
    convolutions = {"channels": (32, 64, 64), "elastic": 1.5}
    bent = published.headline(preset("digits", "snu", "mnist", **convolutions))
    assert bent is not None
    assert bent.value == 0.9953
    rounded = preset("digits", "snu", "mnist", hidden=(256,) * 6, weight_bits=3)
    assert published.headline(rounded) is None
    assert published.headline(preset("digits")) is None
    for task, folder in (("digits", "mnist"), ("music", "jsb"), ("text", "ptb"), ("npz", "mnist")):
        own = preset(task, "snu", TASKS[task].OWN_DATA, data_dir=f"mine/{folder}")
        assert data_name(own) == folder
        assert published.headline(own) is None, "a folder of the user's that has a known name"
    assert published.headline(preset("forecast", "snu", file="mine/jsb.csv")) is None
    assert data_name(preset("npz", "snu", data_dir="mine/v1.2")) == "v1.2"
    assert data_name(preset("forecast", "snu", file="mine/v1.2.csv")) == "v1.2"


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

    monkeypatch.setattr(experiment, "board", lambda *_: Board())
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
