"""What stands on the page of a comparison."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from spikebridge.base.quantities import in_words
from spikebridge.report import compare_charts, continual, study_tables
from spikebridge.report.examples import panels
from spikebridge.report.on_chip import proof_text
from spikebridge.report.run_charts import loss_axis
from spikebridge.report.run_page import about, source_of, started
from spikebridge.report.theme import Block, Drawer, Section, Table, colour_of, figure, figures
from spikebridge.report.wording import (
    NOTHING,
    Metric,
    count_text,
    flatten,
    metric_of,
    metric_text,
    number,
    plural,
    seconds_text,
    si_text,
    spread_text,
)
from spikebridge.runs.hardware_results import ENDS, proof_of
from spikebridge.runs.load import Compared, Comparison, Run
from spikebridge.settings.config import to_dict
from spikebridge.settings.tasks import data_label, data_title

ENERGIES = ("PCM crossbar", "digital, int8, events")
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


def context(comparison: Comparison, page: Path) -> dict[str, Any]:
    """The values that compare.html needs; page is where the page will be, for its links."""
    facts, rows = comparison.facts, comparison.rows
    runs = [run for row in rows for run in row.runs]
    metric = metric_of(str(facts.get("metric") or (runs[0].metric if runs else "accuracy")))
    task, data = str(facts.get("task") or "unknown task"), str(facts.get("data") or "unknown data")
    best = best_row(rows, bool(facts.get("higher_is_better", metric.higher_is_better)))
    return {
        "title": str(facts.get("title") or f"{plural(len(rows), 'unit')} on {data_label(data)}"),
        "task": task,
        "about": about_all(rows, data),
        "metric": metric,
        "rows": [table_row(row, metric, row is best) for row in rows],
        "sections": [
            section
            for section in (
                *continual.sections(facts, comparison.directory, Drawer()),
                study_tables.section(facts, Drawer()),
                cells_section(rows, metric),
                chip_section(rows, metric, facts.get("rtl")),
                Section("Results and cost", "", (result_figures(rows, metric),)),
                Section("Learning", "", (learning_figures(rows, metric),)),
            )
            if section and any(block != Block() for block in section.blocks)
        ],
        "examples": example_panels(rows),
        "runs": [run_link(row, run, metric, page) for row in rows for run in row.runs],
        "settings": settings(rows),
        "started": started(runs[0]) if runs else "",
        "environment": list(flatten(runs[0].environment)) if runs else [],
        "seeds_meaning": SEEDS,
    }


def loss_of(rows: list[Compared]) -> str:
    return loss_axis(next((run for row in rows for run in row.runs), None))


def about_all(rows: list[Compared], data: str) -> str:
    """The data, and the network where all units have the same."""
    lines = {about(row.runs[0]) for row in rows if row.runs}
    return lines.pop() if len(lines) == 1 else data_title(data, "")


def best_row(rows: list[Compared], higher_is_better: bool) -> Compared | None:
    known = [(number(row.facts.get("test_mean")), row) for row in rows]
    means = [(mean, row) for mean, row in known if mean is not None]
    if len(means) < 2:
        return None
    return (max if higher_is_better else min)(means, key=lambda pair: pair[0])[1]


def table_row(row: Compared, metric: Metric, best: bool) -> dict[str, Any]:
    """One line of the result table, as text."""
    published = row.facts.get("published")
    value = published.get("value") if isinstance(published, dict) else None
    known = metric_text(metric, value, unit=False)
    complete = [run for run in row.runs if run.result is not None]
    spikes = number(row.facts.get("spikes_mean"))
    return {
        "label": row.label,
        "colour": colour_of(row.look),
        "best": best,
        "parameters": count_text(row.facts.get("parameters")),
        "operations": count_text(row.facts.get("operations")),
        "test": spread_text(metric, row.facts.get("test_mean"), row.facts.get("test_std")),
        "n": count_text(row.facts.get("n")),
        "spikes": count_text(spikes) if spikes is not None else "none" if complete else NOTHING,
        "seconds": seconds_text(row.facts.get("seconds_median")),
        "published": known if known != NOTHING else "unknown",
        "source": source_of(published),
    }


def cells_section(rows: list[Compared], metric: Metric) -> Section | None:
    """What the units do in memory cells, where their runs have been programmed."""
    known = [
        (row, row.facts["memory"]) for row in rows if isinstance(row.facts.get("memory"), dict)
    ]
    if not known:
        return None
    first = known[0][1]
    lines = []
    for row, on_cells in known:
        moments = zip(on_cells["means"], on_cells["stds"], strict=True)
        lines.append(
            [
                row.label,
                count_text(on_cells["cells"]),
                metric_text(metric, row.facts.get("test_mean"), unit=False),
                *(spread_text(metric, mean, std) for mean, std in moments),
                *(si_text(on_cells["energy_pJ"][name] * 1e-12, "J") for name in ENERGIES),
            ]
        )
    times = [f"after {in_words(time_s)}" for time_s in first["times_s"]]
    heads = ("unit", "cells", "in software", *times, "energy on PCM", "on digital int8")
    return Section(
        "In memory",
        f"The trained networks, programmed into simulated phase-change cells of the model "
        f"{first['device']} and left alone, with global drift compensation: test {metric.axis}.",
        (Block(table=Table(heads, lines), below=IN_MEMORY.format(**first)),),
    )


def chip_section(rows: list[Compared], metric: Metric, rtl: Any) -> Section | None:
    """What the units do on the digital chip, where their runs have been exported."""
    known = [row.facts["chip"] for row in rows if isinstance(row.facts.get("chip"), dict)]
    if not known:
        return None
    first = known[0]
    per = next((row.runs[0].inference for row in rows if row.runs), first["per"])
    lines, absent = [], []
    for row in rows:
        chip = row.facts.get("chip")
        if not isinstance(chip, dict):
            lines.append([row.label, *[NOTHING] * 8])
            absent.append(row)
            continue
        low, nominal, high = (si_text(1e-12 * chip["energy_pJ"][end], "J") for end in ENDS)
        lines.append(
            [
                row.label,
                f"{chip['weight_bits']} bits",
                metric_text(metric, chip["software_mean"], unit=False),
                spread_text(metric, chip["mean"], chip["std"]),
                nominal,
                f"{low} to {high}",
                count_text(round(chip["cycles"])),
                si_text(chip["cycles"] / chip["clock_MHz"] * 1e-6, "s"),
                count_text(round(chip["additions"])),
            ]
        )
    heads = ("unit", "weights", "in software", "in integers", "energy", "low to high", "cycles")
    return Section(
        "On the digital chip",
        f"The same networks, compiled to integers for an event-driven chip in 40 nm with "
        f"{first['lanes']} lanes at {first['clock_MHz']:g}\u00a0MHz: {first['split']} "
        f"{metric.axis}, and what it takes per {per}. {proof_text(proof_of(rtl), per)}".strip(),
        (
            Block(
                table=Table((*heads, "time", "additions"), lines),
                below=ON_CHIP.format(**first) + why_absent(absent),
            ),
        ),
    )


def why_absent(rows: list[Compared]) -> str:
    """Why units have no figures of the chip, a sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        complete = [run for run in row.runs if run.result is not None]
        graded = complete and number(row.facts.get("spikes_mean")) is None
        why = "numbers instead of spikes, which the chip cannot take" if graded else NOT_ALIKE
        reasons.setdefault(why, []).append(row.label)
    return "".join(f" {', '.join(labels)}: {why}." for why, labels in reasons.items())


