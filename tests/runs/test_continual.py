"""Tasks one after the other: what they are, measures, resumed runs, what EWC and SI keep."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spikebridge.base.chance import generator
from spikebridge.base.records import ConfigError, RunError, UsageError, to_plain
from spikebridge.cli import main as cli
from spikebridge.data.continual import Part
from spikebridge.data.task import Batch
from spikebridge.runs import continual, rundir, training
from spikebridge.runs.callbacks import Silent
from spikebridge.runs.checkpoint import CheckpointError
from spikebridge.runs.results import Epoch
from spikebridge.runs.teacher import Teacher
from spikebridge.runs.transfer import transfer
from spikebridge.settings.config import (
    Config,
    flatten,
    from_dict,
    override,
    preset,
    title_of,
    to_dict,
)


def tiny(**settings: Any) -> Config:
    given = {
        "protocol": "permuted",
        "hidden": (24,),
        "tasks": 3,
        "lr": 0.04,
        "batch_size": 32,
        "threads": 1,
    }
    unit = settings.pop("unit", "relu")
    return preset("digits", unit, **(given | {"fisher_samples": 40} | settings))


def begun(config: Config) -> training._Run:
    """A run that leaves nothing behind, before its first epoch."""
    run = training._Run(config, Path(tempfile.mkdtemp()), Silent(), None)
    run.keeps_model = False
    return run


def batch_of(part: Part, split: str = "valid") -> Batch:
    return next(part.batches(split, 200, generator(0, "valid")))


class Interrupting(Silent):
    """Raises KeyboardInterrupt in a pass."""

    def __init__(self, epoch: int, share: float = 0.5) -> None:
        self.at, self.share = epoch, share

    def batch(self, epoch: int, share: float) -> None:
        if epoch == self.at and share >= self.share:
            raise KeyboardInterrupt


def left(directory: Path) -> dict[str, Any]:
    """All that a run has left which must repeat bit for bit."""
    content = rundir.read_json(directory / rundir.RESULT, "")
    passes = [json.loads(line) for line in (directory / rundir.METRICS).read_text().splitlines()]
    for record in (content, *passes):
        del record["seconds"]
    tensors = {
        f"{name}/{key}": value.numpy().tobytes()
        for name in (rundir.MODEL, rundir.CHECKPOINT)
        for key, value in load_file(directory / name).items()
    }
    return {"content": content, "passes": passes, "tensors": tensors}


# What the tasks are.


def test_permuted_tasks_hold_the_same_pixels_in_orders_of_their_own() -> None:
    parts = continual.sequence(tiny(tasks=4))
    batches = [batch_of(part) for part in parts]
    for one in batches[1:]:
        assert torch.equal(one.target, batches[0].target)
        assert torch.equal(one.x.sort(-1).values, batches[0].x.sort(-1).values)
    orders = [part.order.tolist() for part in parts[1:]]
    assert parts[0].order is None
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_an_order_is_the_same_in_all_splits_and_for_all_images() -> None:
    first, part = continual.sequence(tiny(tasks=2))
    for split in ("valid", "test"):
        assert torch.equal(batch_of(first, split).x[..., part.order], batch_of(part, split).x)


def test_orders_depend_on_their_own_seed_alone() -> None:
    def orders(**settings: Any) -> list[list[int]]:
        return [part.order.tolist() for part in continual.sequence(tiny(**settings))[1:]]

    assert orders() == orders(seed=5) == orders(method="ewc", lr=0.3, unit="snu")
    assert orders() != orders(sequence_seed=1)
    assert orders(tasks=3) == orders(tasks=5)[:2]


def test_rows_are_permuted_over_all_of_the_image() -> None:
    first, part = continual.sequence(tiny(tasks=2, coding="rows"))
    plain, other = batch_of(first), batch_of(part)
    images = plain.x.transpose(0, 1).flatten(1)
    assert torch.equal(other.x.transpose(0, 1).flatten(1), images[:, part.order])


@pytest.mark.parametrize(("tasks", "each"), [(5, 2), (2, 5)])
def test_split_tasks_share_out_all_images_and_classes(tasks: int, each: int) -> None:
    whole = continual.sequence(tiny())[0]
    parts = continual.sequence(tiny(protocol="split", tasks=tasks))
    for split in ("train", "valid", "test"):
        assert sum(part.size(split) for part in parts) == whole.size(split)
    for number, part in enumerate(parts):
        found = batch_of(part).target.unique().tolist()
        assert found == list(range(each * number, each * (number + 1)))
        assert part.output_size == 10


def test_masked_heads_ask_among_the_classes_of_the_task_alone() -> None:
    shared = continual.sequence(tiny(protocol="split", tasks=5))[2]
    masked = continual.sequence(tiny(protocol="split", tasks=5, heads="masked"))[2]
    batch = batch_of(shared)
    output = torch.randn(len(batch.target), 10)
    asked, target = masked.answers(output, batch)
    assert torch.equal(asked, output[:, 4:6])
    assert torch.equal(target, batch.target - 4)
    output[:, 9] = 100.0  # a class of another task
    assert shared.score(output, batch)[0] == 0
    right = (output[:, 5] > output[:, 4]) == (batch.target == 5)
    assert masked.score(output, batch) == (float(right.sum()), len(right))
    leaf = output.requires_grad_()
    masked.loss(leaf, batch).backward()
    used = leaf.grad.abs().sum(0) > 0
    assert used.nonzero()[:, 0].tolist() == [4, 5]


def test_classes_that_cannot_be_shared_evenly_are_refused() -> None:
    with pytest.raises(ConfigError, match="pass --tasks 2"):
        continual.sequence(tiny(protocol="split", tasks=3))
    with pytest.raises(ConfigError, match="pass --tasks 5"):
        continual.sequence(tiny(protocol="split", tasks=10))


# Measures.


def test_the_measures_by_hand() -> None:
    matrix = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.7, 0.5, 1.0]]
    found = transfer(matrix, [0.1, 0.15, 0.05])
    assert found.average_accuracy == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    assert found.forgetting == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert found.backward_transfer == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    assert found.forward_transfer == pytest.approx(((0.2 - 0.15) + (0.3 - 0.05)) / 2)
    assert found.unseen == pytest.approx((0.2 + 0.1 + 0.3) / 3)


def test_forgetting_counts_from_the_best_accuracy_before_the_last_task() -> None:
    """A task may get better after its own turn; backward transfer counts from its turn."""
    found = transfer([[0.5, 0.0, 0.0], [0.9, 0.5, 0.0], [0.6, 0.5, 0.5]], [0.0] * 3)
    assert found.forgetting == pytest.approx((0.3 + 0.0) / 2)
    assert found.backward_transfer == pytest.approx((0.1 + 0.0) / 2)


def test_what_is_no_matrix_of_accuracies_is_refused() -> None:
    for matrix, first in (
        ([[0.5]], [0.5]),
        ([[0.5, 0.5]] * 2, [0.5]),
        ([[0.5], [0.5, 1.0]], [1, 1]),
    ):
        with pytest.raises(ValueError, match="T >= 2"):
            transfer(matrix, first)
    with pytest.raises(ValueError, match="not finite"):
        transfer([[0.5, float("nan")], [0.5, 0.5]], [0.5, 0.5])


# Runs.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    directory = tmp_path_factory.mktemp("continual") / "run"
    training.run(tiny(method="si", dropout=0.1), directory)
    return directory


def test_what_is_written_is_what_is_returned(whole: Path) -> None:
    config = tiny(method="si", dropout=0.1)
    result = training.run(config, whole, resume=True)
    content = rundir.read_json(whole / rundir.RESULT, "")
    assert content == json.loads(json.dumps(to_plain(result)))
    assert rundir.read_config(whole) == config
    sequence: Any = result.sequence
    assert sequence.measures == transfer(sequence.matrix, sequence.first)
    assert (sequence.tasks, sequence.chance) == (3, 0.1)
    assert result.label == "ReLU, backpropagation, SI"
    assert result.parameters == 64 * 24 + 24 * 10  # no biases
    assert np.shape(sequence.matrix) == (3, 3)
    assert min(sequence.matrix[k][k] for k in range(3)) > 0.5
    # What stands for the whole is the mean over all tasks after the last one.
    assert result.test == pytest.approx(sequence.measures.average_accuracy)
    assert result.valid == training.validation(config)
    assert result.published is None


def test_the_network_of_the_file_has_the_last_accuracies(whole: Path) -> None:
    from spikebridge.nn.network import load_network
    from spikebridge.runs.evaluation import evaluate

    config = tiny(method="si", dropout=0.1)
    network = load_network(whole / rundir.MODEL)
    judge = generator(config.train.eval_seed, "test")
    found = [evaluate(network, p, "test", 500, judge).metric for p in continual.sequence(config)]
    assert tuple(found) == rundir.read_result(whole).sequence.matrix[-1]  # type: ignore[union-attr]


STATES = [
    {"method": "si", "dropout": 0.1},
    {"method": "ewc", "optimizer": "adam", "lr": 5e-3, "epochs": 2},
    {"unit": "snu", "steps": 3, "protocol": "split", "tasks": 2},
]


@pytest.fixture(scope="module", params=STATES, ids=["si", "ewc", "snu"])
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, dict[str, Any]]:
    config, directory = tiny(**request.param), tmp_path_factory.mktemp("undisturbed")
    training.run(config, directory)
    return config, left(directory)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: tuple[Config, dict[str, Any]], epoch: int
) -> None:
    config, whole = undisturbed
    at = min(epoch, config.epochs)
    with pytest.raises(KeyboardInterrupt):
        training.run(config, tmp_path / "run", progress=Interrupting(at))
    assert not (tmp_path / "run" / rundir.RESULT).exists()
    training.run(config, tmp_path / "run", resume=True)
    assert left(tmp_path / "run") == whole


def test_an_earlier_run_is_not_touched_unasked(tmp_path: Path, whole: Path) -> None:
    config = tiny(method="si", dropout=0.1)
    before = left(whole)
    with pytest.raises(UsageError, match="a complete run lies there; pass resume=True"):
        training.run(config, whole)
    with pytest.raises(UsageError, match=r"other settings: lr \(0.04 there, 0.5 asked for\)"):
        training.run(override(config, lr=0.5), whole, resume=True)
    with pytest.raises(UsageError, match="exclude each other"):
        training.run(config, whole, resume=True, overwrite=True)
    assert left(whole) == before
    training.run(tiny(tasks=2), tmp_path)
    training.run(tiny(tasks=2, lr=0.03), tmp_path, overwrite=True)
    assert rundir.read_config(tmp_path).train.lr == 0.03


def test_a_damaged_outcome_is_told(tmp_path: Path, whole: Path) -> None:
    content = rundir.read_json(whole / rundir.RESULT, "")
    del content["sequence"]["chance"]
    rundir.write_json(tmp_path / rundir.RESULT, content)
    with pytest.raises(RunError, match="--overwrite"):
        rundir.read_result(tmp_path)


def test_a_run_that_diverges_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"became (inf|nan) in epoch 1; .* a lower --lr \(now 1e\+30\)"
    ):
        training.run(tiny(lr=1e30), tmp_path)


def test_a_penalty_that_diverges_is_told() -> None:
    with pytest.raises(RunError, match=r"a lower --strength \(now 1e\+38\)"):
        training.validation(tiny(method="si", strength=1e38))


def test_a_gradient_that_is_not_finite_is_told_though_the_loss_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the last batch of a task: spikes of weights that are nan are 0, and the loss is finite."""
    plain = Teacher.gradients

    def spoilt(self: Teacher, *rest: Any) -> Any:
        found = plain(self, *rest)
        next(self.network.parameters()).grad.fill_(float("nan"))
        return found

    monkeypatch.setattr(Teacher, "gradients", spoilt)
    with pytest.raises(RunError, match=r"gradient became nan in epoch 1; .*--overwrite"):
        training.validation(tiny(unit="snu", steps=2))


