"""Tasks one after the other: the page of a run, and what a comparison says of forgetting."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikebridge.base.records import RunError, from_content
from spikebridge.report.study_tables import chosen_text
from spikebridge.report.theme import (
    Block,
    Card,
    Chart,
    Drawer,
    Plot,
    Section,
    Table,
    colour_of,
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
    table_lines,
)
from spikebridge.runs import rundir
from spikebridge.runs.load import ReportError
from spikebridge.runs.transfer import HIGHER_IS_BETTER, MEASURES, SequenceResult
from spikebridge.settings.config import to_dict
from spikebridge.settings.tasks import data_label
from spikebridge.studies.tune import Tuning

SHOWN = ("average_accuracy", "forgetting", "backward_transfer", "unseen")
MEANING = (
    "Test accuracy in per cent, mean ± standard deviation over seeds. Average accuracy: over all "
    "tasks after the last. Forgetting: what the earlier tasks have lost since they were at their "
    "best, lower is better. Backward transfer: what they have gained since they were learned. "
    "Unseen tasks: accuracy on them before they are learned; guessing gives {chance}."
)
TUNED = (
    "Each row has the settings of its grid with the best validation accuracy over all tasks; the "
    "test sets were not read for that."
)
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
SMALL_PANELS = 6
PERCENT = "\u00a0%"
MATRIX = "Row: after which task. Column: tested on which. Above the diagonal: not learned yet."


def run_context(directory: Path) -> dict[str, Any]:
    """The values that sections.html needs for a complete run of a sequence."""
    facts, result = _outcome(directory)
    settings, environment = to_dict(rundir.read_config(directory)), directory / rundir.ENVIRONMENT
    return {
        "kicker": "continual learning",
        "title": f"{facts['label']}: {plural(result.tasks, 'task')} of {data_label(facts['data'])}",
        "about": _about(settings, facts["data"]),
        "sections": [_results(facts, result)],
        "colour": colour_of("grapes"),
        "command": command(["train", "digits"], settings),
        "repeat": "run",
        "which": "",
        "settings": list(flatten(settings)),
        "environment": list(flatten(_read(environment))) if environment.exists() else [],
    }


def _results(facts: dict[str, Any], result: SequenceResult) -> Section:
    """Measures as cards, accuracies as curves and as a matrix."""
    drawer, colour, count = Drawer(), colour_of("grapes"), result.tasks
    # A difference of two accuracies is in points, as on the terminal.
    cards = [
        Card(
            name,
            f"{100 * getattr(result.measures, key):.2f}"
            f"{'' if below.startswith('points') else PERCENT}",
            below,
        )
        for key, name, below in (
            ("average_accuracy", "average accuracy", "over all tasks after the last"),
            ("forgetting", "forgetting", "points lost by earlier tasks since their best"),
            ("backward_transfer", "backward transfer", "points gained since they were learned"),
            ("unseen", "unseen tasks", f"accuracy; chance is {100 * result.chance:.3g} %"),
        )
    ]
    cards.append(Card("training", seconds_text(facts["seconds"]), "all tasks"))
    cards.append(Card("parameters", count_text(facts["parameters"]), "trained"))
    lines = Chart(340, {"hovermode": "x unified"})
    for task in range(count):
        y = [_percent(result.matrix[k][task]) for k in range(task, count)]
        shade = fade(colour, 1 - 0.7 * task / max(count - 1, 1))
        _line(lines, list(range(task + 1, count + 1)), y, f"task {task + 1}", shade)
    _task_axis(lines, count, "test accuracy (%)")
    learned = drawer.plot(lines, "Each task from its own turn on", "What is kept stays level.")
    matrix = _matrix_plot(result.matrix, facts["label"], colour, MATRIX, drawer)
    return Section(
        "Results",
        "Test accuracy of each task, after each task that was learned.",
        (Block(cards=tuple(cards)), figures(learned, matrix)),
    )


def _outcome(directory: Path) -> tuple[dict[str, Any], SequenceResult]:
    """Facts of a complete run, and what came of its tasks."""
    try:
        if rundir.is_complete(directory):
            result = rundir.read_result(directory)
            if result.sequence is None:
                raise ReportError(f"{directory / rundir.RESULT}: it is not of several tasks")
            return result.to_dict(), result.sequence
        facts = _read(directory / rundir.CONTINUAL)
        return facts, from_content(SequenceResult, facts)
    except (RunError, ValueError) as error:
        raise ReportError(f"{directory}: it cannot be read ({error}); do the run again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return rundir.read_json(path, "do the run again")
    except RunError as error:
        raise ReportError(str(error)) from error


def sections(facts: dict[str, Any], directory: Path, drawer: Drawer) -> list[Section]:
    """The sections of a comparison's page; none where its runs are not of several tasks."""
    rows = _rows(facts)
    if not rows:
        return []
    table = Table(("", *(MEASURES[name] for name in SHOWN)), _cells(rows))
    about = f"{_about(rows[0]['settings'], facts['data'])} {_meaning(rows)}"
    tuning = Tuning.read(directory)
    matrices = [
        _matrix_plot(
            row["sequence"]["matrix"],
            row["label"],
            _colour(row),
            chosen_text(tuning.chosen.get(_name(row), {})),
            drawer,
        )
        for row in rows
    ]
    mean = f"Mean test accuracy over {plural(rows[0]['n'], 'seed')}, in per cent. {MATRIX}"
    made = [
        Section("Forgetting", about, (Block(table=table), figures(*_result_plots(rows, drawer)))),
        Section("All tasks after each task", mean, (figures(*matrices),)),
    ]
    return [*made, _trials(rows, tuning, drawer)] if tuning.trials else made


