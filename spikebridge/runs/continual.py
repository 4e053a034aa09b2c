"""Tasks one after the other: what a network still knows of the first when it has learned the last.

Everything random comes from the seeds of the config, and a checkpoint after each task holds all
state, so that a run that was stopped and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.base.chance import generator, seed_of
from spikebridge.base.records import RunError, UsageError
from spikebridge.data.continual import Part, permuted, split
from spikebridge.learning.consolidation import EWC, SI
from spikebridge.nn import network
from spikebridge.nn.network import Network
from spikebridge.runs import checkpoint, environment, evaluation, rundir
from spikebridge.runs.callbacks import Progress, Silent
from spikebridge.runs.optimizers import make_optimizer
from spikebridge.runs.teacher import Teacher
from spikebridge.runs.training import limited_threads
from spikebridge.runs.transfer import Transfer, transfer
from spikebridge.settings.config import override as override_plain
from spikebridge.settings.continual import ContinualConfig, flatten, from_dict, to_dict
from spikebridge.settings.names import PLAIN
from spikebridge.settings.tasks import name_of_data

__all__ = ["CONTINUAL", "ContinualConfig", "Outcome", "run", "sequence", "validate"]

CONTINUAL = rundir.CONTINUAL
EVALUATED_AT_ONCE = 500
# Removed in this order when a run is overwritten: first what says that it is complete.
FILES = (
    CONTINUAL,
    rundir.CHECKPOINT,
    rundir.METRICS,
    rundir.MODEL,
    rundir.REPORT,
    rundir.ENVIRONMENT,
    rundir.CONFIG,
)


@dataclass(frozen=True)
class Outcome:
    """What came of a sequence of T tasks; continual.json holds the same and the environment."""

    protocol: str
    data: str
    unit: str
    label: str
    tasks: int
    chance: float
    """Accuracy of guessing among the classes that are asked."""
    first: list[float]
    """(T,) test accuracy on each task before any was learned."""
    matrix: list[list[float]]
    """(T, T) test accuracy on task j after task k: matrix[k][j]."""
    measures: Transfer
    parameters: int
    seconds: float
    """Wall-clock time of training, with penalties; tests are not counted."""
    config: ContinualConfig
    directory: Path

    def to_dict(self) -> dict[str, Any]:
        """The content of continual.json, without the environment."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del plain["directory"]
        return plain | {
            "measures": dataclasses.asdict(self.measures),
            "config": to_dict(self.config),
        }


