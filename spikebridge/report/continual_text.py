"""A table of forgetting as text, as Markdown and as a still picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spikebridge.report.theme import COLOURS, colour_of
from spikebridge.report.wording import (
    CORRECTED,
    NOTHING,
    plural,
    said_of,
    seconds_text,
    table_lines,
)
from spikebridge.runs import rundir
from spikebridge.runs.load import ReportError
from spikebridge.runs.transfer import HIGHER_IS_BETTER, MEASURES
from spikebridge.studies.contrasts import corrected

SHOWN = ("average_accuracy", "forgetting", "backward_transfer", "unseen")
COMPARED = ("average_accuracy", "forgetting", "unseen")
HEADS = ("average accuracy", "forgetting", "backward transfer", "unseen tasks")
MEANING = (
    "Test accuracy in per cent, mean ± standard deviation over seeds. Average accuracy: over all "
    "tasks after the last. Forgetting: what the earlier tasks have lost since they were at their "
    "best, lower is better. Backward transfer: what they have gained since they were learned. "
    "Unseen tasks: accuracy on them before they are learned; guessing gives {chance}. "
    "Training: median."
)
TUNED = (
    "Each row has the settings of its grid with the best validation accuracy over all tasks "
    "({trials} tried in all, with seeds {seeds}); the test sets were not read for that."
)
SMALL_PANELS = 6


def colour_of_role(role: str) -> str:
    """The colour of a way to learn, in all figures."""
    return {"ewc": COLOURS["gru"], "si": COLOURS["lstm"]}.get(role) or colour_of(role)


def spread(measure: dict[str, Any], decimals: int = 2) -> str:
    """Mean and standard deviation in per cent."""
    text = f"{100 * measure['mean']:.{decimals}f}"
    if measure["std"] is None:
        return text
    return f"{text} ± {100 * measure['std']:.{decimals}f}"


def difference(one: dict[str, Any]) -> str:
    """A mean difference in points with its 95 % interval."""
    text = f"{100 * one['mean']:+.2f}"
    if one["low"] is None:
        return f"{text} (one seed)"
    return f"{text} ({100 * one['low']:+.2f} to {100 * one['high']:+.2f})"


def judged(one: dict[str, Any]) -> str:
    """What a contrast says, in words."""
    return said_of(one, HIGHER_IS_BETTER[one["measure"]])


def contrasts_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The contrasts that are shown, each with its p-value corrected for their number."""
    found = [one for one in content["contrasts"] if one["measure"] in COMPARED]
    return [{**one, "corrected": p} for one, p in zip(found, corrected(found), strict=True)]


def chosen(row: dict[str, Any]) -> str:
    """The settings of a row, with a mark at those that lie at an end of what was tried."""
    return ", ".join(
        f"{name} {value:g}{'*' if name in row['at_edge'] else ''}"
        for name, value in row["chosen"].items()
    )


def meaning(content: dict[str, Any]) -> str:
    return MEANING.format(chance=f"{100 * content['chance']:.3g} %")


def tuned(content: dict[str, Any]) -> str:
    """How settings were chosen."""
    if not content["trials"]:
        return "Settings are given and were not chosen among several."
    count = len({(t["row"], str(t["settings"])) for t in content["trials"]})
    text = TUNED.format(
        trials=plural(count, "setting"), seeds=" and ".join(map(str, content["trial_seeds"]))
    )
    edge = any(row["at_edge"] for row in content["rows"])
    return f"{text} * at an end of the grid: the best may lie beyond it." if edge else text


def row_cells(row: dict[str, Any]) -> list[str]:
    """A line of the table, behind its label."""
    measures = [spread(row["measures"][name]) for name in SHOWN]
    return [*measures, str(row["n"]), chosen(row) or NOTHING, seconds_text(row["seconds"])]


def compared(content: dict[str, Any]) -> list[list[str]]:
    """The lines of the comparison seed by seed."""
    return [
        [
            f"{one['label']} against {one['other']}",
            MEASURES[one["measure"]],
            difference(one),
            judged(one),
        ]
        for one in contrasts_of(content)
    ]


def intervals(content: dict[str, Any]) -> str:
    """How many intervals the comparison holds, which is what a reader must know to weigh them."""
    count = sum(one["low"] is not None for one in contrasts_of(content))
    if not count:
        return "One seed gives no intervals."
    return f"The table holds {plural(count, 'interval')} of 95 %; {CORRECTED}."


