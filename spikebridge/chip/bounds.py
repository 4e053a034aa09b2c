"""How far membranes can go: integer intervals over any input, so that no sum can overflow.

An oscillation turns: intervals of both states, each taken for itself, would grow without end.  Its
slow state saturates, which bounds the membrane too.  Where nothing resets or bends the membrane,
both are a linear filter of the inputs, and the sums of its response over time are closer bounds;
the slow state gets the bits that hold them, and then never saturates.
"""

from __future__ import annotations

import numpy as np

from spikebridge.chip.program import SLOW_BITS, ProgramLayer, SlowState

CONVERGED_WITHIN = 4000
GROWS_FOR = 300
"""After so many equal steps of growth it is taken to go on; a leak near 1 has long tails."""
SHRUNK = 1 / 64
"""Size of a response after which all that follows is added as a geometric series."""
GROWN = 1e6
"""Size of a response that is taken to go on growing; far beyond those that turn slowly."""


def bounds(
    layer: ProgramLayer, decay_bits: int, fraction_bits: int, max_steps: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Lowest and highest value, (N,) int64 each, that a membrane or a partial sum can take.

    Each input may or may not spike in each step, in any order, and no neuron knows of another:
    intervals of what waits for a step are carried from step to step and only ever widened.  They
    either stop growing, then they hold for any number of steps, or `max_steps` steps are counted.

    Returns:
        Lowest, highest, and whether they hold for any number of steps.
    """
    if layer.slow is not None and (
        filtered := _filtered(layer, decay_bits, fraction_bits, max_steps)
    ):
        return filtered
    down, up = _reach(layer, fraction_bits)
    moved = slow_range(layer.slow, decay_bits) if layer.slow else (0, 0)
    low = high = layer.bias.astype(np.int64)
    limited: tuple[np.ndarray, np.ndarray] | None = None
    growth = alike = 0
    for done in range(1, max(max_steps, CONVERGED_WITHIN) + 1):
        bottom, top = low + down, high + up
        after = _kept(layer, bottom, top, decay_bits, moved)
        wider = np.minimum(low, after[0]), np.maximum(high, after[1])
        # A slope lifts negative membranes, at most to 0.
        ends = bottom, np.maximum(top, _sloped(layer, top, decay_bits))
        if done == max_steps:
            limited = ends
        if (wider[0] == low).all() and (wider[1] == high).all():
            return *ends, True
        widest = int(max((low - wider[0]).max(), (wider[1] - high).max()))
        growth, alike = widest, alike + 1 if widest == growth else 0
        if limited is not None and alike >= GROWS_FOR:
            break
        low, high = wider
    assert limited is not None
    return *limited, False


def slow_bits(
    layer: ProgramLayer, slow: SlowState, decay_bits: int, fraction_bits: int, max_steps: int
) -> int:
    """Bits of the slow states of a layer: what they need if no reset acts, at most SLOW_BITS."""
    unity = 1 << decay_bits
    ends = [0, int(slow.kick.min()), int(slow.kick.max())]
    if slow.kind == "adaptation":
        ends += [int(end) for end in _adapted(slow, unity)]
    else:
        *_, low, high, _ = _responses(layer, slow, decay_bits, fraction_bits, max_steps)
        ends += [_whole(low.min()), _whole(high.max())]
    return max(2, min(SLOW_BITS, bits_for(min(ends), max(ends))))


def _adapted(slow: SlowState, unity: int) -> tuple[int, int]:
    """Lowest and highest adaptation: kicks without end, each rounded up."""
    most = -(-(np.abs(slow.kick) + 1) * unity // np.maximum(unity - slow.rho, 1))
    down = most[slow.kick < 0].max(initial=0)
    return -int(down), int(most[slow.kick >= 0].max(initial=0))


def slow_range(slow: SlowState, decay_bits: int) -> tuple[int, int]:
    """Lowest and highest slow state of a layer; saturation holds both."""
    low, high = slow.ends
    if slow.kind == "adaptation" and not slow.pull.any():
        reached = _adapted(slow, 1 << decay_bits)
        return max(low, reached[0]), min(high, reached[1])
    return low, high


def _filtered(
    layer: ProgramLayer, decay_bits: int, fraction_bits: int, max_steps: int
) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """Bounds of an oscillation that nothing resets, bends or saturates; None of others."""
    slow = layer.slow
    straight = layer.reset == "none" and layer.slope == 1 << decay_bits
    if slow is None or slow.kind != "oscillation" or not straight:
        return None
    *ends, forever = _responses(layer, slow, decay_bits, fraction_bits, max_steps)
    if not all(np.isfinite(end).all() and np.abs(end).max() < 1 << 62 for end in ends):
        return None
    low, high, slow_low, slow_high = (np.rint(end).astype(np.int64) for end in ends)
    if slow_low.min() <= slow.ends[0] or slow_high.max() >= slow.ends[1]:
        return None
    return low, high, forever


def _responses(
    layer: ProgramLayer, slow: SlowState, decay_bits: int, fraction_bits: int, max_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
    """Lowest and highest v and w, (N,) float64 and whole, of the linear filter.

    With what rounding and spikes add taken as inputs, of any value between their ends in any step,

        v' = (decay - pull) v - rho w - e + b,    w' = pull v + rho w + e

    where b is a sum of weights, the bias and up to -1 of a product rounded down, and e is a kick or
    none and 1/2 of a product rounded to the nearest.  The last says whether the ends hold for any
    number of steps.
    """
    unity = float(1 << decay_bits)
    decay, rho, pull = (value / unity for value in (layer.decay, slow.rho, slow.pull))
    down, up = _reach(layer, fraction_bits)
    # With 0 inside, the sums can only grow from step to step.
    drive = np.minimum(0, layer.bias + down - 1.0), np.maximum(0, layer.bias + up)
    extra = np.minimum(0, slow.kick) - 0.5, np.maximum(0, slow.kick) + 0.5
    turn = np.array([[decay - pull, -rho], [pull, rho]])
    power = np.broadcast_to(np.eye(2)[..., None], turn.shape).copy()
    low, high, size = (np.zeros((2, layer.neurons)) for _ in range(3))
    most = np.abs([*drive, *extra]).max(0)
    forever = False
    for done in range(1, max(max_steps, CONVERGED_WITHIN) + 1):
        of_drive, of_extra = power[:, 0], power[:, 1] - power[:, 0]
        for response, (least, greatest) in ((of_drive, drive), (of_extra, extra)):
            ends = response * least, response * greatest
            low += np.minimum(*ends)
            high += np.maximum(*ends)
        size += np.abs(power).sum(1)
        power = np.einsum("ijn,jkn->ikn", turn, power)
        left = np.abs(power).sum(1).max(0)
        if left.max() < SHRUNK:
            tail = size * 2 * most * left / (1 - left)  # e enters both states
            low, high, forever = low - tail, high + tail, True
            break
        if left.max() > GROWN:
            if done < max_steps:
                low, high = low - np.inf, high + np.inf
            break
    low, high = np.floor(1.0001 * low - 2), np.ceil(1.0001 * high + 2)  # of sums in float64
    return low[0], high[0], low[1], high[1], forever


def _whole(value: float) -> int:
    return int(np.clip(value, -(2.0**62), 2.0**62))


def bits_for(low: int, high: int) -> int:
    """Bits of the narrowest signed integer that holds all of [low, high]."""
    return max(int(high).bit_length(), int(-low - 1).bit_length() if low < 0 else 0) + 1


def _reach(layer: ProgramLayer, fraction_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and most that one step can add."""
    weight = layer.weight.reshape(-1, layer.width).astype(np.int64)
    # Every place of a square that is pooled hears each tap once.
    times = layer.geometry.pool**2 if layer.geometry is not None else 1
    sums = [part.sum(0) * times << fraction_bits for part in (weight.clip(max=0), weight.clip(0))]
    down, up = (np.repeat(part, layer.neurons // layer.width) for part in sums)
    return down, up


def _kept(
    layer: ProgramLayer, low: np.ndarray, high: np.ndarray, decay_bits: int, moved: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Range of what waits for the next step, after membranes in [low, high], slow in `moved`."""
    if layer.reduce is not None:
        kept = (low, high) if layer.reduce == "sum" else (0 * low, 0 * high)
        return kept[0] + layer.bias, kept[1] + layer.bias
    low, high = (_sloped(layer, v, decay_bits) for v in (low, high))
    first = last = layer.threshold  # lowest and highest that a membrane is compared with
    taken = 0, 0
    if layer.slow is not None and layer.slow.kind == "adaptation":
        first, last = first + moved[0], last + moved[1]
    elif layer.slow is not None:
        taken = moved[1], moved[0]
    silent = low <= last
    fires = high > first
    quiet = _leaked(layer, low, np.minimum(high, last), decay_bits)
    if layer.reset == "gate":
        loud = 0 * low, 0 * high
    else:
        loud = _leaked(layer, np.maximum(low, first + 1), high, decay_bits)
        if layer.reset == "subtract":
            loud = loud[0] - layer.amount, loud[1] - layer.amount
    # Of both ways only what can happen counts.
    bottom = np.minimum(np.where(silent, quiet[0], loud[0]), np.where(fires, loud[0], quiet[0]))
    top = np.maximum(np.where(silent, quiet[1], loud[1]), np.where(fires, loud[1], quiet[1]))
    return bottom + layer.bias - taken[0], top + layer.bias - taken[1]


def _sloped(layer: ProgramLayer, v: np.ndarray, decay_bits: int) -> np.ndarray:
    return np.where(v >= 0, v, (v * layer.slope) >> decay_bits)


def _leaked(
    layer: ProgramLayer, low: np.ndarray, high: np.ndarray, decay_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    return (low * layer.decay) >> decay_bits, (high * layer.decay) >> decay_bits
