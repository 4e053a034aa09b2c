"""Charts of memory cells: the metric over time, conductances, drift, energy, pulses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from spikebridge.base.metrics import Metric
from spikebridge.base.quantities import in_words
from spikebridge.report.run_charts import epoch_axis, steep
from spikebridge.report.theme import COLOURS, NEUTRAL, Chart, colour_of, fade, label
from spikebridge.report.wording import si_text
from spikebridge.runs.hardware_results import DriftCurves, Hardware, Histograms, Level, OnCells

SPANS_S = (1.0, 60.0, 3600.0, 86400.0, 30 * 86400.0, 365 * 86400.0)
# From low to high conductance.
LEVELS = tuple(COLOURS[name] for name in ("li-snu", "snu", "adaptive-snu", "gru", "softsnu"))
FIT_S = 100.0
"""Where the law of drift has set in: exponents are fitted to what comes after."""
PULSE_BINS = 48
SINCE = "time since programming"


def deviation_of(table: np.ndarray) -> np.ndarray | None:
    """Standard deviation over the chips of (chips, times); None for a single chip."""
    return table.std(axis=0, ddof=1) if len(table) > 1 else None


def rounded(values: Any, figures: int = 6) -> list[float]:
    return [float(f"{value:.{figures}g}") for value in np.asarray(values, np.float64).ravel()]


def places(times_s: Iterable[float]) -> list[float]:
    """Where times stand on a logarithmic axis: 0 a decade before the first that is later."""
    later = [time for time in times_s if time > 0]
    zero = min(later) / 10 if later else 1.0
    return [time if time > 0 else zero for time in times_s]


def time_axis(chart: Chart, times_s: Sequence[float], *, own: bool) -> None:
    """A logarithmic axis of time in words; own: with ticks at these times, as far as they part."""
    at = places(times_s)
    low, high = math.log10(at[0]), math.log10(at[-1])
    room = 0.05 * (high - low) or 0.5
    ticks = list(zip(at, times_s, strict=True))
    if not own:
        ticks = [(s, s) for s in SPANS_S if low - room <= math.log10(s) <= high + room]
    kept: list[tuple[float, float]] = []
    for tick in reversed(ticks):
        if not kept or math.log10(kept[-1][0] / tick[0]) > 0.165 * (high - low):
            kept.append(tick)
    # A phone has room for many ticks only where long ones take two lines.
    texts = [label(in_words(time), 5 if own else 18) for _, time in kept]
    around = {"range": [low - room, high + room], "tickangle": 0, "showgrid": False}
    chart.x(SINCE, type="log", tickvals=[place for place, _ in kept], ticktext=texts, **around)


def over_time(on_cells: OnCells, metric: Metric, unit: str) -> Chart:
    """The metric over the time since programming: mean and one standard deviation of the chips."""
    chart = Chart(360, {"hovermode": "x unified"})
    software = metric.scale * on_cells.software
    x, shown = places(on_cells.times_s), [software]
    for name, table, colour, symbol in (
        ("as read", on_cells.plain, NEUTRAL, "square"),
        ("compensated", on_cells.compensated, colour_of(unit), "circle"),
    ):
        mean, spread = table.mean(axis=0) * metric.scale, deviation_of(table)
        if spread is not None:
            low, high = mean - metric.scale * spread, mean + metric.scale * spread
            chart.band(x, rounded(low), rounded(high), colour)
            shown += [*low, *high]
        marker = {"color": colour, "size": 8, "symbol": symbol}
        chart.line(x, rounded(mean), colour, name, mode="lines+markers", marker=marker)
        shown += list(mean)
    flat = {"color": NEUTRAL, "size": 12, "symbol": "line-ew-open"}
    chart.line(x, rounded([software] * len(x)), NEUTRAL, "in software", dash="dash", marker=flat)
    time_axis(chart, on_cells.times_s, own=True)
    chart.y(title=f"test {label(metric.axis, 60)}")
    if not metric.higher_is_better:
        steep(chart, shown)
    return chart


def first_and_last(result: Sequence[Any], times_s: Sequence[float]) -> list[tuple[Any, str]]:
    """Two of what is known at several times, each with its time in words; one of one time."""
    last = [(result[-1], f"after {in_words(times_s[-1])}")] if len(times_s) > 1 else []
    return [(result[0], f"after {in_words(times_s[0])}"), *last]


def histogram(histograms: Histograms, unit: str) -> Chart:
    chart = Chart(340, {"showlegend": True})
    looks, top_uS = histograms.at, histograms.top_uS
    pairs = first_and_last(looks, [look.time_s for look in looks])
    for (look, name), colour in zip(pairs, (NEUTRAL, colour_of(unit)), strict=False):
        edges = np.linspace(0, top_uS, len(look.cells) + 1)
        counts = [int(count) for count in look.cells]
        texts = [
            f"{low:.3g} to {high:.3g} µS: {count:,} cells"
            for low, high, count in zip(edges, edges[1:], counts, strict=False)
        ]
        # No cells lie below the axis, so that the line goes down to it.
        heights = [max(count, 0.1) for count in [*counts, counts[-1]]]
        chart.line(
            rounded(edges),
            heights,
            colour,
            name,
            line={"color": colour, "width": 2, "shape": "hv"},
            fill="tozeroy" if colour == NEUTRAL else None,
            fillcolor=fade(NEUTRAL, 0.2),
            text=[*texts, texts[-1]],
            hover=f"{name}, %{{text}}",
        )
    chart.x(title="conductance (µS)", range=[0, top_uS * 1.01], showgrid=False)
    cells_axis(chart, max(int(look.cells.max()) for look in looks))
    return chart


def cells_axis(chart: Chart, most: int) -> None:
    """A logarithmic axis of numbers of cells, from a little below 1."""
    ticks = [10**power for power in range(10) if 10**power <= max(most, 1) * 1.5]
    ends, texts = [math.log10(0.6), math.log10(max(most, 1) * 1.8)], [f"{tick:,}" for tick in ticks]
    chart.y(title="cells", type="log", range=ends, tickvals=ticks, ticktext=texts)


def scatter(on_cells: OnCells, unit: str) -> Chart:
    """What is read of some cells against what was aimed at, at the first and the last time."""
    chart = Chart(340)
    top = on_cells.histograms.top_uS
    ends = first_and_last(on_cells.programmed, on_cells.times_s)
    for (points, name), colour in zip(ends, (NEUTRAL, colour_of(unit)), strict=False):
        top = max(top, float(points.target_uS.max()), float(points.read_uS.max()))
        x, y = rounded(points.target_uS, 4), rounded(points.read_uS, 4)
        hover = f"aimed at %{{x}} µS, {name} %{{y}} µS"
        chart.marks(x, y, {"color": colour, "size": 5, "opacity": 0.6}, name, hover=hover)
    diagonal = [0, rounded([top])[0]]
    style: dict[str, Any] = {"width": 1.5, "dash": "dash", "hoverinfo": "skip"}
    chart.line(diagonal, diagonal, NEUTRAL, "as aimed at", **style)
    around = [-0.03 * top, 1.04 * top]
    chart.x(title="conductance aimed at (µS)", range=around)
    chart.y(title="conductance read (µS)", range=around)
    return chart


def exponent(times_s: np.ndarray, level: Level) -> float | None:
    """nu of mean ~ time^-nu after FIT_S, by least squares of the logarithms; None if unknown."""
    late = times_s >= FIT_S
    if late.sum() < 3 or level.mean_uS[late].min() <= 0:
        return None
    return -float(np.polyfit(np.log(times_s[late]), np.log(level.mean_uS[late]), 1)[0])


def drift(drift_curves: DriftCurves) -> Chart | None:
    """Mean conductance of cells programmed to a few levels, over that of the first time."""
    levels = [level for level in drift_curves.curves if level.mean_uS[0] > 0]
    if not levels:
        return None
    chart = Chart(400)
    x = rounded(drift_curves.times_s)
    steps = max(1, len(levels) - 1)
    colours = [LEVELS[index * (len(LEVELS) - 1) // steps] for index in range(len(levels))]
    for level, colour in zip(levels, colours, strict=True):
        low, high = level.mean_uS - level.sd_uS, level.mean_uS + level.sd_uS
        first = level.mean_uS[0]
        chart.band(x, rounded(low / first, 4), rounded(high / first, 4), colour, 0.09)
    for level, colour in zip(levels, colours, strict=True):
        y, name = rounded(level.mean_uS / level.mean_uS[0], 4), f"{level.target_uS:.3g} µS"
        hover, texts = f"{name}, after %{{text}}: %{{y}}", [in_words(time) for time in x]
        chart.line(x, y, colour, name, text=texts, hover=hover)
    time_axis(chart, x, own=False)
    chart.y(title="conductance / its first value")
    return chart


def energy_bars(hardware: Mapping[str, Hardware], unit: str, per: str) -> Chart | None:
    """Energy per inference of every hardware, on a logarithmic axis.

    Dots, not bars: on such an axis a bar would begin anywhere, and its length would mean nothing.
    """
    joules = [1e-12 * costs.total_pJ for costs in hardware.values()]
    if min(joules) <= 0:
        return None
    chart = Chart(100 + 46 * len(joules))
    marker = {"color": [colour_of(unit)] + [NEUTRAL] * (len(joules) - 1), "size": 13}
    beside: dict[str, Any] = {"textposition": "middle right", "cliponaxis": False}
    beside |= {"text": [f"  {si_text(energy, 'J')}" for energy in joules], "hover": "%{text}"}
    x, y = rounded(joules), list(range(len(joules)))
    chart.marks(x, y, marker, mode="markers+text", **beside)
    chart.rows(hardware)
    low, high = math.floor(math.log10(min(joules)) - 0.1), math.log10(max(joules))
    ticks = [10.0**power for power in range(low, math.ceil(high) + 1)]
    around = [low, high + 0.45 * (high - low)]
    names = [si_text(tick, "J") for tick in ticks]
    title = f"energy per {per}, logarithmic"
    chart.x(title, type="log", range=around, tickvals=ticks, ticktext=names)
    return chart


def epoch_bars(values: Sequence[tuple[float, float]], title: str, unit: str) -> Chart:
    chart = Chart(280)
    epochs, heights = [epoch for epoch, _ in values], [value for _, value in values]
    chart.bars(epochs, heights, colour_of(unit), hover="epoch %{x}: %{y:,}")
    epoch_axis(chart, int(max(epochs, default=1)), showgrid=False)
    chart.y(title=title, tickformat=",~r", rangemode="tozero", nticks=6)
    return chart


def pulse_histogram(pulses: np.ndarray, unit: str) -> Chart:
    width = -(-(int(pulses.max()) + 1) // PULSE_BINS)
    counts = np.bincount(pulses // width)
    starts = width * np.arange(len(counts))
    last = starts + width - 1
    texts = [f"{a:,}" if a == b else f"{a:,} to {b:,}" for a, b in zip(starts, last, strict=True)]
    chart = Chart(320, {"bargap": 0.08})
    words = {"text": texts, "textposition": "none", "hover": "%{text} pulses: %{y:,} cells"}
    x, bar_width = ((starts + last) / 2).tolist(), width * 0.92
    chart.bars(x, counts.tolist(), colour_of(unit), width=bar_width, **words)
    chart.x(title="pulses that a cell has received", tickformat=",d", showgrid=False)
    cells_axis(chart, int(counts.max()))
    return chart
