"""The definition of what the chip computes: integers, event by event.  No torch.

`Golden` is meant to be read; `spikebridge.chip.engine` runs the same in C++, and the Verilog of
`rtl/` does so in gates.  All three give the same spikes, membranes, outputs and cycles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from spikebridge.chip.program import ChipCounts, Geometry, Program, ProgramLayer, silent


class LayerStep(NamedTuple):
    """What a layer did in one step."""

    membrane: np.ndarray  # (N,) int64: s, before the reset; of a readout v
    spikes: np.ndarray  # (n,) int64, rising numbers of the neurons that fired
    counts: ChipCounts


class Step(NamedTuple):
    """What all layers did in one step."""

    outputs: np.ndarray  # (O,) int64: of this step, or the sum so far
    layers: tuple[LayerStep, ...]
    counts: ChipCounts


class Golden:
    """A program that runs, step by step.

    Args:
        program: see `spikebridge.chip.program`.
    """

    def __init__(self, program: Program) -> None:
        self.program = program.check()
        self.reset()

    def reset(self) -> None:
        """Silence, as before the first step."""
        self.v = [silent(layer) for layer in self.program.layers]
        self.w = [np.zeros(layer.neurons, np.int64) for layer in self.program.layers]
        self.fired = [np.zeros(0, np.int64) for _ in self.program.layers]

    def step(self, events: np.ndarray, last: bool = False) -> Step:
        """One time step.

        Args:
            events: rising numbers of the inputs that spike, each in [0, inputs).
            last: whether the sample ends with this step; the next one then starts from silence.
        """
        program, done = self.program, []
        now = events = np.asarray(events, np.int64)
        for number, layer in enumerate(program.layers):
            done.append(self._layer(number, layer, now, last))
            now = done[-1].spikes
        outputs = (done[-1].membrane * program.readout.decay) >> program.decay_bits
        loading = ChipCounts(
            samples=int(last),
            steps=1,
            input_events=len(events),
            event_writes=len(events),
            cycles=len(events) + 1,
        )
        if last:
            self.reset()
        return Step(outputs, tuple(done), sum((d.counts for d in done), loading))

    def _layer(self, number: int, layer: ProgramLayer, events: np.ndarray, last: bool) -> LayerStep:
        program, v = self.program, self.v[number]
        if layer.recurrent:
            events = np.concatenate([events, layer.inputs + self.fired[number]])
        if layer.geometry is None:
            v += layer.weight[events].sum(0, dtype=np.int64) << program.fraction_bits
            counts = dense_counts(program, layer, len(events))
        else:
            taps = convolve(layer, layer.geometry, v, events, program.fraction_bits)
            counts = conv_counts(program, layer, len(events), *taps)
        if layer.reduce is not None:
            bias = silent(layer)
            self.v[number] = v + bias if layer.reduce == "sum" else bias
            answers = layer.neurons if last or layer.reduce == "each" else 0
            counts = replace(counts, outputs=answers, cycles=counts.cycles + answers)
            return LayerStep(v, np.zeros(0, np.int64), counts)
        s, y = self._fire(number, layer, v)
        spikes = np.flatnonzero(y)
        self.fired[number] = spikes
        fired = len(spikes)
        counts = replace(counts, spikes=fired, event_writes=fired, cycles=counts.cycles + fired)
        return LayerStep(s, spikes, counts)

    def _fire(
        self, number: int, layer: ProgramLayer, v: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Membranes and spikes; leaves the states for the next step in place."""
        bits = self.program.decay_bits
        s = np.where(v >= 0, v, (v * layer.slope) >> bits)
        w, slow = self.w[number], layer.slow
        y = s > layer.threshold + (w if slow and slow.kind == "adaptation" else 0)
        left = np.where(y, 0, s) if layer.reset == "gate" else s
        self.v[number] = ((left * layer.decay) >> bits) + layer.bias
        if layer.reset == "subtract":
            self.v[number][y] -= layer.amount[y]
        if slow:
            self.w[number] = slow.after(w, left, y, bits)
            if slow.kind == "oscillation":
                self.v[number] -= self.w[number]
        return s, y


def convolve(
    layer: ProgramLayer, geometry: Geometry, v: np.ndarray, events: np.ndarray, shift: int
) -> tuple[int, int]:
    """Add what each event's pixel sends to the outputs around it, in place.

    Returns the numbers of taps inside and outside of the image.
    """
    _, height, width = geometry.in_shape
    image = v.reshape(geometry.out_shape)
    inside = outside = 0
    for event in events.tolist():
        channel, pixel = divmod(event, height * width)
        y, x = divmod(pixel, width)
        columns = geometry.targets(x, 1)
        for ky, row in geometry.targets(y, 0):
            for kx, column in columns:
                if row < 0 or column < 0:
                    outside += 1
                    continue
                inside += 1
                image[:, row, column] += layer.weight[channel, ky, kx].astype(np.int64) << shift
    return inside, outside


def dense_counts(program: Program, layer: ProgramLayer, events: int) -> ChipCounts:
    """What a dense layer takes, but for its spikes and outputs.

    The chip goes through the neurons chunk by chunk, `lanes` at once: it fetches the membranes of
    a chunk and its parameters, adds a row of weights for each event, one per cycle through two
    stages, and sends the membranes back, so that each is read and written once a step.  Slow states
    lie in memories of their own, beside the membranes and at the same time.
    """
    chunks, slow = program.chunks(layer), program.slow_rows(layer)
    return ChipCounts(
        weight_reads=chunks * events,
        additions=layer.width * events,
        membrane_reads=chunks,
        membrane_writes=chunks,
        parameter_reads=chunks,
        slow_reads=slow,
        slow_writes=slow,
        slow_parameter_reads=slow,
        event_reads=chunks * events,
        updates=layer.neurons,
        slow_updates=layer.neurons if slow else 0,
        cycles=2 + chunks * (events + 4),
    )


def conv_counts(
    program: Program, layer: ProgramLayer, events: int, inside: int, outside: int
) -> ChipCounts:
    """What a convolution takes, but for its spikes.

    The chip goes through the events: 2 cycles to read one, then for each tap 1 cycle to find it
    outside, or 2 for each chunk of channels to fetch and to add.  Afterwards all membranes pass
    the threshold, 3 cycles a row.
    """
    chunks, rows = program.chunks(layer), program.rows(layer)
    adds = inside * chunks
    return ChipCounts(
        weight_reads=adds,
        additions=inside * layer.width,
        membrane_reads=adds + rows,
        membrane_writes=adds + rows,
        parameter_reads=rows,
        event_reads=events,
        updates=layer.neurons,
        cycles=2 + 2 * events + 2 * adds + outside + 3 * rows,
    )
