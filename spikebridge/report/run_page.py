"""What stands on the page of one run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from spikebridge.base.records import to_plain
from spikebridge.report import continual, run_charts
from spikebridge.report.composition import composition
from spikebridge.report.examples import more_text, panels
from spikebridge.report.on_cells import in_memory, in_the_loop
from spikebridge.report.on_chip import on_chip
from spikebridge.report.theme import Block, Card, Section, Table, colour_of, figure, figures
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
    load_by_steps,
    load_complexity,
    load_on_cells,
    load_on_chip,
    load_proof,
)
from spikebridge.runs.load import ReportError, Run
from spikebridge.settings.config import Config, to_dict
from spikebridge.settings.learning import LearningConfig
from spikebridge.settings.published import Published
from spikebridge.settings.tasks import OwnConfig, data_label, data_title

LOSS = (
    "The loss is what training makes small; a validation line that rises while the training line "
    "falls would mean learning by heart."
)
STAR = "The star marks the epoch whose network was kept and tested."
MEASURED = "Measured after each epoch on data not used for training."
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
RULES = {
    "bptt": "Errors go backwards through the network, and through time where there is time.",
    "fa": "Feedback alignment: errors go backwards layer by layer, through fixed random matrices "
    "instead of the transposed weights.",
    "dfa": "Direct feedback alignment: the error at the output goes to every hidden layer at once, "
    "through fixed random matrices.",
    "drtp": "Direct random target projection: every hidden layer learns from the targets, which "
    "reach it through fixed random matrices; nothing waits for the output.",
    "ostl": "Online, exact within a layer: gradients are formed as time goes on, from traces of "
    "each synapse; nothing goes back through time.",
    "eprop": "Online: gradients are formed as time goes on, from traces of each synapse, as if "
    "each neuron acted on itself alone; nothing goes back through time.",
}
GRAPES = {
    "propagated": "on its way down, so that lower layers get it too",
    "local": "for the layer's own update only",
    "outgoing": "taken from the weights that go out",
}
GRAPES_TEXT = (
    " GRAPES: the error of each neuron is multiplied by a factor from its weights, 2 |W| / max |W| "
    "summed over those that come in, {}."
)
GAIN = " As a control, every neuron gets the mean factor of its layer (equal gain)."
NORM = (
    "Norm of the changes that the rule asks for, over all parameters, before they are clipped: the "
    "mean over the updates of each epoch."
)


def context(run: Run, sections: Sequence[Callable[[Run], Section]] = ()) -> dict[str, Any]:
    """The values that run.html needs; sections make those of the user."""
    metric, result = metric_of(run.metric), run.result
    on_cells = load_on_cells(run.directory)
    program, proof = load_on_chip(run.directory), load_proof(run.directory)
    of_tasks = continual.of_run(run)
    parts = (
        of_tasks.pop("results", None) or learning(run, metric),
        learning_rule(run),
        on_cells and in_memory(on_cells, run),
        in_the_loop(run),
        program and on_chip(program, proof, run),
        complexity(run),
        *(own_section(make, run) for make in sections),
    )
    used, unused = configuration(run.config)
    return {
        "title": f"{run.label} on {data_label(run.data)}",
        "colour": colour_of(run.unit),
        "task": run.task,
        "about": about(run),
        "notes": list(result.notes) if result else [],
        "complete": result is not None,
        "epochs_done": plural(len(run.epochs), "epoch"),
        "cards": cards(run, metric),
        "source": source_of(result.published if result else None),
        "started": started(run),
        "sections": [part for part in parts if part],
        "composition": composition(run),
        "panels": panels(run),
        "more": more_text(run.examples),
        "epochs": epoch_table(run),
        "details": {
            "Configuration": used,
            "Configuration: settings without a use in this run": unused,
            "Environment": list(flatten(to_plain(run.environment))),
            "Result": list(flatten(to_plain(result))) if result else [],
            "Memory that the run was programmed into": list(flatten(on_cells.memory))
            if on_cells
            else [],
        },
        "command": [] if _of_object(run) else command(["train", run.task], to_dict(run.config)),
        **of_tasks,
    }


def configuration(config: Config) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The settings that a run used, and those that it had no use for, by their names."""
    plain = to_dict(config)
    without = {"learning"} if config.learning == LearningConfig() else set()
    if not config.cells.used:
        without |= {"cells", "crossbar", "pulses"}
    used = {part: values for part, values in plain.items() if part not in without}
    unused = {part: values for part, values in plain.items() if part in without}
    return list(flatten(used)), list(flatten(unused))


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
    known, model = data_title(run.data, run.task), run.config.model
    if run.examples is None:
        return f"{known} · hidden layers of {' and '.join(map(str, model.hidden))} neurons"
    sizes = [run.examples.x.shape[-1], *model.hidden, run.examples.output.shape[-1]]
    if run.symbols:
        between = [model.embedding] if model.embedding else []
        sizes = [len(run.symbols), *between, *model.hidden, len(run.symbols)]
    return f"{known} · network {' → '.join(f'{size:,}' for size in sizes)}"


def source_of(published: Published | None) -> str:
    """Where a published figure stands, or nothing."""
    return published.source if published else ""


