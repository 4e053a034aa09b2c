"""What the network was shown and what it answered: images, classes, piano rolls, series.

outputs and targets of an example are (T, O) or (O,), classes (T,).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from spikebridge.report.activity_charts import heading, stacked
from spikebridge.report.theme import (
    COLOURS,
    GRID,
    INK,
    NEUTRAL,
    Chart,
    colour_of,
    colour_scale,
    fade,
    label,
    rgb,
    shades,
    shown,
)
from spikebridge.runs.load import Examples
from spikebridge.trained.midi import LOWEST as LOWEST_PITCH
from spikebridge.trained.midi import held_notes

NOTES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
FAINT = 0.1
DARKER, BRIGHTER = COLOURS["snu"], COLOURS["softsnu"]
OUTPUTS = 4
COLUMNS = 40
SCALE = "standard deviations"


def digit_image(examples: Examples, index: int) -> np.ndarray | None:
    """The image (H, W), or in colour (H, W, 3), in [0, 1] that an example's inputs show.

    None where they are no image.
    """
    x = np.nan_to_num(examples.x[: examples.length[index], index].astype(np.float32))
    side = round(x.shape[1] ** 0.5)
    if x.shape[0] == x.shape[1] and side * side != x.shape[1]:
        image = x
    elif side in (8, 28) and side * side == x.shape[1] and x.shape[0]:
        image = x.mean(axis=0).reshape(side, side)
    elif x.shape[1] == 3 * 32 * 32 and x.shape[0]:
        image = x.mean(axis=0).reshape(3, 32, 32).transpose(1, 2, 0)
    else:
        return None
    return np.clip(image / max(float(image.max()), 1e-9), 0, 1)


def event_image(examples: Examples, index: int) -> np.ndarray | None:
    """A colour image (H, W, 3) in [0, 1] of the events in the first third of an example.

    None where I is not 2 H W.  Inputs are images (2, H, W): pixels that grew darker go to blue,
    those that grew brighter to orange, on white.  N-MNIST's camera moves three times: all events on
    one picture would be blurred.
    """
    steps = -(-int(examples.length[index]) // 3)
    x = np.nan_to_num(examples.x[:steps, index].astype(np.float32))
    side = round((x.shape[1] / 2) ** 0.5)
    if 2 * side * side != x.shape[1] or not x.shape[0]:
        return None
    counts = x.sum(axis=0).reshape(2, side, side)
    # The few liveliest pixels would leave all others pale.
    shade = np.clip(counts / max(float(np.quantile(counts, 0.98)), 1e-9), 0, 1)[..., None]
    inks = [1 - np.array(rgb(colour)) / 255 for colour in (DARKER, BRIGHTER)]
    return np.clip(1 - shade[0] * inks[0] - shade[1] * inks[1], 0, 1)


def png(image: np.ndarray) -> str:
    """A PNG data address of a grey image (H, W), dark ink on white, or one in colour (H, W, 3).

    Values lie in [0, 1].
    """
    from PIL import Image

    pixels = np.round(255 * (1 - image if image.ndim == 2 else image)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def class_bars(
    output: np.ndarray, truth: int, unit: str, noun: str = "digit", names: Sequence[str] = ()
) -> Chart:
    """The probability (O,) that the network gives to each class; the true one is coloured.

    names are those of all classes, or none.
    """
    values = np.nan_to_num(output.astype(np.float64))
    names = [label(name) for name in names] if len(names) == len(values) else []
    colours = [colour_of(unit) if k == truth else NEUTRAL for k in range(len(values))]
    chart = Chart(250)
    hover = f"{noun} %{{x}}: %{{y:.3g}} %"
    chart.bars(names or list(range(len(values))), shown(100 * values, 3), colours, hover=hover)
    few = {"dtick": 1} if len(values) <= 30 else {"nticks": 12}
    chart.x(title=noun, showgrid=False, **({} if names else {"tickformat": "d", **few}))
    chart.y(title="probability (%)", range=[0, 104], dtick=25)
    return chart


def pitch_name(pitch: int) -> str:
    """The name of a MIDI pitch; 60 is the middle C, C4."""
    return f"{NOTES[pitch % 12]}{pitch // 12 - 1}"


def frame_nll(output: np.ndarray, target: np.ndarray) -> float:
    """Mean over frames of the summed binary cross-entropy, in nats; both arguments are (T, O)."""
    p = np.clip(output.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.where(target > 0.5, np.log(p), np.log1p(-p)).sum(axis=1).mean())


def piano_roll(
    output: np.ndarray, target: np.ndarray, unit: str, x_title: str, lowest: int = LOWEST_PITCH
) -> Chart | None:
    """Predicted probability of each note (T, O) as shades, and the notes that came as outlines."""
    if not output.size:
        return None
    output = np.nan_to_num(output.astype(np.float32))
    low, high = _used(output, target, lowest)
    pitches, frames = np.arange(low, high + 1), np.arange(2, len(output) + 2)
    keys = slice(low - lowest, high - lowest + 1)
    chart = Chart(max(220, 66 + 9 * len(pitches)), {"showlegend": False})
    chart.add(
        "heatmap",
        x=frames.astype(np.uint16),
        y=pitches.astype(np.uint8),
        z=np.round(100 * np.clip(output[:, keys], 0, 1)).astype(np.uint8).T,
        zmin=0,
        zmax=100,
        colorscale=colour_scale(shades(unit)),
        showscale=False,
        text=[[pitch_name(pitch)] * len(frames) for pitch in pitches.tolist()],
        hover="frame %{x}, %{text}: %{z} %",
    )
    # A closed rectangle around each held note, None between them.
    x: list[float | None] = []
    y: list[float | None] = []
    for note in held_notes(target[:, keys] > 0.5, low):
        left, right = note.start + 1.56, note.end + 1.44
        bottom, top = note.pitch - 0.42, note.pitch + 0.42
        x += [left, right, right, left, left, None]
        y += [bottom, bottom, top, top, bottom, None]
    chart.line(x, y, INK, width=1.3, mode="lines", hoverinfo="skip")
    _pitch_axis(chart, low, high)
    ticks = {"dtick": 1} if len(output) <= 12 else {}
    chart.x(x_title, range=[1.5, len(output) + 1.5], tickformat="d", showgrid=False, **ticks)
    return chart


def note_bars(
    frames: np.ndarray, prompt: int, per_frame_s: float, unit: str, lowest: int = LOWEST_PITCH
) -> Chart:
    """The held notes of frames (T, 88) as bars over seconds; the first `prompt` frames are pale.

    A note that is held from one part into the other is drawn in both.
    """
    low, high = _used(np.zeros_like(frames), frames, lowest)
    chart = Chart(max(260, 110 + 9 * (high - low)), {"barmode": "overlay"})
    pale = {"color": fade(NEUTRAL, 0.3), "line": {"color": NEUTRAL, "width": 1}}
    solid = {"color": colour_of(unit), "line": {"width": 0}}
    for name, first, part, marker in (
        ("seed phrase", 0, frames[:prompt], pale),
        ("continuation", prompt, frames[prompt:], solid),
    ):
        notes = held_notes(part, lowest)
        chart.add(
            "bar",
            name=name,
            orientation="h",
            base=[round((first + note.start) * per_frame_s, 4) for note in notes],
            x=[round((note.end - note.start) * per_frame_s, 4) for note in notes],
            y=[note.pitch for note in notes],
            width=0.84,
            marker=marker,
            text=[pitch_name(note.pitch) for note in notes],
            textposition="none",
            hover="%{text}, from %{base:.2f} s for %{x:.2f} s",
        )
    _pitch_axis(chart, low, high)
    chart.x("time (s)", range=[0, len(frames) * per_frame_s])
    return chart


def _used(output: np.ndarray, target: np.ndarray, lowest: int) -> tuple[int, int]:
    """Lowest and highest MIDI pitch that came or was often expected, with a little margin."""
    keys = np.flatnonzero((target > 0.5).any(axis=0) | (output.mean(axis=0) > FAINT))
    if not len(keys):
        return lowest, lowest + output.shape[1] - 1
    low, high = int(keys[0]) - 2, int(keys[-1]) + 2
    spare = max(0, 12 - (high - low))
    low, high = max(0, low - spare // 2), min(output.shape[1] - 1, high + (spare + 1) // 2)
    return lowest + low, lowest + high


def _pitch_axis(chart: Chart, low: int, high: int) -> None:
    named = range(12) if high - low < 16 else (0, 4, 7)
    ticks = [pitch for pitch in range(low, high + 1) if pitch % 12 in named]
    around, texts = [low - 0.5, high + 0.5], list(map(pitch_name, ticks))
    chart.y("pitch", tickvals=ticks, ticktext=texts, range=around, gridcolor=GRID)


def name_of(names: tuple[str, ...], output: int) -> str:
    return label(names[output], 40) if output < len(names) else f"output {output + 1}"


def rmse(output: np.ndarray, target: np.ndarray) -> float:
    return float(np.sqrt(np.square(output.astype(np.float64) - target).mean()))


def lines(
    output: np.ndarray, target: np.ndarray, names: tuple[str, ...], unit: str, x_title: str
) -> Chart | None:
    """Truth and prediction over time: the first few outputs, one row each."""
    if not output.size:
        return None
    count = min(OUTPUTS, output.shape[1])
    chart = stacked([120.0] * count, 40, len(output), x_title)
    steps = np.arange(1, len(output) + 1, dtype=np.uint16)
    pairs = (("truth", target, NEUTRAL), ("prediction", output, colour_of(unit)))
    for row in range(1, count + 1):
        for title, values, colour in pairs:
            hover = f"step %{{x}}, {title}: %{{y:.3f}}"
            look: dict[str, Any] = {"width": 1.8, "showlegend": row == 1, "hover": hover}
            chart.line(steps, _rounded(values[:, row - 1]), colour, title, row=row, **look)
        heading(chart, row, f"<b>{name_of(names, row - 1)}</b>")
        chart.y(SCALE, row, nticks=5)
    # To the right, because the name of the first output stands on the left.
    chart.layout |= {"showlegend": True, "legend": {"x": 1, "xanchor": "right"}}
    return chart


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.round(np.nan_to_num(values.astype(np.float64)), 3)


def dots(output: np.ndarray, target: np.ndarray, names: tuple[str, ...], unit: str) -> Chart | None:
    """Truth and prediction side by side for each output."""
    if not output.size:
        return None
    places = list(range(min(COLUMNS, len(output))))
    chart = Chart(280)
    for title, values, colour, symbol, size in (
        ("truth", target, NEUTRAL, "circle-open", 13),
        ("prediction", output, colour_of(unit), "circle", 8),
    ):
        marker = {"color": colour, "symbol": symbol, "size": size, "line": {"width": 2}}
        chart.marks(places, _rounded(values[places]), marker, title, hover=f"{title}: %{{y:.3f}}")
    texts, around = [name_of(names, k) for k in places], [-0.5, len(places) - 0.5]
    chart.x(tickvals=places, ticktext=texts, showgrid=False, range=around)
    chart.y(SCALE)
    return chart


def steps(output: np.ndarray, target: np.ndarray, unit: str, x_title: str) -> Chart | None:
    """The true class as a line over time, and the most probable as dots."""
    if not output.size:
        return None
    answer = np.nan_to_num(output, nan=-1.0).argmax(axis=-1)
    chart = stacked([220.0], 0, len(output), x_title)
    time = np.arange(1, len(output) + 1, dtype=np.uint16)
    truth = np.where(target < 0, np.nan, target) if target.min() < 0 else target
    line = {"color": NEUTRAL, "width": 1.8, "shape": "hvh"}
    chart.line(time, truth, NEUTRAL, "truth", mode="lines", line=line)
    chart.marks(time, answer, {"color": colour_of(unit), "size": 7}, "answer")
    few = {"dtick": 1} if max(answer.max(), target.max()) <= 12 else {"nticks": 8}
    chart.y("class", tickformat="d", **few)
    chart.layout["showlegend"] = True
    return chart
