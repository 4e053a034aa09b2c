"""What pages are made of: sections of cards, figures and tables; and the look of all figures."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

# Okabe and Ito's palette, which stays distinguishable with colour-blind vision; its yellow and
# black are left out because one vanishes on a light page and the other on a dark one.  The binary
# units and those without memory have four of Tol's muted scheme, made for the same.
COLOURS = {
    "snu": "#0072B2",
    "softsnu": "#D55E00",
    "li-snu": "#56B4E9",
    "adaptive-snu": "#009E73",
    "binary-di": "#882255",
    "binary-ci": "#999933",
    "rnn": "#808080",
    "gru": "#E69F00",
    "lstm": "#CC79A7",
    "relu": "#AA4499",
    "tanh": "#44AA99",
}
# Rows of one unit that differ in how they learn; units of those colours do not stand beside them.
WAYS = {"gain": "#56B4E9", "grapes": "#009E73", "online": "#CC79A7"}
WAYS |= {"ewc": "#E69F00", "si": "#CC79A7"}
UNKNOWN = "#5B6BB5"
NEUTRAL = "#808080"
GRID = "rgba(128,128,128,0.2)"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "hexagon", "star", "cross")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK = "#30343B"
AXIS = {
    "gridcolor": GRID,
    "linecolor": GRID,
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 10, "font": {"size": 13}},
    "ticks": "outside",
    "tickcolor": "rgba(0,0,0,0)",
    "ticklen": 4,
}
LOOK: dict[str, Any] = {
    "xaxis": AXIS,
    "yaxis": AXIS,
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": FONT, "size": 13, "color": INK},
    "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
    "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    "dragmode": False,
    "hovermode": "closest",
    "hoverlabel": {"font": {"family": FONT, "size": 13}},
}
# No button bar: on touch screens it stands always, and over the legend.
CONFIG = {"displayModeBar": False, "responsive": True}
# The page draws what stands in the script once plotly.js is unpacked.
FIGURE = (
    '<div class="drawing" id="figure-{}" style="height: {}px"></div>\n'
    '<script type="application/json">{}</script>'
)


Values: TypeAlias = Sequence[Any] | np.ndarray


@dataclass(frozen=True)
class Ramp:
    """The key of a colour scale: what it shows, its two ends, and its colours from low to high."""

    title: str
    low: str
    high: str
    colours: tuple[str, ...]


class Chart:
    """A figure as plain data, in the words of plotly.js.

    Axes are numbered from 1, as plotly numbers them; most charts have one pair.
    """

    def __init__(self, height: int, layout: Mapping[str, Any] | None = None) -> None:
        self.layout: dict[str, Any] = {"height": height, **(layout or {})}
        self.traces: list[dict[str, Any]] = []

    def add(
        self,
        kind: str,
        *,
        name: str | None = None,
        hover: str | None = None,
        row: int = 1,
        **trace: Any,
    ) -> None:
        """A trace; its name is that of the legend, hover plotly's template, row its y axis."""
        if name is not None:  # on one line
            trace["name"] = label(name, 40)
        if hover is not None:
            trace["hovertemplate"] = f"{hover}<extra></extra>"
        if row > 1:
            trace["yaxis"] = f"y{row}"
        self.traces.append({"type": kind, **trace})

    def line(
        self,
        x: Values,
        y: Values,
        colour: str,
        name: str | None = None,
        *,
        width: float = 2,
        dash: str | None = None,
        marks: bool = False,
        **trace: Any,
    ) -> None:
        """A line, with marks where asked; a single point is a mark, which no line would show."""
        style: dict[str, Any] = {"mode": "lines" if len(x) > 1 else "markers"}
        if marks:
            style = {"mode": "lines+markers", "marker": {"color": colour, "size": 8}}
        line = {"color": colour, "width": width, "dash": dash}
        self.add("scatter", x=x, y=y, name=name, **{"line": line, **style, **trace})

    def marks(
        self, x: Values, y: Values, marker: Mapping[str, Any], name: str | None = None, **trace: Any
    ) -> None:
        """Marks without a line between them."""
        self.add("scatter", x=x, y=y, name=name, **{"mode": "markers", "marker": marker, **trace})

    def bars(self, x: Values, y: Values, colour: str | Sequence[str], **trace: Any) -> None:
        """Upright bars, or, with orientation "h", lying ones."""
        self.add("bar", x=x, y=y, **{"marker": {"color": colour}, **trace})

    def band(
        self, x: Values, low: Values, high: Values, colour: str, alpha: float = 0.16, **trace: Any
    ) -> None:
        """A faint ground between two lines."""
        look: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "showlegend": False}
        look |= {"fill": "toself", "fillcolor": fade(colour, alpha), "hoverinfo": "skip"}
        self.add("scatter", x=[*x, *reversed(x)], y=[*high, *reversed(low)], **look, **trace)

    def rows(self, names: Iterable[str], width: int = 18) -> None:
        """A y axis of named rows at 0, 1, ..., the first on top; names are wrapped at width."""
        texts = [label(name, width) for name in names]
        places, room = list(range(len(texts))), [len(texts) - 0.4, -0.6]
        self.y(tickvals=places, ticktext=texts, range=room, showgrid=False)

    def x(self, title: str | None = None, **axis: Any) -> None:
        """Settings of the x axis, on top of earlier ones."""
        self._axis("xaxis", title, axis)

    def y(self, title: str | None = None, number: int = 1, **axis: Any) -> None:
        """Settings of a y axis, on top of earlier ones."""
        self._axis(f"yaxis{suffix(number)}", title, axis)

    def _axis(self, name: str, title: str | None, axis: dict[str, Any]) -> None:
        if title is not None:
            axis["title"] = {"text": title}
        self.layout.setdefault(name, {}).update(axis)

    def rule(self, **ends: Any) -> None:
        """A dotted line across: x0, x1, y0, y1 and what they refer to, in plotly's words."""
        line = {"color": NEUTRAL, "width": 1.5, "dash": "dot"}
        self.layout.setdefault("shapes", []).append({"type": "line", "line": line, **ends})

    def write(self, text: str, **place: Any) -> None:
        """Text in the figure, where plotly's annotation settings say."""
        note = {"text": text, "showarrow": False, **place}
        self.layout.setdefault("annotations", []).append(note)


