# mypy: allow-untyped-defs
"""The steps of all units and their adjoints on a GPU, for a block of neurons: one Triton template.

As native/units.h: a neuron is a memory and a modulation, those of `dynamics.py`, constants of the
template like g, h and the reset.  What a unit does not have is passed along as its membrane or its
first current and is read by nobody: the compiler drops it.  triton.py carries this through time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = [
    "NeuronCurrents",
    "NeuronKind",
    "NeuronParams",
    "NeuronStates",
    "NeuronStep",
    "add_product",
    "add_shares",
    "adjoint",
    "fire",
    "get_currents",
    "get_params",
    "get_states",
    "or_first",
    "put_currents",
    "put_params",
    "put_states",
    "recall",
    "remember",
]


class NeuronKind(NamedTuple):
    """What the compiler is given of a unit: its parts, their sizes, and its rule."""

    memory: str
    modulation: str
    states: int
    drives: int
    own: int
    rho: float  # and the next two: numbers of a modulation
    rest: float
    beta: float
    g: str
    slope: float
    gate: bool
    amount: float
    h: str
    width: float
    height: float


class NeuronStates(NamedTuple):
    """Of a neuron, or their gradients."""

    s: Any  # membrane
    w: Any  # slow state of an oscillation
    a: Any  # what moves the threshold


class NeuronCurrents(NamedTuple):
    """Of a neuron, or their gradients."""

    u: Any  # input
    v: Any  # of the gate
    m: Any  # of the modulation


class NeuronParams(NamedTuple):
    """Of a neuron, or their gradients."""

    decay: Any
    bias: Any
    rho: Any  # and the next two: of an oscillation
    pull: Any
    kick: Any
    opening: Any  # of an output


class NeuronStep(NamedTuple):
    """What a step was."""

    states: Any
    currents: Any
    y: Any


@triton.jit
def _logistic(x):
    """1 / (1 + exp(-x)) from exp(-|x|), which cannot overflow; NaN stays NaN."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, e) / (1.0 + e)


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0; near 0 by its series, which keeps the relative accuracy."""
    near = tl.where(x > -0.5, x, 0.0)
    series = tl.full(x.shape, 1.0, x.dtype)
    for k in tl.static_range(2, 16):
        series = 1.0 + series * (near * (1.0 / (17 - k)))
    return tl.where(x > -0.5, near * series, tl.exp(x) - 1.0)


@triton.jit
def _apply_g(u, KIND: tl.constexpr):
    if KIND.g == "relu":
        s = tl.where(u <= 0, 0.0, u)  # NaN passes
    elif KIND.g == "leaky_relu":
        s = tl.where(u > 0, u, u * KIND.slope)
    elif KIND.g == "elu":
        s = tl.where(u > 0, u, _expm1(tl.where(u > 0, 0.0, u)))
    else:
        s = u
    return s


@triton.jit
def _slope_g(s, KIND: tl.constexpr):
    """g'(u) read off s = g(u): each g keeps the sign."""
    if KIND.g == "relu":
        below = tl.zeros_like(s)
    elif KIND.g == "leaky_relu":
        below = tl.full(s.shape, KIND.slope, s.dtype)
    elif KIND.g == "elu":
        below = s + 1.0
    else:
        below = tl.full(s.shape, 1.0, s.dtype)
    return tl.where(s > 0, 1.0, below)


@triton.jit
def _apply_h(x, KIND: tl.constexpr):
    return _logistic(x) if KIND.h == "sigmoid" else (x > 0).to(x.dtype)


@triton.jit
def _slope_h(x, y, KIND: tl.constexpr):
    """dh/dx at x = s + bias, where y = h(x).  The window's edge must not move by a rounding."""
    z = x * (1.0 / KIND.width)
    if KIND.h == "sigmoid":
        slope = y * (1.0 - y)
    elif KIND.h == "window":
        slope = tl.where(tl.abs(x) < KIND.width, tl.full(x.shape, KIND.height, x.dtype), 0.0)
    elif KIND.h == "tanh_prime":
        e = tl.exp(-2.0 * tl.abs(z))  # 1 - tanh(z)^2 without its cancellation
        slope = 4.0 * KIND.height * e / ((1.0 + e) * (1.0 + e))
    elif KIND.h == "triangle":
        slope = KIND.height * tl.where(tl.abs(z) < 1.0, 1.0 - tl.abs(z), 0.0)
    elif KIND.h == "fast_sigmoid":
        slope = KIND.height / ((1.0 + tl.abs(z)) * (1.0 + tl.abs(z)))
    elif KIND.h == "arctan":
        slope = KIND.height / (1.0 + z * z)
    else:
        tl.static_assert(KIND.h == "sigmoid_prime")
        p = _logistic(z)
        slope = 4.0 * KIND.height * p * (1.0 - p)
    return slope


