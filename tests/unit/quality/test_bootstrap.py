"""The bootstrap, against what is known of the normal distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from pipeline.quality.bootstrap import mean_difference, mean_interval, score_difference, score_interval
from pipeline.quality.metrics import spearman

RANDOM = np.random.default_rng(3)
VALUES = RANDOM.normal(0.6, 0.2, 400)


@pytest.mark.slow
def test_an_interval_is_that_of_the_mean_and_the_same_each_time():
    error = 1.96 * VALUES.std() / 20
    found = mean_interval(VALUES)
    assert (found.value, found.low, found.high) == pytest.approx(
        (VALUES.mean(), VALUES.mean() - error, VALUES.mean() + error), abs=error / 10
    )
    assert mean_interval(VALUES) == found


@pytest.mark.slow
def test_pairs_show_a_difference_that_is_smaller_than_the_spread():
    better = VALUES + RANDOM.normal(0.02, 0.05, 400)
    found = mean_difference(better, VALUES)
    assert found.p < 0.001
    assert 0 < found.low < found.value < found.high < 0.04
    noise = mean_difference(RANDOM.permutation(VALUES), VALUES)
    assert (noise.value, noise.p) == pytest.approx((0, 1))
    assert mean_difference(VALUES, VALUES).p == 1


@pytest.mark.slow
def test_p_is_that_of_a_z_test():
    differences = RANDOM.normal(0, 1, 900)
    differences += 0.05 - differences.mean()  # 1.5 standard errors
    found = mean_difference(differences / differences.std(), np.zeros(900))
    assert found.p == pytest.approx(0.134, abs=0.015)


def test_spearman_is_that_of_scipy_for_each_draw():
    first, second = RANDOM.integers(0, 9, 60) / 9, RANDOM.normal(0, 1, 60)  # the first has many equal values
    score, draws = spearman(first, second), RANDOM.integers(60, size=(3, 60))
    counts = np.stack([np.bincount(draw, minlength=60) for draw in draws])
    expected = [spearmanr(first[draw], second[draw]).statistic for draw in draws]
    assert score(counts) == pytest.approx(expected)
    assert spearman(np.ones(60), second)(counts).tolist() == [0, 0, 0]


@pytest.mark.slow
def test_a_correlation_has_an_interval_and_a_paired_difference():
    human = RANDOM.normal(0, 1, 300)
    good, bad = human + RANDOM.normal(0, 0.5, 300), human + RANDOM.normal(0, 1, 300)
    found = score_interval(spearman(good, human), 300)
    assert found.value == pytest.approx(spearmanr(good, human).statistic)
    assert found.low < found.value < found.high
    gap = score_difference(spearman(good, human), spearman(bad, human), 300)
    assert 0 < gap.low < gap.value < gap.high
    assert gap.p < 0.01
