"""A moving average of a network's weights over optimiser steps (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Keeps `share` of itself per step and takes the rest from the weights.

    In the first steps it keeps less, (1 + n) / (10 + n) after n of them, so that it is not ruled by
    the weights that were drawn at the start.

    Args:
        network: whose weights and running statistics are averaged.
        share: 0 to below 1; 0 gives the network's own weights at any time.
    """

    def __init__(self, network: nn.Module, share: float) -> None:
        self.network, self.share, self.steps = network, share, 0
        self.values: dict[str, Tensor] = {}
        if share:
            self.values = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def update(self) -> None:
        """Take in the weights after an optimiser step."""
        if not self.share:
            return
        self.steps += 1
        kept = min(self.share, (1 + self.steps) / (10 + self.steps))
        state = self.network.state_dict()
        numbers = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.values[name] for name in numbers], [state[name] for name in numbers], 1 - kept
        )
        for name in state.keys() - set(numbers):
            self.values[name].copy_(state[name])

    def restore(self, values: dict[str, Tensor], steps: int) -> None:
        """Go on from what was saved."""
        self.values, self.steps = (values if self.share else {}), steps

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights stand in the network while this lasts."""
        if not self.share:
            yield
            return
        own = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.values)
        try:
            yield
        finally:
            self.network.load_state_dict(own)
