"""The network's part of a config.  Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from spikebridge.base.records import Bound, Count, Positive, Share, Size, check_types, require
from spikebridge.settings.names import (
    BASELINES,
    BINARY,
    PLAIN,
    UNITS,
    SurrogateName,
    UnitName,
    check_name,
)
from spikebridge.settings.surrogates import FORMULAS

Fraction = Annotated[float, Bound("[0, 1]")]
Width = Annotated[float, Bound("[1e-30, 1e30]")]
"""Above 0, as float32 can hold."""
if TYPE_CHECKING:
    NormName: TypeAlias = str | bool
else:  # True and False of earlier versions are batch and none
    NormName = Literal["none", "batch", "layer", "step"]


def norm_of(given: Any) -> Any:
    """A choice of `norm`; it was a switch, which stood for batch."""
    return ("batch" if given else "none") if isinstance(given, bool) else given


@dataclass(frozen=True)
class ModelConfig:
    """The network: a stack of layers of one unit, then a linear readout.

    The defaults of the neurons are those of `make_unit`, `SNU` and `SoftSNU` too.
    """

    unit: UnitName = "snu"
    """The neuron model: snu (spiking), softsnu (the same with a sigmoid output), li-snu (lateral
    inhibition), adaptive-snu (adaptive threshold), binary-di and binary-ci (binary activations
    with discontinuous and with continuous integration), a baseline: rnn, gru, lstm, or a layer
    without memory, y = f(W x): relu, tanh; or mypackage:MyUnit, a class of your own.
    recurrent-snu and so on are the same with --recurrent."""
    hidden: Annotated[tuple[int, ...], Bound("[1, inf)")] = (128, 128)
    """Neurons of each hidden layer, first to last; each at least 1."""
    channels: Annotated[tuple[int, ...], Bound("[1, inf)", example="16 32")] = ()
    """Channels of convolutional layers ahead of the hidden ones, for tasks with images."""
    kernel_size: int = 5
    """Side of the convolutions' kernels, odd; images are padded by half of it."""
    stride: Size = 2
    """Step of the convolutions: 2 halves the sides of an image in each such layer."""
    pool: Size = 1
    """Side of the squares over which the drive of each convolutional layer is averaged."""
    norm: NormName = "none"
    """How drives are normalised.  batch: feature by feature to a learned root mean square, in
    training that of the batch, in use a running one, which is a factor on the weights; step: the
    same at each step by itself, with mean and learned shift; layer: over the neurons of the layer
    at each step (LayerNorm), in use too, which no weights can stand for; none.  Without a value:
    batch."""
    centre: bool = False
    """Whether --norm batch also takes off the mean and adds a learned shift: batch normalisation,
    which folds into weights and a constant drive; binary-di: into weights and threshold."""
    drive_bias: bool = False
    """Whether each neuron (of convolutions: each channel) has a learned constant drive at every
    step; binary-ci always does, and with --centre the shift is it."""
    embedding: Count = 0
    """For tasks with symbols: length of the vector of each, trained; 0 = each symbol drives the
    first layer by a row of its own."""
    embedding_scale: Positive = 1.0
    """Factor on those vectors on their way into the network, above 0."""
    tied: bool = False
    """Whether the readout uses the embedding's matrix (Press and Wolf 2017), behind a linear map to
    its length."""
    weight_bits: Annotated[int, Bound("[2, 16]", or_zero=True)] = 0
    """Bits of each weight in training and use, at least 2; 0 = full precision.  The gradient passes
    the rounding straight through."""
    recurrent: bool = False
    """Whether each layer's outputs feed back to it at the next step; rnn, gru, lstm always do,
    relu and tanh never."""
    g: Literal["identity", "relu", "leaky_relu", "elu"] = "identity"
    """Nonlinearity inside the membrane loop, s = g(drive + decay * kept state); not used by rnn,
    gru, lstm, relu and tanh, like all settings of the membrane below.  Binary units have
    identity."""
    g_slope: Fraction = 0.1
    """Slope of leaky_relu for negative membrane states, 0 to 1."""
    decay: Annotated[float, Bound("(0, 1]")] = 0.8
    """Share of the membrane state that stays from one step to the next, above 0 and at most 1; not
    used by binary-di, which has 0, and binary-ci, which has 1."""
    decay_to: Fraction = 0.0
    """Above 0: the neurons of a layer start with decays spread evenly from --decay to here."""
    train_decay: bool = False
    """Whether the decay is learned (kept inside (0, 1]), starting at --decay, then below 1."""
    memory: Literal["leak", "gate", "oscillation"] = "leak"
    """How the membrane of snu and softsnu goes on: leak (a constant decay), gate (a decay that the
    inputs set, through rows of their own in each array) or oscillation (a second, slow state that
    the membrane turns with).  The last two train their decays."""
    modulation: Literal["none", "adaptation", "threshold", "output"] = "none"
    """What moves the threshold or the output of snu and softsnu: adaptation (a neuron's own
    spikes raise its threshold), threshold or output (further synapses do)."""
    recurrent_gates: bool = False
    """Whether the fed-back outputs reach the gate and the modulation too, with --recurrent."""
    slow_decay: Annotated[float, Bound("(0, 1)")] = 0.99
    """Share of the slow state of --memory oscillation that stays per step, at first."""
    period: Annotated[float, Bound("(2, inf)")] = 4.0
    """Steps of an oscillation of the first neuron of a layer, at first."""
    period_to: Annotated[float, Bound("(2, inf)")] = 200.0
    """The same of the last neuron; those between lie evenly on a logarithmic scale."""
    reset: Literal["gate", "subtract", "none"] = "gate"
    """What a spike does to the membrane: gate (the kept state is multiplied by 1 - y, as in the SNU
    paper), subtract (the threshold is taken off, see --subtract) or none; not used by binary-di,
    which has none, and binary-ci, which has subtract."""
    subtract: Literal["initial", "trained"] = "initial"
    """Which threshold --reset subtract takes off: the initial one, or the one in force, which is
    trained; of binary-ci they are the same."""
    surrogate: SurrogateName = "tanh_prime"
    """Formula in place of the derivative of the step in backward; tanh_prime is the SNU paper's;
    mypackage:FORMULA is one of your own."""
    surrogate_width: Width = 1.0
    """Width of the surrogate, in units of membrane state, above 0."""
    surrogate_height: Width = 1.0
    """Height of the surrogate: the pseudo-derivative at the threshold, above 0."""
    threshold: Annotated[float, Bound("[-3.4e38, 3.4e38]")] = 1.0
    """Initial firing threshold (bias = -threshold), in units of membrane state; then trained, but
    for binary-ci, whose constant drive is trained instead."""
    dropout: Share = 0.0
    """Probability of dropping an output of a hidden layer in training, 0 to below 1."""
    dropout_in: Share = 0.0
    """Probability of dropping an input (with an embedding: an element of its vectors) in training,
    0 to below 1."""
    same_mask: bool = False
    """Whether dropout drops the same neurons at all steps of a sequence."""
    dropout_recurrent: Share = 0.0
    """Probability of dropping a weight of the recurrent matrix (of gru, lstm: of all gates) for a
    batch in training, 0 to below 1 (DropConnect, Wan et al. 2013; Merity et al. 2017)."""
    read_all: bool = False
    """Whether the readout reads the outputs of all hidden layers, side by side, not the last one's
    alone."""

    delays: Count = 0
    """Most steps that a neuron's output takes to the next layer and to the readout, learned for
    each neuron: between two steps in training, whole steps in use; 0 = none."""
    skip: bool = False
    """Whether what goes into a hidden layer goes on into the next, added to its outputs, where it
    is as wide (He et al. 2016; of spikes, Fang et al. 2021); hidden layers must be equally wide."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", norm_of(self.norm))
        check_types(self)
        if self.unit.startswith("recurrent-"):
            object.__setattr__(self, "unit", self.unit.removeprefix("recurrent-"))
            object.__setattr__(self, "recurrent", True)
        check_name("unit", self.unit, UNITS)
        check_name("surrogate", self.surrogate, FORMULAS)
        require(
            len(self.hidden) > 0,
            "hidden=[]: there must be at least one hidden layer; pass --hidden 128 128",
        )
        require(
            not (self.train_decay and self.decay == 1),
            "decay=1.0: a learned decay must start below 1; pass --decay 0.95 or --no-train-decay",
        )
        self._check_unit()
        self._check_dynamics()
        self._check_binary()
        self._check_arrays()

    def _check_arrays(self) -> None:
        require(
            self.kernel_size >= 1 and self.kernel_size % 2 == 1,
            f"kernel_size={self.kernel_size}: the side must be odd; pass --kernel-size 5",
        )
        require(
            not self.tied or self.embedding > 0,
            "tied=True: there is no embedding to be tied to; pass --embedding 512 or --no-tied",
        )
        require(
            self.norm != "none" or not self.centre,
            "centre=True: the mean is taken off of scaled drives; pass --norm too, or --no-centre",
        )
        require(
            self.norm in ("none", "batch") or not self.centre,
            f"centre=True: --norm {self.norm} takes the mean off in any case; pass --no-centre, "
            "or --norm batch",
        )
        require(
            self.norm in ("none", "batch") or self.unit not in BASELINES,
            f"norm={self.norm}: the drives of {self.unit} stay within torch's own layers; leave "
            "--norm out, or choose another --unit",
        )
        require(
            not self.skip or len(set(self.hidden)) == 1,
            f"skip=True: hidden={list(self.hidden)} are added to one another, so they must be "
            "equally wide; pass equal numbers, or leave --skip out",
        )
        require(
            not self.skip or len(self.hidden) + len(self.channels) > 1,
            f"skip=True: hidden={list(self.hidden)} leaves no next layer to go on into; give two "
            "or more, or leave --skip out",
        )
        for name in ("weight_bits", "channels", "drive_bias"):
            flag = name.replace("_", "-")
            require(
                self.unit not in BASELINES or not getattr(self, name),
                f"unit={self.unit}: {name} has no place in torch's own layers; leave --{flag} out",
            )

    def _check_unit(self) -> None:
        require(
            not (self.train_decay and self.decay_to == 1),
            "decay_to=1.0: a learned decay must start below 1; pass --decay-to 0.98",
        )
        require(
            self.unit not in BASELINES or not self.delays,
            f"delays={self.delays}: {self.unit} is torch's own and keeps no outputs on their way; "
            "leave --delays out, or choose another --unit",
        )
        for name in ("recurrent", "dropout_recurrent", "delays"):
            require(
                self.unit not in PLAIN or not getattr(self, name),
                f"{name}={getattr(self, name)}: {self.unit} keeps nothing from step to step; "
                f"leave --{name.replace('_', '-')} out, or choose another --unit",
            )
        require(
            self.recurrent or self.unit in BASELINES or not self.dropout_recurrent,
            f"dropout_recurrent={self.dropout_recurrent}: {self.unit} has no recurrent matrix "
            "without --recurrent; pass it, or leave --dropout-recurrent out",
        )
        require(
            self.unit != "li-snu" or self.reset == "gate",
            f"reset={self.reset}: li-snu resets by lateral inhibition; leave --reset out",
        )
        subtracts = self.unit == "binary-ci" or (
            self.reset == "subtract" and self.unit not in BINARY
        )
        require(
            self.subtract == "initial" or (subtracts and self.unit not in BINARY),
            f"subtract={self.subtract}: {self.unit} with reset={self.reset} takes no trained "
            "threshold off; pass --reset subtract, or leave --subtract out",
        )
        require(
            not subtracts or self.threshold >= 0,
            f"threshold={self.threshold}: what reset subtract takes off must not be negative; "
            "pass --threshold 1",
        )

    def _check_dynamics(self) -> None:
        for name, usual in (("memory", "leak"), ("modulation", "none")):
            value = getattr(self, name)
            require(
                value == usual or self.unit in ("snu", "softsnu"),
                f"{name}={value}: {self.unit} has no other; pass --unit snu or softsnu, or leave "
                f"--{name} out",
            )
            require(
                value == usual or not self.channels,
                f"{name}={value}: convolutional layers have neither gates nor modulations yet; "
                f"leave --channels or --{name} out",
            )
        gates = self.memory == "gate" or self.modulation in ("threshold", "output")
        require(
            not self.recurrent_gates or (self.recurrent and gates),
            "recurrent_gates=True: there is nothing that it could feed; pass --recurrent and "
            "--memory gate, or --modulation threshold or output, or leave it out",
        )

    def _check_binary(self) -> None:
        if self.unit not in BINARY:
            return
        decay = {"binary-di": 0, "binary-ci": 1}[self.unit]
        require(
            not self.train_decay,
            f"train_decay=True: the decay of {self.unit} is {decay} and nothing to be learned; "
            "leave --train-decay out",
        )
        require(
            self.decay_to == 0,
            f"decay_to={self.decay_to}: the decay of {self.unit} is {decay} for all its neurons; "
            "leave --decay-to out",
        )


def check_fits(
    model: ModelConfig, input_size: int, symbols: bool, image: Sequence[int] | None
) -> None:
    """Raise ConfigError where a description does not fit a task's inputs."""
    require(
        not model.channels or image is not None,
        f"channels={list(model.channels)}: the inputs of this task are no images; "
        "leave --channels out",
    )
    require(
        image is None or math.prod(image) == input_size,
        f"image={image}: it has as many numbers as its sides multiply to, got "
        f"input_size={input_size}; give the one that the inputs have",
    )
    require(
        symbols or not model.embedding,
        f"embedding={model.embedding}: the inputs of this task are no symbols; "
        "leave --embedding out",
    )
    require(
        not symbols or model.embedding > 0 or model.unit not in BASELINES,
        f"unit={model.unit}: with symbols it needs an embedding; pass --embedding 256",
    )
