"""Charts of what the neurons do on one example: raster (or activity map) and membrane traces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spikebridge.report.theme import (
    LOOK,
    NEUTRAL,
    Chart,
    Ramp,
    colour_of,
    colour_scale,
    shades,
    suffix,
)
from spikebridge.report.wording import plural
from spikebridge.runs.load import Examples

NEURONS = 150
ROWS = 450
SPIKES = 8000
CELLS = 40000
TRACES = 4


@dataclass(frozen=True)
class Band:
    """One layer of one example: outputs y and membranes s, both (T, N); s is None without one.

    threshold (N,) is where spikes begin, NaN for neurons that do not tell; None if none does.
    """

    name: str
    y: np.ndarray
    s: np.ndarray | None
    spiking: bool
    threshold: np.ndarray | None = None
    input: bool = False


def bands(examples: Examples, index: int, *, show_input: bool) -> list[Band]:
    """The layers of one example over its real time steps, first to last."""
    steps = int(examples.length[index])
    layers = []
    x = examples.x[:steps, index]
    if show_input and x.ndim == 2 and x.size and np.isin(x, (0, 1)).all():
        layers.append(Band("input", x, None, True, input=True))
    for layer, outputs in examples.y.items():
        y = np.nan_to_num(outputs[:steps, index].astype(np.float32))
        s = examples.s[layer][:steps, index].astype(np.float32) if layer in examples.s else None
        limits = thresholds(examples, layer)
        layers.append(Band(f"layer {layer}", y, s, examples.spiking(layer), limits))
    return [band for band in layers if band.y.size]


def thresholds(examples: Examples, layer: int) -> np.ndarray | None:
    """Firing thresholds (N,): the network's own, where the file has them.

    In those of earlier versions halfway between the highest silent and the lowest spiking state,
    NaN where a neuron always or never spiked; None where states and spikes do not part cleanly, as
    with a threshold that adapts.
    """
    if not examples.spiking(layer) or not examples.s[layer].size:
        return None
    if layer in examples.threshold:
        return examples.threshold[layer].astype(np.float64)
    y, s = examples.y[layer] > 0, examples.s[layer].astype(np.float64)
    real = (np.arange(len(y))[:, None] < examples.length)[..., None]
    below = np.where(real & ~y, s, -np.inf).max(axis=(0, 1))
    above = np.where(real & y, s, np.inf).min(axis=(0, 1))
    known = np.isfinite(below) & np.isfinite(above)
    if not known.any() or (below > above)[known].any():
        return None
    return np.where(known, (below + above) / 2, np.nan)


def chosen(band: Band, most: int) -> np.ndarray:
    """Indices of at most `most` neurons, evenly spaced, fewer where a figure would grow large."""
    steps, neurons = band.y.shape
    if band.spiking:
        most = min(most, int(most * SPIKES / (1 + band.y[:, even(neurons, most)].sum())))
    else:
        most = min(most, CELLS // steps)
    return even(neurons, max(1, most))


def even(neurons: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, neurons - 1, min(most, neurons)).round().astype(int))


def selection_text(layers: list[Band]) -> str:
    most = _most(layers)
    parts = [
        f"{len(chosen(band, most)):,} of {band.y.shape[1]:,} in {band.name}"
        for band in layers
        if len(chosen(band, most)) < band.y.shape[1]
    ]
    return f" Shown are evenly spaced neurons: {', '.join(parts)}." if parts else ""


def _most(layers: list[Band]) -> int:
    """Neurons to show of each layer: at most NEURONS, and about ROWS of all layers together."""
    return min(NEURONS, max(12, ROWS // max(1, len(layers))))


def raster(layers: list[Band], unit: str, x_title: str) -> Chart | None:
    """Layers stacked over a shared time axis: spikes as ticks, graded outputs as shades."""
    if not layers:
        return None
    most = _most(layers)
    heights = [max(72.0, 2.2 * len(chosen(band, most))) for band in layers]
    chart = stacked(heights, 34, layers[0].y.shape[0], x_title)
    graded = [band for band in layers if not band.spiking]
    for row, (band, height) in enumerate(zip(layers, heights, strict=True), start=1):
        pick = chosen(band, most)
        if band.spiking:
            _ticks(chart, row, band, pick, height, unit)
        else:
            _shades(chart, row, band, pick)
        heading(chart, row, f"<b>{band.name}</b> · {_summary(band)}")
        around = [band.y.shape[1] - 0.5, -0.5]
        chart.y("neuron", row, range=around, nticks=5, tickformat="d", showgrid=False)
    if graded:
        low, high = _range(graded)
        scale = colour_scale(shades(unit, negative=low < 0))
        colours = {"cmin": low, "cmax": high, "colorscale": scale, "showscale": False}
        chart.layout["coloraxis"] = colours
    return chart


def stacked(heights: list[float], gap: float, steps: int, x_title: str) -> Chart:
    """An empty chart of rows with heights in pixels, first on top, over one axis of time steps."""
    total = sum(heights) + gap * (len(heights) - 1)
    chart = Chart(round(total) + 90, {"margin": LOOK["margin"] | {"t": 30}, "showlegend": False})
    top = total
    for row, height in enumerate(heights, start=1):
        chart.y(number=row, domain=[max(0.0, (top - height) / total), top / total])
        top -= height + gap
    bottom = f"y{suffix(len(heights))}"
    ticks = {"dtick": 1} if steps <= 12 else {"nticks": 12}
    chart.x(x_title, anchor=bottom, range=[0.5, steps + 0.5], tickformat="d", **ticks)
    return chart


def _summary(band: Band) -> str:
    if not band.spiking:
        return f"{plural(band.y.shape[1], 'neuron')}, graded outputs"
    return f"{plural(int(band.y.sum()), 'spike')} from {plural(band.y.shape[1], 'neuron')}"


def heading(chart: Chart, row: int, text: str) -> None:
    """A line of text above a row of subplots, at its left edge."""
    left = {"xref": "paper", "x": 0, "xanchor": "left", "font": {"size": 12.5}}
    above = {"yref": f"y{suffix(row)} domain", "y": 1, "yanchor": "bottom", "yshift": 3}
    chart.write(text, **left, **above)


def _ticks(chart: Chart, row: int, band: Band, pick: np.ndarray, height: float, unit: str) -> None:
    steps, neurons = np.nonzero(band.y[:, pick])
    colour = NEUTRAL if band.input else colour_of(unit)
    width, size = np.clip(120 / band.y.shape[0], 1.4, 4), np.clip(height / len(pick), 3, 12)
    line = {"width": float(width), "color": colour}
    chart.marks(
        (steps + 1).astype(np.uint16),
        pick[neurons].astype(np.uint32),
        {"symbol": "line-ns", "size": float(size), "line": line},
        hover="step %{x}, neuron %{y}",
        row=row,
    )
    if not len(steps):
        where = {"xref": "x domain", "yref": f"y{suffix(row)} domain"}
        chart.write("no spikes", x=0.5, y=0.5, **where)


def _shades(chart: Chart, row: int, band: Band, pick: np.ndarray) -> None:
    chart.add(
        "heatmap",
        x=np.arange(1, band.y.shape[0] + 1, dtype=np.uint16),
        y=pick.astype(np.uint32),
        z=np.round(band.y[:, pick].T, 2).astype(np.float32),
        coloraxis="coloraxis",
        hover="step %{x}, neuron %{y}: %{z:.2f}",
        row=row,
    )


def ramp(layers: list[Band], unit: str) -> Ramp | None:
    """The key of the shades of graded layers; None where all layers spike."""
    graded = [band for band in layers if not band.spiking]
    if not graded:
        return None
    low, high = _range(graded)
    ends = f"{low:.3g}".replace("-", "−"), f"{high:.3g}"
    return Ramp("output of the neuron", *ends, shades(unit, negative=low < 0))


def _range(graded: list[Band]) -> tuple[float, float]:
    high = max(1.0, *(float(np.abs(band.y).max()) for band in graded))
    return (-high if min(float(band.y.min()) for band in graded) < 0 else 0.0), high


def traced(layers: list[Band]) -> list[tuple[Band, int]]:
    """A few neurons worth watching: from lively ones to typical ones of each layer."""
    layers = [band for band in layers if not band.input]
    each = max(1, TRACES // max(1, len(layers)))
    picked = []
    for band in layers[: TRACES + 2]:
        lively = band.y.sum(axis=0) if band.spiking else band.y.std(axis=0)
        order = np.argsort(-lively, kind="stable")
        active = max(int((lively > 0).sum()), min(each, len(order)))
        ranks = {int((k + 0.5) / each * active * 0.7) for k in range(each)}
        picked += [(band, int(order[rank])) for rank in sorted(ranks)]
    return picked


def traces(layers: list[Band], unit: str, x_title: str) -> Chart | None:
    """Membrane states over time, one row per neuron, spikes marked; outputs where no membrane."""
    picked = traced(layers)
    if not picked:
        return None
    chart = stacked([64.0] * len(picked), 32, picked[0][0].y.shape[0], x_title)
    for row, (band, neuron) in enumerate(picked, start=1):
        _trace(chart, row, band, neuron, unit)
        chart.y("output" if band.s is None else "state s", row, nticks=4)
    return chart


def _trace(chart: Chart, row: int, band: Band, neuron: int, unit: str) -> None:
    y = band.y[:, neuron]
    line = y if band.s is None else band.s[:, neuron]
    steps, heights = np.arange(1, len(line) + 1, dtype=np.uint16), np.round(line, 3)
    colour = NEUTRAL if band.spiking else colour_of(unit)
    chart.line(steps, heights, colour, width=1.6, hover="step %{x}: %{y:.3f}", row=row)
    text = f"<b>{band.name}</b>, neuron {neuron}"
    if band.threshold is not None and np.isfinite(band.threshold[neuron]):
        height = round(float(band.threshold[neuron]), 3)
        chart.rule(xref="paper", x0=0, x1=1, yref=f"y{suffix(row)}", y0=height, y1=height)
    if band.spiking:
        fired, dot = y > 0, {"color": colour_of(unit), "size": 8}
        chart.marks(steps[fired], heights[fired], dot, hover="spike at step %{x}", row=row)
        text += f" · {plural(int(fired.sum()), 'spike')}"
    heading(chart, row, text)
