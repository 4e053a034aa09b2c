"""Learning rules against their controls: as Markdown, as a picture, and on the page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikebridge.base.metrics import METRICS
from spikebridge.report.theme import NEUTRAL, Block, Chart, Drawer, Section, Table, colour_of, label
from spikebridge.report.wording import CORRECTED, plural, said_of, table_lines
from spikebridge.runs import rundir
from spikebridge.runs.transfer import HIGHER_IS_BETTER, MEASURES
from spikebridge.studies.contrasts import corrected

PLAIN = ("tests", "slowness")
COMPARED = ("average_accuracy", "forgetting", "unseen")
"""Measures of tasks one after the other that are compared."""
ABOUT = (
    "The same seeds give the same first weights and the same order of samples, so each rule is "
    "compared with its control seed by seed."
)
ABOUT_GAIN = (
    " Equal gain gives every neuron the mean factor of its layer: what GRAPES does beyond it is "
    "due to how factors are spread over neurons, and not to a larger step."
)
SLOWNESS = (
    "Slowness s fits accuracy(e) = highest x e / (s + e) to the validation accuracy after each "
    "epoch e, from chance at epoch 0: lower is faster."
)


def _shown(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The contrasts that stand in tables, each with its p-value corrected for their number."""
    shown = [item for item in content.get("contrasts") or [] if item["of"] in (*PLAIN, *COMPARED)]
    return [{**one, "corrected": p} for one, p in zip(shown, corrected(shown), strict=True)]


def _of(content: dict[str, Any], *what: str) -> list[dict[str, Any]]:
    return [item for item in _shown(content) if item["of"] in what]


def _difference(one: dict[str, Any], scale: float, decimals: int) -> str:
    """A mean difference with its interval, as text."""
    text = f"{scale * one['mean']:+.{decimals}f}"
    if one["low"] is None:
        return f"{text} (one seed)"
    low, high = (f"{scale * one[end]:+.{decimals}f}" for end in ("low", "high"))
    return f"{text} ({low} to {high})"


def judged(one: dict[str, Any], higher_is_better: bool) -> str:
    """What a contrast says, in words."""
    return said_of(one, HIGHER_IS_BETTER.get(one["of"], higher_is_better and one["of"] == "tests"))


def _about(content: dict[str, Any]) -> str:
    gain = any(row["role"] == "gain" for row in content["learning"])
    count = len(_shown(content))
    several = f" There are {count} intervals of 95 % here; {CORRECTED}." if count else ""
    return ABOUT + (ABOUT_GAIN if gain else "") + several


def _below(content: dict[str, Any]) -> str:
    edge = any(row.get("at_edge") for row in content["learning"])
    return (
        "* The first or the last value that was tried: a better one may lie beyond." if edge else ""
    )


def _contrast_rows(content: dict[str, Any]) -> list[list[str]]:
    metric = METRICS[content["metric"]]
    slow = {(item["label"], item["other"]): item for item in _of(content, "slowness")}
    rows = [
        [
            f"{item['label']} against {item['other']}",
            MEASURES[item["of"]],
            str(item["n"]),
            _difference(item, metric.scale, metric.decimals),
            judged(item, metric.higher_is_better),
        ]
        for item in _of(content, *COMPARED)
    ]
    for item in _of(content, "tests"):
        other = slow.get((item["label"], item["other"]))
        line = [
            f"{item['label']} against {item['other']}",
            str(item["n"]),
            _difference(item, metric.scale, metric.decimals),
            judged(item, metric.higher_is_better),
        ]
        if other is not None:
            line += [_difference(other, 1.0, 4), judged(other, metric.higher_is_better)]
        rows.append(line)
    return rows


def _heads(content: dict[str, Any]) -> tuple[str, ...]:
    metric = METRICS[content["metric"]]
    points = "points" if metric.unit == "%" else metric.unit
    if _of(content, *COMPARED):
        return ("", "measure", "seeds", f"difference ({points}), 95 % interval", "so it is")
    heads = ("", "seeds", f"difference in {metric.name} ({points}), 95 % interval", "so it is")
    if not _of(content, "slowness"):
        return heads
    return (*heads, "difference in slowness (epochs)", "so it is")


def _setting_rows(content: dict[str, Any]) -> list[list[str]]:
    """What was chosen and how fast it learns; empty where nothing is known of either."""
    result = []
    for row in content["learning"]:
        chosen = chosen_text(row["chosen"], row.get("at_edge"))
        slow, spread = row["slowness_mean"], row["slowness_std"]
        text = "-" if slow is None else f"{slow:.4f}"
        result.append([row["label"], chosen or "-", _plus(text, spread)])
    return result if any(row[1:] != ["-", "-"] for row in result) else []


def chosen_text(chosen: Mapping[str, Any], at_edge: Sequence[str] | bool | None = ()) -> str:
    """Settings in words, with a mark at those at an end of what was tried."""
    if isinstance(at_edge, bool):  # as earlier versions wrote it, of all of them together
        at_edge = tuple(chosen) if at_edge else ()
    return ", ".join(
        f"{name} {value:g}{'*' if name in (at_edge or ()) else ''}"
        for name, value in chosen.items()
    )


def _plus(text: str, spread: float | None) -> str:
    return text if spread is None else f"{text} ± {spread:.4f}"


