"""What an experiment is made of: frozen records, checked when built, and the tuned presets.

A `Config` holds everything that decides a run's numbers.  Field names are unique over the nested
records, so that each is one command-line flag without a prefix and `override(config, lr=1e-3)`
needs no path.  This module loads no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from spikebridge.base.records import (
    Amount,
    ConfigError,
    Count,
    Positive,
    Seed,
    Share,
    Size,
    check_types,
    from_plain,
    near,
    require,
    to_plain,
)
from spikebridge.base.records import flatten as flatten
from spikebridge.base.records import override as override_records
from spikebridge.settings.continual import METHODS, SequenceConfig
from spikebridge.settings.crossbar import (
    CellConfig,
    CrossbarConfig,
    PulseConfig,
    changed,
    renewed,
)
from spikebridge.settings.learning import FEEDBACK, ONLINE, LearningConfig
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.names import BASELINES, VARIANTS, is_place, unit_class
from spikebridge.settings.presets import PRESETS
from spikebridge.settings.tasks import (
    TASKS,
    DigitsConfig,
    TaskConfig,
    TextConfig,
    name_of_data,
)


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained."""

    epochs: Size = 20
    """Passes over the training set, at least 1."""
    batch_size: Size = 32
    """Samples (images, songs) per optimiser step, at least 1."""
    loss: Literal["task", "squared_hinge"] = "task"
    """What is minimised: the task's own loss, or, where targets are classes, the mean over classes
    of max(0, 1 - t y)^2 with t = 1 for the right one and -1 for the others.  Validation and test
    always report the task's own."""
    activity: Amount = 0.0
    """Price on spikes: the loss grows by this times the mean square of the outputs of each hidden
    layer, over its neurons, samples and real steps; 0 = none."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser; sgd has --momentum."""
    momentum: Share = 0.9
    """What sgd keeps per step of its running sum of gradients, 0 (none) to below 1; not used by
    adam and adamw."""
    lr: Positive = 1e-3
    """Learning rate (the highest one, where the schedule varies it), above 0."""
    weight_decay: Amount = 0.0
    """Weight decay of the optimiser on matrices and kernels, at least 0; thresholds, decays and
    biases are left alone."""
    beta2: Share = 0.999
    """What adam and adamw keep per step of their mean square of gradients, 0 to below 1."""
    schedule: Literal["constant", "cosine", "onecycle"] = "constant"
    """Learning rate over the run: constant, cosine (falls to 0) or onecycle (rises over the first
    tenth of the steps, then falls)."""
    ema: Share = 0.0
    """Where above 0: validation, test and the file use a moving average of the weights that keeps
    this share of itself per optimiser step, 0 to below 1 (Polyak averaging)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of products in training (autocast); membranes and weights stay in float32."""
    sampled: Count = 0
    """For tasks with many symbols: train on this many drawn ones beside the right one (sampled
    softmax, Jean et al. 2015); validation and test always count all; 0 = all in training too."""
    weight_noise: Amount = 0.0
    """Normal noise on every weight in training, drawn at each pass, in shares of the largest
    weight of its matrix: makes a network fit for memory cells; 0 = none."""
    start: str = ""
    """Folder of a finished run whose weights are the first ones, for fine-tuning."""
    clip_norm: Amount = 1.0
    """Gradients are scaled down to this norm over all parameters; 0 = no clipping."""
    patience: Count = 0
    """Stop after this many epochs without a better validation metric; 0 = never stop early."""
    seed: Seed = 0
    """Seed of initial weights, order of samples, input draws and dropout, at least 0."""
    eval_seed: Seed = 1000
    """Seed of the input draws of validation and test, at least 0; apart from --seed, so that all
    runs are judged on the same inputs."""
    backend: Literal["auto", "loop", "native", "triton", "compiled"] = "auto"
    """What runs units over time: the Python loop, the kernel for CPUs (native), the one for CUDA
    (triton), the loop compiled by torch (compiled), or whichever of the first three fits (auto)."""
    recompute: Count = 0
    """Keep every k-th state for the backward pass and compute the rest twice; 0 = keep all."""
    threads: Count = 0
    """CPU threads, at least 0; 0 = as many as torch takes.  Equal threads give equal bits."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            not self.sampled or self.loss == "task",
            f"sampled={self.sampled}, loss={self.loss}: only the task's own loss is corrected for "
            "how outputs are drawn; leave one of them out",
        )


@dataclass(frozen=True)
class Config:
    """Everything that decides the numbers of a run."""

    task: TaskConfig = field(default_factory=DigitsConfig)
    """The data and how they are presented."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training."""
    cells: CellConfig = field(default_factory=CellConfig)
    """The memory cells that are in the loop, if any."""
    crossbar: CrossbarConfig = field(default_factory=CrossbarConfig)
    """How the crossbars of these cells are built."""
    pulses: PulseConfig = field(default_factory=PulseConfig)
    """How weights are trained on them."""
    learning: LearningConfig = field(default_factory=LearningConfig)
    """The learning rule."""
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    """The tasks that follow each other, if any."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.train.weight_noise:
            chosen = f"weight_noise={self.train.weight_noise}"
            self._exclude(chosen, "noise on rounded weights is not rounded", weight_bits=0)
            self._exclude(chosen, "what is computed twice would draw other noise", recompute=0)
        self._check_rule()
        self._check_cells()
        if self.sequence.used:
            self._check_sequence()

    @property
    def epochs(self) -> int:
        """Passes over the training data in all, at most."""
        return self.train.epochs * (self.sequence.tasks if self.sequence.used else 1)

    def _exclude(self, chosen: str, why: str, **without: Any) -> None:
        """Refuse settings that do not go with what is chosen, unless they have these values."""
        settings = flatten(self)
        for name, value in without.items():
            flag = f"--{name.replace('_', '-')}"
            remedy = f"leave {flag} out" if value == "" else f"pass {flag} {value}"
            given = f"{name}={settings[name]}"
            require(settings[name] == value, f"{chosen}, {given}: {why}; {remedy}")

    def _check_rule(self) -> None:
        """What an online rule forms gradients of is the loss of each step, and nothing else."""
        chosen = f"rule={self.learning.rule}"
        if self.learning.rule in FEEDBACK:
            self._exclude(chosen, "random feedback comes from all outputs", sampled=0)
        if self.learning.rule not in ONLINE:
            return
        require(
            not isinstance(self.task, TextConfig),
            f"{chosen}, task=text: online rules take numbers, and a text consists of symbols; "
            "leave --rule out",
        )
        backwards = {"loss": "task", "activity": 0, "precision": "float32", "recompute": 0}
        self._exclude(chosen, "that is for rules that go backwards", sampled=0, **backwards)

    def _check_sequence(self) -> None:
        chosen = f"protocol={self.sequence.protocol}"
        require(
            isinstance(self.task, DigitsConfig),
            f"{chosen}, task={self.task.NAME}: tasks are made of images; leave --protocol out",
        )
        self._exclude(chosen, "a sequence is not trained on memory cells", cells="", cell_table="")
        single = {"schedule": "constant", "ema": 0, "patience": 0, "sampled": 0, "weight_noise": 0}
        self._exclude(chosen, "that is for a single task", start="", **single)

    def _check_cells(self) -> None:
        """What memory cells do not go with, and what without them nothing would use."""
        if not self.cells.used:
            for name, value in changed(self.crossbar, self.pulses).items():
                flag = name.replace("_", "-")
                raise ConfigError(
                    f"{name}={value}: the network is not trained on memory cells, which alone have "
                    f"it; pass --cells pcm too, or leave --{flag} out"
                )
            return
        chosen = f"cells={self.cells.cells or self.cells.cell_table}"
        require(
            self.model.unit not in BASELINES,
            f"unit={self.model.unit}: torch keeps its matrices to itself, so no memory cells can "
            "hold them; train a spiking unit on the hardware",
        )
        by_range = "the range of cells in training is --w-max, or four root mean squares"
        self._exclude(chosen, by_range, clip_rms=0)
        self._exclude(chosen, "cells hold the weights and no average of them", ema=0)
        draws = "each read draws anew, and cells hold what they hold"
        self._exclude(chosen, draws, recompute=0, weight_noise=0, weight_bits=0)


def preset(task: str, unit: str = "snu", data: str | None = None, **settings: Any) -> Config:
    """The tuned settings of a unit on a data set.

    task is one of `task_configs.TASKS`; unit a unit or a variant such as "recurrent-softsnu"; data
    one of the task's data sets (None: its default); settings replace those of the preset, and
    level="char" among them takes the one for characters, look_back the one of windows of a table,
    protocol="permuted" or "split" the one of sequences of tasks, the same for all images: that of
    the first public notebook of GRAPES.
    Raises ConfigError for names that do not exist.
    """
    if task not in TASKS:
        raise ConfigError(
            f"task={task!r}: there is no such task{near(task, TASKS)}; choose one of "
            f"{', '.join(TASKS)}"
        )
    kind = TASKS[task]
    data = default_data(kind) if data is None else data
    name, recurrent = split_variant(unit)
    result: dict[str, Any] = {}
    rows = [("", ""), (data, ""), ("", unit), (data, unit)]
    if settings.get("protocol", "none") != "none":
        rows = [("sequence", ""), ("sequence", unit)]
    elif finer := settings.get("level") or (settings.get("look_back") and "windows"):
        finer = f"{data} {finer}"
        rows += [(finer, ""), (finer, unit)]
    for row in rows:
        result |= PRESETS.get(row, {})
    result |= {"unit": name, "recurrent": recurrent} | settings
    # Built at once, not overridden: a task's settings may only make sense together.
    mine, order = (
        {f.name: result.pop(f.name) for f in dataclasses.fields(record) if f.name in result}
        for record in (kind, SequenceConfig)
    )
    config = Config(task=kind(**{"data": data, **mine}), sequence=SequenceConfig(**order))
    return override(config, **result)


def default_data(kind: type[TaskConfig]) -> str:
    """The data set of a task where none is named."""
    return next(str(f.default) for f in dataclasses.fields(kind) if f.name == "data")


def split_variant(variant: str) -> tuple[str, bool]:
    """Unit and recurrence of a variant: "recurrent-softsnu" -> ("softsnu", True).

    Raises ConfigError for a name that does not exist.
    """
    unit = variant.removeprefix("recurrent-")
    if variant not in VARIANTS and not is_place(unit):
        raise ConfigError(
            f"unit={variant!r}: there is no such unit{near(variant, VARIANTS)}; choose one of "
            f"{', '.join(VARIANTS)}"
        )
    return unit, unit != variant


def variant_of(model: ModelConfig) -> str:
    """The name of a model's unit with its recurrence, such as "recurrent-softsnu"."""
    plain = model.unit in BASELINES or not model.recurrent
    return model.unit if plain else f"recurrent-{model.unit}"


