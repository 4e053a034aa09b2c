"""Charts of one run as a whole: learning curves and activity by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikebridge.report.theme import NEUTRAL, Chart, colour_of, label, shown
from spikebridge.report.wording import Metric, metric_of, metric_text, number, scaled
from spikebridge.runs.hardware_results import load_by_steps
from spikebridge.runs.load import Run

LOSS = "loss (nats per {})"


def column(epochs: Sequence[Mapping[str, Any]], name: str) -> list[float | None]:
    """One value per epoch, rounded to what a figure can show."""
    return shown([number(epoch.get(name)) for epoch in epochs], 5)


def metric_column(epochs: Sequence[Mapping[str, Any]], metric: Metric) -> list[float | None]:
    return shown([scaled(metric, epoch.get("valid")) for epoch in epochs], 5)


def loss_axis(run: Run | None) -> str:
    if run is None:
        return "loss"
    return "mean squared error" if run.metric == "rmse" else LOSS.format(run.counted)


def metric_is_loss(run: Run) -> bool:
    """Whether the validation metric is the validation loss, so that one figure shows both."""
    losses, metrics = column(run.epochs, "valid_loss"), column(run.epochs, "valid")
    pairs = [
        (a, b) for a, b in zip(losses, metrics, strict=True) if a is not None and b is not None
    ]
    return run.metric == "nll" and all(abs(a - b) <= 0.002 * abs(a) for a, b in pairs)


def best_epoch(run: Run) -> int | None:
    """The epoch whose network was kept, if any."""
    if run.result:
        return run.result.best_epoch
    marked = [epoch["epoch"] for epoch in run.epochs if epoch.get("best") is True]
    return int(marked[-1]) if marked else None


def loss_curves(run: Run) -> Chart | None:
    """Training and validation loss over the epochs."""
    if not run.epochs:
        return None
    epochs = column(run.epochs, "epoch")
    chart = Chart(320, {"hovermode": "x unified"})
    lines = (("train_loss", "training", NEUTRAL), ("valid_loss", "validation", colour_of(run.unit)))
    for name, title, colour in lines:
        # Two points of one epoch may be equal: a ring shows the one inside it.
        symbol = "circle-open" if name == "train_loss" else "circle"
        _line(chart, epochs, column(run.epochs, name), title, colour, symbol)
    if metric_is_loss(run):
        _mark_best(chart, run, epochs, column(run.epochs, "valid_loss"), metric_of(run.metric))
    epoch_axis(chart, len(epochs))
    chart.y(title=loss_axis(run))
    values = [v for name, *_ in lines for v in column(run.epochs, name) if v is not None]
    steep(chart, values)
    return chart


def metric_curve(run: Run) -> Chart | None:
    """Validation metric over the epochs, with the best epoch marked."""
    if not run.epochs or metric_is_loss(run):
        return None
    metric = metric_of(run.metric)
    epochs, values = column(run.epochs, "epoch"), metric_column(run.epochs, metric)
    chart = Chart(320, {"hovermode": "x unified"})
    _line(chart, epochs, values, "validation", colour_of(run.unit))
    _mark_best(chart, run, epochs, values, metric)
    epoch_axis(chart, len(epochs))
    chart.y(title=f"validation {label(metric.axis, 60)}")
    return chart


def step_curve(run: Run) -> Chart | None:
    """The test metric against the number of time steps at test."""
    tested = load_by_steps(run.directory)
    if tested is None:
        return None
    metric = metric_of(run.metric)
    chart = Chart(300, {"showlegend": False})
    y = [scaled(metric, value) for value in tested.test]
    chart.line(list(tested.steps), y, colour_of(run.unit), marks=True)
    step_axes(chart, tested.steps, metric)
    return chart


def step_axes(chart: Chart, steps: Sequence[int], metric: Metric) -> None:
    """The axes of the test metric against these numbers of time steps."""
    chart.x(
        title="time steps at test",
        type="log",
        tickvals=list(steps),
        ticktext=[str(count) for count in steps],
        showgrid=False,
    )
    chart.y(title=f"test {label(metric.axis, 60)}")


def _line(
    chart: Chart, x: list[Any], y: list[Any], title: str, colour: str, symbol: str = "circle"
) -> None:
    size, ring = 8 if symbol == "circle" else 14, {"color": colour, "width": 2}
    marker = {"color": colour, "size": size, "symbol": symbol, "line": ring}
    chart.line(x, y, colour, title, marker=marker)


def _mark_best(
    chart: Chart, run: Run, epochs: list[Any], values: list[Any], metric: Metric
) -> None:
    best = best_epoch(run)
    if best is None or float(best) not in epochs:
        return
    value = values[epochs.index(float(best))]
    if value is None:
        return
    chart.marks(
        [best],
        [value],
        {"color": colour_of(run.unit), "size": 13, "symbol": "star"},
        f"best epoch ({best})",
        hovertemplate=f"best: {metric_text(metric, value / metric.scale)}<extra></extra>",
    )


def epoch_axis(chart: Chart, epochs: int, **more: Any) -> None:
    """An axis of whole epochs, each named once."""
    steps = [part * 10**power for power in range(9) for part in (1, 2, 5)]
    step = next(step for step in steps if epochs <= 8 * step)
    chart.x(title="epoch", tickformat="d", tick0=0, dtick=step, rangemode="tozero", **more)


def steep(chart: Chart, values: Sequence[float]) -> None:
    """Make the value axis logarithmic where values fall far, which keeps the tail visible.

    Its ticks are plain numbers.
    """
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low <= 0 or high < 2.5 * low:
        return
    parts = (1, 3) if high > 30 * low else (1, 1.5, 2, 3, 5, 8)
    steps = [part * 10.0**power for power in range(-6, 7) for part in parts]
    ticks = [step for step in steps if low * 0.98 <= step <= high * 1.02]
    if len(ticks) >= 3:
        chart.y(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


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
    names = [label(layer_name(name)) for name in rates]
    values = list(rates.values())
    chart = Chart(92 + 46 * len(rates))
    chart.add(
        "bar",
        y=list(range(len(values))),
        x=shown(values, 4),
        orientation="h",
        width=0.6,
        marker={"color": colour_of(run.unit)},
        text=[f"{value:.3g}" for value in values],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{x:.4g}<extra></extra>",
    )
    chart.y(tickvals=list(range(len(values))), ticktext=names, autorange="reversed", showgrid=False)
    low, high = min([0.0, *values]), max([0.0, *values])
    room = 0.14 * (high - low or 1)
    chart.x(
        title="spikes per neuron and step" if spiking else "mean |output| per neuron and step",
        range=[low - (room if low < 0 else 0), high + room],
    )
    return chart
