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
from spikebridge.report.theme import Block, Card, Drawer, Plot, Section, colour_of, figure, figures
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
    share_text,
)
from spikebridge.runs.hardware_results import (
    OnCells,
    load_by_steps,
    load_complexity,
    load_on_cells,
    load_on_chip,
    load_proof,
)
from spikebridge.runs.load import ReportError, Run
from spikebridge.settings.config import to_dict
from spikebridge.settings.tasks import OwnConfig, data_label, data_title

LOSS = (
    "The loss is what training makes small; a validation line that rises while the training line "
    "falls would mean learning by heart."
)
MEASURED_LOSS = LOSS + " {}{}"
BY_STEPS = (
    "The same network, shown its inputs for fewer or more time steps at the test: more steps "
    "average out the chance in the input spikes, and cost time and energy."
)
RATES = (
    "Mean number of spikes that a neuron sends per time step, over the test set: 0.1 means one "
    "spike in ten steps. Fewer spikes cost less energy on event-driven hardware."
)
SILENT = " No neuron spiked at all: the network is silent."
MEANS = "Mean size (absolute value) of what a neuron sends on per time step, over the test set."


def context(run: Run, sections: Sequence[Callable[[Run], Section]] = ()) -> dict[str, Any]:
    """The values that run.html needs; sections make those of the user."""
    metric = metric_of(run.metric)
    programmed = load_on_cells(run.directory)
    return {
        "title": f"{run.label} on {data_label(run.data)}",
        "label": run.label,
        "colour": colour_of(run.unit),
        "task": run.task,
        "about": about(run),
        "notes": list(run.result.notes) if run.result else [],
        "complete": run.result is not None,
        "epochs_done": plural(len(run.epochs), "epoch"),
        "cards": cards(run, metric),
        "source": source_of(run.result and run.result.published),
        "started": started(run),
        "sections": [
            *learning_section(run, metric),
            *hardware(run, programmed),
            *(own_section(make, run) for make in sections),
        ],
        "composition": composition(run),
        "panels": panels(run),
        "more": more_text(run.examples),
        "epochs": epoch_table(run),
        "config": list(flatten(to_dict(run.config))),
        "environment": list(flatten(run.environment)),
        "result": list(flatten(run.result.to_dict())) if run.result else [],
        "memory": [] if programmed is None else list(flatten(programmed.memory)),
        "command": [] if _of_object(run) else command(["train", run.task], to_dict(run.config)),
        "metric_meaning": metric.meaning,
    }


def hardware(run: Run, programmed: OnCells | None) -> list[Section]:
    """The sections of memory cells, programmed or trained on, of the digital chip and of counts."""
    parts = [None if programmed is None else in_memory(programmed, run, Drawer())]
    parts.append(in_the_loop(run, Drawer()))
    program = load_on_chip(run.directory)
    if program is not None:
        parts.append(on_chip(program, load_proof(run.directory), run, Drawer()))
    parts.append(complexity(run))
    return [part for part in parts if part]


def _of_object(run: Run) -> bool:
    """Whether its task was an object in a program, which no command can make."""
    return isinstance(run.config.task, OwnConfig) and not run.config.task.task_class


def own_section(make: Callable[[Run], Section], run: Run) -> Section:
    """What a user's function makes of the run; ReportError where that is no section."""
    section = make(run)
    if not isinstance(section, Section):
        raise ReportError(
            f"{getattr(make, '__qualname__', make)} returned {type(section).__name__}: a function "
            "for a section of your own returns a spikebridge.report.Section"
        )
    return section


def about(run: Run) -> str:
    """The network and the data in one line."""
    known = data_title(run.data, run.task)
    model = run.config.model
    hidden = model.hidden
    if run.examples is None:
        return f"{known} · hidden layers of {' and '.join(map(str, hidden))} neurons"
    sizes = [run.examples.x.shape[-1], *hidden, run.examples.output.shape[-1]]
    if run.symbols:
        between = [model.embedding] if model.embedding else []
        sizes = [len(run.symbols), *between, *hidden, len(run.symbols)]
    return f"{known} · network {' → '.join(f'{size:,}' for size in sizes)}"


def source_of(published: Any) -> str:
    """Where a published figure stands, or nothing."""
    return str(published.get("source") or "") if isinstance(published, dict) else ""


