"""What an experiment is made of: frozen records, checked when built, and the tuned presets.

A `Config` holds everything that decides a run's numbers.  Field names are unique over the nested
records, so that each is one command-line flag without a prefix and `override(config, lr=1e-3)`
needs no path.  This module loads no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from spikebridge.presets import PRESETS
from spikebridge.records import (
    ConfigError,
    at_least,
    check_types,
    listed,
    refuse_unknown,
    require,
    type_name,
)

UnitName = Literal["snu", "softsnu", "li-snu", "adaptive-snu", "rnn", "gru", "lstm"]
VariantName = Literal[
    "snu",
    "softsnu",
    "li-snu",
    "adaptive-snu",
    "recurrent-snu",
    "recurrent-softsnu",
    "recurrent-li-snu",
    "recurrent-adaptive-snu",
    "rnn",
    "gru",
    "lstm",
]
TaskName = Literal["digits", "music"]
DataName = Literal["digits8x8", "mnist", "jsb"]
Record = TypeVar("Record")

UNITS: tuple[str, ...] = get_args(UnitName)
VARIANTS: tuple[str, ...] = get_args(VariantName)
BASELINES = ("rnn", "gru", "lstm")
LABELS = {
    "snu": "SNU",
    "softsnu": "soft SNU",
    "li-snu": "LI-SNU",
    "adaptive-snu": "adaptive SNU",
    "rnn": "RNN",
    "gru": "GRU",
    "lstm": "LSTM",
}


@dataclass(frozen=True)
class DigitsConfig:
    """Handwritten digits, one image as a sequence of T time steps."""

    data: Literal["digits8x8", "mnist"] = "digits8x8"
    """Which images: digits8x8 (1,797 of 8 x 8 pixels, comes with scikit-learn) or mnist (70,000 of
    28 x 28, from idx files)."""
    coding: Literal["rate", "current", "rows"] = "rate"
    """How a pixel p in [0, 1] becomes a sequence: rate (a spike with probability gain x p, drawn
    afresh at each step), current (the value gain x p at every step) or rows (step t is image row t,
    times the gain)."""
    steps: int = 20
    """Time steps per image, at least 1; coding rows has one step per row instead."""
    gain: float = 1.0
    """Factor on pixel values, above 0; with coding rate it is the spike probability of a pixel of
    full brightness, so at most 1."""

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "20", "steps")
        require(self.gain > 0, f"gain={self.gain}: the gain must be above 0; pass --gain 1")
        require(
            self.coding != "rate" or self.gain <= 1,
            f"gain={self.gain}: with coding rate the gain is a probability, so at most 1; "
            "pass --gain 1 or --coding current",
        )


@dataclass(frozen=True)
class MusicConfig:
    """Polyphonic music, next-frame prediction over 88 notes."""

    dataset: Literal["jsb"] = "jsb"
    """Which pieces: jsb (Bach chorales, 229 to train, 76 to validate, 77 to test)."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class ModelConfig:
    """The network: a stack of layers of one unit, then a linear readout."""

    unit: UnitName = "snu"
    """The neuron model: snu (spiking), softsnu (the same with a sigmoid output), li-snu (lateral
    inhibition), adaptive-snu (adaptive threshold), or a baseline: rnn, gru, lstm."""
    hidden: tuple[int, ...] = (128, 128)
    """Neurons of each hidden layer, first to last; each at least 1."""
    recurrent: bool = False
    """Whether each layer's outputs feed back to it at the next step; rnn, gru, lstm always do."""
    g: Literal["identity", "relu", "leaky_relu", "elu"] = "leaky_relu"
    """Nonlinearity inside the membrane loop, s = g(drive + decay * kept state); not used by rnn,
    gru and lstm, like all settings of the membrane below."""
    g_slope: float = 0.1
    """Slope of leaky_relu for negative membrane states, 0 to 1."""
    decay: float = 0.8
    """Share of the membrane state that stays from one step to the next, above 0 and at most 1."""
    train_decay: bool = False
    """Whether the decay is learned (kept inside (0, 1]), starting at --decay, then below 1."""
    reset: Literal["gate", "subtract", "none"] = "gate"
    """What a spike does to the membrane: gate (the kept state is multiplied by 1 - y, as in the SNU
    paper), subtract (the initial threshold is taken off) or none."""
    surrogate: Literal[
        "tanh_prime", "window", "triangle", "fast_sigmoid", "arctan", "sigmoid_prime"
    ] = "tanh_prime"
    """Formula in place of the derivative of the step in backward; tanh_prime is the SNU paper's."""
    surrogate_width: float = 1.0
    """Width of the surrogate, in units of membrane state, above 0."""
    surrogate_height: float = 1.0
    """Height of the surrogate: the pseudo-derivative at the threshold, above 0."""
    threshold: float = 1.0
    """Initial firing threshold (bias = -threshold), in units of membrane state; then trained."""
    dropout: float = 0.0
    """Probability of dropping an output of a hidden layer in training, 0 to below 1."""
    same_mask: bool = False
    """Whether dropout drops the same neurons at all steps of a sequence."""

    def __post_init__(self) -> None:
        check_types(self)
        shown = list(self.hidden)
        require(
            len(self.hidden) >= 1 and min(self.hidden, default=0) >= 1,
            f"hidden={shown}: there must be at least one hidden layer, each of at least 1 neuron; "
            "pass --hidden 128 128",
        )
        require(
            0 <= self.g_slope <= 1,
            f"g_slope={self.g_slope}: the slope must lie in [0, 1]; pass --g-slope 0.1",
        )
        require(
            0 < self.decay <= 1,
            f"decay={self.decay}: the decay must lie in (0, 1]; pass --decay 0.8",
        )
        require(
            not (self.train_decay and self.decay == 1),
            "decay=1.0: a learned decay must start below 1; pass --decay 0.95 or --no-train-decay",
        )
        self._check_unit()
        require(
            self.surrogate_width > 0,
            f"surrogate_width={self.surrogate_width}: the width must be above 0; "
            "pass --surrogate-width 1",
        )
        require(
            self.surrogate_height > 0,
            f"surrogate_height={self.surrogate_height}: the height must be above 0; "
            "pass --surrogate-height 1",
        )
        require(
            0 <= self.dropout < 1,
            f"dropout={self.dropout}: the probability must lie in [0, 1); pass --dropout 0.2",
        )

    def _check_unit(self) -> None:
        require(
            self.unit != "li-snu" or self.reset == "gate",
            f"reset={self.reset}: li-snu resets by lateral inhibition; leave --reset out",
        )
        require(
            self.reset != "subtract" or self.threshold >= 0,
            f"threshold={self.threshold}: what reset subtract takes off must not be negative; "
            "pass --threshold 1",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained."""

    epochs: int = 20
    """Passes over the training set, at least 1."""
    batch_size: int = 32
    """Samples (images, songs) per optimiser step, at least 1."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser; sgd has momentum 0.9."""
    lr: float = 1e-3
    """Learning rate (the highest one, where the schedule varies it), above 0."""
    weight_decay: float = 0.0
    """Weight decay of the optimiser, at least 0."""
    schedule: Literal["constant", "cosine", "onecycle"] = "constant"
    """Learning rate over the run: constant, cosine (falls to 0) or onecycle (rises over the first
    tenth of the steps, then falls)."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm over all parameters; 0 = no clipping."""
    patience: int = 0
    """Stop after this many epochs without a better validation metric; 0 = never stop early."""
    seed: int = 0
    """Seed of initial weights, order of samples, input draws and dropout, at least 0."""
    eval_seed: int = 1000
    """Seed of the input draws of validation and test, at least 0; apart from --seed, so that all
    runs are judged on the same inputs."""
    backend: Literal["auto", "loop", "native", "triton"] = "auto"
    """What runs units over time: the Python loop, the kernel for CPUs (native), the one for CUDA
    (triton), or whichever fits (auto)."""
    recompute: int = 0
    """Keep every k-th state for the backward pass and compute the rest twice; 0 = keep all."""
    threads: int = 0
    """CPU threads, at least 0; 0 = as many as torch takes.  Equal threads give equal bits."""

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "20", "epochs")
        at_least(self, 1, "32", "batch_size")
        require(self.lr > 0, f"lr={self.lr}: the learning rate must be above 0; pass --lr 1e-3")
        at_least(self, 0, "0", "weight_decay", "clip_norm", "patience")
        at_least(self, 0, "0", "seed", "eval_seed", "recompute", "threads")
        for name in ("seed", "eval_seed"):
            value = getattr(self, name)
            require(
                value < 2**63, f"{name}={value}: a seed must be below 2**63; pass a smaller one"
            )