def unit_in_path(config: Config) -> str:
    """The variant as a part of the name of a folder."""
    return variant_of(config.model).replace(":", ".")


def label_of(variant: str) -> str:
    """How tables and figures call a variant: "recurrent-softsnu" -> "recurrent soft SNU".

    The unit's class says it, so that torch is loaded.
    """
    unit, recurrent = split_variant(variant)
    label = getattr(unit_class(unit), "label", unit)  # what is no unit is refused when it is built
    return f"recurrent {label}" if recurrent else label


def title_of(config: Config) -> str:
    """The unit of a config, with its learning rule where that is not backpropagation.

    Of a sequence of tasks with rule and method, such as "ReLU, backpropagation + GRAPES, EWC".
    """
    label = label_of(variant_of(config.model))
    if config.sequence.used:
        parts = (label, config.learning.name, METHODS[config.sequence.method])
        return ", ".join(part for part in parts if part)
    plain = config.learning == LearningConfig()
    return label if plain else f"{label}, {config.learning.name}"


def task_name(config: Config) -> str:
    """The task a config is for, such as "digits"."""
    return config.task.NAME


def data_name(config: Config) -> str:
    """The data set, such as "mnist", or the name of the user's folder."""
    return name_of_data(config.task)


def folder_name(config: Config) -> str:
    """What tells runs of a data set from others: characters are not words of the same text."""
    if config.sequence.used:
        return f"{data_name(config)}-{config.sequence.protocol}"
    return data_name(config) + ("-char" if getattr(config.task, "level", "") == "char" else "")


def override(config: Config, **settings: Any) -> Config:
    """A copy with some fields of the nested records replaced, named without their record.

    Other fields stay: level="char" does not bring the preset for characters, as it does in
    `preset`; but a new method against forgetting has a strength of its own.  Raises ConfigError.
    """
    if settings.get("method", config.sequence.method) != config.sequence.method:
        settings = {"strength": None} | settings
    return override_records(config, **settings)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain data that JSON can hold; `from_dict` gives the config back.

    What no run of a single task knows is left out of its data.
    """
    plain = to_plain(config)
    if not config.sequence.used:
        del plain["sequence"]
    return plain


def from_dict(plain: Mapping[str, Any]) -> Config:
    """The Config that `to_dict` wrote; fields that are left out take their defaults.

    Raises ConfigError for an unknown key (with the known ones), a wrong type or a value that breaks
    a rule.
    """
    return from_plain(Config, renewed(plain) if isinstance(plain, Mapping) else plain)