@triton.jit
def get_states(pointer, at, apart, inside, KIND: tl.constexpr):
    """Those of a neuron lie `apart` in memory, as its currents and its own parameters do."""
    s = tl.load(pointer + at, inside)
    w, a = s, s
    if KIND.memory == "oscillation":
        w = tl.load(pointer + at + apart, inside)
    if KIND.modulation == "adaptation" or KIND.modulation == "threshold":
        a = tl.load(pointer + at + (KIND.states - 1) * apart, inside)
    return NeuronStates(s, w, a)


@triton.jit
def put_states(pointer, at, apart, inside, states, KIND: tl.constexpr):
    tl.store(pointer + at, states.s, inside)
    if KIND.memory == "oscillation":
        tl.store(pointer + at + apart, states.w, inside)
    if KIND.modulation == "adaptation" or KIND.modulation == "threshold":
        tl.store(pointer + at + (KIND.states - 1) * apart, states.a, inside)


@triton.jit
def get_currents(pointer, at, apart, inside, like, KIND: tl.constexpr):
    u = tl.load(pointer + at, inside).to(like.dtype)
    v, m = u, u
    if KIND.memory == "gate":
        v = tl.load(pointer + at + apart, inside).to(like.dtype)
    if KIND.modulation == "threshold" or KIND.modulation == "output":
        m = tl.load(pointer + at + (KIND.drives - 1) * apart, inside).to(like.dtype)
    return NeuronCurrents(u, v, m)


@triton.jit
def put_currents(pointer, at, apart, inside, currents, KIND: tl.constexpr):
    to = pointer.dtype.element_ty
    tl.store(pointer + at, currents.u.to(to), inside)
    if KIND.memory == "gate":
        tl.store(pointer + at + apart, currents.v.to(to), inside)
    if KIND.modulation == "threshold" or KIND.modulation == "output":
        tl.store(pointer + at + (KIND.drives - 1) * apart, currents.m.to(to), inside)


@triton.jit
def get_params(
    decay, bias, own, at, decay_stride, bias_stride, apart, inside, KIND: tl.constexpr
):  # fmt: skip
    d, b = tl.load(decay + at * decay_stride, inside), tl.load(bias + at * bias_stride, inside)
    rho, pull, kick, opening = d, d, d, d
    if KIND.memory == "oscillation":
        rho = tl.load(own + at, inside)
        pull = tl.load(own + at + apart, inside)
        kick = tl.load(own + at + 2 * apart, inside)
    if KIND.modulation == "output":
        opening = tl.load(own + at + (KIND.own - 1) * apart, inside)
    return NeuronParams(d, b, rho, pull, kick, opening)


@triton.jit
def put_params(decay, bias, own, at, apart, inside, params, KIND: tl.constexpr):
    tl.store(decay + at, params.decay, inside)
    tl.store(bias + at, params.bias, inside)
    if KIND.memory == "oscillation":
        tl.store(own + at, params.rho, inside)
        tl.store(own + at + apart, params.pull, inside)
        tl.store(own + at + 2 * apart, params.kick, inside)
    if KIND.modulation == "output":
        tl.store(own + at + (KIND.own - 1) * apart, params.opening, inside)


@triton.jit
def add_product(currents, product, at, apart, inside, FED: tl.constexpr, KIND: tl.constexpr):
    """The currents with what the recurrent matrix adds to the first FED of them."""
    if FED > 1:
        more = get_currents(product, at, apart, inside, currents.u, KIND)
        return NeuronCurrents(currents.u + more.u, currents.v + more.v, currents.m + more.m)
    else:
        u = currents.u + tl.load(product + at, inside)
        return NeuronCurrents(u, currents.v, currents.m)


@triton.jit
def _left(s, by, KIND: tl.constexpr):
    """What the reset leaves of the membrane; `by` is the output that gates it."""
    return s * (1.0 - by) if KIND.gate else s


@triton.jit
def remember(states, currents, y, by, params, KIND: tl.constexpr):
    """The states after a step; y is the last output."""
    u, left, w, a = currents.u, _left(states.s, by, KIND), states.w, states.a
    if KIND.modulation == "adaptation":
        a = KIND.rho * a + KIND.rest * y
    elif KIND.modulation == "threshold":
        a = KIND.rho * a + KIND.rest * currents.m
    if KIND.memory == "gate":
        z = _logistic(params.decay + currents.v)
        u = (1.0 - z) * u + z * left
    elif KIND.memory == "oscillation":
        w = params.rho * w + params.pull * left + params.kick * y
        u = params.decay * left + (1.0 - params.decay) * (u - w)
    else:
        u += params.decay * left
    if KIND.amount < 0:
        u -= -params.bias * y
    elif KIND.amount != 0:
        u -= KIND.amount * y
    return NeuronStates(_apply_g(u, KIND), w, a)


