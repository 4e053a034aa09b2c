"""What a sequence of tasks does to earlier and later ones, from one matrix of accuracies.

A[k][j] is the accuracy on task j after task k has been learned, both from 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Matrix = Sequence[Sequence[float]]

MEASURES = {
    "average_accuracy": "average accuracy",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
    "unseen": "accuracy on unseen tasks",
}
HIGHER_IS_BETTER = {name: name != "forgetting" for name in MEASURES}


@dataclass(frozen=True)
class Transfer:
    """Measures of a sequence of T tasks; all are shares of samples or differences of such."""

    average_accuracy: float
    """mean_j A[T-1][j]: over all tasks, after the last.  Lopez-Paz and Ranzato 2017, ACC."""
    forgetting: float
    """mean over j < T - 1 of max_{k < T-1} A[k][j] - A[T-1][j].  Chaudhry et al. 2018."""
    backward_transfer: float
    """mean over j < T - 1 of A[T-1][j] - A[j][j]; negative = forgetting.  Lopez-Paz and Ranzato."""
    forward_transfer: float
    """mean over j > 0 of A[j-1][j] - first[j], over an untrained network.  Lopez-Paz and
    Ranzato."""
    unseen: float
    """mean over k < j of A[k][j]: tasks that were not learned yet; compare it with chance."""


@dataclass(frozen=True)
class SequenceResult:
    """What came of T tasks that were learned one after the other."""

    tasks: int
    chance: float
    """Accuracy of guessing among the classes that are asked."""
    first: tuple[float, ...]
    """(T,) test accuracy on each task before any was learned."""
    matrix: tuple[tuple[float, ...], ...]
    """(T, T) test accuracy on task j after task k: matrix[k][j]."""
    measures: Transfer


def transfer(matrix: Matrix, first: Sequence[float]) -> Transfer:
    """The measures of a matrix of accuracies (T, T) and those (T,) before anything was learned.

    Raises ValueError unless there are at least 2 tasks and all numbers, which must be finite.
    """
    count = len(matrix)
    if count < 2 or any(len(row) != count for row in (*matrix, first)):
        raise ValueError(
            f"rows of {[len(row) for row in (*matrix, first)]} accuracies: a sequence of T >= 2 "
            "tasks has T after each task and T before the first; give them all"
        )
    if not all(math.isfinite(value) for row in (*matrix, first) for value in row):
        raise ValueError("an accuracy is not finite; leave such a run out")
    last, earlier = matrix[-1], range(count - 1)
    return Transfer(
        average_accuracy=statistics.fmean(last),
        forgetting=statistics.fmean(max(matrix[k][j] for k in earlier) - last[j] for j in earlier),
        backward_transfer=statistics.fmean(last[j] - matrix[j][j] for j in earlier),
        forward_transfer=statistics.fmean(matrix[j - 1][j] - first[j] for j in range(1, count)),
        unseen=statistics.fmean(matrix[k][j] for k in range(count) for j in range(k + 1, count)),
    )