@pytest.mark.parametrize("labels", ["model", "true"])
@pytest.mark.parametrize(
    ("first", "last", "words"),
    [(1e25, 1e25, "an answer .* infinite or nan"), (1e-25, 1e25, "a gradient of the Fisher")],
)
def test_fisher_information_that_is_not_finite_is_told(
    first: float, last: float, words: str, labels: str
) -> None:
    run = begun(tiny(method="ewc", labels=labels))
    with torch.no_grad():
        for p, size in zip(run.parameters, (first, last), strict=True):
            p.mul_(size)
    with pytest.raises(RunError, match=f"{words}.*lower --lr"):
        run._put_down(1)


def test_a_sequence_and_a_single_task_do_not_mix(tmp_path: Path, whole: Path) -> None:
    before = left(whole)
    plain = override(Config(), hidden=(8,), epochs=1, steps=2, batch_size=512)
    with pytest.raises(UsageError, match="a complete run lies there; pass resume=True"):
        training.run(plain, whole)
    with pytest.raises(
        UsageError, match=r"other settings: .*protocol \(permuted there, none asked"
    ):
        training.run(plain, whole, resume=True)
    assert left(whole) == before
    training.run(plain, tmp_path)
    with pytest.raises(UsageError, match=r"protocol \(none there, permuted asked"):
        training.run(tiny(), tmp_path, resume=True)
    assert "sequence" not in rundir.read_json(tmp_path / rundir.CONFIG, "")
    assert "sequence" not in rundir.read_json(tmp_path / rundir.RESULT, "")