def run(
    config: ContinualConfig,
    directory: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Learn the tasks in their order, test all of them after each, and write it all down.

    Args:
        config: all settings.
        directory: where the run is written; made if need be.
        resume: go on with an incomplete run there, or give the outcome of a complete one.
        overwrite: remove a run that lies there and start anew.
        progress: is told of every batch and pass.

    Raises:
        UsageError: a run is going on there, or lies there and neither resume nor overwrite was
            given, or it has other settings, or is one of `experiment.run`; the rule does not go
            with the network; the data are missing (DataError).
        RunError: a loss, gradient or weight is not finite, or the checkpoint is damaged.
    """
    directory = Path(directory)
    if resume and overwrite:
        raise UsageError("resume and overwrite exclude each other; give one of them")
    if (directory / CONTINUAL).exists() and not overwrite:
        done = _earlier(directory, config, resume)
        if done is not None:
            return done
    with (
        rundir.owning(directory, "continual", make=True),
        limited_threads(config.train.threads),
        torch.random.fork_rng(devices=[]),
    ):
        rundir.refuse_other(directory, "continual")
        if any((directory / name).exists() for name in FILES) and not overwrite:
            done = _earlier(directory, config, resume)
            if done is not None:
                return done
        begun = _Learner(config, progress or Silent())
        if overwrite:  # only now: what would stop the new run must not cost the old one
            for name in FILES:
                (directory / name).unlink(missing_ok=True)
        return _complete(begun, directory)


def validate(config: ContinualConfig, *, progress: Progress | None = None) -> float:
    """Mean validation accuracy over all tasks after the last one; the test sets are not read.

    Nothing is left behind.  Raises as `run`.
    """
    with limited_threads(config.train.threads), torch.random.fork_rng(devices=[]):
        begun = _Learner(config, progress or Silent())
        for number in range(len(begun.parts)):
            begun.learn(number)
        return statistics.fmean(begun.accuracies("valid"))


def read_outcome(directory: Path) -> Outcome:
    """The outcome of a complete run.  Raises RunError where it is damaged."""
    plain = rundir.read_json(directory / CONTINUAL, "run it again with --overwrite")
    plain.pop("environment", None)
    try:
        plain["measures"] = Transfer(**plain["measures"])
        plain["config"] = from_dict(plain["config"])
        return Outcome(**plain, directory=directory)
    except (KeyError, TypeError, UsageError) as error:
        raise RunError(
            f"{directory / CONTINUAL}: not the fields of an outcome ({error}); "
            "run it again with --overwrite"
        ) from error


def sequence(config: ContinualConfig) -> list[Part]:
    """The tasks of a config, in their order.  Raises DataError, ConfigError."""
    chosen = config.sequence
    if chosen.protocol == "split":
        return split(config.task, chosen.tasks, masked=chosen.heads == "masked")
    return permuted(config.task, chosen.tasks, seed_of(chosen.sequence_seed, "tasks"))


def _earlier(directory: Path, config: ContinualConfig, resume: bool) -> Outcome | None:
    """The outcome of a complete run that lies there, None where there is one to go on with."""
    complete = (directory / CONTINUAL).exists()
    if not resume:
        state = "a complete" if complete else "an incomplete"
        raise UsageError(
            f"{directory}: {state} run lies there; pass --resume to go on with it or see its "
            "outcome, --overwrite to start anew, or another folder"
        )
    if (directory / rundir.CONFIG).exists():
        plain = rundir.read_json(directory / rundir.CONFIG, "start anew with --overwrite")
        theirs, ours = flatten(from_dict(plain)), flatten(config)
        names = [name for name in ours if theirs[name] != ours[name]]
        if names:
            pairs = ", ".join(f"{n} ({theirs[n]} there, {ours[n]} asked for)" for n in names)
            raise UsageError(
                f"{directory}: the run there has other settings: {pairs}; give the same settings, "
                "another folder, or --overwrite to start anew"
            )
    return read_outcome(directory) if complete else None


def without_bias(built: Network) -> None:
    """Take the bias off the readout and draw He's weights: U(+-sqrt(6 / inputs))."""
    linear = built.readout.linear
    nn.init.kaiming_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    linear.bias.requires_grad_(False)


class _Learner:
    """A network that learns task after task."""

    def __init__(self, config: ContinualConfig, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.train = config.train
        self.parts = sequence(config)
        first, seed = self.parts[0], self.train.seed
        torch.manual_seed(seed_of(seed, "init"))
        self.network = network.build(
            config.model, first.input_size, first.output_size, first.readout, image=first.image
        )
        if config.model.unit in PLAIN:
            without_bias(self.network)
        Teacher(config.plain(), self.network, first).detach()  # what cannot be taught shows here
        torch.manual_seed(seed_of(seed, "dropout"))
        self.data = generator(seed, "data")
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(config.plain().train, self.parameters)
        chosen = config.sequence
        strength = chosen.strength or 0.0
        self.ewc = EWC(self.network, strength) if chosen.method == "ewc" else None
        self.si = SI(self.network, strength, chosen.damping) if chosen.method == "si" else None
        self.step = 0
        self.history: list[dict[str, Any]] = []

    def learn(self, number: int) -> None:
        """Train on a task, from 0; then hold what mattered to it, unless it is the last."""
        part, config = self.parts[number], self.config.plain()
        teacher = Teacher(config, self.network, part)
        try:
            for epoch in range(self.train.epochs):
                started = time.perf_counter()
                loss = self._pass(teacher, part, number * self.train.epochs + epoch + 1)
                record = {
                    "epoch": number * self.train.epochs + epoch + 1,
                    "task": number,
                    "train_loss": loss,
                    "valid": self.accuracy(part, "valid"),
                    "best": False,
                    "seconds": time.perf_counter() - started,
                }
                self.history.append(record)
                if epoch < self.train.epochs - 1:
                    self.progress.epoch(record)
        finally:
            teacher.detach()
        if number < len(self.parts) - 1:
            self._hold(part)
        record["seconds"] = time.perf_counter() - started
        self.progress.epoch(record)

    def _pass(self, teacher: Teacher, part: Part, epoch: int) -> float:
        """One pass over a task's training images: the mean loss, without penalties."""
        self.network.train()
        total, count = 0.0, 0
        number = part.count_batches(self.train.batch_size)
        batches = part.batches("train", self.train.batch_size, self.data)
        for done, batch in enumerate(batches, start=1):
            self.optimizer.zero_grad(set_to_none=True)
            loss, _ = teacher.gradients(batch, None, self.data)
            if not math.isfinite(loss):
                raise self._diverged(f"the loss became {loss} in pass {epoch}")
            if self.si is not None:
                self.si.before_step()
            held = self.ewc or self.si
            if held is not None and held.tasks:
                held.pull()
            if self.train.clip_norm:
                nn.utils.clip_grad_norm_(self.parameters, self.train.clip_norm)
            self.optimizer.step()
            if self.si is not None:
                self.si.after_step()
            self.step += 1
            total, count = total + loss * batch.counted, count + batch.counted
            self.progress.batch(epoch, done / number)
        # What a gradient that is not finite has spoilt; spikes hide it from the loss.
        if not all(bool(p.isfinite().all()) for p in self.parameters):
            raise self._diverged(f"a weight became infinite or nan in pass {epoch}")
        return total / count

    def _diverged(self, what: str) -> RunError:
        strength = self.config.sequence.strength
        remedies = [f"a lower --lr (now {self.train.lr:g})"]
        if strength is not None:
            remedies.append(f"a lower --strength (now {strength:g})")
        if not what.startswith("a weight"):  # no clipping mends an infinite gradient
            remedies.append(f"a lower --clip-norm (now {self.train.clip_norm:g}; 0 = none)")
        return RunError(
            f"{what}, all must stay finite; start anew with --overwrite and {' or '.join(remedies)}"
        )

    def _hold(self, part: Part) -> None:
        if self.si is not None:
            self.si.consolidate()
        if self.ewc is not None:
            self.network.eval()
            try:
                self.ewc.consolidate(self._log_likelihoods(part))
            except ValueError as error:
                what = "a gradient of the Fisher information became infinite or nan"
                raise self._diverged(what) from error

    def _log_likelihoods(self, part: Part) -> Iterator[Tensor]:
        """Minus the log-likelihoods of training images, one by one."""
        chosen = self.config.sequence
        for batch in islice(part.batches("train", 1, self.data), chosen.fisher_samples):
            logits, label = part.answers(self.network(batch.x)[0], batch)
            if not bool(logits.isfinite().all()):  # from such there is no drawing
                raise self._diverged("an answer of the network became infinite or nan")
            if chosen.labels == "model":
                shares = logits.detach().softmax(-1)
                label = torch.multinomial(shares, 1, generator=self.data)[:, 0]
            yield F.cross_entropy(logits, label)

    def accuracy(self, part: Part, where: str) -> float:
        """The share of a split's images that is answered right."""
        judge = generator(self.train.eval_seed, where)
        return evaluation.evaluate(self.network, part, where, EVALUATED_AT_ONCE, judge).metric

    def accuracies(self, where: str) -> list[float]:
        """Those of all tasks."""
        return [self.accuracy(part, where) for part in self.parts]

    def save(self, path: Path, rows: list[list[float]]) -> None:
        """Write a checkpoint; rows are the accuracies so far."""
        held = self.ewc or self.si
        kept = {} if held is None else held.state_dict()
        more = {f"held.{name}": value for name, value in kept.items()}
        more["rows"] = torch.tensor(rows, dtype=torch.float64)
        weights = {name: value.clone() for name, value in self.network.state_dict().items()}
        position = checkpoint.Position(self.step, self.history, weights, more=more)
        settings = to_dict(self.config)
        checkpoint.save(path, self.network, self.optimizer, self.data, position, settings)

    def restore(self, path: Path) -> list[list[float]]:
        """Go back to a checkpoint; the accuracies that it holds.  Raises CheckpointError."""
        settings = to_dict(self.config)
        found = checkpoint.restore(path, self.network, self.optimizer, self.data, settings)
        self.step, self.history = found.step, found.history
        held = self.ewc or self.si
        kept = {
            name.removeprefix("held."): value
            for name, value in found.more.items()
            if name.startswith("held.")
        }
        try:
            if held is not None:
                held.load_state_dict(kept)
            rows = found.more["rows"].tolist()
            done, odd = divmod(len(self.history), self.train.epochs)
            if odd or [len(row) for row in rows] != [len(self.parts)] * (done + 1):
                raise ValueError("its accuracies are not those of so many tasks")
            return rows
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise checkpoint.CheckpointError(f"{path}: {error}; {checkpoint.REMEDY}") from error


def _complete(learner: _Learner, directory: Path) -> Outcome:
    """Go on from the checkpoint, if there is one, to the end."""
    config = learner.config
    rundir.begin(directory, to_dict(config), environment.collect())
    saved = directory / rundir.CHECKPOINT
    # The first row is before any task.
    rows = learner.restore(saved) if saved.exists() else [learner.accuracies("test")]
    _write_metrics(learner, directory)  # a kill may have come between it and the checkpoint
    passes = config.train.epochs * config.sequence.tasks
    shown = override_plain(config.plain(), epochs=passes)
    learner.progress.begin(shown, len(learner.history))
    try:
        for number in range(len(rows) - 1, len(learner.parts)):
            learner.learn(number)
            rows.append(learner.accuracies("test"))
            learner.save(saved, rows)
            _write_metrics(learner, directory)
    except RunError as error:
        raise RunError(f"{directory}: {error}") from error
    finally:
        learner.progress.end()
    network.save_network(learner.network, directory / rundir.MODEL)
    outcome = _outcome(learner, rows, directory)
    content = outcome.to_dict() | {"environment": environment.collect()}
    rundir.write_json(directory / CONTINUAL, content)
    return outcome


def _write_metrics(learner: _Learner, directory: Path) -> None:
    lines = [rundir.to_line(record) for record in learner.history]
    rundir.write_text(directory / rundir.METRICS, "".join(lines))


def _outcome(learner: _Learner, rows: list[list[float]], directory: Path) -> Outcome:
    config, first = learner.config, learner.parts[0]
    asked = first.output_size if first.asked is None else len(first.asked)
    return Outcome(
        protocol=config.sequence.protocol,
        data=name_of_data(config.task),
        unit=config.model.unit,
        label=config.label,
        tasks=len(learner.parts),
        chance=1 / asked,
        first=rows[0],
        matrix=rows[1:],
        measures=transfer(rows[1:], rows[0]),
        parameters=sum(p.numel() for p in learner.parameters),
        seconds=sum(record["seconds"] for record in learner.history),
        config=config,
        directory=directory,
    )
