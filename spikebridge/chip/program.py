"""What the chip is, and what a program for it holds.  Integers throughout, and no torch.

A program is a list of layers that all do the same in each time step.  With F fraction bits, D bits
behind the point of factors, and `>>` rounding towards minus infinity:

    v <- v + sum over input events (and own spikes of the last step) of (weight row << F)
    s <- v if v >= 0 else (v * slope) >> D
    y <- 1[s > threshold]
    k <- (s * decay) >> D,   for reset "gate" 0 where y,   for "subtract" less amount where y
    v <- k + bias

A layer may give each neuron a slow state w, which is 0 before the first step and saturates at B
bits.  With k = s, or 0 where a reset "gate" acts, the third line and the last become

    y <- 1[s > threshold + w]                                      of an "adaptation"
    w <- ((w * rho + k * pull + 2^(D-1)) >> D) + kick where y,     saturated
    v <- v - w                                                     of an "oscillation"

and v = bias before the first step.  That is the recurrence of `spikebridge.nn.units`, put so that
the membrane which waits for the next step is what weights are added to at once: an event costs one
row of weights, and nothing is done for inputs that are silent.  The last layer is the readout: no
spikes; its outputs are (v * decay) >> D, of each step, of the last one, or of the sum over steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from spikebridge.base.records import require

Reset = Literal["gate", "subtract", "none"]
Reduce = Literal["each", "last", "sum"]
Slow = Literal["oscillation", "adaptation"]
MEMBRANE_BITS = 32
"""Most bits of a membrane: what the engines hold, with room for one product."""
SLOW_BITS = 29
"""Most bits of a slow state, and of membranes beside one: w + 4 v fits into 32 bits."""
PULL = 4
"""Most that a membrane pulls; the largest of an oscillation is (sqrt(decay) + sqrt(rho))^2."""
MOST_INPUTS = 1 << 24
"""Of a layer, and longest side of a convolution."""


@dataclass(frozen=True)
class ChipConfig:
    """The chip that a program is compiled for."""

    weight_bits: int = 8
    """Bits of a weight, sign included, 2 to 16."""
    decay_bits: int = -1
    """Bits behind the point of decays and of the slope of leaky_relu, 1 to 14; -1 = 14 where
    neurons have a slow state, else 8."""
    fraction_bits: int = -1
    """Bits of a membrane below the last bit of a weight, 0 to 8; -1 = 4 where a hidden layer
    keeps its membranes from step to step, else 0; biases are rounded to them, the readout's too."""
    lanes: int = 64
    """Neurons that are added to at the same time, a power of two up to 1,024."""
    max_steps: int = 256
    """Time steps of a sample that membranes without a leak must bear, 1 to 16,384."""
    queue: int = 64
    """Input words that wait, a power of two up to 65,536."""
    clock_MHz: float = 200.0
    """Clock, above 0 and at most 500, which memories and adders of 40 nm bear."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("weight_bits", 2, 16),
            ("decay_bits", 1, 14),
            ("fraction_bits", -1, 8),
            ("lanes", 1, 1024),
            ("max_steps", 1, 1 << 14),
            ("queue", 2, 1 << 16),
        ):
            value = getattr(self, name)
            unset = value == ChipConfig.__dataclass_fields__[name].default
            require(
                isinstance(value, int) and (unset or low <= value <= high),
                f"{name}={value}: it must be a whole number from {low} to {high}; "
                f"pass --{name.replace('_', '-')} {ChipConfig.__dataclass_fields__[name].default}",
            )
        for name in ("lanes", "queue"):
            value = getattr(self, name)
            require(
                value & (value - 1) == 0,
                f"{name}={value}: it must be a power of two; pass --{name} "
                f"{1 << value.bit_length() - 1}",
            )
        require(
            math.isfinite(self.clock_MHz) and 0 < self.clock_MHz <= 500,
            f"clock_MHz={self.clock_MHz}: it must be above 0 and at most 500, which memories and "
            "adders of 40 nm bear; pass --clock-MHz 200",
        )


@dataclass(frozen=True)
class Geometry:
    """A convolution: which outputs an input pixel reaches, by which tap of the kernel."""

    in_shape: tuple[int, int, int]  # (C, H, W)
    out_shape: tuple[int, int, int]  # (C', H', W'), after pooling
    kernel: int
    stride: int
    padding: int
    pool: int

    @property
    def rows_columns(self) -> tuple[int, int]:
        """Height and width before pooling."""
        reach = 2 * self.padding - self.kernel
        _, height, width = self.in_shape
        return (height + reach) // self.stride + 1, (width + reach) // self.stride + 1

    def targets(self, at: int, axis: int) -> list[tuple[int, int]]:
        """(tap, output coordinate or -1 outside) that a pixel coordinate is tried for.

        Only taps that the stride allows are tried; axis is 0 for rows, 1 for columns.
        """
        pairs = []
        before, after = self.rows_columns[axis], self.out_shape[1 + axis]
        for tap in range((at + self.padding) % self.stride, self.kernel, self.stride):
            out = (at + self.padding - tap) // self.stride
            inside = 0 <= out < before and out // self.pool < after
            pairs.append((tap, out // self.pool if inside else -1))
        return pairs


@dataclass(frozen=True, eq=False)
class SlowState:
    """A second state of each neuron of a layer; see the module."""

    kind: Slow
    bits: int  # it saturates at, of all layers the same
    rho: np.ndarray  # (N,) int64, in units of 2^-D, kept per step
    pull: np.ndarray  # (N,) int64, in units of 2^-D, of the membrane
    kick: np.ndarray  # (N,) int64, of a spike

    @property
    def ends(self) -> tuple[int, int]:
        """Lowest and highest value."""
        return -(1 << self.bits - 1), (1 << self.bits - 1) - 1

    def after(self, w: np.ndarray, kept: np.ndarray, y: np.ndarray, decay_bits: int) -> np.ndarray:
        """The slow states of the next step, from those of this, what resets left, and spikes."""
        moved = w * self.rho + kept * self.pull + (1 << decay_bits - 1)
        return ((moved >> decay_bits) + np.where(y, self.kick, 0)).clip(*self.ends)


@dataclass(frozen=True, eq=False)
class ProgramLayer:
    """One layer of N neurons, each with parameters of its own, also in a convolution.

    Input events are numbers below `inputs`; of a convolution they count (C, H, W) row by row, as
    its neurons count (C', H', W').
    """

    name: str
    weight: np.ndarray  # int32: (inputs + own spikes, N), or of a convolution (C, K, K, C')
    bias: np.ndarray  # (N,) int64, drive of each step
    threshold: np.ndarray  # (N,) int64
    decay: np.ndarray  # (N,) int64, in units of 2^-D; of a readout its factor
    amount: np.ndarray  # (N,) int64, taken off by a spike
    scale: np.ndarray  # (N,) float64: what 1 in v stands for in the network
    inputs: int
    reset: Reset = "gate"
    slope: int = 0  # of negative membranes, in units of 2^-D
    recurrent: bool = False
    geometry: Geometry | None = None
    reduce: Reduce | None = None  # of the readout; None where there are spikes
    slow: SlowState | None = None

    @property
    def neurons(self) -> int:
        """N."""
        return math.prod(self.geometry.out_shape) if self.geometry else self.weight.shape[1]

    @property
    def width(self) -> int:
        """Neurons that one row of weights reaches."""
        return int(self.weight.shape[-1])

    @property
    def weight_rows(self) -> int:
        """Rows of weights."""
        return self.weight.size // self.width


@dataclass(frozen=True, eq=False)
class Program:
    """Layers, first to readout, and what they agree on."""

    layers: tuple[ProgramLayer, ...]
    weight_bits: int
    decay_bits: int
    fraction_bits: int
    membrane_bits: int
    max_steps: int  # of a sample; 0 = any number
    chip: ChipConfig

    @property
    def inputs(self) -> int:
        """I."""
        return self.layers[0].inputs

    @property
    def outputs(self) -> int:
        """O."""
        return self.layers[-1].neurons

    @property
    def readout(self) -> ProgramLayer:
        """The last layer."""
        return self.layers[-1]

    @property
    def multipliers(self) -> tuple[bool, bool]:
        """Whether decays, and whether slopes need one: none does where all are 0 or 1."""
        whole = (0, 1 << self.decay_bits)
        decays = any(not np.isin(layer.decay, whole).all() for layer in self.layers)
        return decays, any(layer.slope not in whole for layer in self.layers)

    @property
    def slow_bits(self) -> int:
        """Bits of a slow state; 0 where there is none."""
        return max(layer.slow.bits if layer.slow else 0 for layer in self.layers)

    def slow_rows(self, layer: ProgramLayer) -> int:
        """Rows of slow states."""
        return self.rows(layer) if layer.slow else 0

    @property
    def multiplies(self) -> bool:
        """Whether any factor needs a multiplier."""
        return any(self.multipliers) or bool(self.slow_bits)

    def chunks(self, layer: ProgramLayer) -> int:
        """Rows of `lanes` neurons that one row of weights fills."""
        return -(-layer.width // self.chip.lanes)

    def rows(self, layer: ProgramLayer) -> int:
        """Rows of membranes."""
        return layer.neurons // layer.width * self.chunks(layer)

    @property
    def memories(self) -> dict[str, tuple[int, int]]:
        """Rows, and bits of a row, of each memory.

        weight, membrane, parameter, event; slow and slow_parameter where neurons have a slow state.
        """
        lanes, hidden = self.chip.lanes, self.layers[:-1]
        weights = sum(layer.weight_rows * self.chunks(layer) for layer in self.layers)
        rows = sum(self.rows(layer) for layer in self.layers)
        spikes = sum(layer.neurons * (2 if layer.recurrent else 1) for layer in hidden)
        slow = sum(self.slow_rows(layer) for layer in hidden)
        shapes = {
            "weight": (weights, lanes * self.weight_bits),
            "membrane": (rows, lanes * self.membrane_bits),
            # Of each lane a threshold, an amount, a constant drive and a decay.
            "parameter": (rows, lanes * (3 * self.membrane_bits + self.decay_bits + 1)),
            # Lists of spikes between layers, two of them where a layer hears itself.
            "event": (self.inputs + spikes, self.event_bits),
        }
        if slow:
            shapes["slow"] = (slow, lanes * self.slow_bits)
            # Of each lane a rho, a pull below 8 and a kick.
            factors = 2 * self.decay_bits + 1 + PULL.bit_length()
            shapes["slow_parameter"] = (slow, lanes * (factors + self.slow_bits))
        return shapes

    @property
    def memory_bits(self) -> dict[str, int]:
        """Bits of each memory."""
        return {name: math.prod(shape) for name, shape in self.memories.items()}

    @property
    def event_bits(self) -> int:
        """Bits of the number of an input or a spike."""
        most = max(layer.inputs + layer.neurons for layer in self.layers)
        return max(1, most.bit_length())

    def check(self) -> Program:
        """The program itself; ValueError where its parts do not fit together."""
        _check(self)
        return self


@dataclass(frozen=True)
class ChipCounts:
    """What the chip did; of several samples they add up."""

    samples: int = 0
    steps: int = 0
    input_events: int = 0
    spikes: int = 0
    weight_reads: int = 0  # rows of `lanes` weights
    additions: int = 0  # a weight to a membrane; lanes without a neuron do not count
    membrane_reads: int = 0  # rows of `lanes` membranes
    membrane_writes: int = 0
    parameter_reads: int = 0  # rows of thresholds, amounts, drives and decays
    slow_reads: int = 0  # rows of slow states
    slow_writes: int = 0
    slow_parameter_reads: int = 0  # rows of their factors and kicks
    event_reads: int = 0
    event_writes: int = 0
    updates: int = 0  # neurons x steps: leak, comparison, reset
    slow_updates: int = 0  # of slow states
    outputs: int = 0
    cycles: int = 0

    def __add__(self, other: ChipCounts) -> ChipCounts:
        if not isinstance(other, ChipCounts):
            return NotImplemented
        return ChipCounts(**{name: n + getattr(other, name) for name, n in vars(self).items()})

    def __mul__(self, factor: int) -> ChipCounts:
        return ChipCounts(**{name: n * factor for name, n in vars(self).items()})


def silent(layer: ProgramLayer) -> np.ndarray:
    """Membranes before the first step, (N,) int64."""
    return layer.bias.astype(np.int64)


def with_chip(program: Program, **settings: Any) -> Program:
    """The same program on a chip with other lanes, queue or clock.

    Bits are part of the program: to change them, compile again.
    """
    known = ("lanes", "queue", "clock_MHz")
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(
            f"{unknown[0]} is part of the compiled program; compile the network again, or change "
            f"one of {', '.join(known)}"
        )
    return replace(program, chip=replace(program.chip, **settings))


def _check(program: Program) -> None:
    layers = program.layers
    _rule(len(layers) >= 2, "a program has a hidden layer and a readout at least")
    _rule(layers[-1].reduce is not None, "the last layer must be the readout")
    for name, low, high in (
        ("weight_bits", 2, 16),
        ("decay_bits", 1, 14),
        ("fraction_bits", 0, 8),
        ("membrane_bits", 1, MEMBRANE_BITS),
        ("max_steps", 0, 1 << 14),
    ):
        value = getattr(program, name)
        _rule(
            _whole(value) and low <= value <= high,
            f"{name} is {value!r}, and must be a whole number from {low} to {high}",
        )
    for layer in layers:
        _check_layer(program, layer)
        _check_slow(program, layer)
    for before, after in pairwise(layers):
        _rule(before.reduce is None, f"{before.name}: only the last layer may be a readout")
        _rule(
            before.neurons == after.inputs,
            f"{after.name} has {after.inputs} inputs, {before.name} {before.neurons} neurons",
        )


def _check_layer(program: Program, layer: ProgramLayer) -> None:
    _check_kinds(layer)
    name, neurons = layer.name, layer.neurons
    for part in ("bias", "threshold", "decay", "amount", "scale"):
        value = getattr(layer, part)
        _rule(
            value.shape == (neurons,),
            f"{name}: {part} has shape {value.shape} instead of ({neurons},), one per neuron",
        )
    if layer.geometry is not None:
        g = layer.geometry
        wanted: tuple[int, ...] = (g.in_shape[0], g.kernel, g.kernel, g.out_shape[0])
        sides = tuple(side // g.pool for side in g.rows_columns)
        _rule(sides == g.out_shape[1:], f"{name}: its neurons do not fit the convolution")
        _rule(layer.inputs == math.prod(g.in_shape), f"{name}: inputs do not fit the image")
        _rule(not layer.recurrent, f"{name}: a convolution cannot be recurrent")
    else:
        own = layer.weight.shape[-1] if layer.recurrent else 0
        wanted = (layer.inputs + own, neurons)
    _rule(layer.weight.shape == wanted, f"{name}: weights {layer.weight.shape}, not {wanted}")
    top = 1 << program.weight_bits - 1
    _rule(
        -top <= layer.weight.min(initial=0) and layer.weight.max(initial=0) < top,
        f"{name}: a weight does not fit into {program.weight_bits} bits",
    )
    unity = 1 << program.decay_bits
    _rule(
        layer.decay.min() >= 0 and layer.decay.max() <= unity and 0 <= layer.slope <= unity,
        f"{name}: decays and slopes lie in 0 to {unity}",
    )
    top = 1 << program.membrane_bits - 1
    for part in ("bias", "threshold", "amount"):
        value = getattr(layer, part)
        _rule(
            -top <= value.min() and value.max() < top,
            f"{name}: {part} does not fit into {program.membrane_bits} bits",
        )


def _check_slow(program: Program, layer: ProgramLayer) -> None:
    name, slow = layer.name, layer.slow
    if slow is None:
        return
    _rule(
        isinstance(slow, SlowState) and slow.kind in get_args(Slow), f"{name}: no such slow state"
    )
    plain = layer.geometry is None and layer.reduce is None
    _rule(plain, f"{name}: only dense hidden layers have slow states")
    _rule(
        _whole(slow.bits) and slow.bits == program.slow_bits and 2 <= slow.bits <= SLOW_BITS,
        f"{name}: slow states have {slow.bits!r} bits, and must have 2 to {SLOW_BITS}, all alike",
    )
    widest = f"{name}: membranes beside a slow state have {SLOW_BITS} bits at most"
    _rule(program.membrane_bits <= SLOW_BITS, widest)
    unity = 1 << program.decay_bits
    limits = {"rho": (0, unity), "pull": (0, PULL * unity), "kick": slow.ends}
    for part, (low, high) in limits.items():
        value = getattr(slow, part)
        _rule(
            value.dtype.kind == "i" and value.shape == (layer.neurons,),
            f"{name}: {part} holds {value.dtype} of shape {value.shape}",
        )
        _rule(low <= value.min() and value.max() <= high, f"{name}: {part} leaves {low} to {high}")


def _check_kinds(layer: ProgramLayer) -> None:
    """Numbers are whole, arrays are of numbers, and sides of a convolution exist."""
    name, g = layer.name, layer.geometry
    _rule(isinstance(name, str), f"the name of a layer is {name!r}")
    _rule(layer.reset in get_args(Reset), f"{name}: reset is {layer.reset!r}")
    _rule(layer.reduce in (None, *get_args(Reduce)), f"{name}: reduce is {layer.reduce!r}")
    _rule(_whole(layer.slope), f"{name}: slope is {layer.slope!r}, no whole number")
    _rule(isinstance(layer.recurrent, bool), f"{name}: recurrent is {layer.recurrent!r}")
    _rule(
        _whole(layer.inputs) and 1 <= layer.inputs <= MOST_INPUTS,
        f"{name}: inputs is {layer.inputs!r}, and must be a whole number from 1 to {MOST_INPUTS:,}",
    )
    for part in ("weight", "bias", "threshold", "decay", "amount", "scale"):
        dtype, kind = getattr(layer, part).dtype, "f" if part == "scale" else "i"
        _rule(dtype.kind == kind, f"{name}: {part} holds {dtype}")
    _rule(bool(np.isfinite(layer.scale).all()), f"{name}: scale has a value that is not finite")
    if g is None:
        dims = 2
    else:
        sides = (*g.in_shape, *g.out_shape, g.kernel, g.stride, g.pool)
        dims = 4
        _rule(
            len(g.in_shape) == len(g.out_shape) == 3
            and all(_whole(side) and 1 <= side <= MOST_INPUTS for side in sides)
            and _whole(g.padding)
            and 0 <= g.padding <= MOST_INPUTS,
            f"{name}: a side of its convolution is no whole number from 1 to {MOST_INPUTS:,}",
        )
    shape = layer.weight.shape
    _rule(len(shape) == dims and 0 not in shape, f"{name}: weights have the shape {shape}")


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _rule(holds: bool, text: str) -> None:
    if not holds:
        raise ValueError(f"not a program of the chip: {text}; compile the network again")
