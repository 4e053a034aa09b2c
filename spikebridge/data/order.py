"""What the dates of a table say of the order of its rows, and of the time between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from spikebridge.data import numerals

__all__ = ["DATED", "remarks"]

DATED = 5_000
"""Rows by which the order is judged."""
# Months are not equally long.
_EVEN = 1.2


def remarks(dated: Sequence[tuple[str, Sequence[str]]]) -> Iterator[str]:
    """Sentences on rows that go back in time, or are not equally far apart.

    dated are the columns of dates or times: name, and the texts of the first `DATED` rows.
    """
    days = [(name, texts) for name, texts in dated if any(map(numerals.is_date, texts))]
    if not days:
        return
    name, texts = days[0][0] or "the dates", list(days[0][1])
    clocks = [texts for _, texts in dated if all(t == "" or numerals.is_time(t) for t in texts)]
    if clocks:
        texts = [
            f"{day} {clock.replace('.', ':', 2)}"
            for day, clock in zip(texts, clocks[0], strict=True)
        ]
    steps = _seconds(texts)
    if steps is None or not len(steps):
        return
    if (steps <= 0).all() and (steps < 0).any():
        yield (
            f"{name} goes back in time from row to row: sort the rows, oldest first, or what is "
            "predicted is the past"
        )
    elif (steps < 0).any():
        row = int((steps < 0).argmax()) + 2
        yield f"{name} is not in order: row {row:,} is earlier than the one before"
    elif steps.max() > _EVEN * steps.min():
        usual = Counter(steps.tolist()).most_common(1)[0][0]
        yield (
            f"{name}: most rows are {_span(usual)} apart, some {_span(steps.min())} to "
            f"{_span(steps.max())}; they are taken as equally far apart"
        )


def _span(seconds: float) -> str:
    for name, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:g} s"


def _seconds(texts: list[str]) -> np.ndarray | None:
    """The steps between dates; None where they cannot be read in one way for all."""
    import warnings

    import pandas

    ways: list[dict[str, object]] = [{"format": "ISO8601"}]
    ways += [{"format": "mixed", "dayfirst": first} for first in (True, False)]
    best: np.ndarray | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of days first where the year is first
        for way in ways:
            try:
                times = pandas.to_datetime(texts, errors="coerce", utc=True, **way)
            except (ValueError, TypeError):
                continue
            if times.isna().any():
                continue
            steps = np.diff(times.to_numpy().astype("datetime64[us]").astype(np.int64)) / 1e6
            if (steps >= 0).all():
                return steps
            best = steps if best is None else best
    return best