def started(run: Run) -> str:
    """The command line that the run was started with, where its environment tells."""
    return shlex.join(run.environment.command)


def cards(run: Run, metric: Metric) -> list[Card]:
    result, best, short = run.result, run_charts.best_epoch(run), metric.unit == "%"
    value = metric_text(metric, result and result.test, unit=short)
    published = result.published if result else None
    paper, source = metric_text(metric, published and published.value, unit=short), "source below"
    if paper == NOTHING:
        paper, source = "unknown", "no published figure for this set-up"
    trained, spikes = "trained numbers", NOTHING
    sent = f"all hidden layers, per {run.inference}"
    if result:
        trained = f"{result.operations_per_step:,} multiplications per dense step"
        spikes = count_text(result.spikes_per_inference)
        if result.spikes_per_inference is None:
            spikes, sent = "none", "this unit sends graded values"
    epochs = plural(result.epochs if result else len(run.epochs), "epoch")
    kept = f"{epochs}, best: {best}" if best is not None else epochs
    below = metric.below if value != NOTHING else "not known"
    if result and "largest class" in result.baselines:
        below += f"; largest class {metric_text(metric, result.baselines['largest class'])}"
    return [
        Card(f"test {metric.name}", value, below),
        Card(f"published {metric.name}", paper, source),
        Card("parameters", count_text(result and result.parameters), trained),
        Card("spikes per inference", spikes, sent),
        Card("training time", seconds_text(result and result.seconds), kept),
        Card("seed", str(run.seed), "fixes all random choices"),
    ]


def learning(run: Run, metric: Metric) -> Section | None:
    """Learning curves, the test by time steps and the activity of layers; None without a figure."""
    same, name = run_charts.metric_is_loss(run), metric.name
    title = f"Loss ({name})" if same else "Loss"
    loss = f"{LOSS} {metric.meaning} {STAR}" if same else LOSS
    tested = load_by_steps(run.directory)
    steps = f"{BY_STEPS} It was trained with {tested.trained_with}." if tested else ""
    rates, spiking = run_charts.layer_activity(run)
    silent = spiking and all(rate == 0 for rate in rates.values())
    layers, words = ("Firing rate", RATES) if spiking else ("Mean output", MEANS)
    block = figures(
        figure(run_charts.loss_curves(run), title, loss, wide=same),
        figure(
            run_charts.metric_curve(run),
            f"Validation {name}",
            f"{metric.meaning} {MEASURED} {STAR}".strip(),
        ),
        figure(run_charts.step_curve(run), f"{name.capitalize()} against time steps", steps),
        figure(
            run_charts.activity_bars(run), f"{layers} by layer", words + SILENT * silent, wide=True
        ),
    )
    return Section("Learning", "", (block,)) if block.plots else None


def learning_rule(run: Run) -> Section | None:
    """How the run learned and what was recorded of it; None for plain backpropagation."""
    chosen = run.config.learning
    if chosen == LearningConfig():
        return None
    text = RULES.get(chosen.rule, f"A rule of your own, {chosen.rule}.")
    if chosen.grapes != "none":
        text += GRAPES_TEXT.format(GRAPES[chosen.grapes])
    if chosen.grapes_control == "gain":
        text += GAIN
    settings = flatten(to_dict(run.config)["learning"])
    rows = Table(("setting", "value"), [[name, value] for name, value in settings], text=(1,))
    skipped = sum(epoch.skipped or 0 for epoch in run.epochs)
    more = f" Left out: {plural(skipped, 'update')} of no finite norm." if skipped else ""
    norm = run_charts.epoch_curve(run, "grad_norm", "norm of the changes")
    plot = figures(figure(norm, "Size of the changes", NORM + more, wide=True))
    return Section(f"Learning rule: {chosen.name}", text, (Block(table=rows), plot))


def complexity(run: Run) -> Section | None:
    measured = load_complexity(run.directory)
    if measured is None:
        return None
    operations, per = measured.synaptic_operations, f"per {measured.per}"
    additions, products = operations.Effective_ACs, operations.Effective_MACs
    kinds = (
        f"{per}: {count_text(additions)} additions and {count_text(products)} multiplications "
        "with addition"
    )
    cards = (
        Card("footprint", f"{measured.footprint:,}", "bytes of parameters and buffers"),
        Card("effective operations", count_text(additions + products), kinds),
        Card("dense operations", count_text(operations.Dense), f"{per}, zeros included"),
        Card("membrane updates", count_text(measured.membrane_updates), per),
        Card("zero outputs", share_text(measured.activation_sparsity), "of all layers and steps"),
        Card("zero weights", share_text(measured.connection_sparsity), "of all connections"),
    )
    samples = plural(measured.samples, measured.per)
    about = f"Over {samples} of the {measured.split} split; {measured.source}."
    return Section("Complexity", about, (Block(cards=cards),))


def epoch_table(run: Run) -> Table:
    epochs = [to_plain(epoch) for epoch in run.epochs]
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch))
    rows = [[_cell(epoch.get(name)) for name in names] for epoch in epochs]
    return Table(tuple(name.replace("_", " ") for name in names), rows)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "★" if value else ""
    plain = number(value)
    return NOTHING if plain is None else f"{plain:.5g}"
