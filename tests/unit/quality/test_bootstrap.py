"""The bootstrap, against what is known of the normal distribution."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quality.bootstrap import mean_difference, mean_interval, score_difference, score_interval

RANDOM = np.random.default_rng(3)
VALUES = RANDOM.normal(0.6, 0.2, 400)


def test_an_interval_is_that_of_the_mean_and_the_same_each_time():
    error = 1.96 * VALUES.std() / 20
    found = mean_interval(VALUES)
    assert (found.value, found.low, found.high) == pytest.approx(
        (VALUES.mean(), VALUES.mean() - error, VALUES.mean() + error), abs=error / 10
    )
    assert mean_interval(VALUES) == found


def test_pairs_show_a_difference_that_is_smaller_than_the_spread():
    better = VALUES + RANDOM.normal(0.02, 0.05, 400)
    found = mean_difference(better, VALUES)
    assert found.p < 0.001
    assert 0 < found.low < found.value < found.high < 0.04
    noise = mean_difference(RANDOM.permutation(VALUES), VALUES)
    assert (noise.value, noise.p) == pytest.approx((0, 1))
    assert mean_difference(VALUES, VALUES).p == 1


def test_p_is_that_of_a_z_test():
    differences = RANDOM.normal(0, 1, 900)
    differences += 0.05 - differences.mean()  # 1.5 standard errors
    found = mean_difference(differences / differences.std(), np.zeros(900))
    assert found.p == pytest.approx(0.134, abs=0.015)


def test_a_score_that_is_no_mean_is_drawn_by_items():
    medians = score_interval(lambda draws: np.median(VALUES[draws], axis=1), len(VALUES))
    assert medians.low < np.median(VALUES) == medians.value < medians.high
    gap = score_difference(
        lambda draws: np.median(VALUES[draws] + 0.1, axis=1),
        lambda draws: np.median(VALUES[draws], axis=1),
        len(VALUES),
    )
    assert (gap.low, gap.value, gap.high) == pytest.approx((0.1, 0.1, 0.1))
    assert gap.p < 0.001