def started(run: Run) -> str:
    """The command line that the run was started with, where its environment tells."""
    words = run.environment.get("command")
    return shlex.join(map(str, words)) if isinstance(words, list) else ""


def cards(run: Run, metric: Metric) -> list[Card]:
    """The headline figures: name, value and a line below."""
    result, best = run.result, run_charts.best_epoch(run)
    published = (result and result.published) or {}
    spikes = result and result.spikes_per_inference
    per = f"per {run.inference}"
    short = metric.unit == "%"
    value = metric_text(metric, result and result.test, unit=short)
    known = metric_text(metric, published.get("value"), unit=short)
    graded = result is not None and spikes is None
    return [
        Card(f"test {metric.name}", value, metric.below if value != NOTHING else "not known"),
        Card(f"published {metric.name}", known, "source below")
        if known != NOTHING
        else Card(f"published {metric.name}", "unknown", "no published figure for this set-up"),
        Card(
            "parameters",
            count_text(result and result.parameters),
            "trained numbers"
            if result is None
            else f"{result.operations_per_step:,} multiplications per dense step",
        ),
        Card("spikes per inference", "none", "this unit sends graded values")
        if graded
        else Card("spikes per inference", count_text(spikes), f"all hidden layers, {per}"),
        Card(
            "training time",
            seconds_text(result and result.seconds),
            plural(result.epochs if result else len(run.epochs), "epoch")
            + (f", best: {best}" if best is not None else ""),
        ),
        Card("seed", str(run.seed), "fixes all random choices"),
    ]


def learning_section(run: Run, metric: Metric) -> list[Section]:
    """Learning curves, the test by time steps and the activity of layers; none without a figure."""
    block = figures(*learning_plots(run, metric), steps_plot(run), activity_plot(run))
    return [Section("Learning", "", (block,))] if block.plots else []


def learning_plots(run: Run, metric: Metric) -> list[Plot | None]:
    """Learning curves; two figures, or one where loss and metric are the same quantity."""
    same = run_charts.metric_is_loss(run)
    star = " The star marks the epoch whose network was kept and tested."
    meaning = f"{metric.meaning} Measured after each epoch on data not used for training.{star}"
    title, caption = ("Loss", LOSS) if not same else (f"Loss ({metric.name})", MEASURED_LOSS)
    return [
        figure(
            run_charts.loss_curves(run),
            title,
            caption.format(metric.meaning, star),
            wide=same,
        ),
        figure(run_charts.metric_curve(run), f"Validation {metric.name}", meaning.strip()),
    ]


def steps_plot(run: Run) -> Plot | None:
    """How the result depends on how long the network may look."""
    tested = load_by_steps(run.directory)
    title = f"{metric_of(run.metric).name.capitalize()} against time steps"
    with_steps = "" if tested is None else f" It was trained with {tested.trained_with}."
    return figure(run_charts.step_curve(run), title, BY_STEPS + with_steps)


def activity_plot(run: Run) -> Plot | None:
    """Activity of the layers, as spikes where they spike."""
    rates, spiking = run_charts.layer_activity(run)
    silent = spiking and all(rate == 0 for rate in rates.values())
    title, caption = ("Firing rate by layer", RATES) if spiking else ("Mean output by layer", MEANS)
    return figure(run_charts.activity_bars(run), title, caption + SILENT * silent, wide=True)


def complexity(run: Run) -> Section | None:
    """What the network holds and does, where it was measured."""
    measured = load_complexity(run.directory)
    if measured is None:
        return None
    operations, per = measured.synaptic_operations, measured.per
    effective = operations.Effective_MACs + operations.Effective_ACs
    cards = [
        Card("footprint", f"{measured.footprint:,}", "bytes of parameters and buffers"),
        Card(
            "effective operations",
            count_text(effective),
            f"per {per}: {count_text(operations.Effective_ACs)} additions and "
            f"{count_text(operations.Effective_MACs)} multiplications with addition",
        ),
        Card("dense operations", count_text(operations.Dense), f"per {per}, zeros included"),
        Card("membrane updates", count_text(measured.membrane_updates), f"per {per}"),
        Card("zero outputs", share_text(measured.activation_sparsity), "of all layers and steps"),
        Card("zero weights", share_text(measured.connection_sparsity), "of all connections"),
    ]
    samples = plural(measured.samples, per)
    about = f"Over {samples} of the {measured.split} split; {measured.source}."
    return Section("Complexity", about, (Block(cards=tuple(cards)),))


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