def test_validation_reads_no_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    plain = Part.batches

    def noted(self: Part, split: str, *rest: Any) -> Any:
        read.append(split)
        return plain(self, split, *rest)

    monkeypatch.setattr(Part, "batches", noted)
    found = training.validation(tiny())
    assert set(read) == {"train", "valid"}
    assert 0.3 < found < 1
    assert found == training.validation(tiny())
    assert found != training.validation(tiny(seed=1))


# What methods do.


def test_naive_is_one_training_after_another() -> None:
    """The same steps by hand, on the same batches."""
    config = tiny(tasks=2)
    run = begun(config)
    weights = [p.detach().clone() for p in run.parameters]
    run.train_all()
    data = generator(config.train.seed, "data")
    first, second, rate = *(w.double() for w in weights), config.train.lr
    speed = [torch.zeros_like(first), torch.zeros_like(second)]
    for part in continual.sequence(config):
        for batch in part.batches("train", config.train.batch_size, data):
            x = batch.x[0].double()
            w = [first.clone().requires_grad_(), second.clone().requires_grad_()]
            logits = (x @ w[0].T).relu() @ w[1].T
            slopes = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, batch.target), w)
            speed = [0.9 * v + g for v, g in zip(speed, slopes, strict=True)]
            first, second = first - rate * speed[0], second - rate * speed[1]
    for ours, theirs in zip(run.parameters, (first, second), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("method", "strength"), [("ewc", 300.0), ("si", 1.0)])
