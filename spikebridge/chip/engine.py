"""Runs a compiled program on this computer, event by event, as the chip would.  No torch.

    engine = Engine(program)
    outputs = engine.step(events)          # one sample, step by step
    answers = engine.run(x).outputs        # many samples, over all threads

What is computed is defined by `spikebridge.chip.golden`, which serves as backend "numpy"; backend
"native" is the same in C++, bit for bit, and its work grows with the spikes that there are.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from spikebridge.chip.golden import Golden, conv_counts, dense_counts
from spikebridge.chip.program import ChipCounts, Program, ProgramLayer, silent

try:
    from spikebridge import _native as _built

    _native: Any = _built
    missing: str | None = None
    """Why there is no backend "native"; None where there is one."""
    if not hasattr(_native, "Chip"):
        missing = "the native kernels of this installation are older than the chip; install again"
except ImportError as error:  # built without a compiler
    _native = None
    missing = f"the native kernels are not built in this installation ({error})"

__all__ = ["Backend", "Engine", "EngineResult", "missing"]

Backend = Literal["auto", "numpy", "native"]
INT64 = np.dtype(np.int64)
SLOWS = (None, "oscillation", "adaptation")
REDUCES = (None, "each", "last", "sum")
_warned: set[str] = set()


class EngineResult(NamedTuple):
    """What a batch gave."""

    outputs: np.ndarray  # (B, O) int64; where the readout answers each step, (T, B, O)
    counts: ChipCounts | None  # of all samples together, where asked for


class Engine:
    """A program that runs: one sample step by step, or whole batches.

    Args:
        program: see `spikebridge.chip.program`; what it holds is copied.
        backend: "native", "numpy", or "auto": native where it is built.  That it is not is said
            once.

    Raises:
        ValueError: parts of the program do not fit together, or there is no such backend.
        RuntimeError: "native" is not built; the message tells why.
    """

    def __init__(self, program: Program, backend: Backend = "auto") -> None:
        self.program = program.check()
        self.backend = _choose(backend)
        self._runner: Any = (
            _NativeRunner(program) if self.backend == "native" else _NumpyRunner(program)
        )
        self._step, self._outputs = self._runner.step, self._runner.outputs

    def step(self, events: Any, last: bool = False) -> np.ndarray:
        """One time step of the sample under way.

        Args:
            events: rising numbers of the inputs that spike, (n,) of whole numbers in [0, I).
            last: whether the sample ends with this step; the next one then starts from silence.

        Returns:
            (O,) int64: outputs of this step, or of a readout "sum" the sum so far.

        Raises:
            ValueError: events are not as they must be, or the sample has more steps than the
                program bears.  Nothing has changed then.
        """
        # Types are compared by identity first: this is half of what a small network costs.
        if (
            type(events) is not np.ndarray
            or events.dtype is not INT64
            or events.ndim != 1
            or not events.flags.aligned
        ):
            events = _numbers(events)
        if not self._step(events, bool(last)):
            raise ValueError(_refusal(self.program, events, self._runner.steps))
        return self._outputs.copy()

    def reset(self) -> None:
        """Silence, as before the first step; `counts` goes on."""
        self._runner.reset()

    @property
    def spikes(self) -> tuple[np.ndarray, ...]:
        """Rising numbers of the neurons that fired in the last step, of each hidden layer."""
        return tuple(self._runner.spikes(i) for i in range(len(self.program.layers) - 1))

    @property
    def membranes(self) -> tuple[np.ndarray, ...]:
        """s before the reset, (N,) int64 of each hidden layer; before any step what waits."""
        return tuple(self._runner.membranes(i) for i in range(len(self.program.layers) - 1))

    @property
    def counts(self) -> ChipCounts:
        """What all calls of `step` took so far."""
        return self._runner.counts()

    def run(self, x: Any, *, counts: bool = False, threads: int = 0) -> EngineResult:
        """Samples of equal length, each from silence; the sample under way is not disturbed.

        Args:
            x: spikes (T, B, I), T at least 1: bool, or numbers that are all 0 or 1.
            counts: also count what the chip would do.
            threads: of the native backend; 0 = what OpenMP would take.

        Raises:
            ValueError: x is not as it must be, or T is more than the program bears.
        """
        x = _spikes(self.program, x)
        if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= 4096:
            raise ValueError(
                f"threads={threads!r}: it must be a whole number from 0 to 4096; pass 0 for all"
            )
        answers = x.shape[0] if self.program.readout.reduce == "each" else 1
        outputs = np.zeros((answers, x.shape[1], self.program.outputs), np.int64)
        took = self._runner.run(x, outputs, threads, counts)
        each = self.program.readout.reduce == "each"
        return EngineResult(outputs if each else outputs[0], took if counts else None)


def _choose(backend: Backend) -> Literal["numpy", "native"]:
    if backend not in get_args(Backend):
        raise ValueError(
            f"backend={backend!r} is not known; choose one of {list(get_args(Backend))}"
        )
    if backend != "numpy" and missing is None:
        return "native"
    if backend == "native":
        raise RuntimeError(f'backend="native" cannot serve: {missing}; use backend="auto"')
    if backend == "auto" and missing is not None and missing not in _warned:
        _warned.add(missing)
        warnings.warn(f"the chip's engine runs in numpy, slowly: {missing}", stacklevel=3)
    return "numpy"


class _NumpyRunner:
    """The definition, with the checks and the counts of an engine."""

    def __init__(self, program: Program) -> None:
        self.program, self.golden = program, Golden(program)
        self.outputs = np.zeros(program.outputs, np.int64)
        self.total = ChipCounts()
        self.reset()

    def reset(self) -> None:
        self.golden.reset()
        self.steps = 0
        hidden = self.program.layers[:-1]
        self.shown = [(np.zeros(0, np.int64), silent(layer)) for layer in hidden]

    def step(self, events: np.ndarray, last: bool) -> bool:
        if _refusal(self.program, events, self.steps) is not None:
            return False
        done = self.golden.step(events, last)
        self.steps = 0 if last else self.steps + 1
        self.total += done.counts
        self.shown = [(layer.spikes, layer.membrane) for layer in done.layers[:-1]]
        self.outputs[:] = done.outputs
        return True

    def spikes(self, number: int) -> np.ndarray:
        return self.shown[number][0].copy()

    def membranes(self, number: int) -> np.ndarray:
        return self.shown[number][1].copy()

    def counts(self) -> ChipCounts:
        return self.total

    def run(self, x: np.ndarray, outputs: np.ndarray, threads: int, counts: bool) -> ChipCounts:
        wrong = np.flatnonzero(~((x == 0) | (x == 1)))
        if len(wrong):
            raise ValueError(_not_a_spike(x, wrong[0]))
        golden, total = Golden(self.program), ChipCounts()
        for sample in range(x.shape[1]):
            for step in range(x.shape[0]):
                events = np.flatnonzero(x[step, sample])
                done = golden.step(events, last=step == x.shape[0] - 1)
                outputs[min(step, len(outputs) - 1), sample] = done.outputs
                total += done.counts
        return total


class _NativeRunner:
    """The C++ of native/chip_module.cpp, which checks all operands before it changes anything."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.chip = _native.Chip(program.decay_bits, program.fraction_bits, program.max_steps)
        for layer in program.layers:
            self._add(layer)
        self.chip.start()
        self.outputs = self.chip.outputs()  # a view: the chip writes there
        self.step, self.reset = self.chip.step, self.chip.reset
        self.spikes, self.membranes = self.chip.spikes, self.chip.membranes

    @property
    def steps(self) -> int:
        return self.chip.steps

    def counts(self) -> ChipCounts:
        return _counts(self.program, self.chip.tally())

    def run(self, x: np.ndarray, outputs: np.ndarray, threads: int, counts: bool) -> ChipCounts:
        wrong, tally = self.chip.run(x, outputs, threads)
        if wrong >= 0:
            raise ValueError(_not_a_spike(x, wrong))
        return _counts(self.program, tally) if counts else ChipCounts()

    def _add(self, layer: ProgramLayer) -> None:
        if self.program.weight_bits > 16:
            raise ValueError(
                f"not a program of the chip: weights of {self.program.weight_bits} bits, at most "
                "16 are possible; compile the network again"
            )
        amount = layer.amount if layer.reset == "subtract" else np.zeros_like(layer.amount)
        rows = [layer.bias, layer.threshold, layer.decay, amount]
        g, slow = layer.geometry, layer.slow
        rows += [slow.rho, slow.pull, slow.kick] if slow else []
        self.chip.add_layer(
            np.ascontiguousarray(layer.weight, np.int16).reshape(layer.weight_rows, layer.width),
            np.stack(rows).astype(np.int32),
            layer.inputs,
            int(layer.slope),
            layer.reset == "gate",
            layer.recurrent,
            REDUCES.index(layer.reduce),
            [*g.in_shape, *g.out_shape[1:], g.kernel, g.stride, g.padding, g.pool] if g else [],
            *((SLOWS.index(slow.kind), slow.bits) if slow else ()),
        )


