"""What the page of a run says of its network on the digital chip, for a hardware designer."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from spikebridge.base.metrics import Metric
from spikebridge.energy import PUBLISHED
from spikebridge.report.on_cells import MARKS, parts_table
from spikebridge.report.theme import (
    COLOURS,
    NEUTRAL,
    Block,
    Card,
    Chart,
    Section,
    Table,
    fade,
    figure,
    figures,
    shown,
    table,
)
from spikebridge.report.wording import (
    NOTHING,
    count_text,
    joules,
    metric_of,
    metric_text,
    plural,
    share_text,
    si_text,
)
from spikebridge.runs.hardware_results import Hardware, OnChip, Outcome, Proof
from spikebridge.runs.load import Run

GROUPS = {
    "weight memory": COLOURS["snu"],
    "other memories": COLOURS["li-snu"],
    "arithmetic": COLOURS["adaptive-snu"],
    "registers and clock": COLOURS["gru"],
    "leakage of memories": COLOURS["softsnu"],
    "leakage of logic": COLOURS["lstm"],
}
COUNTED = {
    "input_events": "spikes that come in",
    "spikes": "spikes of the neurons",
    "weight_reads": "rows read from the weight memory, one weight per lane",
    "additions": "weights added to membranes; lanes without a neuron do not count",
    "membrane_reads": "rows read from the membrane memory, one membrane per lane",
    "membrane_writes": "rows written back to it",
    "parameter_reads": "rows of thresholds, decays, amounts and biases",
    "slow_reads": "rows read from the memory of slow states",
    "slow_writes": "rows written back to it",
    "slow_parameter_reads": "rows of their factors and kicks",
    "event_reads": "numbers of spikes taken from the lists between layers",
    "event_writes": "numbers of spikes put into them",
    "updates": "neurons × time steps: leak, comparison, reset",
    "slow_updates": "slow states × time steps",
    "cycles": "of the clock",
}
ENERGY = (
    "Counts of what happened × energies of parts in 40 nm. The three bars differ in the process "
    "deck of the memories (low standby power, low operating power or high performance), in the "
    "source of adders and multipliers, and in the largest macro that memories are built of."
)
NOT_COUNTED = (
    "Not counted: the wires between memory macros and lanes, the clock tree, pads, and bringing "
    "the inputs to the chip. No register is gated: all are clocked in every cycle. Nothing is "
    "calibrated to a published chip."
)
LEAKAGE = (
    "Leakage goes with time and capacity, whatever the network does, and differs most between "
    "decks: it decides the range. What holds in one deck only says more of the deck than of the "
    "network."
)
LAYERS = (
    "Weights off by: root mean square of what rounding took from the weights, over that of the "
    "weights. Same spikes: share of neurons and time steps that do the same in integers as in "
    "software, over some samples of the test; one early spike that differs may change later ones. "
    "The readout has none."
)
AREA = (
    "Sums of macros and cells, without the wires and gaps between them, control and pads: "
    "the chip would be larger."
)


def on_chip(result: OnChip, proof: Proof | None, run: Run) -> Section:
    metric, per = metric_of(result.metric), run.inference
    bars, caption = energy_bars(result, per), f"{ENERGY} {NOT_COUNTED}"
    return Section(
        "On the digital chip",
        about(result, per),
        (
            Block(cards=tuple(cards(result, metric, per)), below=proof_text(proof, per)),
            figures(figure(bars, f"Energy per {per} on the chip", caption, wide=True)),
            Block(table=range_table(result, per), below=beside(run)),
            parts_block(result.energy.nominal, per),
            Block("Layers in integers", table=layer_table(result), below=LAYERS),
            Block(f"What the chip does per {per}", table=count_table(result, per)),
            Block("Memories and area, 40 nm", table=area_table(result), below=AREA),
        ),
    )


def about(result: OnChip, per: str) -> str:
    program, chip = result.program, result.chip
    multiplier = (
        f"the leak multiplies by a number of {program.decay_bits} bits behind the point"
        if program.multiplies
        else "nothing is multiplied"
    )
    slow = f"slow states of {program.slow_bits} bits, " if program.slow_bits else ""
    which = {"test": "test", "valid": "validation"}.get(result.split, result.split)
    return (
        f"The trained network, compiled to integers for an event-driven chip that adds one row of "
        f"weights to the membranes for each spike: weights of {program.weight_bits} bits, "
        f"membranes of {program.membrane_bits} bits ({program.fraction_bits} of them below those "
        f"of a weight), {slow}{plural(chip.lanes, 'lane')} (neurons that are added to at the same "
        f"time), "
        f"{chip.clock_MHz:g}\u00a0MHz, {kib_text(sum(program.memory_bits.values()))} of memory; "
        f"{multiplier}. Tested in integers and in software on the same "
        f"{plural(result.samples, per)} of the {which} set."
    )


def proof_text(proof: Outcome | None, per: str) -> str:
    """What simulators of the Verilog said; empty where none was asked.  per: as "image"."""
    if proof is None:
        return ""
    if proof.equal is None:
        return f"The Verilog of this network was not simulated: {proof.reason}."
    text = f"on {plural(proof.samples, per)} in {' and '.join(proof.simulators)}"
    if proof.equal:
        return f"RTL equal to the integer model {text}: spikes, membranes, cycles."
    return f"RTL NOT equal to the integer model {text}: {proof.reason}."


def cards(result: OnChip, metric: Metric, per: str) -> list[Card]:
    low, nominal, high = (joules(end.total_pJ) for end in result.energy.ends.values())
    software = f"{metric_text(metric, result.software, unit=False)} in software"
    integer = metric_text(metric, result.integer, unit=metric.unit == "%")
    cycles, additions = (count_text(round(result.each(name))) for name in ("cycles", "additions"))
    seconds = si_text(result.energy.nominal.seconds_s, "s")
    area, lanes = sum(result.area_mm2.values()), plural(result.chip.lanes, "lane")
    of_dense, dense = "weights added to membranes", result.dense_additions
    if dense:  # what a chip that does not wait for spikes would add
        share = share_text(result.each("additions"), dense)
        of_dense = f"of {count_text(round(dense))} dense: {share}"
    parts = []
    if result.parts:
        ends = " to ".join(joules(result.part_pJ[end]) for end in ("low", "high"))
        each = joules(result.part_pJ["nominal"])
        parts = [Card(f"energy per {result.part}", each, f"{ends}; {result.parts:.3g} in a {per}")]
    return [
        Card(f"{metric.name} in integers", integer, software),
        Card(f"energy per {per}", nominal, f"{low} to {high}; 40\u00a0nm"),
        *parts,
        Card(f"time per {per}", seconds, f"{cycles} cycles at {result.chip.clock_MHz:g}\u00a0MHz"),
        Card(f"additions per {per}", additions, of_dense),
        Card("area", area_text(area), f"40\u00a0nm, without wires; {lanes}"),
    ]


def kib_text(bits: float) -> str:
    return f"{bits / 8192:,.3g}\u00a0KiB" if bits < 8192e3 else f"{bits / 8192:,.0f}\u00a0KiB"


def area_text(mm2: float) -> str:
    return f"{mm2:.3g}\u00a0mm²"


def groups_of(end: Hardware) -> dict[str, float]:
    """Energy of each colour of the figure, in picojoules."""
    result = dict.fromkeys(GROUPS, 0.0)
    for part in end.rows:
        name = "other memories" if " memory " in part.part else "arithmetic"
        if part.part.startswith("weight memory"):
            name = "weight memory"
        result[part.part if part.part in GROUPS else name] += part.energy_pJ
    return result


def energy_bars(result: OnChip, per: str) -> Chart | None:
    """Energy per sample by part, one bar for each end of the range and one for what is likely."""
    ends = result.energy.ends
    most_J = 1e-12 * max(end.total_pJ for end in ends.values())
    if most_J <= 0:
        return None
    groups = [groups_of(end) for end in ends.values()]
    at = list(range(len(ends)))
    # plotly's own order of the names is that of bars from right to left.
    chart = Chart(330, {"barmode": "stack", "legend": {"traceorder": "normal"}})
    for name, colour in GROUPS.items():
        energies = [1e-12 * group[name] for group in groups]
        texts = [si_text(energy, "J") for energy in energies]
        marker = {"color": colour, "line": {"width": 1, "color": fade(NEUTRAL, 0.25)}}
        words = {"name": name, "customdata": texts, "hovertemplate": "%{customdata}"}
        look: dict[str, Any] = {"orientation": "h", "width": 0.62, "marker": marker, **words}
        chart.bars(shown(energies), at, colour, **look)
    for place, end in zip(at, ends.values(), strict=True):
        beside = {"x": 1e-12 * end.total_pJ, "y": place, "xanchor": "left", "xshift": 6}
        chart.write(joules(end.total_pJ), **beside)
    chart.rows(ends)
    power = 10.0 ** int(f"{most_J / 5:e}".partition("e")[2])
    step = next(power * part for part in (1, 2, 5, 10) if power * part >= most_J / 5 * 0.999)
    ticks = [step * number for number in range(int(most_J / step) + 1)]
    texts = [si_text(tick, "J") if tick else "0" for tick in ticks]
    chart.x(f"energy per {per}", range=[0, 1.2 * most_J], tickvals=ticks, ticktext=texts)
    return chart


def range_table(result: OnChip, per: str) -> Table:
    """The three bars in numbers, with what leaks and where the memories come from."""

    def leaks(pair: tuple[str, Hardware]) -> float:
        return sum(part.energy_pJ for part in pair[1].rows if part.part.startswith("leakage"))

    def decks(pair: tuple[str, Hardware]) -> str:
        named = {deck for part in pair[1].rows for deck in re.findall(r"itrs-\w+", part.source)}
        return ", ".join(sorted(named)) or NOTHING

    columns = {
        "": lambda pair: pair[0],
        f"energy per {per}": lambda pair: joules(pair[1].total_pJ),
        "of it leakage": lambda pair: joules(leaks(pair)),
        "share": lambda pair: share_text(leaks(pair), pair[1].total_pJ),
        "deck of the memories": decks,
    }
    return table(result.energy.ends.items(), columns, text=(4,))


def parts_block(end: Hardware, per: str) -> Block:
    """The energy part by part; sources that several parts share are told once, by a number."""
    sources = [part.source.rpartition("; ") for part in end.rows]
    shared = [of for _, _, of in sources if [s[2] for s in sources].count(of) > 1]
    numbers = {of: f"source {at}" for at, of in enumerate(dict.fromkeys(shared), start=1)}
    parts = [
        replace(part, source=f"{how}{mark}{numbers.get(of, of)}")
        for part, (how, mark, of) in zip(end.rows, sources, strict=True)
    ]
    text = "".join(f" {name.capitalize()}: {of}." for of, name in numbers.items())
    table = parts_table(replace(end, rows=tuple(parts)))
    return Block(f"Parts of the nominal energy, per {per}", table=table, below=f"{MARKS}{text}")


def beside(run: Run) -> str:
    """What the range means; for MNIST, the published chip that may stand beside ours."""
    if run.data != "mnist":
        return LEAKAGE
    least, most = (PUBLISHED[f"MNIST, {end} energy per image"].value for end in ("least", "most"))
    accuracy = PUBLISHED["MNIST, accuracy more than"]
    return (
        f"{LEAKAGE} Published: {least:g} to {most:g} nJ per image of MNIST with more than "
        f"{accuracy.value:g} % accuracy in 40 nm ({accuracy.source}); which network reaches "
        "which is unknown. Our figures are not calibrated to these."
    )


def layer_table(result: OnChip) -> Table:
    columns = {
        "layer": lambda layer: layer.name,
        "kind": lambda layer: f"recurrent {layer.kind}" if layer.recurrent else layer.kind,
        "inputs": lambda layer: f"{layer.inputs:,}",
        "neurons": lambda layer: f"{layer.neurons:,}",
        "weights": lambda layer: f"{layer.weights:,}",
        "weights off by": lambda layer: share_text(layer.weight_error),
        "decays off by": lambda layer: f"{layer.decay_error:.2g}",
        "same spikes": lambda layer: share_text(layer.same_spikes),
    }
    return table(result.layers, columns)


def count_table(result: OnChip, per: str) -> Table:
    columns = {
        "": lambda name: name.replace("_", " "),
        f"per {per}": lambda name: count_text(result.each(name)),
        f"all {plural(result.samples, per)}": lambda name: f"{getattr(result.counts, name):,}",
        "what is counted": COUNTED.__getitem__,
    }
    steps = ["time steps", count_text(result.steps), f"{result.counts.steps:,}", ""]
    slow = bool(result.program.slow_bits)
    counted = [name for name in COUNTED if slow or not name.startswith("slow_")]
    return table(counted, columns, first=steps, text=(3,))


def area_table(result: OnChip) -> Table:
    """Each part with its area and, for memories, what the program puts into them."""
    held = {
        f"{name.replace('_', ' ')} memory": bits
        for name, bits in result.program.memory_bits.items()
    }
    total = sum(result.area_mm2.values())
    columns = {
        "part": lambda name: name,
        "holds": lambda name: kib_text(held[name]) if name in held else NOTHING,
        "area": lambda name: area_text(result.area_mm2[name]),
        "share": lambda name: share_text(result.area_mm2[name], total),
    }
    last = ["all parts", kib_text(sum(held.values())), area_text(total), ""]
    return table(result.area_mm2, columns, last=last)