@triton.jit
def _argument(states, params, KIND: tl.constexpr):
    x = states.s + params.bias
    if KIND.modulation == "adaptation":
        x -= KIND.beta * states.a
    elif KIND.modulation == "threshold":
        x += states.a
    return x


@triton.jit
def fire(states, currents, params, KIND: tl.constexpr):
    y = _apply_h(_argument(states, params, KIND), KIND)
    if KIND.modulation == "output":
        y *= _apply_h(currents.m + params.opening, KIND)
    return y


@triton.jit
def recall(
    s_all, at, apart, drive, drive_at, units, inside, params, KIND: tl.constexpr
):  # fmt: skip
    """A step, of the states and currents that were kept."""
    states = get_states(s_all, at, apart, inside, KIND)
    currents = NeuronCurrents(states.s, states.s, states.s)
    if drive is not None:
        currents = get_currents(drive, drive_at, units, inside, states.s, KIND)
    return NeuronStep(states, currents, fire(states, currents, params, KIND))


@triton.jit
def _back_through_output(dy, da, now, params, KIND: tl.constexpr):
    """From dL/dy and dL/da of a step: dL/dx of what h takes and that of the modulation's current,
    and what flows on to a and y of the step before.
    """
    x, to_y = _argument(now.states, params, KIND), tl.zeros_like(dy)
    if KIND.modulation == "output":
        second = now.currents.m + params.opening
        p, q = _apply_h(x, KIND), _apply_h(second, KIND)
        dm = dy * p * _slope_h(second, q, KIND)
        dx = dy * q * _slope_h(x, p, KIND)
    else:
        dx = dy * _slope_h(x, now.y, KIND)
        dm = dx
    if KIND.modulation == "adaptation":
        da -= KIND.beta * dx
        to_y = KIND.rest * da
        da = KIND.rho * da
    elif KIND.modulation == "threshold":
        da += dx
        dm = KIND.rest * da
        da = KIND.rho * da
    return dx, dm, da, to_y


@triton.jit
def adjoint(ds, dy, now, before, by, params, KIND: tl.constexpr):
    """From the gradients of states and y of a step: what flows on to those of the step before and
    to `by`, the gradients of the currents, and the shares of the parameters.
    """
    decay, y, left = params.decay, before.y, _left(before.states.s, by, KIND)
    dx, dm, da, to_y = _back_through_output(dy, ds.a, now, params, KIND)
    du = (ds.s + dx) * _slope_g(now.states.s, KIND)
    d_bias, dw, dv, d_rho, d_pull, d_kick = dx, ds.w, du, du, du, du
    if KIND.amount < 0:
        to_y -= -params.bias * du
        d_bias += du * y
    elif KIND.amount != 0:
        to_y -= KIND.amount * du
    if KIND.memory == "gate":
        z = _logistic(decay + now.currents.v)
        dv = du * (left - now.currents.u) * (z * (1.0 - z))
        through, d_decay = du * z, dv
        du = du * (1.0 - z)
    elif KIND.memory == "oscillation":
        d_decay = du * (left - (now.currents.u - now.states.w))
        through = du * decay
        du = du * (1.0 - decay)
        dw -= du
        d_rho, d_pull, d_kick = dw * before.states.w, dw * left, dw * y
        through += dw * params.pull
        to_y += dw * params.kick
        dw *= params.rho
    else:
        through, d_decay = du * decay, du * left
    to_s, to_by = through, tl.zeros_like(du)
    if KIND.gate:
        to_s, to_by = through * (1.0 - by), -through * before.states.s
    shares = NeuronParams(d_decay, d_bias, d_rho, d_pull, d_kick, dm)
    return NeuronStates(to_s, dw, da), to_y, to_by, NeuronCurrents(du, dv, dm), shares


@triton.jit
def add_shares(sums, shares, KIND: tl.constexpr):
    rho, pull, kick, opening = sums.rho, sums.pull, sums.kick, sums.opening
    if KIND.memory == "oscillation":
        rho, pull, kick = rho + shares.rho, pull + shares.pull, kick + shares.kick
    if KIND.modulation == "output":
        opening += shares.opening
    return NeuronParams(
        sums.decay + shares.decay, sums.bias + shares.bias, rho, pull, kick, opening
    )


@triton.jit
def or_first(later, step, first, y_first):
    """A step, or before step 0 the states and output to begin with."""
    s = tl.where(later, step.states.s, first.s)
    w, a = tl.where(later, step.states.w, first.w), tl.where(later, step.states.a, first.a)
    return NeuronStep(NeuronStates(s, w, a), step.currents, tl.where(later, step.y, y_first))
