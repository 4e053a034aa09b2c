"""How weights are changed and for how long: optimisers, learning rates, early stopping."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

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
