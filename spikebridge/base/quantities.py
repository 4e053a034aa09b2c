"""Quantities in words: spans of time, and numbers with the prefix of their size."""

from __future__ import annotations

import math
from typing import Any

_PREFIXES = dict(enumerate(("a", "f", "p", "n", "µ", "m", "", "k", "M", "G", "T"), start=-6))
_SPANS = (
    (365 * 86400.0, "year"),
    (30 * 86400.0, "month"),
    (86400.0, "day"),
    (3600.0, "h"),
    (60.0, "min"),
)


def number(value: Any) -> float | None:
    """A finite number as float; None for anything else, such as null, NaN or text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # of a whole number
        return None


def plural(count: int, singular: str, several: str | None = None) -> str:
    """A count with its noun, which ends in s unless `several` is given."""
    return f"{count:,} {singular if count == 1 else several or singular + 's'}"


def in_words(seconds_s: float) -> str:
    """As "20 s", "1 h", "3 days", "1 year"; what is no whole number keeps two figures."""
    for length, name in _SPANS:
        count = seconds_s / length
        if count >= 1:
            several = "s" if name not in ("h", "min") and f"{count:.2g}" != "1" else ""
            return f"{count:.2g} {name}{several}"
    return f"{seconds_s:.3g} s"


def in_si(value: float, unit: str, space: str = " ") -> str:
    """To three figures, as "259 nJ" or "1.09 µs"; value in the unit itself."""
    rounded = float(f"{value:.3g}")
    if not rounded:
        return f"0{space}{unit}"
    power = math.floor(math.log10(abs(rounded)) / 3 + 1e-9)
    power = min(max(power, min(_PREFIXES)), max(_PREFIXES))
    return f"{rounded / 1000.0**power:.3g}{space}{_PREFIXES[power]}{unit}"
