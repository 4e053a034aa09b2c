"""Memories of whole macros, datapaths, and what both cost.

One rule for all memories.  A row of at most 64 bits comes from macros of 64-bit words: 1, 8 or
32 KB.  A wider one comes from 1 KB x 64 bits where 128 words are deep enough, from 8 or 32 KB x 256
bits otherwise.  It is always the smallest that is deep enough, and several of the largest where
none is.  Rows that fit side by side share a word.  The columns are the bits of a row by those of a
word, rounded up; an access takes one macro of each column, and all macros leak all the time.

The largest macro has 32 KB, `bank_KB`.  With 8 KB a read would cost 40 % of that in this table,
because nothing counts the wires between macros and the decoders above them, of which there would
be more; 128 KB cost more, with such wires inside.  Spans go from 8 to 128 KB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import attrgetter

from spikebridge.base.records import listed
from spikebridge.energy.costs import Cost, CostRow, Energy
from spikebridge.energy.figures import CACTI, DECKS, LOGIC, MACROS, NODE_NM, Logic, Macro

NOMINAL = "itrs-lop"
"""Low operating power: the deck meant for chips that work most of the time at a moderate clock.  Of
the three it leaks in the middle, and an access costs it the least; at 200 MHz its macros, with
1.4 ns at most, are in no hurry.  itrs-lstp is the deck for chips that mostly wait."""
BANKS_KB = (8, 32, 128)
"""Sizes of the largest macro that a memory may have, in kilobytes."""
MOST_MHZ = 500.0
"""The slowest macro answers in 1.97 ns, and the adder that is charged takes 1.75 ns."""
WORD = 64
"""Bits of the narrow macros."""


@dataclass(frozen=True)
class Sram:
    """A memory of `columns` x `deep` macros."""

    macro: Macro
    columns: int
    deep: int

    @property
    def macros(self) -> int:
        """Macros in all."""
        return self.columns * self.deep

    @property
    def leak_mW(self) -> float:
        """Of all macros, in milliwatts."""
        return self.macros * self.macro.leak_mW

    def access(self, kind: str) -> Cost:
        """A row, "read" or "write", in picojoules."""
        value = self.columns * getattr(self.macro, f"{kind}_pJ")
        source = f"{self.columns} x {kind} of {self.macro}; {CACTI}"
        return Cost(value, "pJ", NODE_NM, source, "derived")


def sram(rows: int, row_bits: int, deck: str = NOMINAL, bank_KB: int = 32) -> Sram:
    """The memory of so many rows, by the rule at the head of this file.

    Raises ValueError for a deck or a size of macros that there is not, and for a memory without
    rows or bits.
    """
    known("deck", deck, DECKS)
    known("bank_KB", bank_KB, BANKS_KB)
    if rows < 1 or row_bits < 1:
        raise ValueError(f"{rows} rows of {row_bits} bits: both must be 1 or more; leave it out")
    wide = 256 if row_bits > WORD else WORD
    sizes = ((1, WORD), *((kilobytes, wide) for kilobytes in BANKS_KB if kilobytes <= bank_KB))
    for macro in (MACROS[deck][size] for size in sizes):
        words = -(-rows // max(1, macro.word_bits // row_bits))
        if words <= macro.words:
            break
    return Sram(macro, -(-row_bits // macro.word_bits), -(-words // macro.words))


@dataclass(frozen=True)
class SramUse:
    """A memory and what was done to it; reads and writes of rows."""

    name: str
    sram: Sram
    reads: float
    writes: float | None  # None: read only


@dataclass(frozen=True)
class Datapath:
    """The logic.  Each lane has `adders` and a comparator of `bits`, and `multipliers`."""

    lanes: int
    bits: int
    adders: int
    multipliers: int
    widths: tuple[int, int]  # of both factors of a multiplier
    flip_flops: int
    counted: str  # what the flip-flops are


@dataclass(frozen=True)
class Done:
    """Operations of the lanes."""

    additions: float
    comparisons: float
    multiplications: float
    cycles: float


def priced(
    parts: Sequence[SramUse], path: Datapath, done: Done, logic: str, clock_MHz: float
) -> Energy:
    """The table, and cycles / clock; ValueError for unknown logic and a clock out of range."""
    known("logic", logic, LOGIC)
    if not (math.isfinite(clock_MHz) and 0 < clock_MHz <= MOST_MHZ):
        raise ValueError(
            f"clock_MHz={clock_MHz:g}: it must be above 0 and at most {MOST_MHZ:g}, for which the "
            "figures of memories and logic stand; pass clock_MHz=200"
        )
    costs = LOGIC[logic]
    seconds = done.cycles / (clock_MHz * 1e6)
    rows = []
    for part in parts:
        rows.append(CostRow.of(f"{part.name} reads", part.reads, part.sram.access("read")))
        if part.writes is not None:
            rows.append(CostRow.of(f"{part.name} writes", part.writes, part.sram.access("write")))
    rows.append(CostRow.of("additions", done.additions, costs.addition.wide(path.bits)))
    rows.append(CostRow.of("comparisons", done.comparisons, costs.comparison.wide(path.bits)))
    if path.multipliers:
        cost = costs.multiplication.product(*path.widths)
        rows.append(CostRow.of("multiplications", done.multiplications, cost))
    clock = costs.flip_flop.cost
    counted = f"{path.flip_flops} flip-flops: {path.counted}; {clock.source}"
    rows.append(
        CostRow.of(
            "registers and clock", path.flip_flops * done.cycles, replace(clock, source=counted)
        )
    )
    time_ns = seconds * 1e9
    rows.append(CostRow.of("leakage of memories", time_ns, _leak_of_memories(parts)))
    rows.append(CostRow.of("leakage of logic", time_ns, _leak_of_logic(path, costs)))
    return Energy(tuple(rows), seconds)


def spanned(price: Callable[..., Energy]) -> tuple[Energy, Energy, Energy]:
    """(least, nominal, most) of price(deck=, logic=, bank_KB=)."""
    choices = product(DECKS, LOGIC, BANKS_KB)
    each = [price(deck=deck, logic=logic, bank_KB=bank) for deck, logic, bank in choices]
    total = attrgetter("total_pJ")
    return min(each, key=total), price(), max(each, key=total)


def known(name: str, value: object, choices: Iterable[object]) -> None:
    """ValueError for a value that is none of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r}: it must be one of {listed(choices)}; pass one")


def _leak_of_memories(parts: Sequence[SramUse]) -> Cost:
    # A milliwatt is a picojoule per nanosecond.
    value = math.fsum(part.sram.leak_mW for part in parts)
    what = ", ".join(f"{p.sram.macros} x {p.sram.macro} ({p.name})" for p in parts)
    return Cost(value, "pJ", NODE_NM, f"per ns: {what}; {CACTI}", "derived")


def _leak_of_logic(path: Datapath, costs: Logic) -> Cost:
    adder, multiplier = costs.adder_leak.wide(path.bits), costs.multiplier_leak
    lane = (path.adders + 1) * adder.value  # a comparator is a subtraction
    lane += path.multipliers * multiplier.product(*path.widths).value
    value = path.lanes * lane
    value += path.flip_flops * costs.flip_flop_leak.cost.value
    what = (
        f"per ns: {path.lanes} lanes of {path.adders} adders, a comparator taken for an adder and "
        f"{path.multipliers} multipliers, and {path.flip_flops} flip-flops"
    )
    return Cost(value, "pJ", NODE_NM, f"{what}; {adder.source}", "derived")
