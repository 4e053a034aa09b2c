"""What stands on the page of one run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from spikebridge.report import run_charts
from spikebridge.report.composition import composition
from spikebridge.report.examples import more_text, panels
from spikebridge.report.in_loop import in_the_loop
from spikebridge.report.on_cells import in_memory
from spikebridge.report.on_chip import on_chip
from spikebridge.report.theme import Card, Drawer, Plot, Section, colour_of, figure
from spikebridge.report.wording import (
    NOTHING,
    Metric,
    command,
    count_text,
    flatten,
    metric_of,
    metric_text,
    number,
    plural,
    seconds_text,
)
from spikebridge.runs.hardware_results import OnCells, load_on_cells, load_on_chip, load_proof
from spikebridge.runs.load import ReportError, Run
from spikebridge.settings import config
from spikebridge.settings.tasks import OwnConfig, data_label, data_title


def context(run: Run, sections: Sequence[Callable[[Run], Section]] = ()) -> dict[str, Any]:
    """The values that run.html needs; sections make those of the user."""
    metric = metric_of(run.metric)
    programmed = load_on_cells(run.directory)
    return {
        "title": f"{label_of(run)} on {data_label(run.data)}",
        "label": label_of(run),
        "colour": colour_of(run.unit),
        "task": run.task,
        "about": about(run),
        "notes": notes_of(run),
        "complete": run.result is not None,
        "epochs_done": plural(len(run.epochs), "epoch"),
        "cards": cards(run, metric),
        "source": source_of(run.fact("published")),
        "started": started(run),
        "learning": [plot for plot in [*learning_plots(run, metric), steps_plot(run)] if plot],
        "activity": activity_plot(run),
        "hardware": [*hardware(run, programmed), *(own_section(make, run) for make in sections)],
        "composition": composition(run),
        "panels": panels(run),
        "more": more_text(run.examples),
        "epochs": epoch_table(run),
        "config": list(flatten(run.config)),
        "environment": list(flatten(run.environment)),
        "result": list(flatten(run.result or {})),
        "memory": [] if programmed is None else list(flatten(programmed.memory)),
        "command": [] if run.task == OwnConfig.NAME else command(["train", run.task], run.config),
        "metric_meaning": metric.meaning,
    }


def hardware(run: Run, programmed: OnCells | None) -> list[Section]:
    """The sections of memory cells, programmed or trained on, and of the digital chip."""
    found = [None if programmed is None else in_memory(programmed, run, Drawer())]
    found.append(in_the_loop(run, Drawer()))
    program = load_on_chip(run.directory)
    if program is not None:
        found.append(on_chip(program, load_proof(run.directory), run, Drawer()))
    return [part for part in found if part]


def own_section(make: Callable[[Run], Section], run: Run) -> Section:
    """What a user's function makes of the run; ReportError where that is no section."""
    section = make(run)
    if not isinstance(section, Section):
        raise ReportError(
            f"{getattr(make, '__qualname__', make)} returned {type(section).__name__}: a function "
            "for a section of your own returns a spikebridge.report.Section"
        )
    return section


def label_of(run: Run) -> str:
    unit = run.unit
    return str(run.fact("label") or (config.label_of(unit) if unit in config.VARIANTS else unit))


def about(run: Run) -> str:
    """The network and the data in one line."""
    known = data_title(run.data, run.task)
    hidden = run.part("model").get("hidden")
    if not isinstance(hidden, list):
        return known
    if run.examples is None:
        return f"{known} · hidden layers of {' and '.join(map(str, hidden))} neurons"
    sizes = [run.examples.x.shape[-1], *hidden, run.examples.output.shape[-1]]
    if run.symbols:
        embedding = int(number(run.part("model").get("embedding")) or 0)
        between = [embedding] if embedding else []
        sizes = [len(run.symbols), *between, *hidden, len(run.symbols)]
    return f"{known} · network {' → '.join(f'{size:,}' for size in sizes)}"


def notes_of(run: Run) -> list[str]:
    """What a user should know of the data, where the run kept it."""
    kept = run.fact("notes", [])
    return [str(note) for note in kept if note] if isinstance(kept, list) else []


def source_of(published: Any) -> str:
    """Where a published figure stands, or nothing."""
    return str(published.get("source") or "") if isinstance(published, dict) else ""