def _counts(program: Program, tally: list[int]) -> ChipCounts:
    """Of the steps, samples, input events, and the events, taps and spikes of each layer.

    The chip's cost of a step is a constant and a price per event, tap, spike and output, so that
    totals are enough; the prices are those of `spikebridge.chip.golden`.
    """
    steps, samples, heard, *rest = tally
    total = ChipCounts(samples, steps, heard, event_writes=heard, cycles=heard + steps)
    for number, layer in enumerate(program.layers):
        events, inside, outside, spikes = rest[4 * number : 4 * number + 4]
        if layer.geometry is None:
            silent = dense_counts(program, layer, 0)
            taken = dense_counts(program, layer, events)
        else:
            silent = conv_counts(program, layer, 0, 0, 0)
            taken = conv_counts(program, layer, events, inside, outside)
        total += taken + silent * (steps - 1)
        answers = 0
        if layer.reduce is not None:
            answers = layer.neurons * (steps if layer.reduce == "each" else samples)
        total += ChipCounts(
            spikes=spikes, event_writes=spikes, outputs=answers, cycles=spikes + answers
        )
    return total


def _numbers(events: Any) -> np.ndarray:
    """(n,) int64; ValueError where they are not whole numbers in a row."""
    numbers = np.asarray(events)
    if numbers.ndim != 1:
        raise ValueError(
            f"events have shape {numbers.shape}: they must be a row of numbers, one per input that "
            "spikes; pass np.flatnonzero(x) for spikes x (I,)"
        )
    if not len(numbers) and not isinstance(events, np.ndarray):
        return np.zeros(0, np.int64)  # an empty list has no dtype of its own
    if numbers.dtype.kind not in "iu":
        raise ValueError(
            f"events are {numbers.dtype}: they must be whole numbers of inputs; pass "
            "np.flatnonzero(x) for spikes x (I,), or cast with .astype(np.int64)"
        )
    if numbers.dtype.kind == "u" and numbers.dtype.itemsize == 8:
        numbers = np.minimum(numbers, np.uint64(np.iinfo(np.int64).max))  # no wrapping below zero
    return numbers.astype(np.int64)