def test_what_holds_weights_keeps_more_of_the_earlier_tasks(method: str, strength: float) -> None:
    """Digits turned into another order: the network forgets less, at the price of the new."""
    given = {"hidden": (64,), "epochs": 4, "tasks": 2, "lr": 0.03}
    held, naive = (
        _accuracies(tiny(**given, **more))
        for more in ({"method": method, "strength": strength}, {})
    )
    assert held[0] > naive[0] + 0.03
    assert held[1] > 0.7


def _accuracies(config: Config) -> list[float]:
    with training._trial(config) as run:
        return run.phases.accuracies("valid")  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["ewc", "si"])
def test_a_strength_of_nearly_nothing_is_naive(method: str) -> None:
    none, little = (_learned(tiny(method=method, strength=s)) for s in (0, 1e-30))
    assert torch.equal(none, little)
    if method == "si":  # the Fisher information takes draws of the same stream
        assert torch.equal(none, _learned(tiny()))


def _learned(config: Config) -> torch.Tensor:
    """All weights in the end."""
    with training._trial(config) as run:
        return torch.cat([p.detach().flatten() for p in run.parameters])


@pytest.mark.parametrize("method", ["ewc", "si"])
def test_the_record_holds_the_strength_that_is_used(method: str) -> None:
    config = tiny(method=method)
    assert config.sequence.strength == {"ewc": 30.0, "si": 1.0}[method]
    assert config == tiny(method=method, strength=config.sequence.strength)
    assert to_dict(config)["sequence"]["strength"] == config.sequence.strength
    assert from_dict(to_dict(config)) == config
    assert override(config, lr=0.5).sequence.strength == config.sequence.strength
    # An explicit 0 stays one, and another method has a strength of its own.
    zero = tiny(method=method, strength=0)
    assert zero.sequence.strength == 0
    assert begun(zero).phases.held.strength == 0  # type: ignore[union-attr]
    other = {"ewc": "si", "si": "ewc"}[method]
    assert override(config, method=other) == tiny(method=other)
    naive = override(config, method="naive")
    assert naive == tiny() == tiny(strength=0.0)
    assert naive.sequence.strength is None
    with pytest.raises(ConfigError, match=r"strength=-1\.0: it must be at least 0"):
        tiny(method=method, strength=-1)
    with pytest.raises(ConfigError, match="expected a finite number or none"):
        tiny(method=method, strength="much")


