"""How weights are changed and for how long: optimisers, rates, averages, early stopping."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spikebridge.runs.results import Epoch
from spikebridge.settings.config import TrainConfig

WARM_UP = 0.1


def learning_rate(train: TrainConfig, step: int, steps: int) -> float:
    """The learning rate of an optimiser step, counted from 0, of a run of that many steps."""
    share = min(step / steps, 1.0)
    if train.schedule == "constant":
        return train.lr
    if train.schedule == "onecycle":
        if share < WARM_UP:
            return train.lr * (step + 1) / math.ceil(WARM_UP * steps)
        share = (share - WARM_UP) / (1 - WARM_UP)
    return train.lr * 0.5 * (1 + math.cos(math.pi * share))


def make_optimizer(train: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a config; its learning rate is set anew before every step.

    Weight decay draws matrices and kernels to zero, and nothing else: a threshold or a decay of
    zero means something.
    """
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, train.lr, momentum=train.momentum)
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, train.lr, betas=(0.9, train.beta2), fused=True)


def finished(train: TrainConfig, history: Sequence[Epoch]) -> bool:
    """Whether all epochs are done, or the patience is at its end."""
    if len(history) >= train.epochs:
        return True
    return 0 < train.patience <= len(history) - best_epoch(history)


def best_epoch(history: Sequence[Epoch]) -> int:
    """The last epoch that was the best so far, counted from 1; 0 before the first."""
    return max((epoch.epoch for epoch in history if epoch.best), default=0)


class Average:
    """A moving average of weights over optimiser steps (Polyak and Juditsky 1992).

    It keeps `share` of itself per step and takes the rest from the weights.

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
