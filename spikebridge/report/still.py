"""A comparison as a table in Markdown and as a still picture, for documents."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from spikebridge.base.metrics import METRICS
from spikebridge.base.quantities import in_words
from spikebridge.report import continual, study_tables
from spikebridge.report.theme import colour_of
from spikebridge.report.wording import (
    count_text,
    metric_text,
    plural,
    seconds_text,
    spread_text,
    table_lines,
)
from spikebridge.runs import rundir
from spikebridge.runs.load import ReportError

TABLE = "table.md"
HEAD = ("parameters", "operations per step", "spikes per inference", "training time", "published")


def markdown(content: dict[str, Any], source: str = "") -> str:
    """The rows of compare.json as a Markdown table, with their sources below."""
    metric = METRICS[content["metric"]]
    lines = [
        f"## {content.get('title') or content['data']}",
        "",
        f"Test {metric.axis}, {metric.better}; mean ± standard deviation over seeds; "
        "training time: median.",
        "",
        "| | " + " | ".join([f"test {metric.name}", "seeds", *HEAD]) + " |",
        "|---|" + "---|" * (2 + len(HEAD)),
    ]
    for row in content["rows"]:
        known = row["published"]
        cells = [
            spread_text(metric, row["test_mean"], row["test_std"]),
            str(row["n"]),
            count_text(row["parameters"]),
            count_text(row["operations"]),
            "none" if row["spikes_mean"] is None else count_text(row["spikes_mean"]),
            seconds_text(row["seconds_median"]),
            metric_text(metric, known["value"], unit=False) if known else "unknown",
        ]
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    sources = {row["published"]["source"]: None for row in content["rows"] if row["published"]}
    notes = [*([f"Published: {source}."] if source else []), *(f"- {item}" for item in sources)]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def hardware(content: dict[str, Any]) -> str:
    """What the networks do on the digital chip and in memory cells, or "" where none was tried."""
    return "\n".join([*_on_chip(content), *_in_cells(content)])


def _on_chip(content: dict[str, Any]) -> list[str]:
    result = [(row["label"], row["chip"]) for row in content["rows"] if row.get("chip")]
    if not result:
        return []
    metric, first = METRICS[content["metric"]], result[0][1]
    heads = ("", "bits", "in software", "in integers", f"nJ per {first['per']} (range)", "cycles")
    rows = []
    for name, chip in result:
        ends = (chip["energy_pJ"][end] / 1e3 for end in ("low", "nominal", "high"))
        low, nominal, high = (f"{value:,.3g}" for value in ends)
        rows.append(
            [
                name,
                str(chip["weight_bits"]),
                metric_text(metric, chip["software_mean"]),
                spread_text(metric, chip["mean"], chip["std"]),
                f"{nominal} ({low} to {high})",
                f"{chip['cycles']:,.0f}",
            ]
        )
    title = f"### On the digital chip, {first['lanes']} lanes at {first['clock_MHz']:g} MHz"
    note = "Energies are estimates from sourced figures of 40 nm; nothing is calibrated."
    return [title, "", note, "", *table_lines(heads, rows)]


def _in_cells(content: dict[str, Any]) -> list[str]:
    result = [(row, row["memory"]) for row in content["rows"] if row.get("memory")]
    if not result:
        return []
    metric, first = METRICS[content["metric"]], result[0][1]
    heads = ("", "cells", "in software", *map(in_words, first["times_s"]))
    rows = []
    for row, on_cells in result:
        pairs = zip(on_cells["means"], on_cells["stds"], strict=True)
        software = metric_text(metric, row["test_mean"])
        spreads = (spread_text(metric, *pair) for pair in pairs)
        rows.append([row["label"], f"{on_cells['cells']:,}", software, *spreads])
    title = (
        f"### In {first['device']} phase-change cells, drift compensated, each network on "
        f"{plural(first['chips'], 'simulated chip')}"
    )
    return [title, "", *table_lines(heads, rows)]


def write(content: dict[str, Any], directory: Path, source: str) -> list[Path]:
    """The table and all pictures that a comparison has, as files; returns the pictures.

    Raises ReportError where matplotlib is not installed.
    """
    parts = [markdown(content, source), hardware(content), continual.markdown(content)]
    parts.append(study_tables.markdown(content))
    rundir.write_text(directory / TABLE, "\n".join(part for part in parts if part))
    draw(content, directory / "plot.png")
    pictures = [directory / "plot.png"]
    if content.get("contrasts"):
        study_tables.draw(content, directory / "contrasts.png")
        pictures.append(directory / "contrasts.png")
    if any(row.get("sequence") for row in content["rows"]):
        continual.draw(content, directory / "tasks.png")
        pictures.append(directory / "tasks.png")
    if any(row.get("by_steps") for row in content["rows"]):
        draw_steps(content, directory / "steps.png")
        pictures.append(directory / "steps.png")
    return pictures


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ReportError(
            "matplotlib is not installed: still pictures need it; "
            "install it with pip install 'spikebridge[app]'"
        ) from error
    return Figure(figsize=size, dpi=150, layout="constrained")


def draw_steps(content: dict[str, Any], path: Path) -> None:
    """Write a picture of the test metric against the number of time steps at the test.

    Accuracies are shown as errors on a logarithmic axis: near 100 % they would all look alike.
    Raises ReportError where matplotlib is not installed.
    """
    metric = METRICS[content["metric"]]
    figure = _figure((7.5, 4.2))
    axes = figure.subplots()
    errors = metric.name == "accuracy"
    rows = [row for row in content["rows"] if row.get("by_steps")]
    for row in rows:
        result = row["by_steps"]
        axes.errorbar(
            result["steps"],
            [metric.scale * (1 - mean if errors else mean) for mean in result["means"]],
            [metric.scale * (spread or 0.0) for spread in result["stds"]],
            color=colour_of(row.get("look") or row["unit"]),
            marker="o",
            capsize=3,
            label=row["label"],
        )
    counts = sorted({count for row in rows for count in row["by_steps"]["steps"]})
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.minorticks_off()
    trained = sorted({row["by_steps"]["trained_with"] for row in rows})
    axes.set_xlabel(f"time steps at test (trained with {' or '.join(map(str, trained))})")
    if errors:
        axes.set_yscale("log")
        ticks = log_ticks(*axes.get_ylim())
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.minorticks_off()
    axes.set_ylabel("test error (%)" if errors else f"test {metric.axis}")
    axes.grid(axis="y", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _title(figure, content)
    rundir.replace(path, lambda part: figure.savefig(part, format="png"))


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, both above 0, with room for each on a logarithmic axis."""
    low = max(low, 1e-12)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(max(high, low))) + 1)
    result: list[float] = []
    for leading in (
        (1,),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        (1, 1.2, 1.5, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    ):
        result = [n * 10.0**decade for decade in decades for n in leading]
        result = [float(f"{tick:.6g}") for tick in result if low <= tick <= high]
        if len(result) >= 4:
            return result
    digits = max(0, 2 - math.floor(math.log10(low)))
    even = (low + (high - low) * k / 4 for k in range(5))
    return sorted({round(tick, digits) for tick in even if low <= round(tick, digits) <= high})


def _title(figure: Any, content: dict[str, Any]) -> None:
    """Over the whole width: names of rows leave the axes too little of it."""
    title = textwrap.fill(str(content.get("title") or content["data"]), 95)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")


def draw(content: dict[str, Any], path: Path) -> None:
    """Write a picture: each seed as a dot, the mean as a bar, the published figure as a diamond.

    Raises ReportError where matplotlib is not installed.
    """
    metric = METRICS[content["metric"]]
    rows = content["rows"]
    figure = _figure((7.5, 1.3 + 0.42 * len(rows)))
    axes = figure.subplots()
    for at, row in enumerate(rows):
        colour = colour_of(row.get("look") or row["unit"])
        values = [metric.scale * value for value in row["tests"]]
        mean = metric.scale * row["test_mean"]
        axes.plot(values, [at] * len(values), "o", color=colour, alpha=0.5, markersize=6)
        axes.plot([mean, mean], [at - 0.3, at + 0.3], color=colour, linewidth=3)
        if row["published"]:
            known = metric.scale * row["published"]["value"]
            axes.plot([known], [at], "D", markerfacecolor="none", color="#30343B", markersize=8)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"test {metric.axis}, {metric.better}")
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    handles = [
        *axes.plot([], [], "o", color="#808080", alpha=0.5, label="a seed"),
        *axes.plot([], [], "|", color="#808080", markersize=14, markeredgewidth=3, label="mean"),
    ]
    if any(row["published"] for row in rows):
        handles += axes.plot(
            [], [], "D", markerfacecolor="none", color="#30343B", label="published"
        )
    _title(figure, content)
    figure.legend(handles=handles, ncols=3, loc="outside lower right", frameon=False, fontsize=8)
    rundir.replace(path, lambda part: figure.savefig(part, format="png"))