def test_strengths_of_the_command_line_are_those_of_the_record() -> None:
    def asked(*flags: str) -> float | None:
        argv = ["train", "digits", "--protocol", "permuted", *flags]
        return cli.parse(argv).sequence.strength

    assert asked() is None
    assert asked("--method", "ewc") == 30
    assert asked("--method", "si") == 1
    assert asked("--method", "si", "--strength", "0") == 0
    assert asked("--method", "si", "--strength", "2") == 2


def test_settings_go_through_json_and_bad_ones_are_refused() -> None:
    config = tiny(method="ewc", strength=3.0, grapes="propagated", hidden=(5, 6))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert flatten(config)["strength"] == config.sequence.strength == 3.0
    assert title_of(config) == "ReLU, backpropagation + GRAPES, EWC"
    for settings, words in (
        ({"tasks": 1}, "it must lie in .2, 20."),
        ({"tasks": 21}, "it must lie in .2, 20."),
        ({"heads": "masked"}, "leave --heads out"),
        ({"strength": 1.0}, "--method"),
        ({"damping": 0.0}, "damping"),
        ({"lr": 0.0}, "lr=0.0: it must be above 0"),
        ({"ema": 0.9}, "protocol=permuted, ema=0.9: that is for a single task; pass --ema 0"),
        ({"schedule": "cosine"}, "pass --schedule constant"),
        ({"cells": "ideal"}, "not trained on memory cells"),
        ({"fisher_samples": 0}, "fisher_samples"),
        ({"colour": 1}, "unknown key"),
    ):
        with pytest.raises(ConfigError, match=words):
            tiny(**settings)
    with pytest.raises(ConfigError, match="unknown key"):
        from_dict({"train": {"lrr": 1.0}})
    with pytest.raises(ConfigError, match=r"tasks=3: there is no sequence.*pass --protocol"):
        override(Config(), tasks=3)
    with pytest.raises(ConfigError, match="task=music: tasks are made of images"):
        preset("music", protocol="permuted")


def test_defaults_are_those_of_the_notebook() -> None:
    config = preset("digits", "relu", "mnist", protocol="permuted")
    assert (config.train.lr, config.train.batch_size, config.train.epochs) == (1e-3, 64, 1)
    assert (config.model.unit, config.model.hidden) == ("relu", (256, 256))
    assert config.sequence.tasks == 5
    run = begun(tiny(hidden=(256, 256)))
    shapes = [tuple(p.shape) for p in run.parameters]
    assert shapes == [(256, 64), (256, 256), (10, 256)]
    for p in run.parameters:
        bound = (6 / p.shape[1]) ** 0.5  # He et al. 2015, uniform
        assert p.abs().max() <= bound
        assert p.detach().std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert run.network.readout.linear.bias.abs().max() == 0
    assert dataclasses.replace(config) == config


def test_a_kill_between_checkpoint_and_metrics_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, real = tiny(tasks=2), tmp_path / "run", training._Run._write_metrics

    def killed(self: training._Run) -> None:
        if len(self.state.history) == config.epochs:  # the last task has its checkpoint
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(training._Run, "_write_metrics", killed)
    with pytest.raises(KeyboardInterrupt):
        training.run(config, run)
    monkeypatch.undo()
    training.run(config, run, resume=True)
    epochs = [json.loads(line)["epoch"] for line in (run / rundir.METRICS).read_text().splitlines()]
    assert epochs == list(range(1, config.epochs + 1))


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"lr": 0.01}, {"sequence_seed": 3}, {"method": "ewc"}]
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    class AfterFirst(Silent):
        def epoch(self, record: Epoch) -> None:
            if record.task == 1:
                raise KeyboardInterrupt

    for name, settings in (("mine", {}), ("other", change)):
        with pytest.raises(KeyboardInterrupt):
            training.run(tiny(epochs=2, **settings), tmp_path / name, progress=AfterFirst())
    (tmp_path / "other" / rundir.CHECKPOINT).replace(tmp_path / "mine" / rundir.CHECKPOINT)
    with pytest.raises(CheckpointError, match=f"other settings: .*{next(iter(change))}"):
        training.run(tiny(epochs=2), tmp_path / "mine", resume=True)
