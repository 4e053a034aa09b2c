"""What one method does better than another, by seed: mean difference and its 95 % interval."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Contrast:
    """The mean of n paired differences; the ends of its 95 % interval, None for a single pair."""

    mean: float
    low: float | None
    high: float | None
    n: int
    clear: bool = False
    """Whether the interval leaves out 0; follows from its ends."""

    def __post_init__(self) -> None:
        clear = self.low is not None and self.high is not None and not self.low <= 0 <= self.high
        object.__setattr__(self, "clear", clear)


def paired(a: Sequence[float], b: Sequence[float]) -> Contrast:
    """The differences a[i] - b[i] of runs that share seed i.

    The interval is Student's, with n - 1 degrees of freedom: it holds where the differences are
    about normal.  Source: Student 1908, "The probable error of a mean".

    Raises ValueError where they are not as many, none, or not finite.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(
            f"{len(a)} and {len(b)} values: pairs need as many of one as of the other, at least 1; "
            "give the values of the same seeds in the same order"
        )
    differences = [float(x) - float(y) for x, y in zip(a, b, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise ValueError(
            f"differences {differences}: each must be finite; leave out the seeds whose runs failed"
        )
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return Contrast(mean, None, None, count)
    if statistics.stdev(differences) == 0:  # scipy warns and gives nan
        return Contrast(mean, mean, mean, count)
    from scipy.stats import ttest_rel

    with warnings.catch_warnings():  # differences that are equal but for rounding
        warnings.simplefilter("ignore", RuntimeWarning)
        ends = ttest_rel(a, b).confidence_interval(LEVEL)
    return Contrast(mean, float(ends.low), float(ends.high), count)


def corrected(contrasts: Sequence[Contrast]) -> list[float | None]:
    """For each contrast its p-value corrected for their number; None for one pair.

    Of many intervals of 95 % about one in twenty leaves out 0 by chance.  At most 5 % of such
    tables have any p-value below 0.05 by chance here, however the contrasts hang together.
    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    values = [_p_value(contrast) for contrast in contrasts]
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    so_far = 0.0
    for rank, (p, i) in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * p))
        adjusted[i] = so_far
    return adjusted


def _p_value(contrast: Contrast) -> float | None:
    """Of Student's two-sided test for paired differences, read off the interval."""
    if contrast.low is None or contrast.high is None:
        return None
    from scipy.stats import t

    reach = (contrast.high - contrast.low) / 2
    if reach == 0:
        return 0.0 if contrast.mean else 1.0
    student = t(contrast.n - 1)
    return 2 * float(student.sf(abs(contrast.mean) / reach * student.ppf((1 + LEVEL) / 2)))
