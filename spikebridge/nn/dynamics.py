"""Units whose memory or output obeys more than one constant leak.

A `DynamicUnit` is a memory, how the membrane goes on, and a modulation, what moves its threshold or
its output.  With k = keep(y_prev) s, what the reset leaves of the membrane,

    leak         u = drive + decay k                                        (the SNU)
    gate         z = logistic(decay_logit + drive_1),  u = (1 - z) drive + z k
    oscillation  w' = rho w + pull k + kick y_prev,  u = decay k + (1 - decay) (drive - w')

    none         y = h(s + b)
    adaptation   a' = rho a + (1 - rho) y_prev,   y = h(s + b - beta a')
    threshold    a' = rho a + (1 - rho) drive_m,  y = h(s + b + a')
    output       y = h(s + b) h(drive_m + open)

and s = g(u), less what a reset by subtraction takes.  drive_1 and drive_m come through further rows
of the array, and from the layer's last outputs where its recurrent matrix has those rows.

Sources: adaptation, Bellec et al. 2018.  The gate is that of the gated recurrent unit (Cho et al.
2014) without its reset gate.  The oscillation is the adaptive LIF neuron in the symplectic Euler
step of Baronig et al. 2024 (arXiv 2408.07517), here with constants that cannot become unstable.
Synapses on threshold and output follow the axo-somatic and axo-axonic synapses that Bohnstingl et
al. describe (arXiv 2110.02743); the formulas here are derived from that description, not copied.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spikebridge.nn.fresh import redraw
from spikebridge.nn.units import (
    G_FUNCTIONS,
    Params,
    Rule,
    State,
    Unit,
    make_unit,
    of_logit,
    softened,
    taken_off,
)
from spikebridge.nn.units import kept as left_by_reset
from spikebridge.settings.names import MEMORIES, MODULATIONS, OF_MEMBERS, USUAL

__all__ = ["AdaptiveUnit", "DynamicUnit", "drives_of", "make_dynamic"]


class Extent(NamedTuple):
    """What a memory or a modulation adds to a neuron."""

    states: int
    drives: int
    own: int  # parameters beside decay and threshold


MEMORY = {"leak": Extent(1, 1, 0), "gate": Extent(1, 2, 0), "oscillation": Extent(2, 1, 3)}
MODULATION = {
    "none": Extent(0, 0, 0),
    "adaptation": Extent(1, 0, 0),
    "threshold": Extent(1, 1, 0),
    "output": Extent(0, 1, 1),
}
# A decay of the oscillation comes no nearer to 1: what is pulled would grow without bound.
SLOWEST = 1e-4


def drives_of(memory: str, modulation: str) -> int:
    """Currents that each neuron takes: rows of its array."""
    return MEMORY[memory].drives + MODULATION[modulation].drives


class DynamicUnit(Unit):
    """A unit with another memory than a constant leak, or with a modulation, or with both.

    Args:
        memory: "leak", "gate" or "oscillation"; see the module.  The last two are trained, with
            `train_decay` or without.
        modulation: "none", "adaptation", "threshold" or "output".
        rho: share of an adaptation, or of what moves the threshold, kept per step, in [0, 1).
        beta: how far full adaptation raises the threshold, not negative.
        slow_decay: share of the slow state of an oscillation kept per step at first, in (0, 1).
        periods: of the oscillations at first, in steps, from the first neuron to the last, spread
            evenly on a logarithmic scale; above 2.
        kick: what a spike adds to the slow state at first.
        size, rule, and others: see `Unit`.

    A state's s is (B, k N): the membranes, the slow states of an oscillation, then the adaptations.
    The drive is (T, B, d N): the input current, that of the gate, then that of the modulation.

    Attributes:
        slow_logit, angle_logit, kick: of an oscillation, (N,).  With decays d and rho and the
            angle theta = pi logistic(angle_logit) a membrane that is left alone turns by theta a
            step and shrinks by sqrt(d rho) < 1, whatever training does:
            pull = (d + rho - 2 sqrt(d rho) cos theta) / (1 - d).
        open: of a modulated output, (N,), at first 1.

    Raises ValueError for settings that do not fit.
    """

    label = "dynamic SNU"
    slow_logit: Tensor
    angle_logit: Tensor
    kick: Tensor
    open: Tensor

    def __init__(
        self,
        size: int,
        rule: Rule,
        *,
        memory: str = "leak",
        modulation: str = "none",
        rho: float = 0.95,
        beta: float = 1.0,
        slow_decay: float = 0.99,
        periods: tuple[float, float] = (4.0, 200.0),
        kick: float = 0.3,
        **kwargs: Any,
    ) -> None:
        for name, value, known in (
            ("memory", memory, MEMORIES),
            ("modulation", modulation, MODULATIONS),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not known; choose one of {list(known)}")
        if not 0 <= rho < 1:
            raise ValueError(f"rho must be in [0, 1), got {rho}")
        if not (math.isfinite(beta) and beta >= 0):
            raise ValueError(f"beta must be finite and not negative, got {beta}")
        if not 0 < slow_decay < 1:
            raise ValueError(f"slow_decay must be in (0, 1), got {slow_decay}")
        pair = isinstance(periods, tuple | list) and len(periods) == 2
        if not pair or not all(2 < period < math.inf for period in periods):
            raise ValueError(
                f"periods must be two numbers of steps above 2, got {periods}; give those of the "
                "first and of the last neuron, such as (4, 200)"
            )
        if not math.isfinite(kick):
            raise ValueError(f"kick must be finite, got {kick}")
        self.memory, self.modulation = memory, modulation
        self._start_kick, self._slow, self._periods = float(kick), float(slow_decay), periods
        if memory != "leak":
            if kwargs.get("memoryless"):
                raise ValueError(f"memory={memory!r} of a memoryless unit; leave one of them out")
            kwargs |= {"train_decay": True, "per_unit": True}
        super().__init__(size, rule, **kwargs)
        self.rho, self.beta = rho, beta

    def _own_parameters(self, empty: Tensor) -> None:
        """Further parameters; called by `Unit` before the first draw."""
        if self.memory == "oscillation":
            for name in ("slow_logit", "angle_logit", "kick"):
                self.register_parameter(name, nn.Parameter(empty.clone()))
        if self.modulation == "output":
            self.open = nn.Parameter(empty.clone())

    @torch.no_grad()
    def draw(self) -> None:
        """Thresholds, decays, periods and gates as at the start; nothing in them is random."""
        super().draw()
        if self.memory == "oscillation":
            fast, slow = (math.log(period) for period in self._periods)
            periods = torch.linspace(fast, slow, self.size, dtype=torch.float64).exp()
            slow_logit = math.log(self._slow / (1 - self._slow))
            redraw(self, "slow_logit", lambda t: t.fill_(slow_logit))
            redraw(self, "angle_logit", lambda t: t.copy_(torch.logit(2 / periods)))
            redraw(self, "kick", lambda t: t.fill_(self._start_kick))
        if self.modulation == "output":
            redraw(self, "open", lambda t: t.fill_(1.0))

    @property
    def variant(self) -> str:
        parts = [self.memory] if self.memory != "leak" else []
        parts += [self.modulation] if self.modulation != "none" else []
        return "+".join(parts) or "snu"

    @property
    def numbers(self) -> list[float]:
        """The constants of the modulation as the kernels read them."""
        if self.modulation == "adaptation":
            return [self.rho, 1 - self.rho, self.beta]
        return [self.rho, 1 - self.rho] if self.modulation == "threshold" else []

    @property
    def drives(self) -> int:
        return drives_of(self.memory, self.modulation)

    @property
    def state_size(self) -> int:
        return (MEMORY[self.memory].states + MODULATION[self.modulation].states) * self.size

    def membrane(self, state: State) -> Tensor:
        return state.s[..., : self.size]

    def params(self, dtype: torch.dtype) -> Params:
        """As of `Unit`; the decay of a gate is its logit, `own` has its further ones."""
        params, own = super().params(dtype), []
        if self.memory == "gate":
            params = params._replace(decay=self.decay_logit.to(dtype))
        if self.memory == "oscillation":
            decay = params.decay.clamp(max=1 - SLOWEST)
            rho = of_logit(self.slow_logit).to(dtype)
            angle = math.pi * torch.sigmoid(self.angle_logit.to(dtype))
            turn = 2 * (decay * rho).sqrt() * angle.cos()
            params = params._replace(decay=decay)
            own += [rho, (decay + rho - turn) / (1 - decay), self.kick.to(dtype)]
        if self.modulation == "output":
            own += [self.open.to(dtype)]
        return params._replace(own=tuple(own))

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        rule, states = self.rule, [*state.s.split(self.size, dim=-1)]
        # A product with a plain number would be rounded to the type of the drive.
        drives = drive.to(state.s.dtype).split(self.size, dim=-1)
        own = params.own
        left = left_by_reset(rule, states[0], state.y)
        if self.memory == "leak":
            u = drives[0] + params.decay * left
        elif self.memory == "gate":
            z = torch.sigmoid(params.decay + drives[1])
            u = (1 - z) * drives[0] + z * left
        else:
            rho, pull, kick = own[:3]
            states[1] = rho * states[1] + pull * left + kick * state.y
            u = params.decay * left + (1 - params.decay) * (drives[0] - states[1])
        u = taken_off(rule, u, state.y, params)
        states[0] = G_FUNCTIONS[rule.g](u, rule.slope)
        x = states[0] + params.bias
        if self.modulation == "adaptation":
            states[-1] = self.rho * states[-1] + (1 - self.rho) * state.y
            x = x - self.beta * states[-1]
        elif self.modulation == "threshold":
            states[-1] = self.rho * states[-1] + (1 - self.rho) * drives[-1]
            x = x + states[-1]
        y = rule.fire(x)
        if self.modulation == "output":
            y = y * rule.fire(drives[-1] + own[-1])
        return State(y, torch.cat(states, dim=-1) if len(states) > 1 else states[0])

    @property
    def gain(self) -> float:
        """As of `Unit`; what only 1 - decay of a drive reaches needs larger weights."""
        if self.memory == "leak":
            return super().gain
        decay = min(self.initial_decay, 0.8)
        return super().gain * math.sqrt((1 + decay) / (1 - decay)) / math.sqrt(1 - decay**2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, memory={self.memory}, modulation={self.modulation}"


class AdaptiveUnit(DynamicUnit):
    """An SNU whose threshold rises with its own activity: y' = h(s' + b - beta a).

    a' = rho a + (1 - rho) y_prev, as in the adaptive LIF neuron of Bellec et al. 2018 (LSNN).  A
    state's s is (B, 2 N): the membranes, then the adaptations a.

    Args:
        rho: share of the adaptation kept per step, in [0, 1).
        beta: how far full adaptation raises the threshold, not negative.
    """

    label, reach = "adaptive SNU", 4.5

    def __init__(
        self, size: int, rule: Rule, *, rho: float = 0.95, beta: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(size, rule, modulation="adaptation", rho=rho, beta=beta, **kwargs)


def make_dynamic(kind: str, size: int, **settings: Any) -> Unit:
    """As `make_unit`, of snu and softsnu; what asks for nothing is the kind itself."""
    asked = {name: settings.get(name, usual) for name, usual in USUAL.items()}
    for name in OF_MEMBERS.keys() & settings.keys():
        choice, members = OF_MEMBERS[name]
        if asked[choice] not in members:
            raise ValueError(
                f"{name}={settings[name]!r} belongs to {choice}={' or '.join(map(repr, members))}, "
                f"but {choice}={asked[choice]!r}; leave {name} out, or choose that {choice}"
            )
    if asked == USUAL:
        return make_unit(kind, size, **{k: v for k, v in settings.items() if k not in USUAL})
    if kind not in ("snu", "softsnu"):
        raise ValueError(
            f"{kind} has neither another memory nor a modulation, got {asked}; take snu or "
            "softsnu, or leave them out"
        )
    unit = DynamicUnit.make(size, **settings)
    return softened(unit, settings.get("surrogate")) if kind == "softsnu" else unit
