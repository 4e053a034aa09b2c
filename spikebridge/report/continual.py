"""Tasks one after the other: the page of a run, and what a comparison says of forgetting."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikebridge.base.records import RunError, from_content
from spikebridge.report.compare_charts import seed_dots
from spikebridge.report.study_tables import chosen_text
from spikebridge.report.theme import (
    Block,
    Card,
    Chart,
    Section,
    Table,
    colour_of,
    fade,
    figure,
    figures,
    table,
    whiskers,
)
from spikebridge.report.wording import count_text, plural, seconds_text
from spikebridge.runs import rundir
from spikebridge.runs.load import REPEAT, ReportError, Run
from spikebridge.runs.rundir import Result
from spikebridge.runs.transfer import HIGHER_IS_BETTER, MEASURES, SequenceResult
from spikebridge.settings.config import to_dict
from spikebridge.settings.tasks import data_label
from spikebridge.studies.comparison import Compared, MeanSpread, Summary

if TYPE_CHECKING:
    from spikebridge.studies.tune import Tuning

SHOWN = ("average_accuracy", "forgetting", "backward_transfer", "unseen")
MEANING = (
    "Test accuracy in per cent, mean ± standard deviation over seeds. Average accuracy: over all "
    "tasks after the last. Forgetting: what the earlier tasks have lost since they were at their "
    "best, lower is better. Backward transfer: what they have gained since they were learned. "
    "Unseen tasks: accuracy on them before they are learned; guessing gives {chance:.3g} %."
)
TUNED = (
    "Each row has the settings of its grid with the best validation accuracy over all tasks; the "
    "test sets were not read for that. Mean validation accuracy over the seeds of the trials."
)
PERMUTED = (
    "{tasks} tasks of {data}, one after the other: the same images with their pixels in another "
    "random order each time. While a task is learned, nothing of the earlier ones is shown."
)
SPLIT = (
    "{tasks} tasks of {data}, one after the other: some of the classes each time. While a task is "
    "learned, no image of the earlier ones is shown; the network is asked among {heads}."
)
HEADS_TEXT = {"masked": "the classes of the task in question", "shared": "all classes"}
MATRIX = "Row: after which task. Column: tested on which. Above the diagonal: not learned yet."


@dataclass(frozen=True)
class _Facts:
    """Of a run of several tasks; continual.json of earlier versions has them too."""

    label: str
    data: str
    seconds: float
    parameters: int


def of_run(run: Run) -> dict[str, Any]:
    """What is different on the page of a complete run of a sequence; nothing on other pages."""
    path = run.directory / rundir.CONTINUAL
    facts: Result | _Facts | None = run.result
    result = run.result.sequence if run.result else None
    if run.result is None and path.exists():
        try:
            plain = rundir.read_json(path, REPEAT)
            facts, result = from_content(_Facts, plain), from_content(SequenceResult, plain)
        except (RunError, ValueError) as error:
            raise ReportError(f"{path}: it cannot be read ({error}); {REPEAT}") from error
    if facts is None or result is None:
        return {}
    mean, lost, gained, unseen = (f"{100 * getattr(result.measures, name):.2f}" for name in SHOWN)
    chance = f"accuracy; chance is {100 * result.chance:.3g} %"
    return {
        "title": f"{facts.label}: {plural(result.tasks, 'task')} of {data_label(facts.data)}",
        "about": _about(to_dict(run.config), facts.data),
        "complete": True,
        # A difference of two accuracies is in points, as on the terminal.
        "cards": [
            Card("average accuracy", f"{mean}\u00a0%", "over all tasks after the last"),
            Card("forgetting", lost, "points lost by earlier tasks since their best"),
            Card("backward transfer", gained, "points gained since they were learned"),
            Card("unseen tasks", f"{unseen}\u00a0%", chance),
            Card("training", seconds_text(facts.seconds), "all tasks"),
            Card("parameters", count_text(facts.parameters), "trained"),
        ],
        "panels": [],
        "results": _results(facts.label, result, colour_of(run.unit)),
    }


def _results(label: str, result: SequenceResult, colour: str) -> Section:
    count, lines = result.tasks, Chart(340, {"hovermode": "x unified"})
    for task in range(count):
        y = [_percent(result.matrix[k][task]) for k in range(task, count)]
        shade = fade(colour, 1 - 0.7 * task / max(count - 1, 1))
        lines.line(list(range(task + 1, count + 1)), y, shade, f"task {task + 1}", marks=True)
    _task_axis(lines, count)
    learned = figure(lines, "Each task from its own turn on", "What is kept stays level.")
    matrix = figure(_matrix(result.matrix, colour), label, MATRIX)
    about = "Test accuracy of each task, after each task that was learned."
    return Section("Results", about, (figures(learned, matrix),))


def sections(facts: Summary, rows: Sequence[Compared], directory: Path) -> list[Section]:
    """The sections of a comparison's page; none where its runs are not of several tasks."""
    forgetting = forgetting_section(facts, rows)
    if forgetting is None:
        return []
    from spikebridge.studies.tune import Tuning  # loads torch

    tuning = Tuning.read(directory)
    mean = f"Mean test accuracy over {plural(rows[0].facts.n, 'seed')}, in per cent. {MATRIX}"
    matrices = [
        figure(
            _matrix(row.facts.of_tasks.matrix, colour_of(row.look)),
            row.label,
            chosen_text(tuning.chosen.get(_name(row), {})),
        )
        for row in rows
    ]
    result = [forgetting, Section("All tasks after each task", mean, (figures(*matrices),))]
    return [*result, _trials(rows, tuning)] if tuning.trials else result


