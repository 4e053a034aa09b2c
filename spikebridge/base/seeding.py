"""One seed for a run, and streams of their own for everything that draws."""

from __future__ import annotations

import numpy as np
import torch

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


def seed_of(seed: int, purpose: str) -> int:
    """The seed of a purpose, of a run's seed; below 2^63."""
    state = np.random.SeedSequence([seed, PURPOSES[purpose]]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose, so that one's draws never shift another's."""
    return torch.Generator().manual_seed(seed_of(seed, purpose))