def markdown(content: dict[str, Any]) -> str:
    """What a comparison says of forgetting, for documents; "" where nothing."""
    rows = _rows(content)
    if not rows:
        return ""
    heads = ("", *(MEASURES[name] for name in SHOWN))
    return "\n".join(["### Forgetting", "", _meaning(rows), "", *table_lines(heads, _cells(rows))])


def _rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in content["rows"] if row.get("sequence")]


def _cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [row["label"], *(spread(row["sequence"]["measures"][name]) for name in SHOWN)]
        for row in rows
    ]


def _meaning(rows: Sequence[dict[str, Any]]) -> str:
    return MEANING.format(chance=f"{100 * rows[0]['sequence']['chance']:.3g} %")


def spread(measure: dict[str, Any]) -> str:
    """Mean and standard deviation in per cent."""
    text = f"{100 * measure['mean']:.2f}"
    return text if measure["std"] is None else f"{text} ± {100 * measure['std']:.2f}"


def _about(settings: dict[str, Any], data: str) -> str:
    chosen = settings["sequence"]
    text = PERMUTED if chosen["protocol"] == "permuted" else SPLIT
    return text.format(
        tasks=count_text(chosen["tasks"]),
        data=data_label(data),
        heads=HEADS_TEXT[chosen["heads"]],
    )


def _name(row: dict[str, Any]) -> str:
    """Of its runs without their seeds."""
    return str(row["runs"][0]).rpartition("-")[0]


def _colour(row: dict[str, Any]) -> str:
    return colour_of(row.get("look") or row["unit"])


def _percent(value: float) -> float:
    return round(100 * value, 3)


def _result_plots(rows: Sequence[dict[str, Any]], drawer: Drawer) -> list[Plot | None]:
    return [
        drawer.plot(
            _dots(rows, "average_accuracy"),
            "Average accuracy of every seed",
            "Over all tasks after the last, on the test sets. Dots: seeds; bar: their mean.",
        ),
        drawer.plot(
            _dots(rows, "forgetting"),
            "Forgetting of every seed",
            "What earlier tasks have lost since they were at their best: lower is better.",
        ),
        drawer.plot(
            _curves(rows, first=False),
            "Tasks learned so far",
            "Mean test accuracy over the tasks that have had their turn.",
        ),
        drawer.plot(
            _curves(rows, first=True),
            "The first task",
            "Its test accuracy while the others are learned; bars: one standard deviation.",
        ),
    ]


