"""What stands on the page of a comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spikebridge.base.quantities import in_words
from spikebridge.base.records import to_plain
from spikebridge.report import compare_charts, continual, study_tables
from spikebridge.report.examples import panels
from spikebridge.report.on_chip import proof_text
from spikebridge.report.run_charts import loss_axis
from spikebridge.report.run_page import about, configuration, source_of, started
from spikebridge.report.theme import Block, Section, Table, colour_of, figure, figures, table
from spikebridge.report.wording import (
    NOTHING,
    Metric,
    count_text,
    flatten,
    joules,
    metric_of,
    metric_text,
    plural,
    seconds_text,
    si_text,
    spread_text,
)
from spikebridge.runs.hardware_results import Outcome
from spikebridge.runs.load import Run
from spikebridge.settings.config import to_dict
from spikebridge.settings.published import Printed
from spikebridge.settings.tasks import data_label, data_title
from spikebridge.studies.comparison import ChipMeans, Compared, Comparison, Summary

IN_MEMORY = (
    "Mean ± standard deviation over {networks} networks x {chips} chips. Energy per inference; "
    "the pages of the runs have its parts and where each figure comes from. Units whose matrices "
    "torch keeps to itself (RNN, GRU, LSTM) cannot lie on cells and are absent."
)
ON_CHIP = (
    "Mean ± standard deviation over {networks} networks on {samples} samples. Low to high: process "
    "decks of the memories, sources of adders and multipliers, sizes of macros; leakage decides. "
    "Wires between memory macros and the clock tree are not counted, and nothing is calibrated to "
    "a published chip. The pages of the runs have all parts and sources."
)
NOT_ALIKE = "runs that were not exported, or not alike"
SEEDS = "A seed fixes all random choices of a run, so several seeds show what is luck."
SPIKES = "How good a unit is for the spikes that it sends; units without spikes are absent."
ACTIVITY = (
    "Mean number of spikes per neuron and time step over the test set. Hatched bars are units "
    "that send graded values instead of spikes; they show the mean absolute value."
)
BY_STEPS = (
    "The same networks, shown their inputs for fewer or more time steps at the test; trained with"
)
PRINTED = "Other neurons in networks of the same budget, as their authors printed them."
BAND = "Line: mean over the seeds still running. Band: from the lowest to the highest."


def context(comparison: Comparison, page: Path) -> dict[str, Any]:
    """The values that compare.html needs; page is where the page will be, for its links."""
    facts, rows = comparison.facts, comparison.rows
    runs = [run for row in rows for run in row.runs]
    metric = metric_of(facts.metric)
    sections = (
        *continual.sections(facts, rows, comparison.directory),
        study_tables.section(facts),
        printed_section(facts, metric),
        cells_section(rows, metric),
        chip_section(rows, metric, facts.rtl),
        Section("Results and cost", "", (result_figures(rows, metric),)),
        Section("Learning", "", (learning_figures(rows, metric),)),
    )
    network = {about(row.runs[0]) for row in rows if row.runs}  # the same of all units, or not
    sources = [(row, source_of(row.facts.published)) for row in rows]
    return {
        "title": facts.title or f"{plural(len(rows), 'unit')} on {data_label(facts.data)}",
        "task": facts.task,
        "about": network.pop() if len(network) == 1 else data_title(facts.data, ""),
        "metric": metric,
        "results": results(rows, metric, facts.higher_is_better),
        "sources": [
            f"{row.label}, {published_text(row, metric)}: {text}" for row, text in sources if text
        ],
        "sections": [part for part in sections if part and any(b != Block() for b in part.blocks)],
        # All units answer the same one, the first example of their first runs.
        "examples": [
            {"label": row.label, "colour": colour_of(row.look), "panel": panel}
            for row in rows
            for run in row.runs[:1]
            for panel in panels(run, 1)
        ],
        "runs": [run_link(row, run, metric, page) for row in rows for run in row.runs],
        "settings": settings(rows),
        "started": started(runs[0]) if runs else "",
        "environment": list(flatten(to_plain(runs[0].environment))) if runs else [],
    }


def _figure(name: str) -> Callable[[Compared], str]:
    """The test judged otherwise, of a row."""

    def text(row: Compared) -> str:
        found = row.facts.figures.get(name)
        return spread_text(metric_of(found.metric), found.mean, found.std) if found else NOTHING

    return text


def results(rows: Sequence[Compared], metric: Metric, higher_is_better: bool) -> Table:
    """What came out for each unit, and what it cost."""

    def of(name: str, text: Callable[[Any], str] = count_text) -> Callable[[Compared], str]:
        return lambda row: text(getattr(row.facts, name))

    columns = {
        "unit": lambda row: row.label,
        f"test {metric.axis}": lambda row: spread_text(
            metric, row.facts.test_mean, row.facts.test_std
        ),
        **{name: _figure(name) for name in dict.fromkeys(n for r in rows for n in r.facts.figures)},
        "seeds": of("n"),
        "parameters": of("parameters"),
        "operations per step": of("operations"),
        "spikes per inference": of(
            "spikes_mean", lambda mean: "none" if mean is None else count_text(mean)
        ),
        "training time, median": of("seconds_median", seconds_text),
        "published": lambda row: published_text(row, metric),
    }
    best = max if higher_is_better else min
    number = best(range(len(rows)), key=lambda index: rows[index].facts.test_mean, default=None)
    colours = tuple(colour_of(row.look) for row in rows)
    return table(rows, columns, colours=colours, best=number if len(rows) > 1 else None)


def printed_section(facts: Summary, metric: Metric) -> Section | None:
    """A published table, where one stands beside ours; its source is named with the results."""
    if not facts.printed:
        return None
    names = dict.fromkeys(name for line in facts.printed for name in line.values)

    def at(name: str) -> Callable[[Printed], str]:
        return lambda line: (
            metric_text(metric, line.values[name], unit=False) if name in line.values else NOTHING
        )

    columns: dict[str, Callable[[Printed], str]] = {"published": lambda line: line.label}
    columns |= {f"{name}, test {metric.axis}": at(name) for name in names}
    return Section("As published", PRINTED, (Block(table=table(facts.printed, columns)),))


def published_text(row: Compared, metric: Metric) -> str:
    published = row.facts.published
    return metric_text(metric, published.value, unit=False) if published else "unknown"


def cells_section(rows: Sequence[Compared], metric: Metric) -> Section | None:
    """What the units do in memory cells, where their runs have been programmed."""
    known = [(row, row.facts.memory) for row in rows if row.facts.memory]
    if not known:
        return None
    first = known[0][1]

    def at(k: int) -> Callable[[Any], str]:
        return lambda pair: spread_text(metric, pair[1].means[k], pair[1].stds[k])

    def energy(name: str) -> Callable[[Any], str]:
        return lambda pair: joules(pair[1].energy_pJ[name])

    columns = {
        "unit": lambda pair: pair[0].label,
        "cells": lambda pair: count_text(pair[1].cells),
        "in software": lambda pair: metric_text(metric, pair[0].facts.test_mean, unit=False),
        **{f"after {in_words(time)}": at(k) for k, time in enumerate(first.times_s)},
        "energy on PCM": energy("PCM crossbar"),
        "on digital int8": energy("digital, int8, events"),
    }
    about = (
        f"The trained networks, programmed into simulated phase-change cells of the model "
        f"{first.device} and left alone, with global drift compensation: test {metric.axis}."
    )
    block = Block(table=table(known, columns), below=IN_MEMORY.format(**vars(first)))
    return Section("In memory", about, (block,))


def chip_section(rows: Sequence[Compared], metric: Metric, rtl: Outcome | None) -> Section | None:
    """What the units do on the digital chip, where their runs have been exported."""
    known = [row.facts.chip for row in rows if row.facts.chip]
    if not known:
        return None
    first = known[0]
    per = next((row.runs[0].inference for row in rows if row.runs), first.per)

    def of(text: Callable[[ChipMeans], str]) -> Callable[[Compared], str]:
        return lambda row: text(row.facts.chip) if row.facts.chip else NOTHING

    columns = {
        "unit": lambda row: row.label,
        "weights": of(lambda chip: f"{chip.weight_bits} bits"),
        "in software": of(lambda chip: metric_text(metric, chip.software_mean, unit=False)),
        "in integers": of(lambda chip: spread_text(metric, chip.mean, chip.std)),
        "energy": of(lambda chip: joules(chip.energy_pJ["nominal"])),
        "low to high": of(
            lambda chip: " to ".join(joules(chip.energy_pJ[end]) for end in ("low", "high"))
        ),
        **(
            {f"per {first.part}": of(lambda chip: joules(chip.part_pJ["nominal"]))}
            if first.part
            else {}
        ),
        "cycles": of(lambda chip: count_text(round(chip.cycles))),
        "time": of(lambda chip: si_text(chip.cycles / chip.clock_MHz * 1e-6, "s")),
        "additions": of(lambda chip: count_text(round(chip.additions))),
    }
    absent = [row for row in rows if not row.facts.chip]
    about = (
        f"The same networks, compiled to integers for an event-driven chip in 40 nm with "
        f"{first.lanes} lanes at {first.clock_MHz:g}\u00a0MHz: {first.split} "
        f"{metric.axis}, and what it takes per {per}. {proof_text(rtl, per)}"
    )
    below = ON_CHIP.format(**vars(first)) + why_absent(absent)
    return Section(
        "On the digital chip", about.strip(), (Block(table=table(rows, columns), below=below),)
    )


def why_absent(rows: Sequence[Compared]) -> str:
    """Why units have no figures of the chip, a sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        graded = row.facts.n and row.facts.spikes_mean is None
        why = "numbers instead of spikes, which the chip cannot take" if graded else NOT_ALIKE
        reasons.setdefault(why, []).append(row.label)
    return "".join(f" {', '.join(labels)}: {why}." for why, labels in reasons.items())


