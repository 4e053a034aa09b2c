"""Chance: one seed for a run with a stream for everything that draws, and draws by the million.

Of the latter, four come from one random word of 64 bits: a draw r in 0..32767 is below
k = round(32768 p) with probability p to within 2**-16, which is several times as fast as a float
each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["bernoulli", "fifteen_bits", "generator", "kept", "seed_of"]

# Numbers, so that a purpose added later leaves the streams of the others as they are.
PURPOSES = {
    "init": 0,
    "data": 1,
    "dropout": 2,
    "valid": 3,
    "test": 4,
    "examples": 5,
    "cells": 6,
    "feedback": 7,
    "tasks": 8,
}
LEVELS = 1 << 15


def fifteen_bits(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Independent numbers 0..32767 in int16, of that shape, on the CPU."""
    count = math.prod(shape)
    words = torch.empty(-(-count // 4), dtype=torch.int64, device="cpu")
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    words &= 0x7FFF_7FFF_7FFF_7FFF
    return words.view(torch.int16)[:count].view(shape)


def bernoulli(probability: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Spikes (T, B, I), 0 or 1 in float32, with probability (B, I) in [0, 1], fresh at each step.

    p is rounded to a multiple of 2**-15 (off by at most 1.6e-5): 0 never spikes and 1 always does.
    """
    shape = (steps, *probability.shape)
    # r <= k - 1 rather than r < k: k = 32768 does not fit into 16 bits with a sign, k - 1 does.
    highest = probability.mul(LEVELS).round_().sub_(1).to(torch.int16)
    spikes = torch.empty(shape, device="cpu")
    return torch.le(fifteen_bits(shape, generator), highest, out=spikes)


def kept(shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
    """A mask of dropout on the CPU: 0 with probability p in [0, 1), else 1 / (1 - p).

    p is rounded to a multiple of 2**-15, but not to 1, and the scale is that of p as rounded, so
    that means stay what they are.  It draws from torch's own generator.
    """
    dropped = min(round(LEVELS * p), LEVELS - 1)
    mask = torch.empty(shape, dtype=dtype, device="cpu")
    return torch.ge(fifteen_bits(shape), dropped, out=mask).mul_(LEVELS / (LEVELS - dropped))


def seed_of(seed: int, purpose: str) -> int:
    """The seed of a purpose, of a run's seed; below 2^63."""
    state = np.random.SeedSequence([seed, PURPOSES[purpose]]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose, so that one's draws never shift another's."""
    return torch.Generator().manual_seed(seed_of(seed, purpose))
