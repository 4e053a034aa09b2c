"""Networks without spikes on a dense accelerator of the chip's parts, memory included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from spikebridge.energy.costs import Energy
from spikebridge.energy.figures import CONTROL_BITS
from spikebridge.energy.memories import (
    NOMINAL,
    WORD,
    Datapath,
    Done,
    SramUse,
    priced,
    spanned,
    sram,
)

BYTE = 8
"""Bits of a weight and of an activation."""


@dataclass(frozen=True)
class Product:
    """A matrix of int8 by a vector of int8, `times` per inference, weights fetched anew each time.

    `active` inputs are not zero and are multiplied, the others are skipped; None where the
    accelerator does not look.
    """

    inputs: int
    outputs: int
    times: int = 1
    active: float | None = None

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "times"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 1 or more; pass 1")
        if not 0 <= self.rows - 1 <= self.inputs:
            raise ValueError(
                f"active={self.active}: it must lie in 0 to the {self.inputs} inputs; pass the "
                "mean number of those that are not zero"
            )

    @property
    def rows(self) -> float:
        """Rows of weights that a product takes; the biases are one more."""
        return 1 + (self.inputs if self.active is None else self.active)


@dataclass(frozen=True)
class DenseWork:
    """What a network without spikes does per inference, whatever the lanes."""

    products: tuple[Product, ...]
    values: int  # activations that are held, bytes
    reads: int = 0  # of these, beyond the inputs of products
    writes: int = 0
    multiplications: int = 0  # element by element, 8 x 8 bits
    additions: int = 0
    comparisons: int = 0  # max(0, .)
    lookups: int = 0  # sigmoid and tanh, tables of 256 bytes

    @property
    def macs(self) -> float:
        """Products of matrices, biases not counted."""
        return sum(p.times * (p.rows - 1) * p.outputs for p in self.products)


def mlp_counts(sizes: Sequence[int], active: Sequence[float] | None = None) -> DenseWork:
    """An int8 perceptron with ReLU, say of (784, 256, 256, 10).

    sizes[i] x sizes[i + 1] products in each layer, with biases; one comparison for each hidden
    neuron; every activation, and every input, is written once, and read once per chunk of outputs.

    Args:
        sizes: inputs, hidden layers, outputs.
        active: of each layer, how many of its inputs are not zero on average, for an accelerator
            that skips zeros; all where None.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes={tuple(sizes)}: inputs and outputs at least; pass two or more")
    layers = list(pairwise(sizes))
    some = [None] * len(layers) if active is None else list(active)
    if len(some) != len(layers):
        raise ValueError(f"active: {len(some)} numbers for {len(layers)} layers; pass one of each")
    products = tuple(Product(*sides, active=a) for sides, a in zip(layers, some, strict=True))
    return DenseWork(products, sum(sizes), writes=sum(sizes), comparisons=sum(sizes[1:-1]))


def gru_counts(inputs: int, hidden: int, steps: int, outputs: int) -> DenseWork:
    """An int8 gated recurrent unit that reads `steps` vectors, then a linear readout.

    Of each step: r, z = sigmoid(W x + U h), n = tanh(W x + r (U h)), h = n + z (h - n), that is
    3 H (inputs + H) products of matrices, 2 H products and 3 H additions element by element, 3 H
    look-ups; 3 H gates and H states are written and read back, and the inputs are written.  At the
    end H x outputs products.  Weights of a step are fetched in each step: a GRU on 28 rows of an
    image does so 28 times.
    """
    gates = 3 * hidden
    return DenseWork(
        products=(
            Product(inputs, gates, steps),
            Product(hidden, gates, steps),
            Product(hidden, outputs),
        ),
        values=inputs + gates + hidden + outputs,
        reads=steps * (gates + hidden),
        writes=steps * (inputs + gates + hidden) + outputs,
        multiplications=2 * hidden * steps,
        additions=3 * hidden * steps,
        lookups=gates * steps,
    )


def on_dense(
    work: DenseWork,
    lanes: int = 64,
    deck: str = NOMINAL,
    clock_MHz: float = 200.0,
    *,
    logic: str = "nominal",
    bank_KB: int = 32,
) -> Energy:
    """The same inference on a dense accelerator of the same lanes, macros, clock and rules.

    In each cycle one row of weights meets one input, `lanes` multiply-accumulates of 8 x 8 bits;
    sums stay in registers of 16 bits and as many as the inputs take.  Four cycles a chunk and two
    a product go by as on the chip.  Activations are read and written by words of 8, one a cycle.
    Scaling sums back to 8 bits is taken to be a shift, and free, in favour of this accelerator.

    Raises ValueError as `on_chip` does, and for lanes below 1.
    """
    if lanes < 1:
        raise ValueError(f"lanes={lanes}: it must be 1 or more; pass 64")
    chunks = [-(-p.outputs // lanes) for p in work.products]
    each = list(zip(work.products, chunks, strict=True))
    words = WORD // BYTE
    read = sum(p.times * c * -(-p.inputs // words) for p, c in each) + -(-work.reads // words)
    written = -(-work.writes // words)
    fetched = sum(p.times * c * p.rows for p, c in each)
    elements = -(-(work.multiplications + work.additions) // lanes)
    cycles = fetched + sum(p.times * (2 + 4 * c) for p, c in each) + written + elements
    bits = 2 * BYTE + max(p.inputs for p in work.products).bit_length()

    stored = sum(c * (p.inputs + 1) for p, c in each)
    parts = [
        SramUse("weight memory", sram(stored, lanes * BYTE, deck, bank_KB), fetched, None),
        SramUse(
            "activation memory", sram(-(-work.values // words), WORD, deck, bank_KB), read, written
        ),
    ]
    if work.lookups:
        parts.append(SramUse("look-up tables", sram(256, BYTE, deck, bank_KB), work.lookups, None))
    flip_flops = lanes * (bits + BYTE) + WORD + int(CONTROL_BITS.value)
    counted = f"{lanes} lanes x ({bits} + {BYTE}), {WORD} of activations"
    path = Datapath(lanes, bits, 1, 1, (BYTE, BYTE), flip_flops, counted)
    done = Done(
        additions=work.macs + work.additions,
        comparisons=work.comparisons,
        multiplications=work.macs + work.multiplications,
        cycles=cycles,
    )
    return priced(parts, path, done, logic, clock_MHz)


def dense_span(
    work: DenseWork, lanes: int = 64, clock_MHz: float = 200.0
) -> tuple[Energy, Energy, Energy]:
    """(least, nominal, most) energy of `on_dense`, as `span` has it for the chip."""
    return spanned(partial(on_dense, work, lanes, clock_MHz=clock_MHz))
