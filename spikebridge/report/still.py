"""A comparison for documents: tables in Markdown, and the charts of its page as still pictures."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spikebridge.base.metrics import METRICS, Metric
from spikebridge.report import compare_charts, compare_page, continual, study_tables
from spikebridge.report.theme import INK, Chart, rgb
from spikebridge.report.wording import plural
from spikebridge.runs import rundir
from spikebridge.runs.load import ReportError
from spikebridge.studies.comparison import Compared, Summary

TABLE = "table.md"
SMALL_PANELS = 6
GRID = "#dddddd"
MARKERS = {
    "square": "s", "diamond": "D", "triangle-up": "^", "pentagon": "p", "hexagon": "h",
    "star": "*", "cross": "P", "line-ns": "|", "x-thin": "x",
}  # fmt: skip
DASHES = {"dash": "--", "dot": ":"}


def write(content: Summary, directory: Path, source: str) -> list[Path]:
    """The tables and all pictures that a comparison has, as files; returns the pictures.

    Raises ReportError where matplotlib is not installed.
    """
    rows = [Compared(row, []) for row in content.rows]
    metric = METRICS[content.metric]
    rundir.write_text(directory / TABLE, markdown(content, rows, metric, source))
    title = content.title or content.data
    pictures, seeds = [], plural(rows[0].facts.n, "seed")
    of = ("tests", *study_tables.SEQUENCE)
    contrasts = study_tables.chart(content, study_tables.compared(content), of)
    for name, charts, below in (
        ("plot", [[compare_charts.dots(rows, metric)]], metric.better),
        ("contrasts", [[contrasts]], f"mean over {seeds} and 95 % interval"),
        ("tasks", _tasks(rows), f"{seeds}; whiskers: one standard deviation"),
        ("steps", [[_by_steps(rows, metric)]], f"{seeds}; whiskers: one standard deviation"),
    ):
        known = [[chart for chart in line if chart] for line in charts]
        if any(known):
            pictures.append(directory / f"{name}.png")
            draw(pictures[-1], known, [title, below])
    return pictures


def markdown(content: Summary, rows: Sequence[Compared], metric: Metric, source: str = "") -> str:
    """The results with their sources, and the tables of all sections."""
    about = f"Test {metric.axis}, {metric.better}; mean ± standard deviation over seeds"
    sources = [compare_page.source_of(row.facts.published) for row in rows]
    higher = metric.higher_is_better
    parts = [
        f"## {content.title or content.data}\n",
        f"{about}; training time: median.\n",
        compare_page.results(rows, metric, higher).markdown() + "\n",
        f"Published: {source}." if source else "",
        *(f"- {text}" for text in _by_paper(text for text in sources if text)),
        "",
    ]
    text = "\n".join(parts).rstrip() + "\n"
    sections = [
        compare_page.chip_section(rows, metric, content.rtl),
        compare_page.cells_section(rows, metric),
        continual.forgetting_section(content, rows),
        study_tables.section(content),
        compare_page.printed_section(content, metric),
    ]
    return "\n".join([text, *(section.markdown() for section in sections if section)])


def _by_paper(sources: Iterable[str]) -> list[str]:
    """Sources once each; what follows the last colon is put together where the rest is equal."""
    parts: dict[str, list[str]] = {}
    for source in dict.fromkeys(sources):
        paper, colon, place = source.rpartition(": ")
        parts.setdefault(paper + colon, []).append(place)
    return [paper + "; ".join(places) for paper, places in parts.items()]


def _by_steps(rows: Sequence[Compared], metric: Metric) -> Chart | None:
    """Accuracies as errors: near 100 % they would all look alike."""
    chart = compare_charts.by_steps(rows, metric, error=metric.name == "accuracy")
    if chart is not None:
        known = [row.facts.by_steps for row in rows if row.facts.by_steps]
        trained = sorted({tested.trained_with for tested in known})
        chart.x(title=f"time steps at test (trained with {' or '.join(map(str, trained))})")
    return chart


def _tasks(rows: Sequence[Compared]) -> list[list[Chart]]:
    """Each task from its own turn on, and two measures of all."""
    if not any(row.facts.sequence for row in rows):
        return []
    count = min(rows[0].facts.of_tasks.tasks, SMALL_PANELS)
    curves = [continual.task_curve(rows, task) for task in range(count)]
    for number, chart in enumerate(curves, start=1):
        chart.layout["title"] = f"task {number}"
    return [curves, [continual.dots(rows, name) for name in study_tables.SEQUENCE]]


def draw(path: Path, charts: list[list[Chart]], title: Sequence[str]) -> None:
    """Lines of charts side by side as a PNG, with the words of the page's figures.

    Raises ReportError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ReportError(
            "matplotlib is not installed: still pictures need it; "
            "install it with pip install 'spikebridge[app]'"
        ) from error
    single = len(charts) == len(charts[0]) == 1
    heights = [max(chart.layout["height"] for chart in line) / 115 for line in charts]
    size = (7.5, heights[0] + 0.6) if single else (max(10.0, 2.2 * len(charts[0])), sum(heights))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    handles: dict[str, Any] = {}
    parts = figure.subfigures(len(charts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, line in zip(parts, charts, strict=True):
        panels = part.subplots(1, len(line), squeeze=False, sharey=True)[0]
        for axes, chart in zip(panels, line, strict=True):
            _chart(axes, chart)
            axes.label_outer(remove_inner_ticks=True)
            if chart.layout.get("showlegend", True):
                handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    lines = [textwrap.fill(text, 95) for text in title if text]
    figure.suptitle("\n".join(lines), fontsize=10, x=0.01, ha="left")
    if handles:
        look: dict[str, Any] = {"ncols": 3 if single else 5, "frameon": False, "fontsize": 8}
        figure.legend(handles.values(), handles, loc="outside lower center", **look)
    rundir.replace(path, lambda part: figure.savefig(part, format="png"))


def _chart(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import MultipleLocator

    for trace in chart.traces:
        _trace(axes, trace)
    for shape in chart.layout.get("shapes", []):
        axes.axvline(shape["x0"], color=INK, linewidth=1, linestyle=":")
    axes.set_title(chart.layout.get("title", ""), fontsize=9)
    for name in ("x", "y"):
        axis, settings = getattr(axes, f"{name}axis"), chart.layout.get(f"{name}axis", {})
        title = settings.get("title", {}).get("text", "")
        axis.set_label_text(_text(title), fontsize=9)
        axes.set(**{f"{name}scale": settings.get("type", "linear")})
        if "tickvals" in settings:
            texts = settings.get("ticktext", settings["tickvals"])
            axis.set_ticks(settings["tickvals"], [_text(str(text)) for text in texts])
            axis.minorticks_off()
        if "dtick" in settings:
            axis.set_major_locator(MultipleLocator(settings["dtick"]))
        if "range" in settings:
            axes.set(**{f"{name}lim": settings["range"]})
        if settings.get("showgrid", True):
            axis.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _trace(axes: Any, trace: Mapping[str, Any]) -> None:
    """Points, lines between them and error bars; a trace without a place is one of the legend."""
    line, marker = trace.get("line", {}), trace.get("marker", {})
    symbol = marker.get("symbol", "circle")
    ink = marker.get("line", {}) if symbol in ("line-ns", "x-thin") else marker
    colour, alpha = _colour(ink.get("color") or line["color"])
    thick = {"markeredgewidth": ink["width"]} if "width" in ink else {"markeredgecolor": colour}
    bars = {f"{n}err": bar for n in ("x", "y") if (bar := trace.get(f"error_{n}"))}
    reach = max((bar.get("thickness", 1) for bar in bars.values()), default=0)
    axes.errorbar(
        *(np.array(trace[name], float) for name in ("x", "y")),  # None becomes nan
        **{name: bar["array"] for name, bar in bars.items()},
        color=colour,
        alpha=alpha,
        label=html.unescape(trace["name"]) if trace.get("name") else "_",
        marker=MARKERS.get(symbol, "o") if "marker" in trace else "",
        markersize=0.7 * marker.get("size", 0),
        linestyle=DASHES.get(line.get("dash") or "", "-") if "lines" in trace["mode"] else "",
        linewidth=0.8 * line.get("width", 0),
        capsize=3,
        elinewidth=0.8 * reach,
        capthick=0.8 * reach,
        **thick,
    )


def _colour(text: str) -> tuple[Any, float]:
    """A colour of the page, and how much of it covers."""
    if text.startswith("#"):
        return tuple(part / 255 for part in rgb(text)), 1.0
    *parts, alpha = map(float, re.findall(r"[\d.]+", text))
    return tuple(part / 255 for part in parts), alpha


def _text(text: str) -> str:
    """Text of a figure without plotly's mark-up."""
    return html.unescape(text.replace("<br>", "\n"))
