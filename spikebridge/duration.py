"""Spans of time in words."""

from __future__ import annotations

_SPANS = (
    (365 * 86400.0, "year"),
    (30 * 86400.0, "month"),
    (86400.0, "day"),
    (3600.0, "h"),
    (60.0, "min"),
)


def in_words(seconds_s: float) -> str:
    """As "20 s", "1 h", "3 days", "1 year"; what is no whole number keeps two figures."""
    for length, name in _SPANS:
        count = seconds_s / length
        if count >= 1:
            several = "s" if name not in ("h", "min") and f"{count:.2g}" != "1" else ""
            return f"{count:.2g} {name}{several}"
    return f"{seconds_s:.3g} s"
