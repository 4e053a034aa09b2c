"""Settings of learning tasks one after the other, as frozen records (no torch)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from spikebridge.base.records import at_least, check_types, from_plain, require
from spikebridge.base.records import flatten as flatten
from spikebridge.base.records import override as override_records
from spikebridge.base.records import to_plain as to_dict  # noqa: F401
from spikebridge.settings.config import Config, TrainConfig, label_of
from spikebridge.settings.learning import LearningConfig
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.names import PLAIN
from spikebridge.settings.tasks import DigitsConfig

STRENGTHS = {"ewc": 30.0, "si": 1.0}
METHODS = {"naive": "", "ewc": "EWC", "si": "SI"}


@dataclass(frozen=True)
class SequenceConfig:
    """Which tasks follow each other, and what is done to keep the earlier ones."""

    protocol: Literal["permuted", "split"] = "permuted"
    """permuted: the same images in each task with their pixels in another random order, the first
    task's as they are (Goodfellow et al. 2013); split: some of the classes in each task, 0 and 1,
    then 2 and 3, .. (Zenke et al. 2017)."""
    tasks: int = 5
    """Number of tasks, 2 to 20; with split at most half as many as there are classes, which they
    must share evenly."""
    heads: Literal["shared", "masked"] = "shared"
    """Which outputs are asked in split tasks: shared (all classes: class-incremental) or masked
    (the task's own: task-incremental); permuted tasks have all classes."""
    sequence_seed: int = 0
    """Seed of the permutations, apart from --seed, so that several runs share them."""
    method: Literal["naive", "ewc", "si"] = "naive"
    """What holds weights that mattered to earlier tasks: naive (nothing), ewc (elastic weight
    consolidation, Kirkpatrick et al. 2017) or si (synaptic intelligence, Zenke et al. 2017).  si
    with --grapes or --rule fa, dfa, drtp takes the update that the rule makes for the gradient."""
    strength: float | None = None
    """Factor on the penalty of ewc and si, at least 0; none given = 30 for ewc, 1 for si."""
    damping: float = 0.1
    """What si adds to the square of a weight's way, above 0."""
    labels: Literal["model", "true"] = "model"
    """Whose labels ewc takes for the Fisher information: drawn from the model's answers, or the
    true ones (the empirical Fisher)."""
    fisher_samples: int = 1000
    """Training images, each by itself, over which ewc takes the mean; at least 1."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            2 <= self.tasks <= 20,
            f"tasks={self.tasks}: a sequence has 2 to 20 tasks; pass --tasks 5",
        )
        require(
            self.heads == "shared" or self.protocol == "split",
            f"heads={self.heads}: permuted tasks have all classes in each; leave --heads out",
        )
        self._settle_strength()
        require(
            self.damping > 0, f"damping={self.damping:g}: it must be above 0; pass --damping 0.1"
        )
        at_least(self, 0, "0", "sequence_seed")
        at_least(self, 1, "1000", "fisher_samples")

    def _settle_strength(self) -> None:
        """The record holds the number that is used; none is left for naive alone."""
        if self.method == "naive":
            require(
                not self.strength,
                f"strength={self.strength}: naive has no penalty; pass --method ewc or si too",
            )
            object.__setattr__(self, "strength", None)
        elif self.strength is None:
            object.__setattr__(self, "strength", STRENGTHS[self.method])
        else:
            at_least(self, 0, "1", "strength")


@dataclass(frozen=True)
class StepsConfig:
    """How the network is trained on each task; the optimiser goes on from task to task."""

    epochs: int = 1
    """Passes over the training images of each task, at least 1."""
    batch_size: int = 64
    """Images per optimiser step, at least 1."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser; sgd has momentum 0.9."""
    lr: float = 1e-3
    """Learning rate, above 0."""
    clip_norm: float = 0.0
    """Gradients are scaled down to this norm over all parameters; 0 = no clipping."""
    seed: int = 0
    """Seed of initial weights, order of images, input draws and labels drawn for ewc."""
    eval_seed: int = 1000
    """Seed of the input draws of validation and test."""
    threads: int = 0
    """CPU threads, at least 0; 0 = as many as torch takes.  Equal threads give equal bits."""

    def __post_init__(self) -> None:
        check_types(self)
        TrainConfig(**dataclasses.asdict(self))  # has the same rules


def _images() -> DigitsConfig:
    return DigitsConfig(data="mnist", coding="current", steps=1)


def _network() -> ModelConfig:
    return ModelConfig(unit="relu", hidden=(256, 256), g="leaky_relu")


@dataclass(frozen=True)
class ContinualConfig:
    """Everything that decides the numbers of a sequence of tasks.

    By default what the first public notebook of GRAPES does: static images, relu 784-256-256-10
    without biases, SGD with momentum, one pass per task.
    """

    task: DigitsConfig = field(default_factory=_images)
    """The images and how they are presented; spiking units want --coding rate --steps 20."""
    model: ModelConfig = field(default_factory=_network)
    """The network; behind relu and tanh the readout has no bias and He's weights."""
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    """The tasks."""
    train: StepsConfig = field(default_factory=StepsConfig)
    """The training."""
    learning: LearningConfig = field(default_factory=LearningConfig)
    """The learning rule."""

    def __post_init__(self) -> None:
        check_types(self)
        self.plain()

    def plain(self) -> Config:
        """The settings of one task by itself, as those of an experiment.  Raises ConfigError."""
        train = TrainConfig(**dataclasses.asdict(self.train))
        return Config(task=self.task, model=self.model, train=train, learning=self.learning)

    @property
    def label(self) -> str:
        """What tables call it, such as "ReLU, backpropagation + GRAPES, EWC"."""
        parts = (label_of(self.model.unit), self.learning.name, METHODS[self.sequence.method])
        return ", ".join(part for part in parts if part)


def for_unit(unit: str, **settings: Any) -> ContinualConfig:
    """The defaults of a unit: static images for relu and tanh, else rates over 20 steps.

    settings replace them.  Raises ConfigError.
    """
    if unit not in PLAIN:
        settings = {"coding": "rate", "steps": 20, "optimizer": "adam"} | settings
    return override(ContinualConfig(), unit=unit, **settings)


def override(config: ContinualConfig, **settings: Any) -> ContinualConfig:
    """A copy with some fields of the nested records replaced, named without their record.

    A new method comes with a strength of its own, unless one is given.
    """
    if settings.get("method", config.sequence.method) != config.sequence.method:
        settings = {"strength": None} | settings
    return override_records(config, **settings)


def from_dict(plain: Mapping[str, Any]) -> ContinualConfig:
    """The config that `to_dict` wrote; fields that are left out take their defaults.

    Raises ConfigError for an unknown key, a wrong type or a value that breaks a rule.
    """
    return from_plain(ContinualConfig, plain)