def _dots(rows: Sequence[dict[str, Any]], name: str) -> Chart:
    chart = Chart(120 + 44 * len(rows), {"showlegend": False})
    for at, row in enumerate(rows):
        colour, measure = _colour(row), row["sequence"]["measures"][name]
        chart.add(
            "scatter",
            x=[_percent(value) for value in measure["values"]],
            y=[at] * row["n"],
            mode="markers",
            marker={"color": fade(colour, 0.5), "size": 9},
            hovertemplate="%{x}<extra></extra>",
        )
        chart.add(
            "scatter",
            x=[_percent(measure["mean"])],
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


def _curves(rows: Sequence[dict[str, Any]], *, first: bool) -> Chart:
    chart, count = Chart(360, {"hovermode": "x unified"}), rows[0]["sequence"]["tasks"]
    x = list(range(1, count + 1))
    for row in rows:
        matrix, spread = row["sequence"]["matrix"], row["sequence"]["matrix_std"]
        if first:
            y = [_percent(matrix[k][0]) for k in range(count)]
            known = spread[0][0] is not None
            reach = [_percent(spread[k][0]) for k in range(count)] if known else None
            more = {"error_y": {"array": reach, "thickness": 1, "width": 3}} if reach else {}
        else:
            y = [_percent(statistics.fmean(matrix[k][: k + 1])) for k in range(count)]
            more = {}
        _line(chart, x, y, row["label"], _colour(row), **more)
    _task_axis(chart, count, "test accuracy (%)")
    return chart


def _matrix_plot(
    matrix: Sequence[Sequence[float]], title: str, colour: str, caption: str, drawer: Drawer
) -> Plot | None:
    count = len(matrix)
    names = list(range(1, count + 1))
    z = [[_percent(value) for value in line] for line in matrix]
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
    return drawer.plot(chart, title, caption)


def _trials(rows: Sequence[dict[str, Any]], tuning: Tuning, drawer: Drawer) -> Section:
    """What was tried for each row, and how it did on validation."""
    chart, lines = Chart(380, {"hovermode": "x unified"}), []
    rates: set[float] = set()
    for row in rows:
        name = _name(row)
        best: dict[float, float] = {}
        for given, mean in _means(tuning.trials, name):
            words = chosen_text(given)
            text = "diverged" if mean is None else f"{100 * mean:.2f}"
            lines.append(
                [row["label"], words, text, "chosen" if given == tuning.chosen.get(name) else ""]
            )
            if mean is not None and "lr" in given:
                best[given["lr"]] = max(best.get(given["lr"], 0.0), mean)
        x = sorted(best)
        _line(chart, x, [_percent(best[lr]) for lr in x], row["label"], _colour(row))
        rates |= set(x)
    chart.x(title="learning rate", type="log", tickvals=sorted(rates))
    chart.y(title="validation accuracy (%)")
    caption = "Of each learning rate the best strength. After the last task, over all tasks."
    return Section(
        "What was tried",
        f"{TUNED} Mean validation accuracy over the seeds of the trials.",
        (
            figures(drawer.plot(chart, "Validation accuracy by learning rate", caption, wide=True)),
            Block(table=Table(("", "settings", "validation accuracy (%)", ""), lines)),
        ),
    )


def _means(
    trials: Sequence[dict[str, Any]], row: str
) -> list[tuple[dict[str, float], float | None]]:
    """The settings of a row with their mean over seeds; None where one diverged."""
    result: dict[str, tuple[dict[str, float], list[float | None]]] = {}
    for trial in trials:
        if trial["row"] == row:
            kept = result.setdefault(str(trial["settings"]), (trial["settings"], []))
            kept[1].append(trial["valid"])
    return [
        (given, None if None in values else statistics.fmean(v for v in values if v is not None))
        for given, values in sorted(result.values(), key=lambda pair: list(pair[0].values()))
    ]


def draw(content: dict[str, Any], path: Path) -> None:
    """A picture: each task's accuracy from its own turn on, and forgetting as bars.

    matplotlib must be installed.
    """
    from matplotlib.figure import Figure

    rows = _rows(content)
    tasks = rows[0]["sequence"]["tasks"]
    figure = Figure(figsize=(10, 5.6), dpi=150, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.0, 1.05))
    above, below = halves
    panels = above.subplots(1, min(tasks, SMALL_PANELS), sharey=True, squeeze=False)[0]
    for task, axes in enumerate(panels):
        _task(axes, rows, task, tasks)
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
        y = [100 * row["sequence"]["matrix"][k - 1][task] for k in x]
        deviation = [row["sequence"]["matrix_std"][k - 1][task] for k in x]
        reach = None if None in deviation else [100 * value for value in deviation]
        axes.errorbar(
            x, y, reach, color=_colour(row), marker="o", markersize=4, capsize=2,
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
        measure = row["sequence"]["measures"][name]
        reach = None if measure["std"] is None else 100 * measure["std"]
        colour, whisker = _colour(row), {"capsize": 3, "elinewidth": 1.2}
        axes.barh(at, 100 * measure["mean"], xerr=reach, color=colour, height=0.6, error_kw=whisker)
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
