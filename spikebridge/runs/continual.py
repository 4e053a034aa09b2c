"""Tasks one after the other: what a run keeps of earlier ones, and its accuracies on all."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.base.chance import generator, seed_of
from spikebridge.data.continual import Part, permuted, split
from spikebridge.learning.consolidation import EWC, SI
from spikebridge.nn.network import Network
from spikebridge.runs import evaluation
from spikebridge.runs.transfer import SequenceResult, transfer
from spikebridge.settings.config import Config

EVALUATED_AT_ONCE = 500


def sequence(config: Config) -> list[Part]:
    """The tasks of a config, in their order.  Raises DataError, ConfigError."""
    chosen: Any = config.sequence
    if chosen.protocol == "split":
        return split(config.task, chosen.tasks, masked=chosen.heads == "masked")  # type: ignore[arg-type]
    return permuted(config.task, chosen.tasks, seed_of(chosen.sequence_seed, "tasks"))  # type: ignore[arg-type]


def without_bias(network: Network) -> None:
    """Take the bias off the readout and draw He's weights: U(+-sqrt(6 / inputs))."""
    linear = network.readout.linear
    nn.init.kaiming_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    linear.bias.requires_grad_(False)


class Phases:
    """The phases of a run, one for each task: the penalty of EWC or SI and the accuracies so far.

    Args:
        config: of the run.
        network: which learns the tasks.
        parts: the tasks, from `sequence`.
    """

    def __init__(self, config: Config, network: Network, parts: list[Part]) -> None:
        self.config, self.network, self.parts = config, network, parts
        chosen = config.sequence
        strength = chosen.strength or 0.0
        self.ewc = EWC(network, strength) if chosen.method == "ewc" else None
        self.si = SI(network, strength, chosen.damping) if chosen.method == "si" else None
        self.held: EWC | SI | None = self.ewc or self.si
        self.rows: list[list[float]] = []
        """Test accuracies on all tasks: before the first, and after each that was learned."""

    def number(self, epoch: int) -> int:
        """The task of an epoch, from 0; epochs count from 1 over all tasks."""
        return (epoch - 1) // self.config.train.epochs

    def begins(self, epoch: int) -> bool:
        """Whether an epoch is the first of its task."""
        return (epoch - 1) % self.config.train.epochs == 0

    def ends(self, epoch: int) -> bool:
        """Whether an epoch is the last of its task."""
        return epoch % self.config.train.epochs == 0

    def before_step(self) -> None:
        """Note what SI needs of the loss's gradients, and add those of the penalty."""
        if self.si is not None:
            self.si.before_step()
        if self.held is not None and self.held.tasks:
            self.held.pull()

    def after_step(self) -> None:
        """Take the optimiser's step to account."""
        if self.si is not None:
            self.si.after_step()

    def hold(self, epoch: int, data: torch.Generator) -> None:
        """After the last epoch of a task: hold what mattered to it, unless no other follows.

        Raises FloatingPointError where the Fisher information is not finite.
        """
        number = self.number(epoch)
        if number == len(self.parts) - 1:
            return
        if self.si is not None:
            self.si.consolidate()
        if self.ewc is not None:
            self.network.eval()
            try:
                self.ewc.consolidate(self._log_likelihoods(self.parts[number], data))
            except ValueError as error:
                raise FloatingPointError("a gradient of the Fisher information") from error

    def _log_likelihoods(self, part: Part, data: torch.Generator) -> Iterator[Tensor]:
        """Minus the log-likelihoods of training images, one by one."""
        chosen = self.config.sequence
        for batch in islice(part.batches("train", 1, data), chosen.fisher_samples):
            logits, label = part.answers(self.network(batch.x)[0], batch)
            if not bool(logits.isfinite().all()):  # from such there is no drawing
                raise FloatingPointError("an answer of the network")
            if chosen.labels == "model":
                shares = logits.detach().softmax(-1)
                label = torch.multinomial(shares, 1, generator=data)[:, 0]
            yield F.cross_entropy(logits, label)

    def accuracies(self, where: str) -> list[float]:
        """The shares of a split's images that are answered right, task by task."""
        seed, size = self.config.train.eval_seed, EVALUATED_AT_ONCE
        return [
            evaluation.evaluate(self.network, part, where, size, generator(seed, where)).metric
            for part in self.parts
        ]

    def observe(self) -> tuple[evaluation.Score, evaluation.Activity]:
        """Test loss, accuracy and activity, as means over all tasks."""
        seed, size = self.config.train.eval_seed, EVALUATED_AT_ONCE
        pairs = [
            evaluation.observe(self.network, part, "test", size, generator(seed, "test"))
            for part in self.parts
        ]
        scores, activities = zip(*pairs, strict=True)
        spikes = [activity.spikes_per_inference for activity in activities]
        return evaluation.Score(
            statistics.fmean(score.loss for score in scores),
            statistics.fmean(score.metric for score in scores),
        ), evaluation.Activity(
            None if None in spikes else statistics.fmean(spikes),
            _mean([activity.firing_rates for activity in activities]),
            _mean([activity.mean_activity for activity in activities]),
        )

    def result(self) -> SequenceResult:
        """What came of all tasks."""
        first = self.parts[0]
        asked = first.output_size if first.asked is None else len(first.asked)
        measures = transfer(self.rows[1:], self.rows[0])
        matrix = tuple(map(tuple, self.rows[1:]))
        return SequenceResult(len(self.parts), 1 / asked, tuple(self.rows[0]), matrix, measures)

    def state_dict(self) -> dict[str, Tensor]:
        """All that is kept, for a checkpoint."""
        kept = {} if self.held is None else self.held.state_dict()
        return {f"held.{name}": value for name, value in kept.items()} | {
            "rows": torch.tensor(self.rows, dtype=torch.float64)
        }

    def load_state_dict(self, state: Mapping[str, Tensor], epochs: int) -> None:
        """Take over what `state_dict` gave after so many epochs.

        Raises ValueError, KeyError or RuntimeError where it is of another sequence.
        """
        if self.held is not None:
            kept = {k.removeprefix("held."): v for k, v in state.items() if k.startswith("held.")}
            self.held.load_state_dict(kept)
        rows = state["rows"].tolist()
        if [len(row) for row in rows] != [len(self.parts)] * (self.number(epochs + 1) + 1):
            raise ValueError("its accuracies are not those of so many tasks")
        self.rows = rows


def _mean(values: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(value[name] for value in values) for name in values[0]}