def result_figures(rows: Sequence[Compared], metric: Metric) -> Block:
    spread = "Whiskers reach one standard deviation over the seeds."
    trained = {row.facts.by_steps.trained_with for row in rows if row.facts.by_steps}
    against_spikes = compare_charts.cost(rows, metric, "spikes_mean", "spikes per inference")
    return figures(
        figure(
            compare_charts.dots(rows, metric),
            f"Test {metric.name} of every seed",
            f"{SEEDS} {metric.advice} A published figure may stem from a different set-up.",
            wide=True,
        ),
        figure(
            compare_charts.cost(rows, metric, "parameters", "trained parameters"),
            f"Test {metric.name} against size",
            f"How good a unit is for its number of trained parameters. {spread}",
        ),
        figure(against_spikes, f"Test {metric.name} against spikes", f"{SPIKES} {spread}"),
        figure(
            compare_charts.activity(rows),
            "Firing rate by layer",
            ACTIVITY,
            wide=against_spikes is not None,
        ),
        figure(
            compare_charts.by_steps(rows, metric),
            f"Test {metric.name} against time steps",
            f"{BY_STEPS} {' or '.join(map(str, sorted(trained)))}. {spread}",
            wide=True,
        ),
    )


def learning_figures(rows: Sequence[Compared], metric: Metric) -> Block:
    loss = loss_axis(next((run for row in rows for run in row.runs), None))
    learning = compare_charts.learning
    return figures(
        figure(
            learning(rows, "valid", metric, f"validation {metric.axis}"),
            f"Validation {metric.name}",
            f"Measured after each epoch on data not used for training. {metric.advice} {BAND}",
        ),
        figure(
            learning(rows, "train_loss", metric, f"training {loss}"),
            "Training loss",
            f"What training makes small, on the training data: lower is better. {BAND}",
        ),
    )


def run_link(row: Compared, run: Run, metric: Metric, page: Path) -> dict[str, str]:
    """A run of the comparison; the link is empty where its own page has not been written."""
    own = run.directory / "report.html"
    link = ""
    if own.exists():
        link = Path(os.path.relpath(own.resolve(), page.resolve().parent)).as_posix()
    return {
        "name": run.directory.name,
        "label": row.label or run.label,
        "seed": str(run.seed),
        "test": metric_text(metric, run.result.test) if run.result else "not complete",
        "seconds": seconds_text(run.result and run.result.seconds),
        "link": link,
    }


def settings(rows: Sequence[Compared]) -> dict[str, Any]:
    """Settings that any unit has a use for; those in which units differ come first, marked."""
    configs = [(row.label, row.runs[0].config) for row in rows if row.runs]
    columns = [(label, dict(flatten(to_dict(config)))) for label, config in configs]
    used = dict.fromkeys(name for _, config in configs for name, _ in configuration(config)[0])
    lines = []
    for name in [name for name in used if name != "train.seed"]:
        values = [config.get(name, NOTHING) for _, config in columns]
        lines.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    lines.sort(key=lambda line: not line["differs"])
    return {"labels": [label for label, _ in columns], "lines": lines}
