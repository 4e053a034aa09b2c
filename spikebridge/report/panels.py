"""What the network was shown, answered and did, example by example."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spikebridge.report import activity, answers
from spikebridge.report.load import Examples, Run
from spikebridge.report.text import metric_of, number, plural, scaled
from spikebridge.report.theme import Drawer, Plot

EXAMPLES = 6
RASTER = (
    "Each row is one neuron, time runs from left to right, and each tick is one spike: the only "
    "signal that a spiking neuron sends on."
)
MAP = (
    "Each row is one neuron and time runs from left to right; the stronger the colour, the larger "
    "the value that the neuron sends on. These units are graded: they do not spike."
)
TRACES = (
    "The membrane state s (a plain number, without a unit) collects the input of a neuron over "
    "time; when it exceeds the neuron's threshold, the neuron spikes (dot)."
)
SOFT_TRACES = (
    "The membrane state s (a plain number, without a unit) collects the input of a neuron over "
    "time; these units send on a smooth function of it instead of spikes."
)
THRESHOLD = " Dotted: the threshold, as far as the spikes of all examples in the file tell it."
OUTPUT_TRACES = "The output of a few neurons over time; these units have no membrane state."
ROLL = (
    "Colour: how probable the network thought each note for the coming frame, having heard all "
    "frames before it. Outlines: the notes that really came. A filled outline was foreseen, an "
    "empty one was a surprise, colour without an outline was a false expectation."
)


@dataclass(frozen=True)
class Panel:
    """One example: what a tab shows and what stands behind it."""

    tab: str
    image: str | None
    right: bool | None
    heading: str
    plots: list[Plot]
    """Figures over the whole width, above the others."""
    columns: list[list[Plot]]


def panels(run: Run, drawer: Drawer, most: int = EXAMPLES) -> list[Panel]:
    """One panel per example."""
    examples = run.examples
    if examples is None:
        return []
    return [panel(run, examples, index, drawer) for index in range(min(most, examples.count))]


def panel(run: Run, examples: Examples, index: int, drawer: Drawer) -> Panel:
    """What the network was shown, answered and did for one example."""
    if examples.target.ndim == 1 and examples.output.ndim == 2:
        head = digit_panel(run, examples, index, drawer)
    else:
        head = music_panel(run, examples, index, drawer)
    found = activity.bands(examples, index, show_input=run.task != "music")
    x_title = "frame heard (one quarter note each)" if run.data == "jsb" else "time step"
    spiking = any(band.spiking for band in found if not band.input)
    raster = drawer.plot(
        activity.raster(found, run.unit, x_title),
        "Spike raster" if spiking else "Activity of the neurons",
        (RASTER if spiking else MAP) + activity.selection_text(found),
        ramp=activity.ramp(found, run.unit),
    )
    membrane = any(band.s is not None for band in found)
    words = TRACES if spiking else SOFT_TRACES if membrane else OUTPUT_TRACES
    if any(band.threshold is not None for band in found):
        words += THRESHOLD
    lines = drawer.plot(
        activity.traces(found, run.unit, x_title),
        "Membrane states of a few neurons" if membrane else "Outputs of a few neurons",
        words,
    )
    left, right = [*head.columns[0], lines], [raster]
    columns = [[plot for plot in column if plot] for column in (left, right)]
    return replace(head, columns=[column for column in columns if column])


def digit_panel(run: Run, examples: Examples, index: int, drawer: Drawer) -> Panel:
    output, truth = examples.output[index], int(examples.target[index])
    answer = int(np.nan_to_num(output, nan=-1.0).argmax())
    share = number(float(output[answer]))
    sure = "" if share is None else f", {100 * share:.0f} % sure"
    image = answers.digit_image(examples, index)
    bars = drawer.plot(
        answers.class_bars(output, truth, run.unit),
        "Predicted class",
        "How probable the network finds each digit; the bar of the true digit is coloured.",
    )
    return Panel(
        tab=str(truth),
        image=None if image is None else answers.png(image),
        right=answer == truth,
        heading=f"This is a {truth}. The network reads a {answer}{sure}.",
        plots=[],
        columns=[[bars] if bars else []],
    )


def music_panel(run: Run, examples: Examples, index: int, drawer: Drawer) -> Panel:
    steps = int(examples.length[index])
    if examples.output.ndim != 3 or examples.target.ndim != 3 or not steps:
        return Panel(f"{index + 1}", None, None, "", [], [[]])
    output, target = examples.output[:steps, index], examples.target[:steps, index]
    value = scaled(metric_of("nll"), answers.frame_nll(output, target))
    x_title = "frame (one quarter note each)" if run.data == "jsb" else "frame"
    roll = drawer.plot(
        answers.piano_roll(output, target, run.unit, x_title),
        "Piano roll: truth and prediction",
        ROLL,
        wide=True,
        ramp=answers.roll_ramp(run.unit),
    )
    known = "" if value is None else f", NLL {value:.2f} nats per frame"
    return Panel(
        tab=f"piece {index + 1}",
        image=None,
        right=None,
        heading=f"Piece {index + 1} of the test set: {plural(steps, 'predicted frame')}{known}.",
        plots=[roll] if roll else [],
        columns=[[]],
    )


def more_text(examples: Examples | None) -> str:
    if examples is None or examples.count <= EXAMPLES:
        return ""
    return f"Shown are the first {EXAMPLES} of the {examples.count} examples in examples.npz."
