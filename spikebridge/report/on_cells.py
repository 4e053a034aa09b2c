"""What the page of a run says of its weights on memory cells, for a hardware designer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from spikebridge.base.metrics import Metric
from spikebridge.base.quantities import in_words
from spikebridge.report import cell_charts
from spikebridge.report.theme import Block, Card, Chart, Section, Table, figure, figures, table
from spikebridge.report.wording import (
    NOTHING,
    count_text,
    joules,
    metric_of,
    metric_text,
    number,
    plural,
    share_text,
    si_text,
    spread_text,
)
from spikebridge.runs.hardware_results import Hardware, OnCells, load_counts
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
PULSES = (
    "Whole pulses that updates sent to the cells, none of them verified. Fewer come as the rate of "
    "learning falls."
)
REFRESHED = (
    "Pairs whose two cells were both far up in their range, and were RESET and programmed to their "
    "difference again."
)
RECEIVED = (
    "All cells by the pulses that they have received since the chip was made. Those that "
    "programmed it and wrote pairs anew are included: the more, the higher the target. "
    "How many pulses a cell endures depends on the device and is not simulated."
)


def in_memory(on_cells: OnCells, run: Run) -> Section:
    metric, unit = metric_of(on_cells.metric), run.unit
    bands = BANDS if on_cells.chips > 1 else ""
    over_time = figure(
        cell_charts.over_time(on_cells, metric, unit),
        f"{metric.name[0].upper()}{metric.name[1:]} against time",
        f"{bands}{COMPENSATION} {metric.advice}".strip(),
        wide=True,
    )
    histogram, cells = cell_charts.histogram(on_cells.histograms, unit), HISTOGRAM
    beyond = max(on_cells.cells - int(look.cells.sum()) for look in on_cells.histograms.at)
    if beyond > 0:
        cells += f" Read above the range, and not shown: up to {plural(beyond, 'cell')}."
    scatter = cell_charts.scatter(on_cells, unit)
    drift = cell_charts.drift(on_cells.drift)
    return Section(
        "In memory",
        about(on_cells),
        (
            Block(cards=tuple(metric_cards(on_cells, metric))),
            Block(cards=tuple(hardware_cards(on_cells, run.inference))),
            figures(over_time),
            Block(table=times_table(on_cells, metric), below=chips_text(on_cells, metric)),
            figures(
                figure(histogram, "Conductances", cells),
                figure(scatter, "Programmed against target", SCATTER),
            ),
            figures(figure(drift, "Drift of a few levels", drift_text(on_cells), wide=True)),
            *energy_blocks(on_cells, run),
            Block("Weights on tiles", table=layer_table(on_cells), below=LAYERS),
            limits_block(on_cells),
        ),
    )


def about(on_cells: OnCells) -> str:
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
    if on_cells.chips == 1:
        return f"Test {metric.axis} of one chip; more of them would show what is luck."
    return (
        f"Test {metric.axis}: mean ± standard deviation over {on_cells.chips} chips, each with "
        "random draws of its own."
    )


def spread_at(metric: Metric, values: np.ndarray, index: int) -> str:
    """Mean ± standard deviation over the chips at one time, of values (chips, times)."""
    spread = cell_charts.deviation_of(values)
    deviation = None if spread is None else float(spread[index])
    return spread_text(metric, float(values[:, index].mean()), deviation)


def metric_cards(on_cells: OnCells, metric: Metric) -> list[Card]:
    """The metric in software and on the chips: programmed, and about a day and a year later."""
    unit, at = metric.unit == "%", cell_charts.places(on_cells.times_s)
    nearest = [
        min(range(len(at)), key=lambda index: abs(math.log(at[index] / wanted)))
        for wanted in HEADLINE_S
    ]
    software = metric_text(metric, on_cells.software, unit=unit)
    cards = [Card(f"{metric.name} in software", software, metric.below)]
    for index in dict.fromkeys([0, *nearest]):
        after = f"after {in_words(on_cells.times_s[index])}"
        value, _, spread = spread_at(metric, on_cells.compensated, index).partition(" ± ")
        plain = spread_at(metric, on_cells.plain, index).replace(" ", "\u00a0")
        below = f"compensated; as read {plain}"
        name, below = (after, below) if index else ("programmed", f"{after}, {below}")
        shown = f"{value}\u00a0%" if unit else value
        cards.append(Card(name, shown, below, f"±\u00a0{spread}" if spread else ""))
    return cards


def hardware_cards(on_cells: OnCells, per: str) -> list[Card]:
    chips = "one chip" if on_cells.chips == 1 else f"each of {on_cells.chips} chips"
    where = f"of the device {on_cells.device.name}, on {chips}"
    (first, crossbar), *others = on_cells.energy.hardware.items()
    each = f"per {per}, in {si_text(crossbar.seconds_s, 's')}"
    return [
        Card("memory cells", count_text(on_cells.cells), where),
        Card(f"energy, {first}", joules(crossbar.total_pJ), each),
        *(
            Card(
                f"energy, {name}",
                joules(other.total_pJ),
                f"per {per}; {ratio_text(other, crossbar)} the crossbar's",
            )
            for name, other in others
            if name.endswith("events")
        ),
    ]


def ratio_text(hardware: Hardware, other: Hardware) -> str:
    """How many times the energy of another hardware: "1.56 ×"."""
    if not other.total_pJ:
        return NOTHING
    return f"{hardware.total_pJ / other.total_pJ:.3g}\u00a0×"


def times_table(on_cells: OnCells, metric: Metric) -> Table:
    columns = {
        "time": lambda k: in_words(on_cells.times_s[k]),
        "as read": lambda k: spread_at(metric, on_cells.plain, k),
        "compensated": lambda k: spread_at(metric, on_cells.compensated, k),
    }
    first = ["in software", metric_text(metric, on_cells.software, unit=False), NOTHING]
    return table(range(len(on_cells.times_s)), columns, first=first)


def drift_text(on_cells: OnCells) -> str:
    times_s, curves = on_cells.drift.times_s, on_cells.drift.curves
    fits = [(level.target_uS, cell_charts.exponent(times_s, level)) for level in curves]
    text = [f"{nu:.3f} at {target:.3g}\u00a0µS" for target, nu in fits if nu is not None]
    if not text:
        return DRIFT
    return (
        f"{DRIFT} From {cell_charts.FIT_S:g} s on, the means fall as time to the power −ν, with ν "
        f"= {', '.join(text)}."
    )


def energy_blocks(on_cells: OnCells, run: Run) -> list[Block]:
    """What an inference costs, and the training where it was done on cells."""
    per, hardware = run.inference, on_cells.energy.hardware
    first, crossbar = next(iter(hardware.items()))
    bars = cell_charts.energy_bars(hardware, run.unit, per)
    caption, kinds = ENERGY, {"columns": "adc_bits", "rows": "dac_bits"}
    exact = " and ".join(name for name, bits in kinds.items() if not on_cells.setting(bits))
    if exact:
        caption += f" Converters of {exact} are exact in the test, and counted with 8 bits."
    blocks = [
        figures(figure(bars, f"Energy per {per}", caption, wide=True)),
        Block(table=hardware_table(hardware, per), below=HARDWARE),
        Block(f"Parts of the {first}, per {per}", table=parts_table(crossbar), below=MARKS),
    ]
    if on_cells.training:
        training = hardware_table(on_cells.training.hardware, "training")
        title = "Training, from the first epoch to the last"
        blocks.append(Block(title, table=training, below=TRAINING))
    return blocks


def hardware_table(hardware: Mapping[str, Hardware], per: str) -> Table:
    first, crossbar = next(iter(hardware.items()))

    def nodes(pair: tuple[str, Hardware]) -> str:
        used = sorted({part.node_nm for part in pair[1].rows if part.count})
        return f"{', '.join(map(str, used))}\u00a0nm" if used else NOTHING

    columns = {
        "": lambda pair: pair[0],
        f"energy per {per}": lambda pair: joules(pair[1].total_pJ),
        f"over that of the {first}": lambda pair: ratio_text(pair[1], crossbar),
        f"time per {per}": lambda pair: si_text(pair[1].seconds_s, "s"),
        "nodes": nodes,
    }
    return table(hardware.items(), columns)


def parts_table(hardware: Hardware) -> Table:
    """The energy of a hardware by its parts, of which those that were not used are left out."""
    total = hardware.total_pJ
    columns = {
        "part": lambda part: part.part,
        "count": lambda part: count_text(part.count),
        "each": lambda part: joules(part.unit_pJ),
        "together": lambda part: joules(part.energy_pJ),
        "share": lambda part: share_text(part.energy_pJ, total),
        "node": lambda part: f"{part.node_nm}\u00a0nm",
        "mark": lambda part: part.mark,
        "source of each": lambda part: part.source,
    }
    parts = [part for part in hardware.rows if part.count]
    last = ["all parts", "", "", joules(total), "", "", "", ""]
    return table(parts, columns, last=last, text=(7,))


def layer_table(on_cells: OnCells) -> Table:
    columns = {
        "weight": lambda layer: layer.name,
        "shape": lambda layer: " × ".join(f"{side:,}" for side in layer.shape),
        "tiles": lambda layer: " × ".join(f"{side:,}" for side in layer.tiles),
        "cells": lambda layer: count_text(layer.cells),
        "read-back error": lambda layer: share_text(layer.error),
    }
    return table(on_cells.layers, columns)


def limits_block(on_cells: OnCells) -> Block:
    when = f"of all cells of the first chip, after {in_words(on_cells.times_s[-1])}"
    top, limits = on_cells.histograms.top_uS, on_cells.limits
    cards = (
        Card("at the top", share_text(limits.at_top), f"{0.98 * top:.3g} µS or more; {when}"),
        Card("at the bottom", share_text(limits.at_bottom), f"{0.02 * top:.3g} µS or less; {when}"),
    )
    below = "Half of all cells, one of each pair, are meant to be at the bottom."
    return Block("Devices at their limits", cards=cards, below=below)


def in_the_loop(run: Run) -> Section | None:
    """The section of a run that was trained on memory cells; None for any other.

    Raises ReportError where chip.safetensors is damaged.
    """
    pulses, writes = (load_counts(run.directory, name) for name in ("pulses", "writes"))
    sent, anew = (of_epochs(run, name) for name in ("pulses", "refreshed"))
    if pulses is None and writes is None and not sent:
        return None

    def bars(values: list[tuple[float, float]], axis: str) -> Chart | None:
        return cell_charts.epoch_bars(values, axis, run.unit) if values else None

    received = None if pulses is None else cell_charts.pulse_histogram(pulses, run.unit)
    blocks = (
        Block(cards=tuple(loop_cards(sent, anew, pulses, writes))),
        figures(
            figure(bars(sent, "pulses"), "Pulses per epoch", PULSES),
            figure(bars(anew, "pairs written anew"), "Pairs written anew per epoch", REFRESHED),
        ),
        figures(figure(received, "Pulses per cell", RECEIVED, wide=True)),
    )
    return Section("Hardware in the loop", about_training(run), blocks)


def about_training(run: Run) -> str:
    name = run.config.cells.cells or run.config.cells.cell_table
    model = f" of the model {name}" if name else ""
    every = run.config.pulses.refresh_every
    anew = f" Every {plural(every, 'update')}, pairs that are used up are written anew."
    return (
        f"The weights lay on simulated cells{model} while they were trained. What an update adds "
        "to a weight is collected until it is worth a pulse, and goes to a cell as blind SET "
        f"pulses.{anew if every else ' No pair is ever written anew.'}"
    )


def of_epochs(run: Run, name: str) -> list[tuple[float, float]]:
    """Epochs that have this column of metrics.jsonl, each with its value."""
    pairs = [(float(epoch.epoch), number(getattr(epoch, name))) for epoch in run.epochs]
    return [(epoch, value) for epoch, value in pairs if value is not None]


def loop_cards(
    sent: list[tuple[float, float]],
    anew: list[tuple[float, float]],
    pulses: np.ndarray | None,
    writes: np.ndarray | None,
) -> list[Card]:
    result = []
    for name, values, below in (
        ("pulses of updates", sent, f"in {plural(len(sent), 'epoch')}"),
        ("pairs written anew", anew, "over the whole training"),
    ):
        if values:
            result.append(Card(name, f"{sum(value for _, value in values):,.0f}", below))
    if pulses is not None:
        below = f"half of the {len(pulses):,} cells: at most {count_text(float(np.median(pulses)))}"
        result.append(Card("most pulses on a cell", count_text(int(pulses.max())), below))
    if writes is not None:
        below = "RESET or programmed, the first time included"
        result.append(Card("most writes of a cell", count_text(int(writes.max())), below))
    return result
