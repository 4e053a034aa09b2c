"""What the page of a run says of its weights on memory cells, for a hardware designer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spikebridge.base.metrics import Metric
from spikebridge.base.quantities import in_words
from spikebridge.energy.costs import CostRow
from spikebridge.report import cell_charts
from spikebridge.report.theme import Block, Card, Drawer, Section, Table, figures
from spikebridge.report.wording import (
    NOTHING,
    count_text,
    metric_of,
    metric_text,
    plural,
    share_text,
    si_text,
    spread_text,
)
from spikebridge.runs.hardware_results import Hardware, OnCells
from spikebridge.runs.load import Run

HEADLINE_S = (86400.0, 365 * 86400.0)
BANDS = "Lines: the mean over the chips; bands: one standard deviation to either side. "
COMPENSATION = (
    "Compensated: the outputs of each matrix are scaled by one factor, measured on the chip, "
    "which gives back what all cells have lost on average (global drift compensation)."
)
HISTOGRAM = (
    "All cells of the first chip by the conductance that is read. Of the two cells of a pair one "
    "holds the weight and the other is programmed to 0: hence the peak at the left."
)
SCATTER = (
    "Some cells of the first chip, each a dot: what was aimed at and what is read. Errors of "
    "programming scatter the dots around the dashed line; drift moves them below it."
)
DRIFT = (
    "Cells of the device programmed to a few levels: the mean of their conductance over its first "
    "value, and one standard deviation to either side, which holds errors of programming too."
)
NODES = (
    "Figures of different process nodes stand side by side as their sources have them; they are "
    "not rescaled."
)
ENERGY = (
    f"{NODES} Not counted: leakage, clock, wires between tiles and memory banks, amplifiers in "
    "front of converters. What 8-bit weights do to the metric is not tested here."
)
HARDWARE = (
    "Time: reads of tiles that wait for each other on the crossbar, operations over parallel lanes "
    "in digital logic. Events: only spikes cause additions; dense: every product is computed."
)
MARKS = (
    "Published: stands in the source. Derived: arithmetic on such figures. Assumed: ours, with its "
    "reasoning. Parts that this network does not use are left out."
)
TRAINING = (
    "In the loop: forward passes and programming pulses on the crossbar, one pulse at a time, "
    "which is an upper bound on the time; backward passes in fp32, with the products for inputs "
    "and for weights. Both lines leave out the optimiser itself."
)
LAYERS = (
    "Read-back error: root mean square of the weights as first read less those meant, over the "
    "root mean square of the latter; mean over the chips."
)


def in_memory(on_cells: OnCells, run: Run, drawer: Drawer) -> Section:
    """The section of a run that was programmed into memory cells."""
    metric = metric_of(on_cells.metric)
    return Section(
        "In memory",
        about(on_cells),
        (
            Block(cards=tuple(metric_cards(on_cells, metric))),
            Block(cards=tuple(hardware_cards(on_cells, run.inference))),
            figures(
                drawer.plot(
                    cell_charts.over_time(on_cells, metric, run.unit),
                    f"{metric.name[0].upper()}{metric.name[1:]} against time",
                    f"{BANDS if on_cells.chips > 1 else ''}{COMPENSATION} {metric.advice}".strip(),
                    wide=True,
                )
            ),
            Block(table=times_table(on_cells, metric), below=chips_text(on_cells, metric)),
            conductances(on_cells, run.unit, drawer),
            figures(
                drawer.plot(
                    cell_charts.drift(on_cells.drift),
                    "Drift of a few levels",
                    drift_text(on_cells),
                    wide=True,
                )
            ),
            *energy_blocks(on_cells, run, drawer),
            Block("Weights on tiles", table=layer_table(on_cells), below=LAYERS),
            limits_block(on_cells),
        ),
    )


def about(on_cells: OnCells) -> str:
    """What was programmed, where, and how it was tested."""
    tested = "the whole test set"
    if on_cells.samples:
        tested = f"about {plural(on_cells.samples, 'sample')} of the test set"
    pairs = int(on_cells.setting("pairs")) or 1
    return (
        f"The trained weights, programmed into phase-change memory: {on_cells.cells:,} simulated "
        f"cells of the model {on_cells.device.name} ({on_cells.device.source}), "
        f"{plural(pairs, 'pair')} of cells per weight. Nothing is written again after that, and "
        f"conductances drift. Tested on {tested}."
    )


def chips_text(on_cells: OnCells, metric: Metric) -> str:
    """What the figures of the table are."""
    if on_cells.chips == 1:
        return f"Test {metric.axis} of one chip; more of them would show what is luck."
    return (
        f"Test {metric.axis}: mean ± standard deviation over {on_cells.chips} chips, each with "
        "random draws of its own."
    )


def spread_at(metric: Metric, table: Any, index: int) -> str:
    """Mean ± standard deviation over the chips at one time."""
    spread = cell_charts.deviation_of(table)
    deviation = None if spread is None else float(spread[index])
    return spread_text(metric, float(cell_charts.mean_of(table)[index]), deviation)


def headline_times(times_s: Sequence[float]) -> list[int]:
    """The first time, and those nearest to a day and to a year, each once."""
    at = cell_charts.places(times_s)
    nearest = [
        min(range(len(at)), key=lambda index: abs(math.log(at[index] / wanted)))
        for wanted in HEADLINE_S
    ]
    return list(dict.fromkeys([0, *nearest]))


def metric_cards(on_cells: OnCells, metric: Metric) -> list[Card]:
    """The metric in software and on the chips."""
    unit = metric.unit == "%"
    software = metric_text(metric, on_cells.software, unit=unit)
    cards = [Card(f"{metric.name} in software", software, metric.below)]
    for index in headline_times(on_cells.times_s):
        after = f"after {in_words(on_cells.times_s[index])}"
        value, _, spread = spread_at(metric, on_cells.compensated, index).partition(" ± ")
        plain = spread_at(metric, on_cells.plain, index).replace(" ", "\u00a0")
        below = f"compensated; as read {plain}"
        shown = f"{value}\u00a0%" if unit else value
        cards.append(
            Card(
                after if index else "programmed",
                shown,
                below if index else f"{after}, {below}",
                f"±\u00a0{spread}" if spread else "",
            )
        )
    return cards


def hardware_cards(on_cells: OnCells, per: str) -> list[Card]:
    """Cells, and the energy of an inference on a few kinds of hardware."""
    chips = "one chip" if on_cells.chips == 1 else f"each of {on_cells.chips} chips"
    cards = [
        Card(
            "memory cells",
            count_text(on_cells.cells),
            f"of the device {on_cells.device.name}, on {chips}",
        )
    ]
    (first, crossbar), *others = on_cells.energy.hardware.items()
    cards.append(
        Card(
            f"energy, {first}",
            si_text(1e-12 * crossbar.total_pJ, "J"),
            f"per {per}, in {si_text(crossbar.seconds_s, 's')}",
        )
    )
    for name, other in others:
        if name.endswith("events"):
            cards.append(
                Card(
                    f"energy, {name}",
                    si_text(1e-12 * other.total_pJ, "J"),
                    f"per {per}; {ratio_text(other, crossbar)} the crossbar's",
                )
            )
    return cards


def ratio_text(one: Hardware, other: Hardware) -> str:
    """How many times the energy of another hardware: "1.56 ×"."""
    if not other.total_pJ:
        return NOTHING
    return f"{one.total_pJ / other.total_pJ:.3g}\u00a0×"


def times_table(on_cells: OnCells, metric: Metric) -> Table:
    rows = [["in software", metric_text(metric, on_cells.software, unit=False), NOTHING]]
    rows += [
        [
            in_words(time),
            spread_at(metric, on_cells.plain, index),
            spread_at(metric, on_cells.compensated, index),
        ]
        for index, time in enumerate(on_cells.times_s)
    ]
    return Table(("time", "as read", "compensated"), rows)


def conductances(on_cells: OnCells, unit: str, drawer: Drawer) -> Block:
    """Conductances at the first and the last time, and against what was aimed at."""
    beyond = max(on_cells.cells - int(look.cells.sum()) for look in on_cells.histograms.at)
    text = (
        ""
        if beyond <= 0
        else f" Read above the range, and not shown: up to {plural(beyond, 'cell')}."
    )
    return figures(
        drawer.plot(
            cell_charts.histogram(on_cells.histograms, unit),
            "Conductances",
            f"{HISTOGRAM}{text}",
        ),
        drawer.plot(cell_charts.scatter(on_cells, unit), "Programmed against target", SCATTER),
    )


def drift_text(on_cells: OnCells) -> str:
    """The caption of the drift curves, with the exponents that fit them."""
    times_s, curves = on_cells.drift.times_s, on_cells.drift.curves
    fits = [(level.target_uS, cell_charts.exponent(times_s, level)) for level in curves]
    text = [f"{nu:.3f} at {target:.3g}\u00a0µS" for target, nu in fits if nu is not None]
    if not text:
        return DRIFT
    return (
        f"{DRIFT} From {cell_charts.FIT_S:g} s on, the means fall as time to the power −ν, with ν "
        f"= {', '.join(text)}."
    )


def energy_blocks(on_cells: OnCells, run: Run, drawer: Drawer) -> list[Block]:
    """What an inference costs: on all hardware, and part by part on the crossbar."""
    per = run.inference
    hardware = on_cells.energy.hardware
    first = next(iter(hardware))
    bars = drawer.plot(
        cell_charts.energy_bars(hardware, run.unit, per),
        f"Energy per {per}",
        f"{ENERGY}{converters_text(on_cells)}",
        wide=True,
    )
    return [
        figures(bars),
        Block(table=hardware_table(hardware, per), below=HARDWARE),
        Block(
            f"Parts of the {first}, per {per}",
            table=parts_table(hardware[first]),
            below=MARKS,
        ),
        *training_blocks(on_cells),
    ]


def training_blocks(on_cells: OnCells) -> list[Block]:
    """What the whole training cost, where it was done on cells."""
    if not on_cells.training:
        return []
    table = hardware_table(on_cells.training.hardware, "training")
    return [Block("Training, from the first epoch to the last", table=table, below=TRAINING)]


def converters_text(on_cells: OnCells) -> str:
    """Where the energy counts converters that the simulation leaves exact."""
    kinds = (("columns", "adc_bits"), ("rows", "dac_bits"))
    exact = [name for name, bits in kinds if not on_cells.setting(bits)]
    if not exact:
        return ""
    return f" Converters of {' and '.join(exact)} are exact in the test, and counted with 8 bits."


def hardware_table(hardware: Mapping[str, Hardware], per: str) -> Table:
    first = next(iter(hardware))
    rows = [
        [
            name,
            si_text(1e-12 * costs.total_pJ, "J"),
            ratio_text(costs, hardware[first]),
            si_text(costs.seconds_s, "s"),
            nodes_text(costs),
        ]
        for name, costs in hardware.items()
    ]
    heads = ("", f"energy per {per}", f"over that of the {first}", f"time per {per}", "nodes")
    return Table(heads, rows)


def nodes_text(result: Hardware) -> str:
    """The process nodes of a hardware's parts: "32, 45, 90 nm"."""
    nodes = sorted({part.node_nm for part in used(result)})
    return f"{', '.join(map(str, nodes))}\u00a0nm" if nodes else NOTHING


