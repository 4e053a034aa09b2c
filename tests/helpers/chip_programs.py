"""Random programs of the chip and random spikes for them; every size is small."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from spikebridge.chip.bounds import bits_for, bounds
from spikebridge.chip.golden import Golden, Step
from spikebridge.chip.program import (
    PULL,
    SLOW_BITS,
    ChipConfig,
    Geometry,
    Program,
    ProgramLayer,
    Slow,
    SlowState,
)

Samples = list[list[np.ndarray]]  # per sample, per step: rising numbers of inputs


def dense(
    rng: np.random.Generator,
    inputs: int,
    neurons: int,
    *,
    weight_bits: int = 4,
    slow: Slow | None = None,
    **settings: Any,
) -> ProgramLayer:
    """A dense layer with random weights; parameters follow from `finish`."""
    own = neurons if settings.get("recurrent") else 0
    if slow is not None:
        settings["slow"] = SlowState(slow, 0, *[np.zeros(0, np.int64)] * 3)
    weight = weights(rng, (inputs + own, neurons), weight_bits)
    return layer("dense", weight, inputs, settings)


def conv(
    rng: np.random.Generator, in_shape: tuple[int, int, int], channels: int, **settings: Any
) -> ProgramLayer:
    """A convolution with random weights.

    Args:
        rng: draws.
        in_shape: (C, H, W).
        channels: C'.
        settings: kernel, stride, padding, pool (1 where left out), weight_bits and the
            fields of ProgramLayer.
    """
    kernel, stride = settings.pop("kernel", 3), settings.pop("stride", 1)
    padding, pool = settings.pop("padding", 0), settings.pop("pool", 1)
    empty = Geometry(in_shape, (channels, 0, 0), kernel, stride, padding, pool)
    height, width = (n // pool for n in empty.rows_columns)
    if min(height, width) < 1:
        raise ValueError(f"nothing is left of an image of {in_shape[1:]}")
    geometry = replace(empty, out_shape=(channels, height, width))
    shape = (in_shape[0], kernel, kernel, channels)
    weight = weights(rng, shape, settings.pop("weight_bits", 4))
    return layer("conv", weight, int(np.prod(in_shape)), settings | {"geometry": geometry})


def weights(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """Uniform over all that `bits` bits hold."""
    return rng.integers(-(1 << bits - 1), 1 << bits - 1, shape, np.int32)


def layer(name: str, weight: np.ndarray, inputs: int, settings: dict[str, Any]) -> ProgramLayer:
    """A layer whose parameters are still zero."""
    names = ("bias", "threshold", "decay", "amount", "scale")
    nothing = {each: np.zeros(0, np.int64) for each in names}
    return ProgramLayer(name, weight, inputs=inputs, **nothing, **settings)


def fan_in(part: ProgramLayer) -> np.ndarray:
    """Most that the weights of one step move a neuron, (N,) int64."""
    reach = part.geometry.pool**2 if part.geometry else 1
    each = np.abs(part.weight.astype(np.int64)).reshape(-1, part.width).sum(0) * reach
    return np.repeat(each, part.neurons // part.width)


def finish(
    rng: np.random.Generator,
    layers: list[ProgramLayer],
    *,
    fraction_bits: int = 0,
    decay_bits: int = 4,
    weight_bits: int = 4,
    max_steps: int = 8,
    lanes: int = 4,
    queue: int = 4,
    whole: bool = False,
    slow_bits: int = 12,
) -> Program:
    """A program of these layers, with random parameters and as many membrane bits as it needs.

    With `whole`, all factors are 0 or 1, which needs no multiplier.
    """
    made = [_drawn(rng, part, fraction_bits, decay_bits, whole) for part in layers]
    made = [_slow(rng, part, decay_bits, slow_bits) for part in made]
    reached = [bounds(part, decay_bits, fraction_bits, max_steps) for part in made]
    ends = [(int(low.min()), int(high.max())) for low, high, _ in reached]
    if max(bits_for(*each) for each in ends) > SLOW_BITS and any(part.slow for part in made):
        layers = [replace(part, slow=None) for part in layers]  # none beside so wide membranes
        return finish(
            rng, layers, fraction_bits=fraction_bits, decay_bits=decay_bits, whole=whole,
            weight_bits=weight_bits, max_steps=max_steps, lanes=lanes, queue=queue,
        )  # fmt: skip
    for part in made:
        ends += [(int(a.min()), int(a.max())) for a in (part.threshold, part.amount)]
    return Program(
        tuple(made),
        weight_bits,
        decay_bits,
        fraction_bits,
        max(bits_for(*each) for each in ends),
        0 if all(settled for _, _, settled in reached) else max_steps,
        ChipConfig(weight_bits, decay_bits, fraction_bits, lanes, max_steps, queue),
    ).check()


def _drawn(
    rng: np.random.Generator, part: ProgramLayer, fraction_bits: int, decay_bits: int, whole: bool
) -> ProgramLayer:
    one, size = 1 << decay_bits, part.neurons
    scale = np.maximum(1, 2 * np.sqrt(fan_in(part) << 2 * fraction_bits).astype(np.int64))
    return replace(
        part,
        bias=rng.integers(-scale, scale + 1) // 2,
        threshold=rng.integers(-scale // 4, scale + 1),
        decay=rng.integers(0, 2, size) * one if whole else rng.integers(0, one + 1, size),
        amount=rng.integers(-scale // 8, scale + 1),
        scale=np.ones(size),
        slope=int((part.slope > 0) * one if whole else min(part.slope, one)),
    )


def _slow(rng: np.random.Generator, part: ProgramLayer, decay_bits: int, bits: int) -> ProgramLayer:
    """The layer with a random slow state, where it has one."""
    if part.slow is None:
        return part
    one, size, top = 1 << decay_bits, part.neurons, 1 << bits - 1
    kick = int(np.clip(np.abs(part.threshold).max(), 1, top))
    pull = rng.integers(0, PULL * one + 1, size)
    if part.slow.kind == "adaptation":
        pull, least = 0 * pull, 0
    else:
        least = -kick
        # Half of them as weak as those that turn slowly are.
        pull = np.where(rng.random(size) < 0.5, pull, pull >> 4)
    rho, kicks = rng.integers(0, one, size), rng.integers(least, kick, size)
    return replace(part, slow=SlowState(part.slow.kind, bits, rho, pull, kicks))


@st.composite
def programs(draw: st.DrawFn, convolutions: bool = True, slow: bool = True) -> Program:
    """Programs of up to 4 layers of every kind."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = draw(st.integers(2, 9))
    decay_bits = draw(st.sampled_from([1, 4, 8, 14]))
    layers = [*_images(draw, rng, bits)] if convolutions and draw(st.booleans()) else []
    width = layers[-1].neurons if layers else draw(st.integers(1, 20))
    for _ in range(draw(st.integers(0 if layers else 1, 2))):
        neurons = draw(st.integers(1, 20))
        settings = _kind(draw) | {"recurrent": draw(st.booleans())}
        if slow:
            settings["slow"] = draw(st.sampled_from([None, None, "oscillation", "adaptation"]))
        layers.append(dense(rng, width, neurons, weight_bits=bits, **settings))
        width = neurons
    reduce = draw(st.sampled_from(["each", "last", "sum"]))
    layers.append(dense(rng, width, draw(st.integers(1, 9)), weight_bits=bits, reduce=reduce))
    return finish(
        rng,
        layers,
        fraction_bits=draw(st.sampled_from([0, 0, 4, 8])),
        decay_bits=decay_bits,
        weight_bits=bits,
        max_steps=draw(st.integers(1, 6)),
        lanes=draw(st.sampled_from([1, 2, 4, 8, 16])),
        queue=draw(st.sampled_from([2, 4, 64])),
        whole=draw(st.booleans()),
        slow_bits=draw(st.sampled_from([2, 9, 16])),
    )


