"""Charts of a comparison: one row per unit, one run per seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from spikebridge.report.run_charts import (
    column,
    epoch_axis,
    layer_activity,
    layer_name,
    log_ticks,
    metric_column,
    steep,
    step_axis,
)
from spikebridge.report.theme import (
    NEUTRAL,
    SYMBOLS,
    Chart,
    colour_of,
    dash_of,
    fade,
    label,
    shown,
    whiskers,
)
from spikebridge.report.wording import Metric, count_text, scaled
from spikebridge.studies.comparison import Compared

# Beside the middle of a row, so that equal values of several seeds do not hide one another.
SEED_PLACES = (0.2, -0.2, 0.1, -0.1, 0.0)
MEAN = "mean ± standard deviation"


def dots(rows: Sequence[Compared], metric: Metric) -> Chart:
    """Test metric of every seed, with mean, one standard deviation and the published figure."""
    chart = Chart(110 + 58 * len(rows))
    for at, row in enumerate(rows):
        values, mean = _scaled(metric, row.facts.tests), scaled(metric, row.facts.test_mean)
        seed_dots(chart, at, values, mean, row.look, (row.facts.test_std or 0.0) * metric.scale)
    # Entries of the legend.
    for name, mark, width in (("one seed", "circle", 0), (MEAN, "line-ns", 3)):
        line = {"color": NEUTRAL, "width": width}
        marker = {"symbol": mark, "size": 10, "color": NEUTRAL, "line": line}
        chart.marks([None], [None], marker, name)
    places = [index for index, row in enumerate(rows) if row.facts.published]
    if places:
        x = _scaled(metric, (row.facts.published.value for row in rows if row.facts.published))
        cross = {"symbol": "x-thin", "size": 10, "line": {"width": 2, "color": NEUTRAL}}
        chart.marks(x, places, cross, "published", hover="published: %{x}")
    chart.rows(row.label for row in rows)
    chart.x(title=f"test {label(metric.axis, 60)}", nticks=8)
    return chart


def _scaled(metric: Metric, values: Iterable[float]) -> list[float | None]:
    return shown(scaled(metric, value) for value in values)


def seed_dots(
    chart: Chart,
    at: int,
    values: Sequence[float | None],
    mean: float | None,
    look: str,
    half: float = 0,
) -> None:
    """A row of a chart: the value of every seed, their mean and how far whiskers reach."""
    colour, places = colour_of(look), [at + SEED_PLACES[k % 5] for k in range(len(values))]
    dot = {"color": fade(colour, 0.55), "size": 9, "symbol": SYMBOLS[at % len(SYMBOLS)]}
    chart.marks(values, places, dot, hover="one seed: %{x}", showlegend=False)
    bar = {"symbol": "line-ns", "size": 24, "line": {"width": 3, "color": colour}}
    reach = whiskers(half, color=colour, thickness=2, width=5)
    chart.marks(shown([mean]), [at], bar, error_x=reach, hover="mean: %{x}", showlegend=False)


def _chart(rows: Sequence[Compared], height: int = 340, **layout: Any) -> Chart:
    """With extra height, so that the legend of many units leaves room for the plot on a phone."""
    return Chart(height + 18 * max(0, len(rows) - 3), layout)


def learning(rows: Sequence[Compared], name: str, metric: Metric, y_title: str) -> Chart | None:
    """A value over the epochs: mean over the seeds of a unit, with a band from lowest to highest.

    name is a column of metrics.jsonl; "valid" is shown in the metric's unit.
    """
    chart = _chart(rows, 380, hovermode="x")
    values: list[float] = []
    for index, row in enumerate(rows):
        seeds = [
            metric_column(run.epochs, metric) if name == "valid" else column(run.epochs, name)
            for run in row.runs
        ]
        low, mean, high = _over_seeds(seeds)
        known = [value for value in (*low, *high) if value is not None]
        if known:
            _mean_and_band(chart, row, index, low, mean, high)
        values += known
    if not chart.traces:
        return None
    epoch_axis(chart, max(len(run.epochs) for row in rows for run in row.runs))
    chart.y(title=y_title)
    if metric.better == "lower is better" or name != "valid":
        steep(chart, values)
    return chart


def _over_seeds(seeds: list[list[float | None]]) -> list[list[float | None]]:
    """Lowest, mean and highest value per epoch over the seeds that reached it."""
    epochs = zip_longest(*seeds)
    known = [[value for value in epoch if value is not None] for epoch in epochs]
    return [
        shown((reduce(values) if values else None for values in known), 5)
        for reduce in (min, statistics.fmean, max)
    ]


def _mean_and_band(
    chart: Chart, row: Compared, index: int, low: list[Any], mean: list[Any], high: list[Any]
) -> None:
    colour, epochs = colour_of(row.look), range(1, len(mean) + 1)
    inside = [(e, lo, hi) for e, lo, hi in zip(epochs, low, high, strict=True) if lo is not None]
    if len(row.runs) > 1 and len(inside) > 1:
        x, lows, highs = zip(*inside, strict=True)
        chart.band(x, lows, highs, colour, 0.18, legendgroup=row.label)
    look: dict[str, Any] = {"marker": _mark(colour, index), "legendgroup": row.label}
    chart.line(list(epochs), mean, colour, row.label, dash=dash_of(row.look), **look)


def _mark(colour: str, index: int) -> dict[str, Any]:
    """A mark that stays visible under a later, smaller one at the same place."""
    look = {
        "color": colour,
        "size": max(8, 16 - 3 * index),
        "symbol": SYMBOLS[index % len(SYMBOLS)],
    }
    return look | {"line": {"color": "#ffffff", "width": 1}}


def cost(rows: Sequence[Compared], metric: Metric, name: str, title: str) -> Chart | None:
    """Mean test metric of each unit against what it costs: a fact such as "parameters".

    None for fewer than two units, which would compare nothing.
    """
    known = [(index, row, getattr(row.facts, name)) for index, row in enumerate(rows)]
    known = [(index, row, x) for index, row, x in known if x is not None]
    if len(known) < 2:
        return None
    chart = _chart(rows)
    for index, row, x in known:
        half, y = (row.facts.test_std or 0.0) * metric.scale, _scaled(metric, [row.facts.test_mean])
        bars = whiskers(half, thickness=1.5, width=4)
        hover = f"{count_text(x)}: %{{y}}<extra>{label(row.label, 40)}</extra>"
        marker = _mark(colour_of(row.look), index)
        chart.marks(shown([x]), y, marker, row.label, error_y=bars, hovertemplate=hover)
    low, high = min(x for *_, x in known), max(x for *_, x in known)
    chart.x(title=title, tickformat=",~r")
    if low > 0 and high > 8 * low:
        chart.x(type="log", tickvals=log_ticks(low / 2.5, high * 2.5))
    else:
        chart.x(nticks=6, rangemode="tozero")
    chart.y(title=f"test {label(metric.axis, 60)}")
    return chart


def by_steps(rows: Sequence[Compared], metric: Metric, *, error: bool = False) -> Chart | None:
    """Mean test metric of each unit against the number of time steps at the test.

    error: what is missing to an accuracy of 1, which tells units apart near it.
    """
    known = [(row, row.facts.by_steps) for row in rows if row.facts.by_steps]
    if not known:
        return None
    chart, tops = _chart(rows), []
    for row, tested in known:
        spreads = [(spread or 0.0) * metric.scale for spread in tested.stds]
        y = _scaled(metric, (1 - mean if error else mean for mean in tested.means))
        dash, bars = dash_of(row.look), whiskers(spreads, thickness=1.2)
        chart.line(
            tested.steps, y, colour_of(row.look), row.label, dash=dash, marks=True, error_y=bars
        )
        tops += [v + more for v, more in zip(y, spreads, strict=True) if v is not None]
    step_axis(chart, sorted({count for _, tested in known for count in tested.steps}))
    chart.y(title="test error (%)" if error else f"test {label(metric.axis, 60)}")
    if error:
        steep(chart, tops)
    return chart


def activity(rows: Sequence[Compared]) -> Chart | None:
    """Firing rate by layer, or mean output of graded units (hatched), averaged over the seeds."""
    chart = _chart(rows, barmode="group")
    for row in rows:
        known = [(rates, spiking) for rates, spiking in map(layer_activity, row.runs) if rates]
        if not known:
            continue
        names, spiking = list(known[0][0]), known[0][1]
        of_layers = [[rates[name] for rates, _ in known if name in rates] for name in names]
        means = shown([sum(values) / len(values) for values in of_layers], 4)
        hatch = {"shape": "" if spiking else "/", "size": 6, "fillmode": "replace"}
        marker, x = {"color": colour_of(row.look), "pattern": hatch}, map(layer_name, names)
        chart.add("bar", x=list(map(label, x)), y=means, name=row.label, marker=marker)
    if not chart.traces:
        return None
    chart.x(showgrid=False, type="category")
    chart.y(title="mean |output| per neuron", rangemode="tozero")
    return chart
