"""What the network was shown, answered and did, example by example."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spikebridge.report import activity_charts, example_charts
from spikebridge.report.theme import Plot, colour_of, fade, figure, probability_ramp
from spikebridge.report.wording import frame_text, metric_of, metric_text, number, plural
from spikebridge.runs.load import Examples, Run
from spikebridge.settings.tasks import MusicConfig
from spikebridge.trained.midi import LOWEST

EXAMPLES = 6
ROLL_FRAMES = 400
"""Frames of a piece that are drawn at most: some last for thousands."""
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
THRESHOLD = " Dotted: the threshold."
GUESSED = " Dotted: the threshold, as far as the spikes of all examples in the file tell it."
OUTPUT_TRACES = "The output of a few neurons over time; these units have no membrane state."
ROLL = (
    "Colour: how probable the network thought each note for the coming frame, having heard all "
    "frames before it. Outlines: the notes that really came. A filled outline was foreseen, an "
    "empty one was a surprise, colour without an outline was a false expectation."
)
EVENTS = (
    " The picture shows the events in the first third of the recording: orange where a pixel grew "
    "brighter, blue where it grew darker, black for both."
)
STEPS = (
    "Line: the class that was right at each step. Dots: the one that the network found most "
    "probable; a dot on the line is a right answer."
)
NUMBERS = "In standard deviations of the training data, whose mean is 0."
READING = (
    "The network reads from left to right and before each {0} says how probable it finds every "
    "{0} that could come. The stronger the colour, the more probable it found the one that really "
    "came; pale {0}s are surprises. Point at a {0} to see what was expected in its place."
)
SYMBOL_NAMES = {"\n": "¶", " ": "␣", "<eos>": "¶"}


@dataclass(frozen=True)
class Panel:
    """One example: what a tab shows and what stands behind it."""

    tab: str
    heading: str = ""
    plots: Sequence[Plot | None] = ()
    """Figures over the whole width, above the others; None is left out."""
    columns: Sequence[Sequence[Plot | None]] = ((),)
    image: str | None = None
    right: bool | None = None
    """Whether the answer is right; None where there is no one answer."""


def panels(run: Run, most: int = EXAMPLES) -> list[Panel]:
    examples = run.examples
    if examples is None:
        return []
    return [panel(run, examples, index) for index in range(min(most, examples.count))]


def panel(run: Run, examples: Examples, index: int) -> Panel:
    """What the network was shown, answered and did for one example."""
    head = _answered(run, examples, index)
    if run.task == "music":
        examples = replace(examples, length=np.minimum(examples.length, ROLL_FRAMES))
    bands = activity_charts.bands(examples, index, show_input=run.task not in ("music", "text"))
    x_title = f"frame heard{frame_text(run.data)}" if run.task == "music" else "time step"
    spiking = any(band.spiking for band in bands if not band.input)
    raster = figure(
        activity_charts.raster(bands, run.unit, x_title),
        "Spike raster" if spiking else "Activity of the neurons",
        (RASTER if spiking else MAP) + activity_charts.selection_text(bands),
        ramp=activity_charts.ramp(bands, run.unit),
    )
    membrane = any(band.s is not None for band in bands)
    words = TRACES if spiking else SOFT_TRACES if membrane else OUTPUT_TRACES
    if any(band.threshold is not None for band in bands):
        words += THRESHOLD if examples.threshold else GUESSED
    lines = None
    if int(examples.length[index]) > 1:  # a line of one time step would be a dot
        title = f"{'Membrane states' if membrane else 'Outputs'} of a few neurons"
        lines = figure(activity_charts.traces(bands, run.unit, x_title), title, words)
    columns = [
        [plot for plot in column if plot] for column in ([*head.columns[0], lines], [raster])
    ]
    return replace(head, columns=[column for column in columns if column])


def _answered(run: Run, examples: Examples, index: int) -> Panel:
    steps = int(examples.length[index])
    if run.task == "text":
        return text_panel(run, examples, index)
    if examples.target.dtype.kind != "f" and examples.target.ndim == 1:
        return class_panel(run, examples, index)
    if examples.output.ndim == 2:
        return numbers_panel(run, examples, examples.output[index], examples.target[index], index)
    output, target = examples.output[:steps, index], examples.target[:steps, index]
    if run.task == "music":
        return music_panel(run, output, target, index)
    if examples.target.dtype.kind != "f":
        return steps_panel(run, output, target, index)
    return numbers_panel(run, examples, output, target, index)


def class_panel(run: Run, examples: Examples, index: int) -> Panel:
    output, truth = examples.output[index], int(examples.target[index])
    answer = int(np.nan_to_num(output, nan=-1.0).argmax())
    share = number(float(output[answer]))
    sure = "" if share is None else f", {100 * share:.0f} % sure"
    names = examples.output_names if len(examples.output_names) == len(output) else ()
    digits = run.task in ("digits", "events") and not names
    noun = "digit" if digits else "class"
    true, given = (names[k] if k < len(names) else str(k) for k in (truth, answer))
    heading = f"This is a {truth}. The network reads a {answer}{sure}."
    if not digits:
        heading = f"This is of class {true}. The network answers class {given}{sure}."
    image = None
    if run.task == "digits":
        image = example_charts.digit_image(examples, index)
    elif run.task == "events":
        image = example_charts.event_image(examples, index)
        heading += EVENTS
    bars = example_charts.class_bars(output, truth, run.unit, noun, names)
    caption = f"How probable the network finds each {noun}; the bar of the true {noun} is coloured."
    return Panel(
        tab=true if digits or names else f"class {truth}",
        image=None if image is None else example_charts.png(image),
        right=answer == truth,
        heading=heading,
        columns=[[figure(bars, "Predicted class", caption)]],
    )


def steps_panel(run: Run, output: np.ndarray, target: np.ndarray, index: int) -> Panel:
    right = int((np.nan_to_num(output, nan=-1.0).argmax(axis=-1) == target).sum())
    judged = int((target >= 0).sum())  # -1 is a step without an answer
    chart = example_charts.steps(output, target, run.unit, "time step")
    tab = f"{run.config.task.sample_name()} {index + 1}"
    some = " with an answer" if judged < len(target) else ""
    heading = f"{tab.capitalize()} of the test set: right at {right:,} of {plural(judged, 'step')}"
    return Panel(tab, f"{heading}{some}.", [figure(chart, "Class at each step", STEPS, wide=True)])


def numbers_panel(
    run: Run, examples: Examples, output: np.ndarray, target: np.ndarray, index: int
) -> Panel:
    """Numbers that were to be predicted, once or at each step."""
    names, count = examples.output_names, example_charts.OUTPUTS
    if output.ndim == 1:
        chart = example_charts.dots(output, target, names, run.unit)
        title, words = "Truth and prediction", NUMBERS
    else:
        chart = example_charts.lines(output, target, names, run.unit, "time step")
        title, words = "Truth and prediction over time", NUMBERS
        ahead = getattr(run.config.task, "horizon", None)
        if ahead is not None:
            words += f" Each value was predicted {plural(ahead, 'row')} before it came."
        if output.shape[-1] > count:
            words += f" Shown are the first {count} of {output.shape[-1]:,} outputs."
    error = number(example_charts.rmse(output, target)) if output.size else None
    known = "" if error is None else f": RMSE {error:.3f} standard deviations"
    first = f"{run.config.task.sample_name()} {index + 1}"
    if run.task == "forecast" and output.ndim > 1:
        first = f"rows 1 to {len(target):,}"
    heading = f"{first[0].upper()}{first[1:]} of the test set{known}."
    return Panel(first, heading, [figure(chart, title, words, wide=True)])


def text_panel(run: Run, examples: Examples, index: int) -> Panel:
    """A stretch of the text, symbol by symbol, and how much each one surprised the network."""
    right = examples.output[:, index, 0]
    surprise = float(-np.log(np.clip(right, 1e-9, 1)).mean())
    value = {"perplexity": np.exp(surprise), "bpc": surprise / np.log(2)}.get(run.metric, surprise)
    metric = metric_of(run.metric)
    ramp = probability_ramp("probability of what really came", run.unit)
    caption, content = READING.format(run.counted), marked(run, examples, index)
    part = f"part {index + 1}"
    return Panel(
        part,
        f"{part.capitalize()} of the test text: {metric.name} {metric_text(metric, float(value))}.",
        [Plot("Read one after the other", content, caption, wide=True, ramp=ramp)],
    )


def marked(run: Run, examples: Examples, index: int) -> str:
    """One example as HTML; all that comes from files is escaped."""
    spans = []
    for step in range(int(examples.length[index])):
        chance, *others = examples.output[step, index]
        chance = float(np.clip(np.nan_to_num(chance), 0, 1))
        symbol = symbol_of(run, int(examples.target[step, index]))
        hover = f"{symbol}: {100 * chance:.2g} %"
        if examples.top is not None:
            likeliest = zip(examples.top[step, index], others, strict=False)
            hover += "; expected: " + ", ".join(
                f"{symbol_of(run, int(number))} {100 * float(share):.2g} %"
                for number, share in likeliest
            )
        style = f"background:{fade(colour_of(run.unit), round(0.75 * chance**0.5, 3))}"
        spans.append(
            f'<span class="symbol" tabindex="0" style="{style}" title="{html.escape(hover)}">'
            f"{html.escape(symbol)}</span>"
        )
    return f'<p class="reading">{(" " if run.metric == "perplexity" else "").join(spans)}</p>'


def symbol_of(run: Run, number: int) -> str:
    """What a symbol is called; its number where the run does not tell."""
    if not 0 <= number < len(run.symbols):
        return str(number)
    return SYMBOL_NAMES.get(run.symbols[number], run.symbols[number])


def music_panel(run: Run, output: np.ndarray, target: np.ndarray, index: int) -> Panel:
    """A piece as the network expected it and as it really came."""
    if target.ndim != 2 or not len(output):
        return Panel(f"{index + 1}")
    value = number(example_charts.frame_nll(output, target))
    lowest = MusicConfig.LOWEST.get(run.data, LOWEST)
    roll = figure(
        example_charts.piano_roll(
            output[:ROLL_FRAMES],
            target[:ROLL_FRAMES],
            run.unit,
            f"frame{frame_text(run.data)}",
            lowest,
        ),
        "Piano roll: truth and prediction",
        ROLL,
        wide=True,
        ramp=probability_ramp("predicted probability of the note", run.unit),
    )
    known = "" if value is None else f", NLL {value:.2f} nats per frame"
    frames = plural(len(output), "predicted frame")
    heading = f"Piece {index + 1} of the test set: {frames}{known}."
    if len(output) > ROLL_FRAMES:
        heading += f" Shown are the first {ROLL_FRAMES}."
    return Panel(f"piece {index + 1}", heading, [roll])


def more_text(examples: Examples | None) -> str:
    if examples is None or examples.count <= EXAMPLES:
        return ""
    return f"Shown are the first {EXAMPLES} of the {examples.count} examples in examples.npz."