def result_figures(rows: list[Compared], metric: Metric) -> Block:
    """What came out, and what it cost."""
    spread = "Whiskers reach one standard deviation over the seeds."
    trained = {row.facts["by_steps"]["trained_with"] for row in rows if row.facts.get("by_steps")}
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
        figure(
            against_spikes,
            f"Test {metric.name} against spikes",
            "How good a unit is for the spikes that it sends; units without spikes are absent. "
            f"{spread}",
        ),
        figure(
            compare_charts.activity(rows),
            "Firing rate by layer",
            "Mean number of spikes per neuron and time step over the test set. Hatched bars are "
            "units that send graded values instead of spikes; they show the mean absolute value.",
            wide=against_spikes is not None,
        ),
        figure(
            compare_charts.by_steps(rows, metric),
            f"Test {metric.name} against time steps",
            "The same networks, shown their inputs for fewer or more time steps at the test; "
            f"trained with {' or '.join(map(str, sorted(trained)))}. {spread}",
            wide=True,
        ),
    )


def learning_figures(rows: list[Compared], metric: Metric) -> Block:
    band = "Line: mean over the seeds still running. Band: from the lowest to the highest."
    return figures(
        figure(
            compare_charts.learning(rows, "valid", metric, f"validation {metric.axis}"),
            f"Validation {metric.name}",
            f"Measured after each epoch on data not used for training. {metric.advice} {band}",
        ),
        figure(
            compare_charts.learning(
                rows,
                "train_loss",
                metric,
                f"training {loss_of(rows)}",
            ),
            "Training loss",
            f"What training makes small, on the training data: lower is better. {band}",
        ),
    )


def example_panels(rows: list[Compared]) -> list[dict[str, Any]]:
    """The first example of the first run of every unit, so that all units answer the same one."""
    shown = [(row, panels(row.runs[0], 1)) for row in rows if row.runs]
    return [
        {"label": row.label, "colour": colour_of(row.look), "panel": panel}
        for row, of_row in shown
        for panel in of_row
    ]


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


def settings(rows: list[Compared]) -> dict[str, Any]:
    """All settings by unit; those in which units differ come first and are marked."""
    columns = [(row.label, dict(flatten(to_dict(row.runs[0].config)))) for row in rows if row.runs]
    names = list(dict.fromkeys(name for _, config in columns for name in config))
    names = [name for name in names if name != "train.seed"]
    lines = []
    for name in names:
        values = [config.get(name, NOTHING) for _, config in columns]
        lines.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    lines.sort(key=lambda line: not line["differs"])
    return {"labels": [label for label, _ in columns], "lines": lines}