def whiskers(half: float | Sequence[float] | None, **style: Any) -> dict[str, Any] | None:
    """Error bars of so much to either side, as settings of a trace; None for none."""
    if not half:
        return None
    return {"array": list(half) if isinstance(half, Sequence) else [half], **style}


def shown(values: Iterable[float | None], figures: int = 6) -> list[float | None]:
    """Numbers to as many figures as a chart can show; None stays."""
    return [None if value is None else float(f"{value:.{figures}g}") for value in values]


def suffix(number: int) -> str:
    """How plotly tells its axes apart: "" for the first, then "2", "3", …"""
    return "" if number == 1 else str(number)


def plain(value: Any) -> Any:
    """A figure's values as JSON holds them: what is None is left out, what is no number is null.

    Arrays of up to 4 bytes a number, and of doubles, are packed as plotly.js reads them.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        if value.dtype.str[1:] not in ("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8"):
            return plain(value.tolist())
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        data = base64.b64encode(little.tobytes()).decode("ascii")
        shape = {"shape": ", ".join(map(str, value.shape))} if value.ndim > 1 else {}
        return {"dtype": value.dtype.str[1:], "bdata": data, **shape}
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Plot:
    """One figure of a page: title, what is drawn, and a caption in plain English.

    Args:
        content: a chart; or HTML, in which all that comes from files is escaped.
    """

    title: str
    content: Chart | str
    caption: str
    wide: bool = False
    ramp: Ramp | None = None

    def html(self, number: int) -> str:
        """The figure's HTML; its number on the page makes its id."""
        if isinstance(self.content, str):
            return self.content
        figure = {"data": self.content.traces, "layout": self.content.layout}
        text = json.dumps(plain(figure), ensure_ascii=False, separators=(",", ":"))
        # Text from files must not end the script; nothing but a "<" can.
        return FIGURE.format(number, self.content.layout["height"], text.replace("<", "\\u003c"))


