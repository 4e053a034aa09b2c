"""How far membranes can go: integer intervals over any input, so that no sum can overflow."""

from __future__ import annotations

import numpy as np

from spikebridge.chip.program import ProgramLayer

CONVERGED_WITHIN = 4000
GROWS_FOR = 300
"""After so many equal steps of growth it is taken to go on; a leak near 1 has long tails."""


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
    down, up = _reach(layer, fraction_bits)
    low = high = layer.bias.astype(np.int64)
    limited: tuple[np.ndarray, np.ndarray] | None = None
    growth = alike = 0
    for done in range(1, max(max_steps, CONVERGED_WITHIN) + 1):
        bottom, top = low + down, high + up
        after = _kept(layer, bottom, top, decay_bits)
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
    layer: ProgramLayer, low: np.ndarray, high: np.ndarray, decay_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Range of what waits for the next step, after membranes in [low, high]."""
    if layer.reduce is not None:
        kept = (low, high) if layer.reduce == "sum" else (0 * low, 0 * high)
        return kept[0] + layer.bias, kept[1] + layer.bias
    low, high = (_sloped(layer, v, decay_bits) for v in (low, high))
    silent = low <= layer.threshold
    fires = high > layer.threshold
    quiet = _leaked(layer, low, np.minimum(high, layer.threshold), decay_bits)
    if layer.reset == "gate":
        loud = 0 * low, 0 * high
    else:
        loud = _leaked(layer, np.maximum(low, layer.threshold + 1), high, decay_bits)
        if layer.reset == "subtract":
            loud = loud[0] - layer.amount, loud[1] - layer.amount
    # Of both ways only what can happen counts.
    bottom = np.minimum(np.where(silent, quiet[0], loud[0]), np.where(fires, loud[0], quiet[0]))
    top = np.maximum(np.where(silent, quiet[1], loud[1]), np.where(fires, loud[1], quiet[1]))
    return bottom + layer.bias, top + layer.bias


def _sloped(layer: ProgramLayer, v: np.ndarray, decay_bits: int) -> np.ndarray:
    return np.where(v >= 0, v, (v * layer.slope) >> decay_bits)


def _leaked(
    layer: ProgramLayer, low: np.ndarray, high: np.ndarray, decay_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    return (low * layer.decay) >> decay_bits, (high * layer.decay) >> decay_bits
