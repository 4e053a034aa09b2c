"""What stands on the pages of a sequence of tasks and of a table of forgetting."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikebridge.base.records import RunError
from spikebridge.report.continual_text import (
    COMPARED,
    HEADS,
    chosen,
    colour_of_role,
    compared,
    contrasts_of,
    difference,
    intervals,
    judged,
    meaning,
    row_cells,
    tuned,
)
from spikebridge.report.theme import (
    NEUTRAL,
    Block,
    Card,
    Chart,
    Drawer,
    Plot,
    Section,
    Table,
    fade,
    figures,
    label,
)
from spikebridge.report.wording import (
    command,
    count_text,
    flatten,
    plural,
    seconds_text,
)
from spikebridge.runs import rundir
from spikebridge.runs.load import ReportError
from spikebridge.runs.transfer import HIGHER_IS_BETTER, MEASURES
from spikebridge.settings.tasks import data_label

PERMUTED = (
    "{tasks} tasks of {data}, one after the other: the same images with their pixels in another "
    "random order each time. While a task is learned, nothing of the earlier ones is shown."
)
SPLIT = (
    "{tasks} tasks of {data}, one after the other: some of the classes each time. While a task is "
    "learned, no image of the earlier ones is shown; the network is asked among {heads}."
)
HEADS_TEXT = {
    "masked": "the classes of the task in question",
    "shared": "all classes",
}
SEED_BY_SEED = (
    "The same seed gives the same tasks, first weights and order of images, so GRAPES is compared "
    "with its controls seed by seed. Equal gain gives every neuron the mean factor of its layer: "
    "what GRAPES does beyond it is due to how factors are spread over neurons, and not to a larger "
    "step. Each row has the learning rate that suits it best."
)
PERCENT = "\u00a0%"
MATRIX = "Row: after which task. Column: tested on which. Above the diagonal: not learned yet."


def read(path: Path) -> dict[str, Any]:
    """A result file.  Raises ReportError where it is damaged."""
    try:
        return rundir.read_json(path, "do the run again")
    except RunError as error:
        raise ReportError(str(error)) from error


def table_context(directory: Path) -> dict[str, Any]:
    """The values that sections.html needs for a folder with forgetting.json."""
    content, drawer = read(directory / "forgetting.json"), Drawer()
    rows = content["rows"]
    sections = [
        Section(
            "Results",
            meaning(content),
            (
                Block(
                    table=Table(
                        ("", *HEADS, "seeds", "chosen", "training"),
                        [[row["label"], *row_cells(row)] for row in rows],
                    ),
                    below=tuned(content),
                ),
                figures(*_result_plots(content, drawer)),
            ),
        )
    ]
    if content["contrasts"]:
        sections.append(_seed_by_seed(content, drawer))
    sections.append(
        Section(
            "All tasks after each task",
            f"Mean test accuracy over {plural(rows[0]['n'], 'seed')}, in per cent. {MATRIX}",
            (figures(*(_matrix_plot(row, drawer) for row in rows)),),
        )
    )
    if content["trials"]:
        sections.append(_trials(content, drawer))
    return {
        "kicker": "continual learning",
        "title": content["title"],
        "about": f"{_about(content)} Published: {content['source']}.",
        "sections": sections,
        "colour": NEUTRAL,
        "command": [f"spikebridge reproduce {content['name']} --count {len(content['seeds'])}"],
        "which": " of the first run",
        "settings": list(flatten(content["config"])),
        "environment": list(flatten(content["environment"])),
    }


def run_context(directory: Path) -> dict[str, Any]:
    """The values that sections.html needs for a folder with continual.json."""
    content, drawer = read(directory / "continual.json"), Drawer()
    measures, count = content["measures"], content["tasks"]
    # A difference of two accuracies is in points, as on the terminal.
    cards = [
        Card(
            name, f"{100 * measures[key]:.2f}{'' if below.startswith('points') else PERCENT}", below
        )
        for key, name, below in (
            ("average_accuracy", "average accuracy", "over all tasks after the last"),
            ("forgetting", "forgetting", "points lost by earlier tasks since their best"),
            ("backward_transfer", "backward transfer", "points gained since they were learned"),
            ("unseen", "unseen tasks", f"accuracy; chance is {100 * content['chance']:.3g} %"),
        )
    ]
    cards.append(Card("training", seconds_text(content["seconds"]), "all tasks"))
    cards.append(Card("parameters", count_text(content["parameters"]), "trained"))
    row = {"role": "grapes", "label": content["label"], "matrix": content["matrix"]}
    lines = Chart(340, {"hovermode": "x unified"})
    for task in range(count):
        y = [_percent(content["matrix"][k][task]) for k in range(task, count)]
        shade = fade(colour_of_role("grapes"), 1 - 0.7 * task / max(count - 1, 1))
        _line(lines, list(range(task + 1, count + 1)), y, f"task {task + 1}", shade)
    _task_axis(lines, count, "test accuracy (%)")
    learned = drawer.plot(lines, "Each task from its own turn on", "What is kept stays level.")
    section = Section(
        "Results",
        "Test accuracy of each task, after each task that was learned.",
        (Block(cards=tuple(cards)), figures(learned, _matrix_plot(row, drawer))),
    )
    return {
        "kicker": "continual learning",
        "title": f"{content['label']}: {plural(count, 'task')} of {data_label(content['data'])}",
        "about": _about({**content, "heads": content["config"]["sequence"]["heads"]}),
        "sections": [section],
        "colour": colour_of_role("grapes"),
        "command": command(["continual"], content["config"]),
        "repeat": "run",
        "which": "",
        "settings": list(flatten(content["config"])),
        "environment": list(flatten(content["environment"])),
    }


def _about(content: dict[str, Any]) -> str:
    text = PERMUTED if content["protocol"] == "permuted" else SPLIT
    return text.format(
        tasks=count_text(content["tasks"]),
        data=data_label(content["data"]),
        heads=HEADS_TEXT[content["heads"]],
    )


def _percent(value: float) -> float:
    return round(100 * value, 3)


def _result_plots(content: dict[str, Any], drawer: Drawer) -> list[Plot | None]:
    return [
        drawer.plot(
            _dots(content["rows"], "average_accuracy"),
            "Average accuracy of every seed",
            "Over all tasks after the last, on the test sets. Dots: seeds; bar: their mean.",
        ),
        drawer.plot(
            _dots(content["rows"], "forgetting"),
            "Forgetting of every seed",
            "What earlier tasks have lost since they were at their best: lower is better.",
        ),
        drawer.plot(
            _curves(content, first=False),
            "Tasks learned so far",
            "Mean test accuracy over the tasks that have had their turn.",
        ),
        drawer.plot(
            _curves(content, first=True),
            "The first task",
            "Its test accuracy while the others are learned; bars: one standard deviation.",
        ),
    ]


def _dots(rows: Sequence[dict[str, Any]], name: str) -> Chart:
    chart = Chart(120 + 44 * len(rows), {"showlegend": False})
    for at, row in enumerate(rows):
        colour, found = colour_of_role(row["role"]), row["measures"][name]
        chart.add(
            "scatter",
            x=[_percent(value) for value in found["values"]],
            y=[at] * row["n"],
            mode="markers",
            marker={"color": fade(colour, 0.5), "size": 9},
            hovertemplate="%{x}<extra></extra>",
        )
        chart.add(
            "scatter",
            x=[_percent(found["mean"])],
            y=[at],
            mode="markers",
            marker={"symbol": "line-ns", "size": 24, "line": {"width": 3, "color": colour}},
            hovertemplate="mean: %{x}<extra></extra>",
        )
    better = "higher" if HIGHER_IS_BETTER[name] else "lower"
    chart.x(title=f"{MEASURES[name]} (%), {better} is better", nticks=7)
    _row_axis(chart, [row["label"] for row in rows])
    return chart


def _row_axis(chart: Chart, labels: Sequence[str]) -> None:
    chart.y(
        tickvals=list(range(len(labels))),
        ticktext=[label(text) for text in labels],
        range=[len(labels) - 0.4, -0.6],
        showgrid=False,
    )


def _line(
    chart: Chart, x: Sequence[float], y: list[float], name: str, colour: str, **more: Any
) -> None:
    chart.add(
        "scatter",
        x=x,
        y=y,
        name=label(name, 40),
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"color": colour, "size": 7},
        **more,
    )


def _task_axis(chart: Chart, count: int, title: str) -> None:
    chart.x(title="after task", tickformat="d", dtick=max(1, count // 10), range=[0.8, count + 0.2])
    chart.y(title=title)


def _curves(content: dict[str, Any], *, first: bool) -> Chart:
    chart, count = Chart(360, {"hovermode": "x unified"}), content["tasks"]
    x = list(range(1, count + 1))
    for row in content["rows"]:
        matrix, spread = row["matrix"], row["matrix_std"]
        if first:
            y = [_percent(matrix[k][0]) for k in range(count)]
            known = spread[0][0] is not None
            reach = [_percent(spread[k][0]) for k in range(count)] if known else None
            more = {"error_y": {"array": reach, "thickness": 1, "width": 3}} if reach else {}
        else:
            y = [_percent(statistics.fmean(matrix[k][: k + 1])) for k in range(count)]
            more = {}
        _line(chart, x, y, row["label"], colour_of_role(row["role"]), **more)
    _task_axis(chart, count, "test accuracy (%)")
    return chart


def _matrix_plot(row: dict[str, Any], drawer: Drawer) -> Plot | None:
    count, colour = len(row["matrix"]), colour_of_role(row["role"])
    names = list(range(1, count + 1))
    z = [[_percent(value) for value in line] for line in row["matrix"]]
    chart = Chart(120 + max(24, 38 if count <= 10 else 24) * count, {"showlegend": False})
    chart.add(
        "heatmap",
        x=names,
        y=names,
        z=z,
        zmin=0,
        zmax=100,
        colorscale=[(0, fade(colour, 0)), (1, fade(colour, 0.75))],
        showscale=False,
        xgap=2,
        ygap=2,
        hovertemplate="task %{x} after task %{y}: %{z} %<extra></extra>",
    )
    size = 12 if count <= 10 else 8
    for after, line in enumerate(z):
        for task, value in enumerate(line):
            shown = f"{value:.1f}" if count <= 10 else f"{value:.0f}"
            chart.write(shown, x=names[task], y=names[after], font={"size": size})
    chart.x(title="tested on task", tickvals=names, showgrid=False)
    chart.y(title="after task", tickvals=names, autorange="reversed", showgrid=False)
    return drawer.plot(chart, row["label"], chosen(row) if "chosen" in row else MATRIX)


def _seed_by_seed(content: dict[str, Any], drawer: Drawer) -> Section:
    heads = ("", "measure", "difference, 95 % interval (points)", "so it is")
    table = Table(heads, compared(content))
    found = [one for one in contrasts_of(content) if one["measure"] in COMPARED[:2]]
    return Section(
        "GRAPES against its controls",
        SEED_BY_SEED,
        (
            Block(table=table, below=intervals(content)),
            figures(
                drawer.plot(
                    _intervals(found),
                    "Differences seed by seed",
                    "Mean and 95 % interval. Where it holds 0, the two are not known to differ.",
                    wide=True,
                )
            ),
        ),
    )


def _intervals(found: Sequence[dict[str, Any]]) -> Chart:
    chart = Chart(110 + 52 * len(found), {"showlegend": False})
    for at, one in enumerate(found):
        colour = colour_of_role(one["against"])
        reach = {}
        if one["low"] is not None:
            array = [_percent(one["high"] - one["mean"])]
            reach = {"error_x": {"array": array, "color": colour, "thickness": 3, "width": 6}}
        chart.add(
            "scatter",
            x=[_percent(one["mean"])],
            y=[at],
            mode="markers",
            marker={"color": colour, "size": 11},
            hovertemplate=f"{difference(one)}, {judged(one)}<extra></extra>",
            **reach,
        )
    line = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1}
    chart.layout["shapes"] = [{**line, "line": {"color": NEUTRAL, "width": 1, "dash": "dot"}}]
    chart.x(title="difference (points)", nticks=7)
    _row_axis(chart, [f"{MEASURES[o['measure']]}, less {o['other']}" for o in found])
    return chart


def _trials(content: dict[str, Any], drawer: Drawer) -> Section:
    """What was tried for each row, and how it did on validation."""
    chart, lines = Chart(380, {"hovermode": "x unified"}), []
    rates: set[float] = set()
    for row in content["rows"]:
        best: dict[float, float] = {}
        for given, mean in _means(content["trials"], row["name"]):
            words = ", ".join(f"{name} {value:g}" for name, value in given.items())
            text = "diverged" if mean is None else f"{100 * mean:.2f}"
            lines.append([row["label"], words, text, "chosen" if given == row["chosen"] else ""])
            if mean is not None and "lr" in given:
                best[given["lr"]] = max(best.get(given["lr"], 0.0), mean)
        x = sorted(best)
        _line(chart, x, [_percent(best[lr]) for lr in x], row["label"], colour_of_role(row["role"]))
        rates |= set(x)
    chart.x(title="learning rate", type="log", tickvals=sorted(rates))
    chart.y(title="validation accuracy (%)")
    caption = "Of each learning rate the best strength. After the last task, over all tasks."
    return Section(
        "What was tried",
        "Mean validation accuracy over all tasks after the last one, and over the trial seeds.",
        (
            figures(drawer.plot(chart, "Validation accuracy by learning rate", caption, wide=True)),
            Block(table=Table(("", "settings", "validation accuracy (%)", ""), lines)),
        ),
    )


def _means(
    trials: Sequence[dict[str, Any]], row: str
) -> list[tuple[dict[str, float], float | None]]:
    """The settings of a row with their mean over seeds; None where one diverged."""
    found: dict[str, tuple[dict[str, float], list[float | None]]] = {}
    for trial in trials:
        if trial["row"] == row:
            kept = found.setdefault(str(trial["settings"]), (trial["settings"], []))
            kept[1].append(trial["valid"])
    return [
        (given, None if None in values else statistics.fmean(v for v in values if v is not None))
        for given, values in sorted(found.values(), key=lambda pair: list(pair[0].values()))
    ]
