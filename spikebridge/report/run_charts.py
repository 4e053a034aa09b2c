"""Charts of one run as a whole: learning curves and activity by layer; axes that charts share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from spikebridge.base.metrics import OF_NUMBERS
from spikebridge.report.theme import NEUTRAL, Chart, colour_of, label, shown
from spikebridge.report.wording import Metric, metric_of, metric_text, number, scaled
from spikebridge.runs.hardware_results import load_by_steps
from spikebridge.runs.load import Run
from spikebridge.runs.results import Epoch

LEADING = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9))


def column(epochs: Sequence[Epoch], name: str) -> list[float | None]:
    """One value per epoch, rounded to what a figure can show."""
    return shown([number(getattr(epoch, name)) for epoch in epochs], 5)


def metric_column(epochs: Sequence[Epoch], metric: Metric) -> list[float | None]:
    return shown([scaled(metric, epoch.valid) for epoch in epochs], 5)


def loss_axis(run: Run | None) -> str:
    if run is None:
        return "loss"
    return "mean squared error" if run.metric in OF_NUMBERS else f"loss (nats per {run.counted})"


def metric_is_loss(run: Run) -> bool:
    """Whether the validation metric is the validation loss, so that one figure shows both."""
    columns = (column(run.epochs, name) for name in ("valid_loss", "valid"))
    pairs = [(a, b) for a, b in zip(*columns, strict=True) if a is not None and b is not None]
    return run.metric in ("nll", "mse") and all(abs(a - b) <= 0.002 * abs(a) for a, b in pairs)


def best_epoch(run: Run) -> int | None:
    """The epoch whose network was kept, if any."""
    if run.result:
        return run.result.best_epoch
    marked = [epoch.epoch for epoch in run.epochs if epoch.best]
    return marked[-1] if marked else None


def loss_curves(run: Run) -> Chart | None:
    if not run.epochs:
        return None
    training, validation = (column(run.epochs, f"{part}_loss") for part in ("train", "valid"))
    # Two points of one epoch may be equal: a ring shows the one inside it.
    chart = _over_epochs(run, ("training", training, NEUTRAL, "circle-open"))
    _curve(chart, run, "validation", validation, colour_of(run.unit))
    if metric_is_loss(run):
        _mark_best(chart, run, validation)
    chart.y(title=loss_axis(run))
    steep(chart, [value for value in (*training, *validation) if value is not None])
    return chart


def metric_curve(run: Run) -> Chart | None:
    """Validation metric over the epochs, with the best epoch marked."""
    if not run.epochs or metric_is_loss(run):
        return None
    metric = metric_of(run.metric)
    values = metric_column(run.epochs, metric)
    chart = _over_epochs(run, ("validation", values, colour_of(run.unit)))
    _mark_best(chart, run, values)
    chart.y(title=f"validation {label(metric.axis, 60)}")
    return chart


def epoch_curve(run: Run, name: str, title: str) -> Chart | None:
    """A column of metrics.jsonl over the epochs; None where no epoch has it."""
    values = column(run.epochs, name)
    if not any(value is not None for value in values):
        return None
    chart = _over_epochs(run, (title, values, colour_of(run.unit)))
    chart.layout["showlegend"] = False
    chart.y(title=title)
    steep(chart, [value for value in values if value is not None])
    return chart


def _over_epochs(run: Run, curve: tuple[Any, ...]) -> Chart:
    chart = Chart(320, {"hovermode": "x unified"})
    _curve(chart, run, *curve)
    epoch_axis(chart, len(run.epochs))
    return chart


def _curve(
    chart: Chart, run: Run, title: str, y: list[Any], colour: str, symbol: str = "circle"
) -> None:
    size, ring = 8 if symbol == "circle" else 14, {"color": colour, "width": 2}
    marker = {"color": colour, "size": size, "symbol": symbol, "line": ring}
    chart.line(column(run.epochs, "epoch"), y, colour, title, marker=marker)


def _mark_best(chart: Chart, run: Run, values: list[float | None]) -> None:
    best, epochs, metric = best_epoch(run), column(run.epochs, "epoch"), metric_of(run.metric)
    value = values[epochs.index(best)] if best in epochs else None
    if value is not None:
        star = {"color": colour_of(run.unit), "size": 13, "symbol": "star"}
        hover = f"best: {metric_text(metric, value / metric.scale)}"
        chart.marks([best], [value], star, f"best epoch ({best})", hover=hover)


def step_curve(run: Run) -> Chart | None:
    tested = load_by_steps(run.directory)
    if tested is None:
        return None
    metric = metric_of(run.metric)
    chart = Chart(300, {"showlegend": False})
    y = [scaled(metric, value) for value in tested.test]
    chart.line(list(tested.steps), y, colour_of(run.unit), marks=True)
    step_axis(chart, tested.steps)
    chart.y(title=f"test {label(metric.axis, 60)}")
    return chart


def step_axis(chart: Chart, steps: Sequence[int]) -> None:
    ticks = {"tickvals": list(steps), "ticktext": list(map(str, steps))}
    chart.x(title="time steps at test", type="log", showgrid=False, **ticks)


def epoch_axis(chart: Chart, epochs: int, **more: Any) -> None:
    """An axis of whole epochs, each named once."""
    steps = [part * 10**power for power in range(9) for part in (1, 2, 5)]
    step = next(step for step in steps if epochs <= 8 * step)
    chart.x(title="epoch", tickformat="d", tick0=0, dtick=step, rangemode="tozero", **more)


def steep(chart: Chart, values: Sequence[float]) -> None:
    """Make the value axis logarithmic where values fall far, which keeps the tail visible."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low > 0 and high >= 2.5 * low:
        ticks = log_ticks(0.98 * low, 1.02 * high)
        chart.y(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, both above 0, with room for each on a logarithmic axis."""
    low = max(low, 1e-12)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(max(high, low))) + 1)
    for leading in LEADING:
        ticks = [float(f"{n * 10.0**decade:.6g}") for decade in decades for n in leading]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks
    digits = max(0, 2 - math.floor(math.log10(low)))
    even = (round(low + (high - low) * k / 4, digits) for k in range(5))
    return sorted({tick for tick in even if low <= tick <= high})


def layer_activity(run: Run) -> tuple[dict[str, float], bool]:
    """Mean output per neuron and step by layer, and whether it counts spikes."""
    if run.result is None:
        return {}, False
    rates = run.result.firing_rates
    return (rates, True) if rates else (run.result.mean_activity, False)


def layer_name(name: str) -> str:
    """ "layer2" -> "layer 2"; other names as they are."""
    digits = name.removeprefix("layer")
    return f"layer {digits}" if name != digits and digits.isdigit() else name


def activity_bars(run: Run) -> Chart | None:
    """Firing rate, or mean output of graded units, by layer."""
    rates, spiking = layer_activity(run)
    if not rates:
        return None
    values = list(rates.values())
    chart = Chart(92 + 46 * len(rates))
    beside = {"textposition": "outside", "cliponaxis": False, "width": 0.6}
    chart.bars(
        shown(values, 4), list(range(len(values))), colour_of(run.unit), orientation="h",
        text=[f"{value:.3g}" for value in values], hover="%{x:.4g}", **beside,
    )  # fmt: skip
    chart.rows(map(layer_name, rates))
    low, high = min([0.0, *values]), max([0.0, *values])
    room = 0.14 * (high - low or 1)
    title = "spikes per neuron and step" if spiking else "mean |output| per neuron and step"
    chart.x(title=title, range=[low - (room if low < 0 else 0), high + room])
    return chart
