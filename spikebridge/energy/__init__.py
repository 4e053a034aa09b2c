"""Energy, time and area of the digital chip in 40 nm, from what it did: counts x sourced costs.

    figures   memory macros, adders, multipliers, registers: value, node, source, mark
    parts     memories of whole macros, datapaths, and the table that both give
    chip      what the chip of `spikebridge.chip` spent, and its area
    dense     a dense accelerator of the same parts: an int8 perceptron, an int8 GRU

Nothing is calibrated to a published chip.  Marks are those of `spikebridge.energy.costs`.

Not counted: wires and multiplexers between macros and lanes, the clock tree, state machines beyond
their registers, pads, transport of inputs to the chip, and what happens between samples (the chip
is busy or off).  The first weighs most: CACTI gives a single memory of 256 KB x 512 bits (itrs-lop)
82 pJ a read with the wires in it, where two macros of 32 KB x 256 bits take 25.  On the other side,
no register is gated, all are clocked in each cycle.

Decks are of the memories; logic costs the same in all.  They differ most in leakage, which goes
with capacity x time.  784-256-256-10 with one step at 200 MHz leaks half of its energy in itrs-lop,
nine tenths in itrs-hp and next to nothing in itrs-lstp: what holds in one deck only is a statement
about the deck.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spikebridge.base.doors import lazy

if TYPE_CHECKING:
    from spikebridge.energy.accelerator import (
        DenseWork,
        Product,
        dense_span,
        gru_counts,
        mlp_counts,
        on_dense,
    )
    from spikebridge.energy.chip import area_mm2, on_chip, span
    from spikebridge.energy.figures import DECKS, PUBLISHED, constants
    from spikebridge.energy.memories import BANKS_KB, NOMINAL, Sram, sram

__all__ = [
    "BANKS_KB",
    "DECKS",
    "NOMINAL",
    "PUBLISHED",
    "DenseWork",
    "Product",
    "Sram",
    "area_mm2",
    "constants",
    "dense_span",
    "gru_counts",
    "mlp_counts",
    "on_chip",
    "on_dense",
    "span",
    "sram",
]

# Loaded at first use, as the names of the other rooms are.
__getattr__, __dir__ = lazy(
    __name__,
    {
        "accelerator": "DenseWork Product dense_span gru_counts mlp_counts on_dense",
        "chip": "area_mm2 on_chip span",
        "figures": "DECKS PUBLISHED constants",
        "memories": "BANKS_KB NOMINAL Sram sram",
    },
)
