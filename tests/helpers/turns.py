"""Cases of which some run always, and all with `-m long`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def in_turn(
    *axes: Iterable[Any],
    last: Sequence[Any],
    of: Callable[..., bool] = lambda *case: True,
    each: int = 1,
) -> list[Any]:
    """All combinations of the axes with all values of the last one.

    For each combination `each` of those values, in turn, run always; the others take long.
    """
    apart = len(last) // each
    return [
        pytest.param(*case, value, marks=[pytest.mark.long] if (number - turn) % apart else [])
        for turn, case in enumerate(itertools.product(*axes))
        if of(*case)
        for number, value in enumerate(last)
    ]
