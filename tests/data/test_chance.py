"""Spikes and masks of dropout have the probabilities that were asked for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebridge.base.chance import bernoulli, kept


@settings(max_examples=40)
@given(p=st.floats(0, 1), seed=st.integers(0, 2**32), inputs=st.integers(1, 9))
def test_bernoulli_mean_is_the_probability(p: float, seed: int, inputs: int) -> None:
    steps = 4001  # odd, so that the last random word is used in part
    spikes = bernoulli(torch.full((1, inputs), p), steps, torch.Generator().manual_seed(seed))
    count = steps * inputs
    assert spikes.shape == (steps, 1, inputs)
    assert ((spikes == 0) | (spikes == 1)).all()
    bound = 6 * math.sqrt(p * (1 - p) / count) + 6 / count + 2**-16
    assert abs(spikes.mean().item() - p) < bound


def test_bernoulli_is_exact_at_both_ends_for_all_pixels() -> None:
    pixels = torch.arange(256).repeat(4000, 1).float() / 255
    spikes = bernoulli(pixels, 3, torch.Generator().manual_seed(0))
    assert (spikes[..., 0] == 0).all()
    assert (spikes[..., 255] == 1).all()
    # Every grey level, and neighbours in time and place, are independent: z-scores behave.
    mean, p = spikes.mean((0, 1))[1:-1], pixels[0, 1:-1]
    z = (mean - p) / (p * (1 - p) / 12_000).sqrt()
    assert z.abs().max() < 5
    assert 0.8 < z.std() < 1.2
    n = spikes[..., 1:-1] - p
    for left, right in ((n[1:], n[:-1]), (n[..., 1:], n[..., :-1])):
        assert abs((left * right).mean()) < 5 * 0.25 / n.numel() ** 0.5
    assert bernoulli(torch.zeros(0, 3), 2, torch.Generator().manual_seed(0)).shape == (2, 0, 3)


@settings(max_examples=60)
@given(p=st.floats(0, 0.99), rows=st.integers(1, 3))
def test_a_mask_of_dropout_keeps_the_mean_at_any_probability(p: float, rows: int) -> None:
    mask = kept((rows, 4001), p, torch.float64)
    assert mask.shape == (rows, 4001)
    scale = mask.max().item()
    assert ((mask == 0) | (mask == scale)).all()
    # That of p as it is rounded, which lies within half a step of p.
    assert scale == pytest.approx(32768 / (32768 - round(32768 * p)), rel=1e-12)
    bound = 6 * math.sqrt(p / (1 - p) / mask.numel()) + 6 / (1 - p) / mask.numel() + 1e-12
    assert abs(mask.mean().item() - 1) < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_masks_have_the_dtype_that_was_asked_for(dtype: torch.dtype) -> None:
    mask = kept((50, 3), 0.3, dtype)
    assert mask.dtype is dtype
    assert mask.max().item() == pytest.approx(1 / 0.7, rel=4e-3)
    with torch.device("meta"):  # masks are of the CPU, whatever the default device is
        assert kept((0, 3), 0.3, dtype).is_cpu


def test_dropout_at_its_ends_keeps_all_or_nearly_nothing() -> None:
    assert kept((5, 3), 0.0, torch.float32).eq(1).all()
    last = kept((400_000,), 1 - 2**-40, torch.float32)
    assert last.isfinite().all()
    assert 0 < last.count_nonzero() < 60
    assert not kept((50_000,), 0.5, torch.float32).equal(kept((50_000,), 0.5, torch.float32))
