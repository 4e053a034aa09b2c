"""What results are measured in: how a metric is computed from its mean, and how it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MetricName = Literal["accuracy", "nll", "perplexity", "bpc", "rmse", "mse", "mae"]
OF_NUMBERS = ("rmse", "mse", "mae")
"""Of outputs that are the numbers themselves."""

DIVERGED = 1e6
"""From here on a value is shown by its power of ten: hundreds of digits help nobody."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its values are multiplied by `scale` and given `decimals`."""

    name: str
    axis: str
    unit: str
    below: str
    meaning: str
    better: str = "lower is better"
    scale: float = 1.0
    decimals: int = 3

    @property
    def advice(self) -> str:
        """Which values are good, as a sentence; empty where that is not known."""
        return f"{self.better.capitalize()}." if self.better else ""

    @property
    def higher_is_better(self) -> bool:
        return self.better.startswith("higher")

    def figure(self, value: float) -> str:
        """A value as people read it, without its unit: an accuracy in per cent."""
        shown = self.scale * value
        return f"{shown:.{self.decimals}f}" if abs(shown) < DIVERGED else f"{shown:.3g}"


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "accuracy",
        "accuracy (%)",
        "%",
        "of the test samples are classified correctly",
        "Accuracy is the share of samples that the network classifies correctly: higher is better.",
        "higher is better",
        100.0,
        2,
    ),
    "nll": Metric(
        "NLL",
        "NLL (nats per frame)",
        "nats per frame",
        "nats per frame, lower is better",
        "NLL (negative log-likelihood, in nats per frame) says how much the notes that really come "
        "next surprise the network, summed over the 88 keys: lower is better, 0 would be perfect "
        "foresight.",
    ),
    "perplexity": Metric(
        "perplexity",
        "perplexity",
        "",
        "per word, lower is better",
        "Perplexity is the exponential of the mean surprise per word (in nats): as if the network "
        "had to guess among that many words of equal chance; lower is better.",
        decimals=2,
    ),
    "bpc": Metric(
        "bits per character",
        "bits per character",
        "bits",
        "bits per character, lower is better",
        "Bits per character is the mean surprise of the next character, in bits: lower is better.",
    ),
    "rmse": Metric(
        "RMSE",
        "RMSE (standard deviations)",
        "sd",
        "standard deviations of the training data, lower is better",
        "RMSE is the root of the mean squared error, in standard deviations of the training data: "
        "lower is better, 1 is what the mean of the training data would reach.",
        decimals=4,
    ),
    "mse": Metric(
        "MSE",
        "MSE (variances)",
        "",
        "variances of the training data, lower is better",
        "MSE is the mean squared error of data on the scale of training: lower is better, 1 is "
        "what the mean of the training data would reach there.",
        decimals=4,
    ),
    "mae": Metric(
        "MAE",
        "MAE (standard deviations)",
        "sd",
        "standard deviations of the training data, lower is better",
        "MAE is the mean absolute error, in standard deviations of the training data: lower is "
        "better.",
        decimals=4,
    ),
}


def from_mean(metric: str, mean: float) -> float:
    """The metric of a split from the mean of its scores: what is not linear is done here."""
    if metric == "perplexity":
        return math.exp(min(mean, 700.0))
    return math.sqrt(max(mean, 0.0)) if metric == "rmse" else mean