SETTING_HEADS = ("", "chosen on validation", "slowness (epochs)")


def markdown(content: dict[str, Any]) -> str:
    """The comparison seed by seed, or "" where there is none."""
    if not content.get("learning"):
        return ""
    parts = ["### Seed by seed", "", _about(content), ""]
    for heads, rows in (
        (_heads(content), _contrast_rows(content)),
        (SETTING_HEADS, _setting_rows(content)),
    ):
        if rows:
            parts += table_lines(heads, rows)
    if any(row["slowness"] for row in content["learning"]):
        parts += [SLOWNESS, ""]
    if _below(content):
        parts += [_below(content).replace("*", "\\*", 1), ""]
    return "\n".join(parts)


def draw(content: dict[str, Any], path: Path) -> None:
    """A picture of all differences with their intervals.  matplotlib must be installed."""
    from matplotlib.figure import Figure

    metric = METRICS[content["metric"]]
    rows = _of(content, "tests", *COMPARED[:2])
    figure = Figure(figsize=(7.5, 1.4 + 0.42 * len(rows)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for at, one in enumerate(rows):
        colour = colour_of(one["against"] if one["against"] == "gain" else one["role"])
        mean = metric.scale * one["mean"]
        if one["low"] is not None:
            ends = [metric.scale * one["low"], metric.scale * one["high"]]
            axes.plot(ends, [at, at], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([mean], [at], "o", color=colour, markersize=7)
    axes.axvline(0, color="#30343B", linewidth=1)
    names = [f"{_measure(row, chr(10))}{row['label']}\nagainst {row['other']}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    points = "points" if metric.unit == "%" else metric.unit
    what = f"test {metric.name} ({points}); {metric.better}"
    measures = _of(content, *COMPARED)
    axes.set_xlabel(f"difference ({points})" if measures else f"difference in {what}")
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    title = textwrap.fill(content["title"], 100)
    figure.suptitle(
        f"{title}\nmean over {plural(rows[0]['n'], 'seed')} and 95 % interval",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    rundir.replace(path, lambda part: figure.savefig(part, format="png"))


def _measure(one: dict[str, Any], after: str) -> str:
    """The name of a contrast's measure, where there are several."""
    return f"{MEASURES[one['of']]}{after}" if one["of"] in MEASURES else ""


def _chart(content: dict[str, Any], what: Sequence[str], axis: str, scale: float) -> Chart | None:
    rows = _of(content, *what)
    if not rows:
        return None
    chart = Chart(90 + 54 * len(rows))
    for index, one in enumerate(rows):
        colour = colour_of(one["against"] if one["against"] == "gain" else one["role"])
        known = one["low"] is not None
        reach = scale * (one["high"] - one["mean"]) if known else 0.0
        chart.add(
            "scatter",
            x=[float(f"{scale * one['mean']:.5g}")],
            y=[index],
            error_x={"array": [reach], "color": colour, "thickness": 3, "width": 6},
            mode="markers",
            marker={"color": colour, "size": 11},
            hovertemplate="%{x}<extra></extra>",
            showlegend=False,
        )
    texts = [
        label(f"{_measure(row, ', ')}{row['label']} against {row['other']}", 26) for row in rows
    ]
    chart.y(
        tickvals=list(range(len(rows))),
        ticktext=texts,
        range=[len(rows) - 0.4, -0.6],
        showgrid=False,
    )
    chart.x(title=axis, nticks=8)
    line = {"color": NEUTRAL, "width": 1.5, "dash": "dot"}
    chart.layout["shapes"] = [
        {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "line": line}
    ]
    return chart


def section(facts: dict[str, Any], drawer: Drawer) -> Section | None:
    """The section of a comparison's page; None where no learning rules are compared."""
    if not isinstance(facts.get("learning"), list):
        return None
    metric = METRICS[facts["metric"]]
    points = "points" if metric.unit == "%" else metric.unit
    plots = (
        drawer.plot(
            _chart(facts, ("tests",), f"difference in {metric.name} ({points})", metric.scale),
            f"Difference in test {metric.name}",
            f"Mean over the seeds and its 95 % interval (Student, paired by seed); an interval "
            f"that holds 0 compares what is not known to differ. {metric.advice}",
            wide=True,
        ),
        drawer.plot(
            _chart(facts, COMPARED[:2], f"difference ({points})", metric.scale),
            "Differences in accuracy and forgetting",
            "Mean over the seeds and its 95 % interval (Student, paired by seed); an interval that "
            "holds 0 compares what is not known to differ.",
            wide=True,
        ),
        drawer.plot(
            _chart(facts, ("slowness",), "difference in slowness (epochs)", 1.0),
            "Difference in slowness",
            f"{SLOWNESS} Below 0 the first of the two is faster.",
            wide=True,
        ),
    )
    blocks = [Block(plots=tuple(plot for plot in plots if plot))]
    for heads, rows, text, below in (
        (_heads(facts), _contrast_rows(facts), (), ""),
        (SETTING_HEADS, _setting_rows(facts), (1,), _below(facts)),
    ):
        if rows:
            blocks.append(Block(table=Table(heads, rows, text=text), below=below))
    return Section("Seed by seed", _about(facts), tuple(blocks))
