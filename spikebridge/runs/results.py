"""The records of a run's own files: a line of metrics.jsonl, result.json, search.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any

from spikebridge.base.metrics import METRICS
from spikebridge.base.records import (
    NEVER,
    UNLESS_DEFAULT,
    Gap,
    RunError,
    Several,
    from_content,
    to_plain,
)
from spikebridge.base.storage import parse_json
from spikebridge.runs.environment import Environment
from spikebridge.runs.transfer import SequenceResult
from spikebridge.settings.config import Config, from_dict, override
from spikebridge.settings.published import Published


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch of a run; a column that a run does not have is None or nan, and not in its line."""

    epoch: int
    """From 1."""
    task: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Of a sequence, from 0."""
    train_loss: Gap = field(default=nan, metadata=UNLESS_DEFAULT)
    grad_norm: Gap = field(default=nan, metadata=UNLESS_DEFAULT)
    """Mean over the updates, before gradients are clipped."""
    lr: Gap = field(default=nan, metadata=UNLESS_DEFAULT)
    """Of the last update."""
    skipped: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Updates that were left out, because their gradient was not finite."""
    pulses: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Sent to memory cells."""
    refreshed: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Pairs of memory cells that were written anew."""
    valid_loss: Gap = field(default=nan, metadata=UNLESS_DEFAULT)
    valid: Gap = field(default=nan, metadata=UNLESS_DEFAULT)
    """The metric on the validation set."""
    seconds: Gap = field(default=nan, metadata=UNLESS_DEFAULT)
    """Wall-clock time, validation included."""
    best: bool | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Whether its network is the best so far."""
    metric: str | None = field(default=None, metadata=UNLESS_DEFAULT)

    @property
    def line(self) -> str:
        """As it stands in metrics.jsonl."""
        return json.dumps(to_plain(self), allow_nan=False) + "\n"

    @classmethod
    def of(cls, line: str) -> Epoch:
        """The epoch of a line.  Raises ValueError."""
        return from_content(cls, parse_json(line))


@dataclass(frozen=True)
class Figure:
    """A metric of the test set beside the main one."""

    metric: str
    """One of metrics.METRICS."""
    value: float


@dataclass(frozen=True)
class Result:
    """What came out of a run; `result.json` holds the same fields."""

    task: str
    data: str
    unit: str
    label: str
    metric: str
    """One of metrics.METRICS, such as accuracy (share of samples); on the test set in `test`."""
    higher_is_better: bool
    test: float
    """The metric on the test set, of the weights that were best on the validation set."""
    test_loss: float
    valid: float
    """The metric on the validation set in the best epoch."""
    best_epoch: int
    epochs: int
    """Epochs that were run."""
    parameters: int
    operations_per_step: int
    """Multiplications with addition per sample and time step, where nothing is sparse; the readout
    counts where it answers at each step."""
    seconds: float
    """Wall-clock time of all epochs, validation included."""
    spikes_per_inference: float | None
    """Spikes of all hidden layers per sample over its real time steps; None without spikes."""
    firing_rates: dict[str, float]
    """Spikes per neuron and real time step of each spiking layer."""
    mean_activity: dict[str, float]
    """Mean of abs(y) over neurons and real time steps of each layer that does not spike."""
    seed: int
    published: Published | None
    """A published figure to compare with."""
    directory: Path = field(default=Path(), metadata=NEVER)
    """Where the run lies; not in result.json."""
    notes: tuple[str, ...] = ()
    """What a user should know of the data, and what simple answers would score."""
    baselines: dict[str, float] = field(default_factory=dict, metadata=UNLESS_DEFAULT)
    """The metric on the test set of simple ways to answer, such as "largest class"."""
    figures: dict[str, Figure] = field(default_factory=dict, metadata=UNLESS_DEFAULT)
    """The test set judged otherwise, by what is judged."""
    sequence: SequenceResult | None = field(default=None, metadata=UNLESS_DEFAULT)
    """What came of each task of a sequence; then `test`, `test_loss` and `valid` are means over all
    tasks after the last one.  Not in result.json of a single task."""


def lines_of(figures: dict[str, Figure]) -> list[str]:
    """The test set judged otherwise, a sentence each."""
    lines = []
    for name, shown in figures.items():
        metric = METRICS[shown.metric]
        lines.append(f"test {metric.name}, {name}: {metric.figure(shown.value)} {metric.unit}")
    return lines


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """A trial of a search that came to its end."""

    trial: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Its number, from 1, where trials stand in another order."""
    settings: dict[str, Any]
    """What was drawn."""
    valid: float
    """The metric on the validation set."""
    best_epoch: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The content of search.json."""

    base: dict[str, Any]
    """The config that the trials start from, as plain data."""
    space: dict[str, Any] = field(default_factory=dict)
    metric: str = ""
    higher_is_better: bool = False
    sampler: str = ""
    environment: Environment = field(default_factory=Environment)
    trials: Several[SearchTrial]

    @property
    def ranked(self) -> list[SearchTrial]:
        """The trials, numbered, the best first, of equal ones the earlier.

        Raises RunError where none came to an end.
        """
        if not self.trials:
            raise RunError("every trial of the search failed; start from other settings")
        sign = -1 if self.higher_is_better else 1
        numbered = [replace(trial, trial=n) for n, trial in enumerate(self.trials, start=1)]
        return sorted(numbered, key=lambda trial: sign * trial.valid)

    @property
    def config(self) -> Config:
        """The config of the best trial.  Raises RunError, ConfigError."""
        chosen = self.ranked[0].settings
        settings = {n: tuple(v) if isinstance(v, list) else v for n, v in chosen.items()}
        return override(from_dict(self.base), **settings)