def _refusal(program: Program, events: np.ndarray, steps: int) -> str | None:
    """Why these events cannot be the step after `steps` others; None if they can."""
    if program.max_steps and steps >= program.max_steps:
        return _too_long(program, steps + 1)
    if not len(events):
        return None
    wrong = np.flatnonzero((events < 0) | (events >= program.inputs))
    if len(wrong):
        return (
            f"events[{wrong[0]}]={events[wrong[0]]}: the numbers of inputs go from 0 to "
            f"{program.inputs - 1}; leave out what the network has no input for"
        )
    wrong = np.flatnonzero(np.diff(events) <= 0) + 1
    if len(wrong):
        at = wrong[0]
        return (
            f"events[{at}]={events[at]} after {events[at - 1]}: numbers must rise, as each input "
            "spikes at most once in a step; pass np.unique(events)"
        )
    return None


def _too_long(program: Program, steps: int) -> str:
    return (
        f"step {steps} of a sample: the membranes of this program are bounded for max_steps="
        f"{program.max_steps}; end the sample with last=True, or compile the network with "
        f"max_steps {steps} or more"
    )


def _spikes(program: Program, x: Any) -> np.ndarray:
    """x (T, B, I) as uint8, float32 or float64, its values not looked at yet."""
    array = np.asarray(x)
    if array.ndim != 3 or array.shape[2] != program.inputs or not array.shape[0]:
        raise ValueError(
            f"x has shape {array.shape}: it must be (T, B, {program.inputs}), time steps (at least "
            "1), samples, inputs; pass x[None] for samples of one step"
        )
    if program.max_steps and array.shape[0] > program.max_steps:
        raise ValueError(_too_long(program, array.shape[0]))
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ValueError(f"x is {array.dtype}: spikes are numbers 0 or 1; pass a bool array")
    if array.dtype in (np.bool_, np.uint8):
        return np.ascontiguousarray(array).view(np.uint8)
    # No number but 1 becomes 1 in float64, and none but 0 becomes 0.
    kind = np.float32 if array.dtype == np.float32 else np.float64
    return np.require(array, kind, ["C", "A"])


def _not_a_spike(x: np.ndarray, place: int) -> str:
    t, b, i = np.unravel_index(place, x.shape)
    value = x[t, b, i]
    hint = "make it finite" if not math.isfinite(value) else "compare it with a threshold"
    return f"x[{t}, {b}, {i}]={value}: spikes are 0 or 1; {hint} first, or pass a bool array"
