"""A text as HTML: every word or character on a ground that tells how expected it was."""

from __future__ import annotations

import html

import numpy as np

from spikebridge.report.theme import Ramp, colour_of, fade, shades
from spikebridge.runs.load import Examples, Run

CAPTION = (
    "The network reads from left to right and before each {0} says how probable it finds every "
    "{0} that could come. The stronger the colour, the more probable it found the one that really "
    "came; pale {0}s are surprises. Point at a {0} to see what was expected in its place."
)
NAMES = {"\n": "¶", " ": "␣", "<eos>": "¶"}


def marked(run: Run, examples: Examples, index: int) -> str:
    """One example as HTML; all that comes from files is escaped."""
    by_words = run.metric == "perplexity"
    spans = []
    for step in range(int(examples.length[index])):
        chance = float(np.clip(np.nan_to_num(examples.output[step, index, 0]), 0, 1))
        symbol = name_of(run, int(examples.target[step, index]))
        told = f"{symbol}: {100 * chance:.2g} %"
        if examples.top is not None:
            likeliest = zip(
                examples.top[step, index], examples.output[step, index, 1:], strict=False
            )
            told += "; expected: " + ", ".join(
                f"{name_of(run, int(number))} {100 * float(share):.2g} %"
                for number, share in likeliest
            )
        style = f"background:{fade(colour_of(run.unit), round(0.75 * chance**0.5, 3))}"
        spans.append(
            f'<span class="symbol" tabindex="0" style="{style}" title="{html.escape(told)}">'
            f"{html.escape(symbol)}</span>"
        )
    return f'<p class="reading">{(" " if by_words else "").join(spans)}</p>'


def name_of(run: Run, number: int) -> str:
    """What a symbol is called; its number where the run does not tell."""
    if not 0 <= number < len(run.symbols):
        return str(number)
    return NAMES.get(run.symbols[number], run.symbols[number])


def ramp(unit: str) -> Ramp:
    """The key of the colours."""
    return Ramp("probability of what really came", "0 %", "100 %", shades(unit))