def figure(chart: Chart | None, title: str, caption: str, **look: Any) -> Plot | None:
    """A chart with its title and caption, and wide or ramp as a Plot has them; None stays None."""
    return None if chart is None else Plot(title, chart, caption, **look)


@dataclass(frozen=True)
class Card:
    """A headline figure: its name, its value and a line below; its spread, where it has one."""

    name: str
    value: str
    below: str
    spread: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text, the first cell of each a heading.

    Args:
        text: numbers of the columns that hold words, which may be wrapped.
        colours: of the rows, where they have some.
        best: the number of the row whose second cell stands out.
    """

    heads: tuple[str, ...]
    rows: list[list[str]]
    text: tuple[int, ...] = ()
    colours: tuple[str, ...] = ()
    best: int | None = None

    def markdown(self) -> str:
        lines = [list(self.heads), ["---"] * len(self.heads), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def table(
    items: Iterable[Any],
    columns: Mapping[str, Callable[[Any], str]],
    *,
    first: Sequence[str] = (),
    last: Sequence[str] = (),
    **more: Any,
) -> Table:
    """One row for each item, between a first and a last one; columns say what they show of it."""
    rows = [[show(item) for show in columns.values()] for item in items]
    rows = [list(row) for row in (first, *rows, last) if row]
    return Table(tuple(columns), rows, **more)


@dataclass(frozen=True)
class Block:
    """A part of a section; what is empty is not shown."""

    title: str = ""
    cards: tuple[Card, ...] = ()
    plots: tuple[Plot, ...] = ()
    table: Table | None = None
    below: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph and what follows."""

    title: str
    about: str
    blocks: tuple[Block, ...]

    def markdown(self) -> str:
        """The section for documents: its tables and what stands below them, without figures."""
        parts = [f"### {self.title}", self.about]
        for block in self.blocks:
            if block.table:
                parts += [block.table.markdown(), re.sub(r"^\*", r"\\*", block.below)]
        return "\n\n".join(filter(None, parts)).replace("\u00a0", " ") + "\n"


def figures(*plots: Plot | None) -> Block:
    """A block of the figures that there are."""
    return Block(plots=tuple(plot for plot in plots if plot))


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def fade(colour: str, alpha: float) -> str:
    red, green, blue = rgb(colour)
    return f"rgba({red},{green},{blue},{alpha})"


def colour_of(unit: str) -> str:
    """The colour that a unit has in every figure; its recurrent variant is a darker shade."""
    base = (WAYS | COLOURS).get(unit.removeprefix("recurrent-"), UNKNOWN)
    if not unit.startswith("recurrent-"):
        return base
    return "#" + "".join(f"{round(part * 0.7):02X}" for part in rgb(base))


def dash_of(unit: str) -> str:
    return "dash" if unit.startswith("recurrent-") else "solid"


def shades(unit: str, negative: bool = False) -> tuple[str, ...]:
    """Colours from transparent to the unit's, so that they suit light and dark pages.

    With negative, values below the middle go to blue.
    """
    colour, blue = colour_of(unit), COLOURS["snu"]
    below = (fade(blue, 1), fade(blue, 0)) if negative else ()
    return *below, fade(colour, 0), fade(colour, 1)


def colour_scale(colours: tuple[str, ...]) -> list[tuple[float, str]]:
    """Colours as a plotly colour scale; four of them meet in the middle."""
    places = (0, 1) if len(colours) == 2 else (0, 0.5, 0.5, 1)
    return list(zip(places, colours, strict=True))


def probability_ramp(title: str, unit: str) -> Ramp:
    """The key of shades that stand for probabilities."""
    return Ramp(title, "0 %", "100 %", shades(unit))


def label(text: str, width: int = 18) -> str:
    """Text for a figure: wrapped, cut to three lines, and safe from plotly's own mark-up."""
    lines = textwrap.wrap(text, width) or [""]
    if len(lines) > 3:
        lines = [*lines[:2], lines[2][: width - 1] + "…"]
    return "<br>".join(html.escape(line, quote=False) for line in lines)