def started(run: Run) -> str:
    """The command line that the run was started with, where its environment tells."""
    words = run.environment.get("command")
    return shlex.join(map(str, words)) if isinstance(words, list) else ""


def cards(run: Run, metric: Metric) -> list[Card]:
    """The headline figures: name, value and a line below."""
    published = run.fact("published")
    published = published if isinstance(published, dict) else {}
    spikes = run.fact("spikes_per_inference")
    best, epochs = run_charts.best_epoch(run), number(run.fact("epochs", len(run.epochs)))
    per = f"per {run.inference}"
    short = metric.unit == "%"
    value = metric_text(metric, run.fact("test"), unit=short)
    known = metric_text(metric, published.get("value"), unit=short)
    graded = run.result is not None and number(spikes) is None
    rows = [
        (f"test {metric.name}", value, metric.below if value != NOTHING else "not known"),
        (
            f"published {metric.name}",
            known if known != NOTHING else "unknown",
            "source below" if known != NOTHING else "no published figure for this set-up",
        ),
        ("parameters", count_text(run.fact("parameters")), operations_text(run)),
        (
            "spikes per inference",
            "none" if graded else count_text(spikes),
            "this unit sends graded values" if graded else f"all hidden layers, {per}",
        ),
        (
            "training time",
            seconds_text(run.fact("seconds")),
            plural(int(epochs or 0), "epoch") + (f", best: {best}" if best is not None else ""),
        ),
        (
            "seed",
            str(run.fact("seed", run.part("train").get("seed", NOTHING))),
            "fixes all random choices",
        ),
    ]
    return [Card(name, value, below) for name, value, below in rows]


def operations_text(run: Run) -> str:
    count = number(run.fact("operations_per_step"))
    return "trained numbers" if count is None else f"{count:,.0f} multiplications per dense step"


def learning_plots(run: Run, metric: Metric) -> list[Plot | None]:
    """Learning curves; two figures, or one where loss and metric are the same quantity."""
    same = run_charts.metric_is_loss(run)
    star = " The star marks the epoch whose network was kept and tested."
    loss = (
        "The loss is what training makes small; a validation line that rises while the training "
        "line falls would mean learning by heart."
    )
    meaning = f"{metric.meaning} Measured after each epoch on data not used for training.{star}"
    return [
        figure(
            run_charts.loss_curves(run),
            f"Loss ({metric.name})" if same else "Loss",
            f"{loss} {metric.meaning}{star}" if same else loss,
            wide=same,
        ),
        figure(run_charts.metric_curve(run), f"Validation {metric.name}", meaning.strip()),
    ]


def steps_plot(run: Run) -> Plot | None:
    """How the result depends on how long the network may look."""
    trained = number((run.steps or {}).get("trained_with"))
    told = "" if trained is None else f" It was trained with {trained:.0f}."
    caption = (
        "The same network, shown its inputs for fewer or more time steps at the test: more steps "
        f"average out the chance in the input spikes, and cost time and energy.{told}"
    )
    title = f"{metric_of(run.metric).name.capitalize()} against time steps"
    return figure(run_charts.step_curve(run), title, caption)


def activity_plot(run: Run) -> Plot | None:
    rates, spiking = run_charts.layer_activity(run)
    if spiking:
        caption = (
            "Mean number of spikes that a neuron sends per time step, over the test set: 0.1 means "
            "one spike in ten steps. Fewer spikes cost less energy on event-driven hardware."
        )
        silent = all(rate == 0 for rate in rates.values())
        caption += " No neuron spiked at all: the network is silent." if silent else ""
    else:
        caption = (
            "Mean size (absolute value) of what a neuron sends on per time step, over the test set."
        )
    title = "Firing rate by layer" if spiking else "Mean output by layer"
    return figure(run_charts.activity_bars(run), title, caption, wide=True)


def epoch_table(run: Run) -> dict[str, list[Any]]:
    """metrics.jsonl as a table: names of its columns and its rows."""
    names = list(dict.fromkeys(name for epoch in run.epochs for name in epoch))
    rows = [[_cell(epoch.get(name)) for name in names] for epoch in run.epochs]
    return {"names": [name.replace("_", " ") for name in names], "rows": rows}


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "★" if value else ""
    plain = number(value)
    return NOTHING if plain is None else f"{plain:.5g}"