@dataclass(frozen=True)
class Config:
    """Everything that decides the numbers of a run."""

    task: DigitsConfig | MusicConfig = field(default_factory=DigitsConfig)
    """The data and how they are presented."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training."""

    def __post_init__(self) -> None:
        check_types(self)


TASKS: dict[str, type[DigitsConfig] | type[MusicConfig]] = {
    "digits": DigitsConfig,
    "music": MusicConfig,
}

DEFAULT_DATA = {"digits": "digits8x8", "music": "jsb"}


def preset(task: str, unit: str = "snu", data: str | None = None) -> Config:
    """The tuned settings of a unit on a data set.

    task is "digits" or "music"; unit a unit or a variant such as "recurrent-softsnu"; data one of
    the task's data sets (None: its default).  Raises ConfigError for names that do not exist.
    """
    if task not in TASKS:
        raise ConfigError(f"task={task!r}: there is no such task; choose one of {listed(TASKS)}")
    data = DEFAULT_DATA[task] if data is None else data
    name, recurrent = split_variant(unit)
    chosen_data: dict[str, Any] = {"dataset" if task == "music" else "data": data}
    chosen = Config(task=TASKS[task](**chosen_data))
    settings: dict[str, Any] = {}
    for row in ((data, ""), (data, unit)):
        settings |= PRESETS.get(row, {})
    settings |= {"unit": name, "recurrent": recurrent}
    return override(chosen, **settings)


