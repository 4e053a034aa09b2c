"""Paired differences: the textbook's interval, its coverage, its symmetries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from spikebridge.base.records import to_plain
from spikebridge.studies.contrasts import Contrast, corrected, paired


def test_the_interval_is_that_of_the_one_sample_t_test() -> None:
    drawn = np.random.RandomState(0)
    for count in (2, 3, 5, 20):
        a, b = drawn.randn(2, count)
        known = stats.ttest_rel(a, b).confidence_interval(0.95)
        found = paired(a, b)
        assert found.n == count
        assert found.mean == pytest.approx(np.mean(a - b), abs=1e-12)
        assert (found.low, found.high) == pytest.approx((known.low, known.high), rel=1e-9)


def test_it_covers_the_truth_in_95_of_100_cases() -> None:
    drawn = np.random.RandomState(1)
    tries, truth, inside = 2_000, 0.3, 0
    for _ in range(tries):
        shared = 10 * drawn.randn(5)  # what a seed does to both falls out
        found = paired(shared + truth + drawn.randn(5), shared + drawn.randn(5))
        inside += found.low <= truth <= found.high
    assert inside / tries == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / tries))


def test_exchanging_both_changes_the_sign() -> None:
    one, other = paired([3.0, 1.0, 2.5], [1.0, 1.5, 0.0]), paired([1.0, 1.5, 0.0], [3.0, 1.0, 2.5])
    assert (one.mean, one.low, one.high) == (-other.mean, -other.high, -other.low)
    assert one.clear == other.clear


def test_a_single_pair_has_no_interval_and_equal_ones_have_an_empty_one() -> None:
    assert paired([0.9], [0.4]) == Contrast(0.5, None, None, 1)
    assert not paired([0.9], [0.4]).clear
    assert paired([2.0, 3.0], [1.0, 2.0]) == Contrast(1.0, 1.0, 1.0, 2)
    assert paired([2.0, 3.0], [1.0, 2.0]).clear
    assert to_plain(paired([1.0, 2.0], [1.0, 2.0])) == {
        "mean": 0.0,
        "low": 0.0,
        "high": 0.0,
        "n": 2,
        "clear": False,
    }


@pytest.mark.parametrize(
    ("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([float("nan"), 1.0], [0.0, 0.0])]
)
def test_what_cannot_be_paired_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=r"give the values of the same seeds|leave out the seeds"):
        paired(a, b)


def test_corrected_p_values_are_those_of_holm() -> None:
    """Against scipy's test of each pair, and the procedure written out."""
    drawn = np.random.RandomState(3)
    pairs = [(drawn.randn(n) + shift, drawn.randn(n)) for n in (3, 5, 10) for shift in (0, 1, 3)]
    plain = [float(stats.ttest_rel(a, b).pvalue) for a, b in pairs]
    expected, so_far = {}, 0.0
    for rank, i in enumerate(np.argsort(plain)):
        so_far = max(so_far, min(1.0, (len(plain) - rank) * plain[i]))
        expected[int(i)] = so_far
    found = corrected([paired(a, b) for a, b in pairs])
    assert found == pytest.approx([expected[i] for i in range(len(plain))], rel=1e-9)
    alone = corrected([paired(*pairs[0])])
    assert alone == pytest.approx(plain[:1], rel=1e-9)


def test_one_pair_is_not_counted_and_equal_differences_are_certain() -> None:
    single, certain, none = ([1.0], [0.0]), ([2.0, 3.0], [1.0, 2.0]), ([1.0, 2.0], [1.0, 2.0])
    assert corrected([paired(*p) for p in (single, certain, none)]) == [None, 0.0, 1.0]
    assert corrected([]) == []
