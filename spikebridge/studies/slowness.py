"""How fast a network learns, as one number: the slowness of its accuracy curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spikebridge.base.records import UsageError


class Slowness(NamedTuple):
    """The fit acc(e) = highest e / (slowness + e) of an accuracy curve over epochs e."""

    slowness: float
    """Epochs to half of the highest accuracy: lower is faster."""
    error: float
    """Standard error of the fit."""
    highest: float
    """Highest accuracy of the curve, not fitted."""


def slowness(accuracies: Sequence[float], chance: float, window: int = 100) -> Slowness:
    """The slowness of an accuracy curve, one value after each epoch.

    Epoch 0 has the accuracy of chance, and the highest accuracy is that of the curve; only the
    slowness is fitted, by least squares.

    Args:
        accuracies: in [0, 1], of epochs 1, 2, ...
        chance: accuracy before training, such as 0.1.
        window: epochs that count.

    Raises UsageError for fewer than two epochs.

    Source: the convergence rate of Dellaferrera, Kreiman 2022 (PEPITA), by the first author of
    GRAPES, in its published code.
    """
    from scipy.optimize import curve_fit

    values = np.array([chance, *accuracies[:window]], dtype=float)
    if len(values) < 3:
        raise UsageError(
            f"a curve of {len(accuracies)} epochs has no slowness; train for at least 2 epochs"
        )
    epochs = np.arange(len(values), dtype=float)
    highest = float(values.max())

    def curve(epoch: np.ndarray, slow: float) -> np.ndarray:
        return highest * epoch / (slow + epoch + 1e-12)

    # Not below 0, where the curve would have a pole.
    result, covariance = curve_fit(curve, epochs, values, p0=(0.5,), bounds=(0.0, math.inf))
    return Slowness(float(result[0]), float(math.sqrt(covariance[0, 0])), highest)
