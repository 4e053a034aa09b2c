"""Sampled softmax: train on a few drawn outputs instead of all of many.

Source: Jean, Cho, Memisevic, Bengio 2015, "On using very large target vocabulary for neural machine
translation"; the correction is that of Bengio and Senécal 2008.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Drawn(NamedTuple):
    """The outputs that a batch is trained on."""

    among: Tensor  # (K,) int64, each once: the batch's own targets and what was drawn
    target: Tensor  # (n,) int64, where in `among` each target stands
    log_expected: Tensor  # (K,) log of how often an output is expected among those drawn

    def loss(self, output: Tensor) -> Tensor:
        """Cross-entropy in nats, corrected for how the outputs were drawn; output (..., K)."""
        logits = output.flatten(0, -2).float() - self.log_expected
        return F.cross_entropy(logits, self.target)


class Sampler:
    """Draws outputs by their frequency, tempered, in training.

    Args:
        frequencies: (O,) shares, summing to 1.
        count: draws per batch, with replacement; the batch's targets come on top.
        power: exponent on the frequencies; below 1 it draws rare ones more often.
    """

    def __init__(self, frequencies: Tensor, count: int, power: float = 0.75) -> None:
        self.frequencies = frequencies.double().clamp(1e-9, 1 - 1e-9)
        weights = self.frequencies**power
        self.shares = (weights / weights.sum()).float()
        self.count = count

    def draw(self, target: Tensor, generator: torch.Generator) -> Drawn:
        """The outputs for a batch with these targets, any shape, int64."""
        found = torch.multinomial(self.shares, self.count, replacement=True, generator=generator)
        flat = target.flatten()
        among, where = torch.unique(torch.cat([flat, found]), return_inverse=True)
        # Probability of being among the candidates at all: by a draw, or as some sample's target.
        missed = self.count * torch.log1p(-self.shares[among].double())
        missed += len(flat) * torch.log1p(-self.frequencies[among])
        expected = -torch.expm1(missed)
        return Drawn(among, where[: len(flat)], expected.clamp_min(1e-12).log().float())
