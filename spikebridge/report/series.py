"""Charts of answers over time: numbers beside the truth, and the class at each step."""

from __future__ import annotations

import numpy as np

from spikebridge.report.activity_charts import heading, stacked
from spikebridge.report.theme import NEUTRAL, Chart, colour_of, label, suffix

OUTPUTS = 4
COLUMNS = 40
SCALE = "standard deviations"


def name_of(names: tuple[str, ...], output: int) -> str:
    """What an output is called, as text for a figure."""
    return label(names[output], 40) if output < len(names) else f"output {output + 1}"


def rmse(output: np.ndarray, target: np.ndarray) -> float:
    """Root of the mean squared error over all that is given."""
    return float(np.sqrt(np.square(output.astype(np.float64) - target).mean()))


def lines(
    output: np.ndarray, target: np.ndarray, names: tuple[str, ...], unit: str, x_title: str
) -> Chart | None:
    """Truth and prediction, both (T, O), over time: the first few outputs, one row each."""
    if not output.size:
        return None
    shown = min(OUTPUTS, output.shape[1])
    chart = stacked([120.0] * shown, 40, len(output), x_title)
    steps = np.arange(1, len(output) + 1, dtype=np.uint16)
    for row in range(1, shown + 1):
        pairs = (("truth", target, NEUTRAL), ("prediction", output, colour_of(unit)))
        for title, values, colour in pairs:
            chart.add(
                "scatter",
                x=steps,
                y=np.round(np.nan_to_num(values[:, row - 1].astype(np.float64)), 3),
                name=title,
                showlegend=row == 1,
                mode="lines" if len(steps) > 1 else "markers",
                line={"color": colour, "width": 1.8},
                hovertemplate=f"step %{{x}}, {title}: %{{y:.3f}}<extra></extra>",
                yaxis=f"y{suffix(row)}",
            )
        heading(chart, row, f"<b>{name_of(names, row - 1)}</b>")
        chart.y(SCALE, row, nticks=5)
    chart.layout["showlegend"] = True
    # To the right, because the name of the first output stands on the left.
    chart.layout["legend"] = {"x": 1, "xanchor": "right"}
    return chart


def dots(output: np.ndarray, target: np.ndarray, names: tuple[str, ...], unit: str) -> Chart | None:
    """Truth and prediction, both (O,), side by side for each output."""
    if not output.size:
        return None
    places = list(range(min(COLUMNS, len(output))))
    chart = Chart(280)
    marks = (
        ("truth", target, NEUTRAL, "circle-open", 13),
        ("prediction", output, colour_of(unit), "circle", 8),
    )
    for title, values, colour, symbol, size in marks:
        chart.add(
            "scatter",
            x=places,
            y=np.round(np.nan_to_num(values[places].astype(np.float64)), 3),
            name=title,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": size, "line": {"width": 2}},
            hovertemplate=f"{title}: %{{y:.3f}}<extra></extra>",
        )
    chart.x(tickvals=places, ticktext=[name_of(names, k) for k in places], showgrid=False)
    chart.x(range=[-0.5, len(places) - 0.5])
    chart.y(SCALE)
    return chart


def steps(output: np.ndarray, target: np.ndarray, unit: str, x_title: str) -> Chart | None:
    """The true class (T,) as a line over time, and the most probable of (T, O) as dots."""
    if not output.size:
        return None
    answer = np.nan_to_num(output, nan=-1.0).argmax(axis=-1)
    chart = stacked([220.0], 0, len(output), x_title)
    time = np.arange(1, len(output) + 1, dtype=np.uint16)
    line = {"color": NEUTRAL, "width": 1.8, "shape": "hvh"}
    dot = {"color": colour_of(unit), "size": 7}
    truth = np.where(target < 0, np.nan, target) if target.min() < 0 else target
    chart.add("scatter", x=time, y=truth, name="truth", mode="lines", line=line)
    chart.add("scatter", x=time, y=answer, name="answer", mode="markers", marker=dot)
    few = {"dtick": 1} if max(answer.max(), target.max()) <= 12 else {"nticks": 8}
    chart.y("class", tickformat="d", **few)
    chart.layout["showlegend"] = True
    return chart
