"""The unit family: spiking neurons as one pure step, with a Module that holds the parameters.

All units are members of one recurrence (Woźniak et al. 2020, Eq. of the SNU, extended by the reset)

    u = drive + decay * s * keep(y_prev) - amount * y_prev
    s' = g(u)
    y' = h(s' + b),   b = -threshold

with h the step (SNU) or the logistic function (soft SNU).  What differs is data: a frozen `Rule`.
The binary units of Yin et al. 2017 are its two corners: decay 0, which is a plain network of binary
activations, and decay 1 with a reset by subtraction, which integrates without any leak.
State is passed in and handed out, never kept in a module.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from spikebridge.base.records import UsageError
from spikebridge.nn.fresh import Fresh, redraw
from spikebridge.nn.gradients import Surrogate
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.names import DYNAMIC, OF_MEMBERS, USUAL, is_place, unit_class
from spikebridge.settings.names import SPIKING as KINDS
from spikebridge.settings.names import named as named_class

__all__ = [
    "KINDS",
    "Params",
    "Rule",
    "SNUnit",
    "State",
    "Unit",
    "make_unit",
    "step",
    "whole",
]

G_FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda u, slope: u,
    "relu": lambda u, slope: F.relu(u),
    "leaky_relu": lambda u, slope: F.leaky_relu(u, slope),
    "elu": lambda u, slope: F.elu(u),
}
RESETS = ("gate", "subtract", "none", "lateral")
SUBTRACTED = ("initial", "trained")
OF_RULE = ("g", "slope", "reset", "amount", "subtract")


class State(NamedTuple):
    """What a unit remembers between two steps: a pair like (h, c) of an LSTM, the output first.

    A unit that remembers more than a membrane keeps it in s too, behind the membrane: the adaptive
    one has s (B, 2 N).  All of it in float32, or in float64 where the drive is.
    """

    y: Tensor  # (B, N) last output
    s: Tensor  # (B, N) membrane state, or wider: (B, unit.state_size)

    def detach(self) -> State:
        """The same values, cut off from the graph: truncated backpropagation through time."""
        return State(self.y.detach(), self.s.detach())


_of_two = State.__new__


def _of_before(cls: type[State], *parts: Any, **named: Any) -> State:
    """Three fields are the form of files of before: membrane, output, adaptation or None."""
    if len(parts) == 3:
        s, y, a = parts
        parts = (y, s if a is None else torch.cat([s, a], dim=-1))
    return _of_two(cls, *parts, **named)


State.__new__ = _of_before  # type: ignore[method-assign, assignment]
# torch.export.save writes the type of what a module returns by name, torch.load takes known types.
pytree._register_namedtuple(State, serialized_type_name="spikebridge.units.State")
# States saved before the class lay here name their home of that time.
torch.serialization.add_safe_globals([State, (State, "spikebridge.units.State")])


class Params(NamedTuple):
    """The tensors of a step: each () when shared or (N,) per unit, in the dtype of the state."""

    decay: Tensor  # in (0, 1]; 0 in memoryless units
    bias: Tensor  # b = -threshold
    amount: Tensor | None = None  # (N,), what a spike takes off; None is that of the rule
    own: tuple[Tensor, ...] = ()  # further parameters of a `DynamicUnit`, (N,) each


@dataclass(frozen=True)
class Rule:
    """What tells the members of the family apart.

    Args:
        surrogate: the spike function; None makes the unit soft (h = logistic function).
        g: "identity", "relu", "leaky_relu" or "elu", applied to the membrane in the loop.
        slope: negative slope of leaky_relu (elu has alpha = 1).
        reset: "gate" multiplies the old membrane by 1 - y (the SNU paper), "subtract" takes the
            threshold off for each spike, "none" leaves it, "lateral" multiplies by
            1 - max over the layer of y, for each sample by itself (a spike resets all units).
        subtract: which threshold reset="subtract" takes off: "initial", the one that the unit
            starts with, or "trained", the one in force.  The latter receives the gradient of both
            that it is compared with and that it is taken off.
        amount: a number to take off in place of the threshold.
    """

    surrogate: Surrogate | None = field(default_factory=Surrogate)
    g: str = ModelConfig.g
    slope: float = ModelConfig.g_slope
    reset: str = ModelConfig.reset
    amount: float | None = None
    subtract: str = ModelConfig.subtract

    def __post_init__(self) -> None:
        if not isinstance(self.surrogate, Surrogate | None):
            raise TypeError(
                f"surrogate must be a spikebridge.Surrogate, got {self.surrogate!r}; give, for "
                'example, Surrogate("triangle", width=0.5)'
            )
        if self.g not in G_FUNCTIONS:
            raise ValueError(f"g={self.g!r} is not known; choose one of {list(G_FUNCTIONS)}")
        if self.reset not in RESETS:
            raise ValueError(f"reset={self.reset!r} is not known; choose one of {list(RESETS)}")
        for name in ("slope", "amount"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= torch.finfo(torch.float32).max:
                raise ValueError(
                    f"{name} must be finite and not negative, within float32, got {value}"
                )
        if self.subtract not in SUBTRACTED:
            raise ValueError(
                f"subtract={self.subtract!r} is not known; choose one of {list(SUBTRACTED)}"
            )
        if self.subtract == "trained" and (self.reset != "subtract" or self.amount is not None):
            raise ValueError(
                f'subtract="trained" takes the threshold off, got reset={self.reset!r}, '
                f'amount={self.amount}; use reset="subtract" and leave amount out'
            )

    @property
    def trained(self) -> bool:
        """Whether a spike takes off the threshold in force."""
        return self.subtract == "trained"

    def fire(self, x: Tensor) -> Tensor:
        """h of x = s + b."""
        return torch.sigmoid(x) if self.surrogate is None else self.surrogate(x)


def kept(rule: Rule, s: Tensor, y: Tensor) -> Tensor:
    """What the last output y leaves of the membrane s, both (B, N)."""
    if rule.reset == "gate":
        return s * (1 - y)
    if rule.reset == "lateral":
        return s * (1 - y.amax(-1, keepdim=True)) if y.shape[-1] else s
    return s


def taken_off(rule: Rule, u: Tensor, y: Tensor, params: Params) -> Tensor:
    """u less what a reset by subtraction takes off for the last output y."""
    if rule.reset != "subtract":
        return u
    amount = rule.amount if params.amount is None else params.amount
    if amount is None:
        raise ValueError('reset="subtract" needs an amount; take the rule of a unit, unit.rule')
    return u - amount * y


def step(rule: Rule, state: State, drive: Tensor, params: Params) -> State:
    """One time step of an SNU: s' = g(drive + decay s keep(y)), y' = h(s' + b).

    Args:
        rule: the member of the family.
        state: y and s, (B, N).
        drive: (B, N) input current, the recurrent term included.
        params: decay, bias and amount.

    Source: Woźniak et al. 2020; the order of operations is that of the authors' toolkit.
    """
    u = drive + params.decay * kept(rule, state.s, state.y)
    s = G_FUNCTIONS[rule.g](taken_off(rule, u, state.y, params), rule.slope)
    return State(rule.fire(s + params.bias), s)


def whole(**numbers: Any) -> int:
    """A whole number given by its name, such as one of numpy; TypeError for others, True too."""
    ((name, value),) = numbers.items()
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r} ({type(value).__name__})")
    return operator.index(value)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The membrane is kept in float32 at least: a leak of 0.99 is lost in bfloat16."""
    return torch.promote_types(dtype, torch.float32)


class Unit(Fresh):
    """A layer of N neurons of one kind: parameters, and a pure `step`.

    Args:
        size: N, at least 1.
        rule: the member of the family; what it takes off is settled here.
        decay: share of the membrane kept per step, in (0, 1]; a number, or a tensor (N,).
        train_decay: make it a parameter.  It is stored as a logit, so training cannot leave (0, 1).
        per_unit: one decay per unit rather than one for the layer (implied by a tensor).
        threshold: initial threshold; the parameter `threshold` (N,) starts there, one per unit.
        bias: train it; False keeps it where it is, as a buffer.
        memoryless: nothing stays of the membrane: its decay is 0, `decay` is not looked at.
        device, dtype: of the parameters; a fixed decay is in float32 at least.

    Attributes:
        initial_decay, initial_threshold: what they start with, the mean of the neurons' decays.

    Raises ValueError for settings that do not fit, TypeError for a size that is no whole number.
    """

    label = ""
    """What tables and figures call it."""
    reach = 10.0 / 3.0
    """Factor on the weights that drive it, in thresholds; see `gain`."""

    def __init__(
        self,
        size: int,
        rule: Rule,
        *,
        decay: float | Tensor = ModelConfig.decay,
        train_decay: bool = ModelConfig.train_decay,
        per_unit: bool = False,
        threshold: float = ModelConfig.threshold,
        bias: bool = True,
        memoryless: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        size = whole(size=size)
        if size < 1:
            raise ValueError(f"a layer needs at least one unit, got size={size}")
        if not abs(threshold) <= torch.finfo(torch.get_default_dtype()).max:
            raise ValueError(
                f"threshold must be finite in {torch.get_default_dtype()}, got {threshold}"
            )
        self.size, self.rule = size, _settled(rule, threshold)
        if memoryless and train_decay:
            raise ValueError("a memoryless unit has no decay to train; leave train_decay out")
        self.train_decay = train_decay
        start = _checked_decay(decay, size, train_decay)
        start = torch.zeros_like(start) if memoryless else start
        self._start = torch.logit(start.double()).to(start.dtype) if train_decay else start
        self._threshold = float(threshold)
        self.initial_decay = _mean(of_logit(self._start) if train_decay else start, 0.8)
        same = torch.full((), threshold, dtype=start.dtype, device="cpu")
        self.initial_threshold = _mean(same, self._threshold)
        shape = (size,) if per_unit else start.shape
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.fixed_decay: Tensor
        if train_decay:
            logit = torch.empty(shape, device=device, dtype=dtype)
            self.decay_logit = nn.Parameter(logit)
        else:
            empty = torch.empty(shape, device=device, dtype=state_dtype(dtype))
            self.register_buffer("fixed_decay", empty)
        self.threshold: Tensor
        thresholds = torch.empty(size, device=device, dtype=dtype)
        if bias:
            self.threshold = nn.Parameter(thresholds)
        else:
            self.register_buffer("threshold", thresholds)
        self._own_parameters(thresholds)
        self.draw()

    def _own_parameters(self, empty: Tensor) -> None:
        """Registers further parameters like `empty`, (N,)."""

    @classmethod
    def make(cls, size: int, *, surrogate: Surrogate | str | None = None, **settings: Any) -> Unit:
        """One of this kind; settings as of `make_unit`, ValueError for what the kind has not."""
        fire = Surrogate(surrogate) if isinstance(surrogate, str) else surrogate or Surrogate()
        rule = {name: settings.pop(name) for name in OF_RULE if name in settings}
        return cls(size, Rule(fire, **rule), **settings)

    @torch.no_grad()
    def draw(self) -> None:
        """Thresholds and decays as at the start; nothing in them is random."""
        decay = self.decay_logit if self.train_decay else self.fixed_decay
        if self._start.is_meta and not decay.is_meta:
            raise ValueError(
                "the decays were given on the meta device, without their numbers; give them on the "
                "CPU, or load a state"
            )
        if not decay.is_meta:
            decay.copy_(self._start)
        redraw(self, "threshold", lambda t: t.fill_(self._threshold))

    def _apply(self, fn: Any, recurse: bool = True) -> Unit:
        """A fixed decay stays in float32 at least: bfloat16 would round 0.999 to 1."""
        before = self.fixed_decay if not self.train_decay else None
        super()._apply(fn, recurse)
        if before is not None and self.fixed_decay.dtype != state_dtype(self.fixed_decay.dtype):
            self.fixed_decay = before.to(self.fixed_decay.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any
    ) -> None:
        """States of before name the threshold's negative, `bias`."""
        if f"{prefix}bias" in state_dict:
            state_dict[f"{prefix}threshold"] = -state_dict.pop(f"{prefix}bias")
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    @property
    def decay(self) -> Tensor:
        """The decay in force, () or (N,), always inside (0, 1]; 0 in memoryless units."""
        if not self.train_decay:
            return self.fixed_decay
        return of_logit(self.decay_logit)

    def params(self, dtype: torch.dtype) -> Params:
        """Decay, bias and amount in the dtype of the state."""
        threshold, decay = self.threshold, self.decay
        if threshold.dtype != dtype:
            threshold = threshold.to(dtype)
        if decay.dtype != dtype:
            decay = decay.to(dtype)
        return Params(decay, -threshold, threshold if self.rule.trained else None)

    @property
    def variant(self) -> str:
        """Which of the kernels' steps it is, where its step is theirs."""
        return ""

    @property
    def drives(self) -> int:
        """Currents that each neuron takes, d: the drive is (T, B, d N)."""
        return 1

    @property
    def state_size(self) -> int:
        """Numbers per sample in a state's s: N, or more where there is more than a membrane."""
        return self.size

    def membrane(self, state: State) -> Tensor:
        """The membrane in a state, (..., N)."""
        return state.s

    def initial_state(
        self, batch: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> State:
        """Silence: all zero, for a drive of the given dtype."""
        device = self.threshold.device if device is None else device
        y = torch.zeros(batch, self.size, dtype=state_dtype(dtype), device=device)
        return State(y, y.new_zeros(batch, self.state_size))

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        """One time step; see the function `step`."""
        raise NotImplementedError

    @property
    def gain(self) -> float:
        """Standard deviation of a weight, times sqrt(fan-in), that keeps a deep stack alive.

        A spiking layer that receives sparse spikes needs weights with which the membrane reaches
        its threshold, or activity dies out within a few layers; a soft unit passes at most a
        quarter of what varies in its input, and needs as much to keep inputs distinguishable.  A
        decay d adds up 1 / sqrt(1 - d^2) times the spread of one step's drive, which the gain takes
        back up to 0.8: membranes that leak more slowly do not get that far between two resets.  The
        factors were chosen by measurement; a test holds stacks of eight layers to them.
        """
        spread = math.sqrt(1.0 - min(self.initial_decay, 0.8) ** 2)
        if not self.spiking:
            return (5.0 if self.rule.g == "identity" else 8.0) * spread
        reach = LateralUnit.reach if self.rule.reset == "lateral" else self.reach
        return reach * max(self.initial_threshold, 0.1) * spread

    @property
    def spiking(self) -> bool:
        """Whether the outputs are spikes, 0 or 1, rather than numbers between them."""
        return self.rule.surrogate is not None

    def extra_repr(self) -> str:
        kind = "spiking" if self.spiking else "soft"
        text = f"{self.size}, {kind}, g={self.rule.g}, reset={self.rule.reset}"
        if self.rule.reset != "subtract":
            return text
        return f"{text} {'the threshold' if self.rule.trained else self.rule.amount}"


class SNUnit(Unit):
    """The SNU, with every surrogate, g and reset: the step that the kernels run."""

    label = "SNU"

    @property
    def variant(self) -> str:
        return "snu"

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        return step(self.rule, state, drive, params)


class SoftUnit(SNUnit):
    """The soft SNU: a `SNUnit` whose rule has no surrogate, so that it puts out 0 to 1."""

    label = "soft SNU"

    @classmethod
    def make(cls, size: int, *, surrogate: Surrogate | str | None = None, **settings: Any) -> Unit:
        return softened(super().make(size, **settings), surrogate)


class LateralUnit(SNUnit):
    """An SNU with lateral inhibition: a spike resets all units of the layer."""

    label = "LI-SNU"
    reach = 5.0

    @classmethod
    def make(cls, size: int, *, reset: str = ModelConfig.reset, **settings: Any) -> Unit:
        if reset not in ("gate", "lateral"):
            raise ValueError(
                f"li-snu resets by lateral inhibition, got reset={reset!r}; leave it out"
            )
        return super().make(size, reset="lateral", **settings)


class _BinaryUnit(SNUnit):
    """A unit of Yin et al. 2017 (arXiv 1709.06206), whose name settles most of its rule.

    As in their code the backward pass takes the step for a ramp of slope 1/2 over 0 < V < 2, the
    threshold being 1.
    """

    name: str
    reset: str
    memoryless: bool

    @classmethod
    def make(cls, size: int, *, surrogate: Surrogate | str | None = None, **settings: Any) -> Unit:
        memoryless = cls.memoryless
        amount = 1.0 if memoryless else settings.get("threshold", 1.0)
        # Of each: what may be said, the unit's own value last; the others are the defaults.
        fixed: dict[str, tuple[Any, ...]] = {
            "g": (ModelConfig.g, "identity"),
            "slope": (ModelConfig.g_slope,),
            "reset": (ModelConfig.reset, cls.reset),
            "amount": (None, amount),
            "subtract": ("initial",),
            "decay": (0.0 if memoryless else 1.0,),
            "train_decay": (False,),
            "per_unit": (False,),
            "memoryless": (memoryless,),
        }
        for name, allowed in fixed.items():
            given, own = settings.pop(name, allowed[-1]), allowed[-1]
            if isinstance(given, Tensor) or given not in allowed:
                raise ValueError(f"{cls.name} has {name}={own}, got {name}={given}; leave it out")
        fire = surrogate or Surrogate("window", 1.0, 0.5)
        settings = {"bias": memoryless, "memoryless": memoryless, "decay": 1.0} | settings
        return super().make(size, surrogate=fire, reset=cls.reset, amount=amount, **settings)


class DiscontinuousUnit(_BinaryUnit):
    """Discontinuous integration: V = drive, s = 1[V > 1], nothing stays from step to step.

    Its bias is trained, which is the paper's bias of each step.
    """

    label, name, reset, memoryless = "binary DI", "binary-di", "none", True


class ContinuousUnit(_BinaryUnit):
    """Continuous integration: V = V_prev + drive - s_prev, decay 1 and a fixed threshold.

    The paper's bias of each step is the `bias` of its array.
    """

    label, name, reset, memoryless = "binary CI", "binary-ci", "subtract", False


def _settled(rule: Rule, threshold: float) -> Rule:
    """The rule with the number that it takes off; that of a trained threshold changes."""
    if rule.reset != "subtract" or rule.trained or rule.amount is not None:
        return rule
    if threshold < 0:
        raise ValueError(
            f'threshold={threshold}: reset="subtract" takes it off, so it must not be negative; '
            "give another one, or an amount to take off"
        )
    return replace(rule, amount=float(threshold))


def of_logit(logit: Tensor) -> Tensor:
    # bfloat16 has no number between 0.996 and 1: the logit fits, what it stands for does not.
    decay = torch.sigmoid(logit.to(state_dtype(logit.dtype)))
    return decay.clamp(min=torch.finfo(decay.dtype).tiny)


def _without_numbers(x: Tensor) -> bool:
    """Whether it is a shape only: on the meta device, or under FakeTensorMode."""
    return x.is_meta or is_fake(x)


def _mean(x: Tensor, otherwise: float) -> float:
    return otherwise if _without_numbers(x) else float(x.double().mean())


def _checked_decay(decay: float | Tensor, size: int, train_decay: bool) -> Tensor:
    """The decays to start with, () or (N,), on the CPU where they have numbers."""
    value = decay if isinstance(decay, Tensor) else torch.as_tensor(decay, device="cpu")
    value = value.detach().to(torch.get_default_dtype(), copy=True)
    if value.shape not in ((), (size,)):
        raise ValueError(
            f"decay must be one number or one per unit ({size},), got shape {tuple(value.shape)}"
        )
    if _without_numbers(value):
        return value
    value = value.cpu()
    if not bool(((value > 0) & (value <= 1)).all()):
        raise ValueError(f"decay must be in (0, 1], got {value.tolist()}")
    if train_decay and bool((value == 1).any()):
        raise ValueError(
            "a trained decay starts inside (0, 1), got 1: use 0.999, or train_decay=False with a "
            "leak as memory"
        )
    return value


class Activation(NamedTuple):
    """What a layer without memory does with its drive, and how its weights begin."""

    label: str
    function: Callable[[Tensor], Tensor]
    gain: float


ReLU = Activation("ReLU", torch.relu, math.sqrt(2.0))  # He et al. 2015
Tanh = Activation("tanh", torch.tanh, 1.0)
ACTIVATIONS = {"relu": ReLU, "tanh": Tanh}


def make_unit(kind: str, size: int, **settings: Any) -> Unit:
    """A unit by name: "snu", "softsnu", "li-snu" (lateral inhibition), "adaptive-snu", or the
    binary ones of Yin et al. 2017, "binary-di" and "binary-ci".

    Args:
        kind: one of `KINDS`, or "module:Class" of a `Unit` of your own.
        size: N.
        settings: surrogate: spike function, or the name of its formula for width and height 1; None
            is the SNU paper's tanh', for binary units a window of half-width 1 and height 1/2.
            g, slope, reset, amount, subtract: see `Rule`; binary-ci takes its threshold off.
            decay, train_decay, per_unit, threshold, bias, memoryless, device, dtype: see `Unit`;
            rho and beta of adaptive-snu, see `AdaptiveUnit`; memory and modulation of snu and
            softsnu with what belongs to them, see `spikebridge.nn.dynamics.DynamicUnit`.

    Raises ValueError for what a unit does not have, such as another decay of a binary one, and
    UsageError for a module that the user has not named, see `settings.names`.
    """
    if kind not in KINDS and not is_place(kind):
        raise ValueError(f"unit {kind!r} is not known; choose one of {list(KINDS)}")
    of_family = kind in ("snu", "softsnu") and OF_MEMBERS.keys() & settings.keys()
    if of_family or USUAL.keys() & settings.keys():
        dynamic: Unit = named_class("unit", DYNAMIC)(kind, size, **settings)
        return dynamic
    made = unit_class(kind)
    if not (isinstance(made, type) and issubclass(made, Unit)):
        raise UsageError(f"unit={kind!r}: it must be a subclass of spikebridge.Unit, got {made!r}")
    return made.make(size, **settings)


def softened(unit: Unit, surrogate: Any) -> Unit:
    """The same without a surrogate: its outputs are between 0 and 1."""
    if surrogate is not None:
        raise ValueError("a soft unit has no surrogate: its output is smooth; leave it out")
    unit.rule = replace(unit.rule, surrogate=None)
    return unit
