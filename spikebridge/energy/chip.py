"""What the chip of `spikebridge.chip` spends, and its area."""

from __future__ import annotations

from functools import partial

from spikebridge.chip.program import ChipCounts, Program
from spikebridge.energy.costs import Cost, Energy
from spikebridge.energy.figures import CACTI, CONTROL_BITS, LOGIC, NODE_NM
from spikebridge.energy.memories import (
    NOMINAL,
    Datapath,
    Done,
    SramUse,
    known,
    priced,
    spanned,
    sram,
)

SLOW_ADDERS, SLOW_MULTIPLIERS = 3, 2
"""Of a lane whose neurons have a slow state, beside the others."""


def on_chip(
    counts: ChipCounts,
    program: Program,
    deck: str = NOMINAL,
    clock_MHz: float | None = None,
    *,
    logic: str = "nominal",
    bank_KB: int = 32,
) -> Energy:
    """What the chip spent on `counts`, memory by memory and part by part.

    Args:
        counts: of one sample or of many; energy and time are linear in them.
        program: what ran; gives widths, depths of memories, and lanes.
        deck: of the memories, one of `DECKS`.
        clock_MHz: up to 500; the clock of the program's chip where None.
        logic: "low", "nominal" or "high", of `spikebridge.energy.figures.LOGIC`.
        bank_KB: largest macro, one of `BANKS_KB`.

    Every update is charged an addition of the bias, one of the amount where a layer resets by
    subtraction, and a comparison; multiplications only where the program needs a multiplier, one
    for decays and one for slopes, of a membrane by a factor.  An update of a slow state is charged
    two more of them and three additions: of both products, of the kick, and to the membrane or the
    threshold.  Time is cycles / clock.

    Raises ValueError for an unknown deck, logic or size of macros, and for a clock out of range.
    """
    path = _datapath(program)
    slow = (SLOW_ADDERS, SLOW_MULTIPLIERS) if program.slow_bits else (0, 0)
    adders, multipliers = path.adders - slow[0], path.multipliers - slow[1]
    done = Done(
        additions=counts.additions + (adders - 1) * counts.updates + slow[0] * counts.slow_updates,
        comparisons=counts.updates,
        multiplications=multipliers * counts.updates + slow[1] * counts.slow_updates,
        cycles=counts.cycles,
    )
    clock = program.chip.clock_MHz if clock_MHz is None else clock_MHz
    return priced(_parts(counts, program, deck, bank_KB), path, done, logic, clock)


def span(
    counts: ChipCounts, program: Program, clock_MHz: float | None = None
) -> tuple[Energy, Energy, Energy]:
    """(least, nominal, most) energy over all decks, sources of logic and sizes of macros.

    Nominal is what `on_chip` gives unasked.  The ends are those of the sources, not bounds of what
    silicon would take: what no source covers is missing from all three.
    """
    return spanned(partial(on_chip, counts, program, clock_MHz=clock_MHz))


def area_mm2(program: Program, *, logic: str = "nominal", bank_KB: int = 32) -> dict[str, Cost]:
    """Area of each part of the chip, in square millimetres.

    Macros by CACTI, adders, multipliers and flip-flops by Aladdin; a comparator is taken for an
    adder.  Sums of cells: without wires, gaps between macros, control and pads, hence too small.
    """
    known("logic", logic, LOGIC)
    path, parts_of = _datapath(program), LOGIC[logic]
    area = {
        part.name: Cost(
            part.sram.macros * part.sram.macro.area_mm2,
            "mm2",
            NODE_NM,
            f"{part.sram.macros} macros of {part.sram.macro}; {CACTI}",
            "derived",
        )
        for part in _parts(ChipCounts(), program, NOMINAL, bank_KB)
    }

    def cells(count: int, component: Cost) -> Cost:
        value = count * component.value * 1e-6  # um2 to mm2
        return Cost(value, "mm2", NODE_NM, f"{count} x {component.source}", "derived")

    adders = path.lanes * (path.adders + 1)
    area["adders and comparators"] = cells(adders, parts_of.adder_area.wide(path.bits))
    if path.multipliers:
        multiplier = parts_of.multiplier_area.product(*path.widths)
        area["multipliers"] = cells(path.lanes * path.multipliers, multiplier)
    area["registers"] = cells(path.flip_flops, parts_of.flip_flop_area.cost)
    return area


def _parts(counts: ChipCounts, program: Program, deck: str, bank_KB: int) -> list[SramUse]:
    """The memories, each with the reads and writes of its rows."""
    return [
        SramUse(
            f"{name.replace('_', ' ')} memory",
            sram(*shape, deck, bank_KB),
            getattr(counts, f"{name}_reads"),
            getattr(counts, f"{name}_writes", None),  # weights and parameters are only read
        )
        for name, shape in program.memories.items()
    ]


def _datapath(program: Program) -> Datapath:
    chip = program.chip
    subtracts = any(layer.reset == "subtract" for layer in program.layers)
    word = program.event_bits + 1  # whether it is the last of a step
    control = int(CONTROL_BITS.value)
    flip_flops = chip.lanes * (program.membrane_bits + program.weight_bits + 1)
    slow, bits = bool(program.slow_bits), max(program.membrane_bits, program.slow_bits)
    return Datapath(
        lanes=chip.lanes,
        bits=bits,
        adders=(3 if subtracts else 2) + SLOW_ADDERS * slow,
        multipliers=sum(program.multipliers) + SLOW_MULTIPLIERS * slow,
        widths=(bits, program.decay_bits + 1),
        flip_flops=flip_flops + chip.queue * word + control,
        counted=f"{chip.lanes} lanes x ({program.membrane_bits} of a membrane + "
        f"{program.weight_bits} of a weight + 1 of a spike), {chip.queue} x {word} of the queue, "
        f"{control} of control",
    )