def forgetting_section(facts: Summary, rows: Sequence[Compared]) -> Section | None:
    """What units keep of earlier tasks; None where there are none."""
    if not rows or not all(row.facts.sequence for row in rows):
        return None
    first = rows[0].facts
    columns = {"": lambda row: row.label} | {
        MEASURES[name]: lambda row, name=name: spread(row.facts.of_tasks.measures[name])
        for name in SHOWN
    }
    meaning = MEANING.format(chance=100 * first.of_tasks.chance)
    about = f"{_about(first.settings, facts.data)} {meaning}"
    return Section("Forgetting", about, (Block(table=table(rows, columns)), _result_plots(rows)))


def spread(measure: MeanSpread) -> str:
    """Mean and standard deviation in per cent."""
    text = f"{100 * measure.mean:.2f}"
    return text if measure.std is None else f"{text} ± {100 * measure.std:.2f}"


def _about(settings: dict[str, Any], data: str) -> str:
    chosen = settings["sequence"]
    text, heads = PERMUTED if chosen["protocol"] == "permuted" else SPLIT, HEADS_TEXT
    tasks = count_text(chosen["tasks"])
    return text.format(tasks=tasks, data=data_label(data), heads=heads[chosen["heads"]])


def _name(row: Compared) -> str:
    """Of its runs without their seeds."""
    return row.facts.runs[0].rpartition("-")[0]


def _percent(value: float) -> float:
    return round(100 * value, 3)


def _result_plots(rows: Sequence[Compared]) -> Block:
    return figures(
        figure(
            dots(rows, "average_accuracy"),
            "Average accuracy of every seed",
            "Over all tasks after the last, on the test sets. Dots: seeds; bar: their mean.",
        ),
        figure(
            dots(rows, "forgetting"),
            "Forgetting of every seed",
            "What earlier tasks have lost since they were at their best: lower is better.",
        ),
        figure(
            task_curve(rows, None),
            "Tasks learned so far",
            "Mean test accuracy over the tasks that have had their turn.",
        ),
        figure(
            task_curve(rows, 0),
            "The first task",
            "Its test accuracy while the others are learned; bars: one standard deviation.",
        ),
    )