def split_variant(variant: str) -> tuple[str, bool]:
    """Unit and recurrence of a variant: "recurrent-softsnu" -> ("softsnu", True).

    Raises ConfigError for a name that does not exist.
    """
    if variant not in VARIANTS:
        raise ConfigError(
            f"unit={variant!r}: there is no such unit; choose one of {listed(VARIANTS)}"
        )
    unit = variant.removeprefix("recurrent-")
    return unit, unit != variant


def variant_of(model: ModelConfig) -> str:
    """The name of a model's unit with its recurrence, such as "recurrent-softsnu"."""
    plain = model.unit in BASELINES or not model.recurrent
    return model.unit if plain else f"recurrent-{model.unit}"


def label_of(variant: str) -> str:
    """How tables and figures call a variant: "recurrent-softsnu" -> "recurrent soft SNU"."""
    unit, recurrent = split_variant(variant)
    return f"recurrent {LABELS[unit]}" if recurrent else LABELS[unit]


def task_name(config: Config) -> str:
    """The task a config is for: "digits" or "music"."""
    return next(name for name, kind in TASKS.items() if isinstance(config.task, kind))


def data_name(config: Config) -> str:
    """The data set: "digits8x8", "mnist" or "jsb"."""
    return config.task.dataset if isinstance(config.task, MusicConfig) else config.task.data


def override(config: Config, **settings: Any) -> Config:
    """A copy with some fields of the nested records replaced, named without their record."""
    parts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    known = {f.name: part for part, record in parts.items() for f in dataclasses.fields(record)}
    refuse_unknown(settings, known, "setting")
    for part, record in parts.items():
        mine = {name: value for name, value in settings.items() if known[name] == part}
        parts[part] = dataclasses.replace(record, **mine)
    return Config(**parts)


def flatten(config: Config) -> dict[str, Any]:
    """All settings by name, without the records that hold them."""
    records = [getattr(config, f.name) for f in dataclasses.fields(config)]
    return {f.name: getattr(r, f.name) for r in records for f in dataclasses.fields(r)}


def to_dict(config: Config) -> dict[str, Any]:
    """Plain data that JSON can hold; `from_dict` gives the config back."""
    plain: dict[str, Any] = {"task": {"name": task_name(config)}}
    for part in dataclasses.fields(config):
        for name, value in dataclasses.asdict(getattr(config, part.name)).items():
            plain.setdefault(part.name, {})[name] = list(value) if type(value) is tuple else value
    return plain


def from_dict(plain: Mapping[str, Any]) -> Config:
    """The Config that `to_dict` wrote; fields that are left out take their defaults.

    Raises ConfigError for an unknown key (with the known ones), a wrong type or a value that breaks
    a rule.
    """
    require(isinstance(plain, Mapping), f"config: expected a mapping, found {type_name(plain)}")
    refuse_unknown(plain, [f.name for f in dataclasses.fields(Config)], "config")
    task = _mapping(plain, "task")
    name = task.pop("name", "digits")
    require(
        isinstance(name, str) and name in TASKS,
        f"task.name={name!r}: there is no such task; choose one of {listed(TASKS)}",
    )
    return Config(
        task=_record(TASKS[name], task, "task"),
        model=_record(ModelConfig, _mapping(plain, "model"), "model"),
        train=_record(TrainConfig, _mapping(plain, "train"), "train"),
    )


def _mapping(plain: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = plain.get(key, {})
    require(isinstance(value, Mapping), f"{key}: expected a mapping, found {type_name(value)}")
    return dict(value)


def _record(kind: type[Record], values: dict[str, Any], where: str) -> Record:
    refuse_unknown(values, [f.name for f in dataclasses.fields(kind)], where)  # type: ignore[arg-type]
    return kind(**values)
