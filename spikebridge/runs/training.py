"""An experiment: a Config in, a directory with a complete, resumable run out.

Everything random comes from `Config.train.seed` through one generator per purpose, and a checkpoint
after each epoch holds them all, so that a run that was stopped at any moment and resumed ends with
the same bits as one that was not.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spikebridge import data as tasks
from spikebridge.base.chance import generator, seed_of
from spikebridge.base.records import RunError, UsageError
from spikebridge.crossbar.network import from_crossbar
from spikebridge.crossbar.optimizer import begin, in_memory
from spikebridge.data.task import Task, known_again
from spikebridge.nn import network
from spikebridge.nn.kernels import ops
from spikebridge.nn.scan import Backend, unsupported
from spikebridge.nn.synapses import noisy_weights, plain_weights
from spikebridge.runs import checkpoint, environment, evaluation, first_look, rundir
from spikebridge.runs.callbacks import Progress, Silent, board, tell_board
from spikebridge.runs.continual import EVALUATED_AT_ONCE, Phases, sequence, without_bias
from spikebridge.runs.divergence import diverged
from spikebridge.runs.optimizers import Average, best_epoch, finished, learning_rate, make_optimizer
from spikebridge.runs.results import Epoch, Result, lines_of
from spikebridge.runs.teacher import Teacher, detached
from spikebridge.settings import published
from spikebridge.settings.config import Config, data_name, override, title_of, to_dict
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.names import BASELINES, PLAIN
from spikebridge.settings.tasks import OwnConfig

__all__ = ["Progress", "Rehearsal", "Result", "Silent", "rehearse", "run"]

REHEARSED = 4
"""Batches by which the time of an epoch is told."""
FORWARD_SHARE = 0.4
"""Of the time that a sample takes in training, what it takes in validation, roughly."""


def run(
    config: Config,
    directory: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    task: Task | None = None,
) -> Result:
    """Train, test once with the weights that were best on validation, and write it all down.

    A sequence of tasks is learned in its order, with one network and one optimiser; all of them are
    tested after each, and the last weights count.

    Args:
        config: all settings.
        directory: where the run is written; made if need be.
        resume: go on with an incomplete run there, or give the result of a complete one.
        overwrite: remove a run that lies there and start anew.
        progress: is told of every batch and epoch.
        task: a task of your own, where config.task is an OwnConfig.

    Returns:
        The result, as in result.json.

    Raises:
        UsageError: a run is going on there, or lies there and neither resume nor overwrite was
            given, or both were, or it has other settings, or is the one to start from; the data are
            missing (tasks.files.DataError); a task of your own without its OwnConfig, or the
            reverse.
        RunError: a loss is not finite, or no gradient of an epoch is (single updates with such
            gradients are left out and counted), or the checkpoint is damaged.
    """
    directory = Path(directory)
    own = isinstance(config.task, OwnConfig) and not config.task.task_class
    if (task is not None) != own:
        raise UsageError(
            "a task of your own goes with Config(task=OwnConfig(...)), and such a config with a "
            "task; give both or neither"
        )
    if resume and overwrite:
        raise UsageError("resume and overwrite exclude each other; give one of them")
    rundir.refuse_reading(directory, config)
    if rundir.is_complete(directory) and not overwrite:
        result = rundir.earlier(directory, config, resume)
        if result is not None:
            return result
    with (
        rundir.owning(directory, "train", make=True),
        limited_threads(config.train.threads),
        torch.random.fork_rng(devices=[]),
    ):
        if rundir.has_run(directory) and not overwrite:
            result = rundir.earlier(directory, config, resume)
            if result is not None:
                return result
        started = _Run(config, directory, progress or Silent(), task)
        if overwrite:  # only now: what would stop the new run must not cost the old one
            rundir.clear(directory)
        started.train_all()
        return started.finish()


def validate(
    config: Config, *, progress: Progress | None = None, task: Task | None = None
) -> list[Epoch]:
    """Train and validate, and leave nothing behind: the test set is not read.

    Returns its epochs.  Raises as `run`.
    """
    with _trial(config, progress, task) as trial:
        return trial.state.history


def validation(config: Config) -> float:
    """The validation metric that a run comes to; the test set is not read.

    That of the best epoch, or of a sequence the mean over all tasks after the last one.  Raises as
    `run`.
    """
    with _trial(config) as trial:
        return trial.validation()


@contextmanager
def _trial(
    config: Config, progress: Progress | None = None, task: Task | None = None
) -> Iterator[_Run]:
    """A run to its last epoch that leaves nothing behind."""
    with (
        tempfile.TemporaryDirectory(prefix="spikebridge-") as folder,
        limited_threads(config.train.threads),
        torch.random.fork_rng(devices=[]),
    ):
        trial = _Run(config, Path(folder), progress or Silent(), task)
        trial.keeps_model = False
        trial.train_all()
        yield trial


class Rehearsal(NamedTuple):
    """What a few batches say of a run that is to come."""

    epoch_s: float
    """Seconds of an epoch with its validation, roughly."""
    loop: str | None
    """Why units run in the Python loop although there are kernels; None where none does."""


def rehearse(config: Config, task: Task, *, limit_s: float = 2.0) -> Rehearsal:
    """Train on a few batches, which leaves nothing behind.

    Args:
        config: of the run.
        task: of config.task, loaded.
        limit_s: no batch is begun after so many seconds.

    Raises as `run`.
    """
    with limited_threads(config.train.threads), torch.random.fork_rng(devices=[]):
        started = _Run(config, Path(), Silent(), task)
        return Rehearsal(
            started.seconds_of_epoch(limit_s), looped_by(config.model, config.train.backend)
        )


def looped_by(model: ModelConfig, backend: Backend = "auto") -> str | None:
    """Why a model's units run in the Python loop although there are kernels, or None."""
    if model.unit in (*BASELINES, *PLAIN) or ops.missing("native") is not None:
        return None
    return unsupported(network.unit_of(model, 1), torch.zeros(1, 1, 1), backend)


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """So many CPU threads for a while; 0 leaves them."""
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """One run while it goes on."""

    def __init__(
        self, config: Config, directory: Path, progress: Progress, task: Task | None
    ) -> None:
        self.config, self.directory, self.progress = config, directory, progress
        self.keeps_model = True
        """Whether the best network so far is written after an epoch that was better, and tested."""
        self.train = dataclasses.replace(config.train, epochs=config.epochs)
        # Data that are missing must not leave a begun run behind.
        parts = sequence(config) if config.sequence.used else []
        self.task: Task = parts[0] if parts else task or tasks.load(config.task)
        torch.manual_seed(seed_of(self.train.seed, "init"))
        self.network = self._build()
        if parts and config.model.unit in PLAIN:
            without_bias(self.network)
        if self.task.prior is not None:
            self.network.readout.start_at(self.task.prior)
        if self.train.start:
            start = Path(self.train.start) / rundir.MODEL
            checkpoint.start_from(self.network, start, self.task.symbol_names())
        self._try_backend()
        looked = first_look.remarks(self.network, self.task, config.model, self.train.batch_size)
        self.notes = [*self.task.notes, *looked]
        self.chip = None
        if config.cells.used:
            seed = seed_of(self.train.seed, "cells")
            self.chip = begin(self.network, config.cells, config.crossbar, seed)
        if self.train.weight_noise:
            noisy_weights(self.network, self.train.weight_noise)
        self.teacher = Teacher(config, self.network, self.task)
        torch.manual_seed(seed_of(self.train.seed, "dropout"))
        self.data = generator(self.train.seed, "data")
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer: Any = make_optimizer(self.train, self.parameters)
        if self.chip is not None:
            self.optimizer = in_memory(self.optimizer, self.chip, config.pulses)
        self.phases = Phases(config, self.network, parts) if parts else None
        self.judged_at_once = EVALUATED_AT_ONCE if parts else self.train.batch_size
        self.batches = self.task.count_batches(self.train.batch_size)
        self.state = checkpoint.Position(step=0, history=[], best={})
        self.average = Average(self.network, self.train.ema)
        # A task of one's own may draw its data anew, and vouches for them.
        self.signature = None if task is not None else self.task.signature()

    def _build(self) -> network.Network:
        return network.build(
            self.config.model,
            self.task.input_size,
            self.task.output_size,
            self.task.readout,
            symbols=self.task.symbols,
            image=self.task.image,
            backend=self.train.backend,
            recompute=self.train.recompute,
        )

    def _try_backend(self) -> None:
        """Find out before the run begins that a backend which was asked for cannot serve."""
        if self.train.backend == "auto":
            return
        shape = (1, 1) if self.task.symbols else (1, 1, self.task.input_size)
        kind = torch.int64 if self.task.symbols else torch.float32
        try:
            with evaluation.evaluating(self.network):
                self.network(torch.zeros(shape, dtype=kind))
        except (RuntimeError, NotImplementedError) as error:
            raise UsageError(f"backend={self.train.backend}: {error}") from error

    def train_all(self) -> None:
        """Go on from the checkpoint, if there is one, to the last epoch."""
        rundir.begin(self.directory, self.config, environment.collect())
        if (self.directory / rundir.CHECKPOINT).exists():
            self.state = checkpoint.restore(
                self.directory / rundir.CHECKPOINT,
                self.network,
                self.optimizer,
                self.data,
                to_dict(self.config),
            )
            self._go_on()
        elif self.phases is not None and self.keeps_model:
            self.phases.rows.append(self.phases.accuracies("test"))
        self._write_metrics()
        events = board(self.directory, len(self.state.history))
        shown = override(self.config, epochs=self.train.epochs)
        self.progress.begin(shown, len(self.state.history))
        self.progress.remarks(self.notes)
        try:
            while not finished(self.train, self.state.history):
                record = self._epoch(len(self.state.history) + 1)
                self.progress.epoch(record)
                tell_board(events, record)
        finally:
            self.progress.end()
            if events is not None:
                events.close()

    def _go_on(self) -> None:
        """Bring what the checkpoint's tensors do not hold to where it was written."""
        more = self.state.more
        there = more.get("data")
        known = there is None or self.signature is None or known_again(there, self.signature)
        if not known:
            raise UsageError(
                f"{self.directory}: the data are not those that the run began with; put those "
                "back, or start anew with --overwrite"
            )
        # Checkpoints of before held no count of their own: one per step, updates left out too.
        averaged = more.get("averaged", torch.tensor(self.state.step))
        whole = averaged.numel() == 1 and averaged.dtype == torch.int64
        whole &= bool(self.state.average) == bool(self.train.ema)
        if self.phases is None:
            whole &= all(math.isfinite(epoch.valid_loss) for epoch in self.state.history)
        path = self.directory / rundir.CHECKPOINT
        if not whole:
            raise checkpoint.CheckpointError(
                f"{path}: it lacks averaged weights or losses; {checkpoint.REMEDY}"
            )
        if self.phases is not None:
            try:
                self.phases.load_state_dict(more, len(self.state.history))
            except (KeyError, ValueError, TypeError, RuntimeError) as error:
                raise checkpoint.CheckpointError(f"{path}: {error}; {checkpoint.REMEDY}") from error
            self._take_up(len(self.state.history) + 1)
        steps = int(averaged)
        self.average.restore(self.state.average, steps)
        if self.chip is not None:
            self.optimizer.go_on(self.state.step)
        self.teacher.refresh()
        # What was made of the network that was best so far is not that of the one to come.
        rundir.clear_made(self.directory)
        self._write_model()

    def _take_up(self, epoch: int) -> None:
        """Turn to the task of an epoch."""
        phases: Any = self.phases
        self.teacher.detach()
        self.task = phases.parts[min(phases.number(epoch), len(phases.parts) - 1)]
        self.batches = self.task.count_batches(self.train.batch_size)
        self.teacher = Teacher(self.config, self.network, self.task)

    def _put_down(self, epoch: int) -> None:
        """After the last epoch of a task: hold what mattered to it."""
        phases: Any = self.phases
        self.teacher.detach()
        try:
            phases.hold(epoch, self.data)
        except FloatingPointError as error:
            raise self._diverged(f"{error} became infinite or nan", epoch) from error

    def _epoch(self, epoch: int) -> Epoch:
        """Train for an epoch, validate, save."""
        started = time.perf_counter()
        phases = self.phases
        if phases is not None and phases.begins(epoch):
            self._take_up(epoch)
        trained = self._train(epoch)
        judge = generator(self.train.eval_seed, "valid")
        size = self.judged_at_once
        with self.average.applied():
            valid = evaluation.evaluate(self.network, self.task, "valid", size, judge)
            self._check_finite("validation loss", valid.loss, epoch)
            best = self._is_best(valid)
            if best:
                weights = self.network.state_dict()
                self.state.best = {name: value.detach().clone() for name, value in weights.items()}
        ends = phases is not None and phases.ends(epoch)
        if ends:
            self._put_down(epoch)
        record = Epoch(
            epoch=epoch,
            task=None if phases is None else phases.number(epoch),
            **trained,
            valid_loss=valid.loss,
            valid=valid.metric,
            seconds=time.perf_counter() - started,
            best=best,
            metric=self.task.metric,
        )
        self.state.history.append(record)
        if phases is not None and ends and self.keeps_model:
            phases.rows.append(phases.accuracies("test"))
        self._save()
        self._write_metrics()
        if best:
            self._write_model()
        return record

    def _save(self) -> None:
        """Write the checkpoint after an epoch."""
        self.state.average = self.average.values
        self.state.more = {"averaged": torch.tensor(self.average.steps)}
        if self.phases is not None:
            self.state.more |= self.phases.state_dict()
        if self.signature is not None:
            self.state.more["data"] = self.signature
        checkpoint.save(
            self.directory / rundir.CHECKPOINT,
            self.network,
            self.optimizer,
            self.data,
            self.state,
            to_dict(self.config),
        )

    def seconds_of_epoch(self, limit_s: float) -> float:
        """Roughly, from the first batches; the first of them may have to warm up."""
        self.network.train()
        seconds, state, began = [], None, time.perf_counter()
        for batch in self.task.batches("train", self.train.batch_size, self.data):
            started = time.perf_counter()
            self.optimizer.zero_grad(set_to_none=True)
            _, after = self.teacher.gradients(batch, state, self.data)
            state = detached(after) if self.task.carries_state else None
            if math.isfinite(self._clip().item()):
                self.optimizer.step()
            seconds.append(time.perf_counter() - started)
            if len(seconds) == REHEARSED or time.perf_counter() - began > limit_s:
                break
        each = statistics.fmean(seconds[1:] or seconds)
        judged = FORWARD_SHARE * self.task.size("valid") / self.task.size("train")
        return each * self.batches * (1 + judged)

    def _write_model(self) -> None:
        """Write the network that was best so far, so that one that is cut off can be used."""
        if not self.keeps_model:
            return
        so_far: Any
        if self.chip is not None:  # a copy, so that this read draws nothing from the run's cells
            so_far = from_crossbar(copy.deepcopy(self.chip))
        else:
            with torch.random.fork_rng(devices=[]):
                so_far = self._build()
            if self.train.weight_noise:
                noisy_weights(so_far, self.train.weight_noise)
            so_far.load_state_dict(self.state.best)
            if self.train.weight_noise:
                plain_weights(so_far)
        network.save_network(so_far, self.directory / rundir.MODEL)
        if not (self.directory / rundir.SYMBOLS).exists():
            self._write_about_data()

    def _write_about_data(self) -> None:
        """Write what is needed of the training data to use the network on others."""
        names, scaling = self.task.symbol_names(), self.task.scaling()
        if names is not None:
            rundir.write_json(self.directory / rundir.SYMBOLS, {"symbols": names})
        if scaling is not None:
            rundir.write_json(self.directory / rundir.SCALING, scaling)

    def _train(self, epoch: int) -> dict[str, Any]:
        """One pass over the training set: mean loss and norm, last rate, updates left out."""
        self.network.train()
        total, norms, count, rate = 0.0, 0.0, 0, self.train.lr
        batches = self.task.batches("train", self.train.batch_size, self.data)
        number = skipped = 0
        state = None
        for number, batch in enumerate(batches, start=1):
            rate = learning_rate(self.train, self.state.step, self.train.epochs * self.batches)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            value, after = self.teacher.gradients(batch, state, self.data)
            self._check_finite("loss", value, epoch)
            state = detached(after) if self.task.carries_state else None
            if self.phases is not None:
                self.phases.before_step()
            norm = self._clip().item()
            if self.phases is not None:  # SI's paths have no gaps
                self._check_finite("norm of the gradient", norm, epoch)
            # Through many recurrent steps a gradient may overflow where the loss does not: such an
            # update is left out, and counted.
            if math.isfinite(norm):
                norms += norm
                self.optimizer.step()
                self.average.update()
                if self.phases is not None:
                    self.phases.after_step()
                if self.chip is not None:  # cells change without an optimiser's knowing
                    self.teacher.refresh()
            else:
                skipped += 1
                if self.chip is not None:
                    self.optimizer.updates += 1
            self.state.step += 1
            weight = batch.counted
            total, count = total + value * weight, count + weight
            self.progress.batch(epoch, number / self.batches)
        if skipped == number:
            self._check_finite("gradient norm of every update", math.inf, epoch)
        means = {"train_loss": total / count, "grad_norm": norms / (number - skipped)}
        sent = {} if self.chip is None else self.optimizer.taken()
        return means | {"lr": rate, "skipped": skipped} | sent

    def _clip(self) -> Tensor:
        """Scale the gradients down where they are too large; their norm before that."""
        if self.train.clip_norm:
            return nn.utils.clip_grad_norm_(self.parameters, self.train.clip_norm)
        result = [p.grad for p in self.parameters if p.grad is not None]
        return nn.utils.get_total_norm(result)

    def _check_finite(self, what: str, value: float, epoch: int) -> float:
        if math.isfinite(value):
            return value
        raise self._diverged(f"the {what} became {value}", epoch)

    def _diverged(self, what: str, epoch: int) -> RunError:
        return diverged(self.config, self.directory, what, epoch, len(self.state.history))

    def _is_best(self, valid: evaluation.Score) -> bool:
        """By the metric; where that is equal (accuracy on few samples), by the loss.

        Memory cells cannot go back to an earlier epoch, nor does a sequence of tasks: there it is
        always the last.
        """
        if self.chip is not None or self.phases is not None:
            return True
        epoch = best_epoch(self.state.history)
        if not epoch:
            return True
        before = self.state.history[epoch - 1]
        sign = 1 if self.task.higher_is_better else -1
        return (sign * valid.metric, -valid.loss) > (
            sign * before.valid,
            -before.valid_loss,
        )

    def _write_metrics(self) -> None:
        lines = "".join(epoch.line for epoch in self.state.history)
        rundir.write_text(self.directory / rundir.METRICS, lines)

    def finish(self) -> Result:
        """Test with the best weights, write model, examples and, last, the result."""
        self.teacher.detach()
        self.network.load_state_dict(self.state.best)
        if self.train.weight_noise:
            plain_weights(self.network)
        size, seed = self.judged_at_once, self.train.eval_seed
        if self.phases is None:
            judge = generator(seed, "test")
            test, activity = evaluation.observe(self.network, self.task, "test", size, judge)
        else:
            test, activity = self.phases.observe()
        if self.chip is not None:
            self.chip.settle()
            self.chip.save(self.directory / rundir.CHIP)
        plain: Any = self.network if self.chip is None else from_crossbar(self.chip)
        network.save_network(plain, self.directory / rundir.MODEL)
        self._write_about_data()
        evaluation.write_examples(
            self.directory / rundir.EXAMPLES,
            self.network,
            self.task,
            size,
            generator(seed, "examples"),
        )
        result = self._result(test, activity)
        rundir.write_json(self.directory / rundir.RESULT, result)
        return result

    def validation(self) -> float:
        """The validation metric of the best epoch, or of a sequence over all tasks in the end."""
        if self.phases is not None:
            return statistics.fmean(self.phases.accuracies("valid"))
        history = self.state.history
        return history[best_epoch(history) - 1].valid

    def _result(self, test: evaluation.Score, activity: evaluation.Activity) -> Result:
        history, baselines = self.state.history, test.baselines(self.task)
        size, seed = self.judged_at_once, self.train.eval_seed
        figures = evaluation.judged_otherwise(self.network, self.task, size, seed)
        return Result(
            task=self.task.name,
            data=data_name(self.config),
            unit=self.config.model.unit,
            label=title_of(self.config),
            metric=self.task.metric,
            higher_is_better=self.task.higher_is_better,
            test=test.metric,
            test_loss=test.loss,
            valid=self.validation(),
            best_epoch=best_epoch(history) or len(history),
            epochs=len(history),
            parameters=sum(p.numel() for p in self.parameters),
            operations_per_step=network.operations(self.network),
            seconds=sum(epoch.seconds for epoch in history),
            seed=self.train.seed,
            published=published.headline(self.config),
            directory=self.directory,
            notes=(*self.notes, *lines_of(figures), *self.task.compared(baselines)),
            baselines=baselines,
            figures=figures,
            sequence=None if self.phases is None else self.phases.result(),
            **activity._asdict(),
        )