def dots(rows: Sequence[Compared], name: str) -> Chart:
    chart = Chart(120 + 44 * len(rows), {"showlegend": False})
    for at, row in enumerate(rows):
        measure = row.facts.of_tasks.measures[name]
        values = [_percent(value) for value in measure.values]
        seed_dots(chart, at, values, _percent(measure.mean), row.look)
    better = "higher" if HIGHER_IS_BETTER[name] else "lower"
    chart.x(title=f"{MEASURES[name]} (%), {better} is better", nticks=7)
    chart.rows(row.label for row in rows)
    return chart


def task_curve(rows: Sequence[Compared], task: int | None) -> Chart:
    """Accuracy on a task from its own turn on, with its spread; None: over all so far."""
    chart, count = Chart(360, {"hovermode": "x unified"}), rows[0].facts.of_tasks.tasks
    turns = range(task or 0, count)
    for row in rows:
        matrix, deviation = row.facts.of_tasks.matrix, row.facts.of_tasks.matrix_std
        reach: list[float] = []
        if task is None:
            y = [_percent(statistics.fmean(matrix[k][: k + 1])) for k in turns]
        else:
            y = [_percent(matrix[k][task]) for k in turns]
            reach = [_percent(v) for k in turns if (v := deviation[k][task]) is not None]
        bars = whiskers(reach or None, thickness=1, width=3)
        x = [k + 1 for k in turns]
        chart.line(x, y, colour_of(row.look), row.label, marks=True, error_y=bars)
    _task_axis(chart, count)
    return chart


def _task_axis(chart: Chart, count: int) -> None:
    step, ends = max(1, count // 10), [0.8, count + 0.2]
    chart.x(title="after task", tickformat="d", tick0=1, dtick=step, range=ends)
    chart.y(title="test accuracy (%)")


def _matrix(matrix: Sequence[Sequence[float]], colour: str) -> Chart:
    few = len(matrix) <= 10
    names = list(range(1, len(matrix) + 1))
    z = [[_percent(value) for value in line] for line in matrix]
    chart = Chart(120 + (38 if few else 24) * len(matrix), {"showlegend": False})
    scale: dict[str, Any] = {"zmin": 0, "zmax": 100, "showscale": False, "xgap": 2, "ygap": 2}
    shades = [(0, fade(colour, 0)), (1, fade(colour, 0.75))]
    hover = "task %{x} after task %{y}: %{z} %"
    chart.add("heatmap", x=names, y=names, z=z, colorscale=shades, hover=hover, **scale)
    for after, line in zip(names, z, strict=True):
        for task, value in zip(names, line, strict=True):
            text = f"{value:.1f}" if few else f"{value:.0f}"
            chart.write(text, x=task, y=after, font={"size": 12 if few else 8})
    chart.x(title="tested on task", tickvals=names, showgrid=False)
    chart.y(title="after task", tickvals=names, autorange="reversed", showgrid=False)
    return chart


def _trials(rows: Sequence[Compared], tuning: Tuning) -> Section:
    chart, lines = Chart(380, {"hovermode": "x unified"}), []
    rates: set[float] = set()
    for row in rows:
        name = _name(row)
        best: dict[float, float] = {}
        for given, mean in sorted(tuning.means(name), key=lambda pair: [*pair[0].values()]):
            text = "diverged" if mean is None else f"{100 * mean:.2f}"
            mark = "chosen" if given == tuning.chosen.get(name) else ""
            lines.append([row.label, chosen_text(given), text, mark])
            if mean is not None and "lr" in given:
                best[given["lr"]] = max(best.get(given["lr"], 0.0), mean)
        x = sorted(best)
        y = [_percent(best[lr]) for lr in x]
        chart.line(x, y, colour_of(row.look), row.label, marks=True)
        rates |= set(x)
    chart.x(title="learning rate", type="log", tickvals=sorted(rates))
    chart.y(title="validation accuracy (%)")
    caption = "Of each learning rate the best strength. After the last task, over all tasks."
    tried = figure(chart, "Validation accuracy by learning rate", caption, wide=True)
    all_trials = Table(("", "settings", "validation accuracy (%)", ""), lines)
    return Section("What was tried", TUNED, (figures(tried), Block(table=all_trials)))
