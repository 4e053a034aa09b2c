"""Learning rules and methods against their controls, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from spikebridge.base.metrics import METRICS
from spikebridge.report.theme import (
    Block,
    Chart,
    Section,
    Table,
    colour_of,
    figure,
    figures,
    table,
)
from spikebridge.report.wording import NOTHING
from spikebridge.runs.transfer import HIGHER_IS_BETTER, MEASURES
from spikebridge.studies.comparison import RuleContrast, RuleResult, Summary
from spikebridge.studies.contrasts import corrected

SEQUENCE = ("average_accuracy", "forgetting")
COMPARED = ("tests", "slowness", *SEQUENCE, "unseen")
"""What is compared; other contrasts are in compare.json alone."""
ABOUT = (
    "The same seeds give the same first weights and the same order of samples, so each rule is "
    "compared with its control seed by seed."
)
ABOUT_GAIN = (
    " Equal gain gives every neuron the mean factor of its layer: what GRAPES does beyond it is "
    "due to how factors are spread over neurons, and not to a larger step."
)
CORRECTED = (
    "better and worse are said where the p-value, corrected for the number of comparisons (Holm "
    "1979), is at most 0.05"
)
SLOWNESS = (
    "Slowness s fits accuracy(e) = highest x e / (s + e) to the validation accuracy after each "
    "epoch e, from chance at epoch 0: lower is faster."
)
INTERVALS = (
    "Mean over the seeds and its 95 % interval (Student, paired by seed); an interval that holds 0 "
    "compares what is not known to differ."
)
EDGE = "* The first or the last value that was tried: a better one may lie beyond."


def section(facts: Summary) -> Section | None:
    """The section of a comparison; None where no learning rules are compared."""
    rows = facts.learning
    if not rows:
        return None
    contrasts = compared(facts)
    about = ABOUT + (ABOUT_GAIN if any(row.role == "gain" for row in rows) else "")
    if contrasts:
        about += f" There are {len(contrasts)} intervals of 95 % here; {CORRECTED}."
    slow = SLOWNESS if any(row.slowness for row in rows) else ""
    edge = EDGE if any(row.at_edge for row in rows) else ""
    metric = METRICS[facts.metric]
    plots = [
        figure(chart(facts, contrasts, of), title, f"{caption} {more}".strip(), wide=True)
        for of, title, caption, more in (
            (("tests",), f"Difference in test {metric.name}", INTERVALS, metric.advice),
            (SEQUENCE, "Differences in accuracy and forgetting", INTERVALS, ""),
            (("slowness",), "Difference in slowness", "Below 0 the first is faster.", ""),
        )
    ]
    blocks = [figures(*plots)]
    if contrasts:
        blocks.append(Block(table=_contrasts(facts, contrasts)))
    settings = _settings(rows)
    if any(set(row[1:]) != {NOTHING} for row in settings.rows):
        blocks.append(Block(table=settings, below=" ".join(filter(None, (slow, edge)))))
    return Section("Seed by seed", about, tuple(blocks))


def compared(facts: Summary) -> list[RuleContrast]:
    """The contrasts that are shown, each with its p-value corrected for their number."""
    shown = [item for item in facts.contrasts if item.of in COMPARED]
    return [replace(item, corrected=p) for item, p in zip(shown, corrected(shown), strict=True)]


def judged(contrast: RuleContrast, higher_is_better: bool) -> str:
    """What a contrast with its corrected p-value says, in words.

    higher_is_better: of the test metric.
    """
    higher = HIGHER_IS_BETTER.get(contrast.of, higher_is_better and contrast.of == "tests")
    if contrast.low is None:
        return "unknown, one seed"
    if not contrast.clear:
        return "not known to differ"
    word = "better" if (contrast.mean > 0) == higher else "worse"
    sure = contrast.corrected is not None and contrast.corrected <= 0.05
    return word if sure else f"perhaps {word}, not after correction"


def _points(facts: Summary) -> str:
    """The unit of a difference of two metrics."""
    unit = METRICS[facts.metric].unit
    return "points" if unit == "%" else unit


def _contrasts(facts: Summary, contrasts: list[RuleContrast]) -> Table:
    metric = METRICS[facts.metric]

    def measure(item: RuleContrast) -> str:
        if item.of == "slowness":
            return "slowness (epochs)"
        unit = _points(facts)
        return MEASURES.get(item.of, metric.name) + (f" ({unit})" if unit else "")

    def difference(item: RuleContrast) -> str:
        slow = item.of == "slowness"
        scale, decimals = (1.0, 4) if slow else (metric.scale, metric.decimals)
        ends = (item.mean, item.low, item.high)
        mean, *reach = (f"{scale * end:+.{decimals}f}" for end in ends if end is not None)
        return f"{mean} ({' to '.join(reach) or 'one seed'})"

    columns = {
        "": lambda item: f"{item.label} against {item.other}",
        "measure": measure,
        "seeds": lambda item: str(item.n),
        "difference, 95 % interval": difference,
        "so it is": lambda item: judged(item, metric.higher_is_better),
    }
    return table(contrasts, columns)


def _settings(rows: Sequence[RuleResult]) -> Table:
    def slowness(row: RuleResult) -> str:
        mean, std = row.slowness_mean, row.slowness_std
        text = NOTHING if mean is None else f"{mean:.4f}"
        return text if std is None else f"{text} ± {std:.4f}"

    columns = {
        "": lambda row: row.label,
        "chosen on validation": lambda row: chosen_text(row.chosen, row.at_edge) or NOTHING,
        "slowness (epochs)": slowness,
    }
    return table(rows, columns, text=(1,))


def chosen_text(chosen: Mapping[str, Any], at_edge: Sequence[str] | None = ()) -> str:
    """Settings in words, with a mark at those at an end of what was tried."""
    marks = dict.fromkeys(at_edge or (), "*")
    texts = [f"{name} {value:g}{marks.get(name, '')}" for name, value in chosen.items()]
    return ", ".join(texts)


def chart(facts: Summary, contrasts: list[RuleContrast], of: Sequence[str]) -> Chart | None:
    """The contrasts of these measures, with their intervals; None where there are none."""
    rows = [item for item in contrasts if item.of in of]
    if not rows:
        return None
    metric = METRICS[facts.metric]
    scale = 1.0 if "slowness" in of else metric.scale
    result, names = Chart(90 + 54 * len(rows)), []
    for index, item in enumerate(rows):
        colour = colour_of(item.against if item.against == "gain" else item.role)
        reach = 0.0 if item.high is None else scale * (item.high - item.mean)
        bars = {"array": [reach], "color": colour, "thickness": 3, "width": 6}
        x, dot = [float(f"{scale * item.mean:.5g}")], {"color": colour, "size": 11}
        result.marks(x, [index], dot, hover="%{x}", error_x=bars, showlegend=False)
        what = f"{MEASURES[item.of]}, " if item.of in MEASURES else ""
        names.append(f"{what}{item.label} against {item.other}")
    result.rows(names, 26)
    word = {"tests": f" in {metric.name}", "slowness": " in slowness"}.get(rows[0].of, "")
    unit = "epochs" if "slowness" in of else _points(facts)
    result.x(title=f"difference{word}{f' ({unit})' if unit else ''}", nticks=8)
    result.rule(x0=0, x1=0, yref="paper", y0=0, y1=1)
    return result