def lines(content: dict[str, Any]) -> list[str]:
    """The table for a terminal."""
    width = max(len(row["label"]) for row in content["rows"])
    heads = f"{'':{width}}  {'average accuracy':>16}  {'forgetting':>14}  {'unseen':>14}  settings"
    told = [content["title"], heads]
    for row in content["rows"]:
        found = row["measures"]
        told.append(
            f"{row['label']:{width}}  {spread(found['average_accuracy']):>16}  "
            f"{spread(found['forgetting']):>14}  {spread(found['unseen']):>14}  {chosen(row)}"
        )
    contrasts = compared(content)
    return told + ["  ".join(cells) for cells in contrasts] + [intervals(content)] * bool(contrasts)


def markdown(content: dict[str, Any]) -> str:
    """The table with what it means, for documents."""
    heads = ("", *HEADS, "seeds", "chosen", "training")
    parts = [f"## {content['title']}", "", meaning(content), ""]
    parts += table_lines(heads, [[row["label"], *row_cells(row)] for row in content["rows"]])
    parts += [tuned(content), ""]
    rows = compared(content)
    if rows:
        what = f"Differences in points with their 95 % intervals. {intervals(content)}"
        parts += ["### Seed by seed", "", what, ""]
        parts += table_lines(("", "measure", "difference", "so it is"), rows)
    return "\n".join([*parts, f"Published: {content['source']}."]) + "\n"


def write(content: dict[str, Any], directory: Path) -> None:
    """Write table.md and plot.png.  Raises ReportError where matplotlib is not installed."""
    rundir.write_text(directory / "table.md", markdown(content))
    draw(content, directory / "plot.png")


def draw(content: dict[str, Any], path: Path) -> None:
    """Write a picture: each task's accuracy from its own turn on, and forgetting as bars.

    Raises ReportError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ReportError(
            "matplotlib is not installed: still pictures need it; "
            "install it with pip install 'spikebridge[app]'"
        ) from error
    rows, count = content["rows"], min(content["tasks"], SMALL_PANELS)
    figure = Figure(figsize=(10, 5.6), dpi=150, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.0, 1.05))
    above, below = halves
    for task, axes in enumerate(above.subplots(1, count, sharey=True, squeeze=False)[0]):
        _task(axes, rows, task, content["tasks"])
    for axes, name in zip(below.subplots(1, 2), ("average_accuracy", "forgetting"), strict=True):
        _bars(axes, rows, name)
    title = f"{content['title']}\n{plural(rows[0]['n'], 'seed')}; bars: one standard deviation"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    handles, labels = above.axes[0].get_legend_handles_labels()
    look: dict[str, Any] = {"ncols": len(rows), "frameon": False, "fontsize": 8}
    figure.legend(handles, labels, loc="outside lower center", **look)
    rundir.replace(path, lambda part: figure.savefig(part, format="png"))


def _task(axes: Any, rows: list[dict[str, Any]], task: int, tasks: int) -> None:
    x = range(task + 1, tasks + 1)
    for row in rows:
        y = [100 * row["matrix"][k - 1][task] for k in x]
        deviation = [row["matrix_std"][k - 1][task] for k in x]
        reach = None if None in deviation else [100 * value for value in deviation]
        axes.errorbar(
            x, y, reach, color=colour_of_role(row["role"]), marker="o", markersize=4, capsize=2,
            linewidth=1.5, label=row["label"],
        )  # fmt: skip
    axes.set_title(f"task {task + 1}", fontsize=9)
    axes.set_xlabel("after task", fontsize=8)
    axes.set_xlim(0.7, tasks + 0.3)
    axes.set_xticks(range(1, tasks + 1, max(1, tasks // 6)))
    if task == 0:
        axes.set_ylabel("test accuracy (%)", fontsize=8)
    _plain(axes, "both")


def _bars(axes: Any, rows: list[dict[str, Any]], name: str) -> None:
    for at, row in enumerate(rows):
        found = row["measures"][name]
        reach = None if found["std"] is None else 100 * found["std"]
        colour, whisker = colour_of_role(row["role"]), {"capsize": 3, "elinewidth": 1.2}
        axes.barh(at, 100 * found["mean"], xerr=reach, color=colour, height=0.6, error_kw=whisker)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    better = "higher" if HIGHER_IS_BETTER[name] else "lower"
    axes.set_xlabel(f"{MEASURES[name]} (% of images), {better} is better", fontsize=8)
    _plain(axes, "x")


def _plain(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color="#dddddd")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
