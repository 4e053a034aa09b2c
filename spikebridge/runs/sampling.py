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
        """Cross-entropy in nats, corrected for how the outputs were drawn; output (..., K).

        Each output stands for as many as its chance to be here says; the right one, which is here
        for certain, for itself alone: the sum over all outputs is then estimated without bias.
        """
        logits = output.flatten(0, -2).float() - self.log_expected
        own = self.log_expected[self.target].unsqueeze(1)
        logits = logits.scatter_add(1, self.target.unsqueeze(1), own)
        return F.cross_entropy(logits, self.target)


class Sampler:
    """Draws outputs by their frequency in training.

    Args:
        frequencies: (O,) shares, summing to 1.
        count: draws per batch, with replacement; the batch's targets come on top.
    """

    def __init__(self, frequencies: Tensor, count: int) -> None:
        shares = frequencies.double().clamp(1e-9, 1 - 1e-9)
        self.shares, self.count = (shares / shares.sum()), count

    def draw(self, target: Tensor, generator: torch.Generator) -> Drawn:
        """The outputs for a batch with these targets, any shape, int64."""
        actual = torch.multinomial(self.shares, self.count, replacement=True, generator=generator)
        flat = target.flatten()
        among, where = torch.unique(torch.cat([flat, actual]), return_inverse=True)
        # Chance of not being among them: neither by a draw nor as some sample's target.
        missed = (self.count + len(flat)) * torch.log1p(-self.shares[among])
        expected = -torch.expm1(missed)
        return Drawn(among, where[: len(flat)], expected.clamp_min(1e-12).log().float())