def _kind(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "reset": draw(st.sampled_from(["gate", "subtract", "none"])),
        "slope": draw(st.sampled_from([0, 1, 3, 1 << 14])),
    }


def _images(draw: st.DrawFn, rng: np.random.Generator, bits: int) -> list[ProgramLayer]:
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    layers: list[ProgramLayer] = []
    for _ in range(draw(st.integers(1, 2))):
        settings = {
            "kernel": draw(st.integers(1, 3)),
            "stride": draw(st.sampled_from([1, 1, 2, 4])),
            "padding": draw(st.integers(0, 2)),
            "pool": draw(st.sampled_from([1, 1, 2, 4])),
        }
        channels = draw(st.integers(1, 6))
        if settings["padding"] * 2 + min(shape[1:]) < settings["kernel"]:
            settings["kernel"] = 1
        try:
            made = conv(rng, shape, channels, weight_bits=bits, **settings, **_kind(draw))
        except ValueError:  # the pool is larger than the image
            settings["pool"] = 1
            made = conv(rng, shape, channels, weight_bits=bits, **settings, **_kind(draw))
        layers.append(made)
        assert made.geometry is not None
        shape = made.geometry.out_shape
    return layers


def spikes(
    rng: np.random.Generator, program: Program, samples: int = 2, density: float = 0.3
) -> Samples:
    """Random spikes for samples of 1 to `max_steps` steps."""
    most = program.max_steps or 4
    return [
        [
            np.flatnonzero(rng.random(program.inputs) < density)
            for _ in range(rng.integers(1, most + 1))
        ]
        for _ in range(samples)
    ]


def answers(program: Program, samples: Samples) -> list[list[Step]]:
    """What the definition makes of them, per sample and step."""
    golden = Golden(program)
    return [
        [golden.step(events, last=at == len(steps) - 1) for at, events in enumerate(steps)]
        for steps in samples
    ]
