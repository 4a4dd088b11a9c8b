"""Bootstrap: how far a score could be off because only these queries were asked.

Used by the quality gate of a re-embedding and by every evaluation. The queries (or pairs, or triplets) are drawn again
with replacement, 10,000 times (1,000 and more where that would take minutes), from a fixed seed, so a repeat gives the
same numbers. Two models are compared on the same draws, which is what makes a small difference visible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 10_000
_SEED = 20
_NUMBERS = 1 << 24  # numbers in memory at a time

Values = npt.NDArray[np.float64]
# Returns the score of each draw, float64 [draws]. A draw is how often it has each item, int64 [draws, items].
Score = Callable[[npt.NDArray[np.int64]], Values]


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the score with its interval in brackets."""
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two scores with its 95 % interval.

    Attributes:
        p: Probability of a difference at least as large, in either direction, if there were none.
    """

    value: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        """Return the difference with its sign, its interval in brackets, and p."""
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f}), p {self.p:.4f}"


def mean_interval(values: Values) -> Interval:
    """Return the mean of some values, and where it would be for other queries of the same kind."""
    return _interval(float(np.mean(values)), _drawn_means(values))


def mean_difference(new: Values, old: Values) -> Difference:
    """Return the mean difference `new - old` of values of the same queries, in the same order."""
    return _difference(float(np.mean(new - old)), _drawn_means(new - old))


def score_interval(score: Score, items: int) -> Interval:
    """Return a score that is no mean, such as a correlation, with its interval.

    Args:
        score: Computes it.
        items: Number of items.
    """
    return _interval(_all(score, items), _drawn(score, items))


def score_difference(new: Score, old: Score, items: int) -> Difference:
    """Return the difference `new - old` of two scores of the same items that are no means."""
    return _difference(_all(new, items) - _all(old, items), _drawn(new, items) - _drawn(old, items))


def _drawn_means(values: Values) -> Values:
    """Return the mean of each draw. Equal values are drawn together, by the multinomial distribution of their counts."""
    distinct, counts = np.unique(values, return_counts=True)
    generator, shares = np.random.default_rng(_SEED), counts / len(values)
    parts = _parts(len(distinct), DRAWS)
    return np.concatenate([generator.multinomial(len(values), shares, size=n) @ distinct for n in parts]) / len(values)


def _drawn(score: Score, items: int) -> Values:
    generator, draws = np.random.default_rng(_SEED), max(1000, min(DRAWS, _NUMBERS // items))
    shares = np.full(items, 1 / items)
    parts = _parts(items, draws)
    return np.concatenate([score(generator.multinomial(items, shares, size=part)) for part in parts])


def _parts(width: int, draws: int) -> list[int]:
    """Return numbers of draws, which are in memory together, whose sum is `draws`."""
    most = max(1, min(draws, _NUMBERS // width))
    return [min(most, draws - start) for start in range(0, draws, most)]


def _all(score: Score, items: int) -> float:
    return float(score(np.ones((1, items), np.int64))[0])


def _interval(value: float, drawn: Values) -> Interval:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def _difference(value: float, drawn: Values) -> Difference:
    """Return a difference with the share of draws that are as far from it as 0 is."""
    interval = _interval(value, drawn)
    far = np.abs(drawn - value) >= abs(value) - 1e-12
    return Difference(value, interval.low, interval.high, (1 + int(far.sum())) / (1 + len(drawn)))