def used(hardware: Hardware) -> list[CostRow]:
    return [part for part in hardware.rows if part.count]


def parts_table(hardware: Hardware) -> Table:
    rows = [
        [
            part.part,
            count_text(part.count),
            si_text(1e-12 * part.unit_pJ, "J"),
            si_text(1e-12 * part.energy_pJ, "J"),
            share_text(part.energy_pJ / hardware.total_pJ if hardware.total_pJ else None),
            f"{part.node_nm}\u00a0nm",
            part.mark,
            part.source,
        ]
        for part in used(hardware)
    ]
    rows.append(["all parts", "", "", si_text(1e-12 * hardware.total_pJ, "J"), "", "", "", ""])
    heads = ("part", "count", "each", "together", "share", "node", "mark", "source of each")
    return Table(heads, rows, text=(7,))


def layer_table(on_cells: OnCells) -> Table:
    rows = [
        [
            layer.name,
            " × ".join(f"{side:,}" for side in layer.shape),
            " × ".join(f"{side:,}" for side in layer.tiles),
            count_text(layer.cells),
            share_text(layer.error),
        ]
        for layer in on_cells.layers
    ]
    return Table(("weight", "shape", "tiles", "cells", "read-back error"), rows)


def limits_block(on_cells: OnCells) -> Block:
    """Shares of the cells at the ends of their range."""
    when = f"of all cells of the first chip, after {in_words(on_cells.times_s[-1])}"
    top, limits = on_cells.histograms.top_uS, on_cells.limits
    return Block(
        "Devices at their limits",
        cards=(
            Card("at the top", share_text(limits.at_top), f"{0.98 * top:.3g} µS or more; {when}"),
            Card(
                "at the bottom",
                share_text(limits.at_bottom),
                f"{0.02 * top:.3g} µS or less; {when}",
            ),
        ),
        below="Half of all cells, one of each pair, are meant to be at the bottom.",
    )
