"""Chooses negatives among the rows nearest to a query: thresholds, copies, sampling, and the gaps that are left.

Plain arrays. Thresholds are relative to the score of the positive (TopK-PercPos of NV-Retriever), absolute, or by rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from actors.errors import ConfigError
from pipeline.scan.top_k import ranks

Ints = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
GAP = 0.05  # width of a bin of gaps


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Which rows may be negatives, and how many are taken.

    Attributes:
        negatives: Negatives of a pair at most.
        first_rank: First rank that is taken, from 1; positives have no rank.
        last_rank: Last rank that is taken.
        max_share: Largest score as a share of the positive's.
        absolute_margin: Least difference of the positive's score and the negative's; None: any.
        min_score: Least score; None: any.
        max_score: Largest score; None: any.
        sampling: "top" takes the nearest ones, "random" any.
        seed: Seed of the sampling.
    """

    negatives: int = 7
    first_rank: int = 1
    last_rank: int = 100
    max_share: float = 0.95
    absolute_margin: float | None = None
    min_score: float | None = None
    max_score: float | None = None
    sampling: str = "top"
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError for values outside of their range, or that leave nothing."""
        if self.negatives < 1:
            raise ConfigError(f"--negatives is {self.negatives}; take 1 or more")
        if not 1 <= self.first_rank <= self.last_rank:
            raise ConfigError(
                f"--ranks {self.first_rank},{self.last_rank} must be two numbers from 1, the first not larger"
            )
        if self.last_rank - self.first_rank + 1 < self.negatives:
            raise ConfigError(
                f"--ranks {self.first_rank},{self.last_rank} has fewer rows than --negatives {self.negatives}; widen one of them"
            )
        if not 0 < self.max_share <= 1:
            raise ConfigError(f"--max-share is {self.max_share}; it must be above 0 and at most 1")
        if self.absolute_margin is not None and not 0 <= self.absolute_margin <= 2:
            raise ConfigError(f"--absolute-margin is {self.absolute_margin}; it must be between 0 and 2")
        for option, value in (("--min-score", self.min_score), ("--max-score", self.max_score)):
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{option} is {value}; it must be a number")
        if self.sampling not in ("top", "random"):
            raise ConfigError(f"--sampling is {self.sampling!r}; it must be top or random")
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ConfigError(
                f"--min-score {self.min_score} is above --max-score {self.max_score}; no row is between them"
            )


class Near(NamedTuple):
    """Rows nearest to some queries, without their positives; sorted by query and rank.

    Attributes:
        query: Number of the query, int64 [rows].
        score: float32 [rows].
        rank: From 1, int64 [rows].
        copy: Rows whose id or text a row before it has, bool [rows].
    """

    query: Ints
    score: Scores
    rank: Ints
    copy: npt.NDArray[np.bool_]


@dataclass(slots=True)
class Counts:
    """Numbers of rows and pairs, and the gaps, which add up over blocks.

    Attributes:
        candidates: Rows that were looked at.
        removed: Rows that a threshold removed, by its option; a row counts for the first one.
        chosen: Negatives.
        gaps: Negatives by the difference of the positive's score and theirs, in bins of `GAP`, by the bin's number.
        pairs: Pairs with negatives.
        full: Pairs with as many negatives as were asked for.
        without: Pairs without a negative.
        cross_encoded: Pairs of texts that the cross-encoder scored.
    """

    candidates: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    chosen: int = 0
    gaps: dict[int, int] = field(default_factory=dict)
    pairs: int = 0
    full: int = 0
    without: int = 0
    cross_encoded: int = 0

    def add(self, other: Counts) -> None:
        """Add those of another block."""
        for option, count in other.removed.items():
            self.remove(option, count)
        for place, count in other.gaps.items():
            self.gaps[place] = self.gaps.get(place, 0) + count
        for name in ("candidates", "chosen", "pairs", "full", "without", "cross_encoded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def remove(self, option: str, count: int) -> None:
        """Add rows that a threshold removed."""
        self.removed[option] = self.removed.get(option, 0) + count


# Returns which of some rows, by their index, are no answer to their query.
Judge = Callable[[Ints], npt.NDArray[np.bool_]]


def choose(
    near: Near, positives: Scores, thresholds: Thresholds, *, number: int, counts: Counts, judge: Judge | None = None
) -> Ints:
    """Return the indices of the rows that are negatives, in order.

    Args:
        near: The rows.
        positives: Score of the positive by query; of several, the lowest.
        thresholds: Which rows may be negatives.
        number: Number of the block, for the seed.
        counts: Gets the numbers of rows.
        judge: Checks rows; it is asked about no more rows than needed, and about the better ones first.
    """
    counts.candidates += len(near.query)
    positive = positives[near.query]
    share = positive - np.abs(positive) * np.float32(1 - thresholds.max_share)
    margin = -np.inf if thresholds.absolute_margin is None else thresholds.absolute_margin
    left = np.ones(len(near.query), bool)
    for option, low in (
        ("--ranks", (near.rank < thresholds.first_rank) | (near.rank > thresholds.last_rank)),
        ("copies", near.copy),
        ("--max-share", near.score > share),
        ("--absolute-margin", near.score + np.float32(margin) > positive),
        ("--min-score", near.score < (-np.inf if thresholds.min_score is None else thresholds.min_score)),
        ("--max-score", near.score > (np.inf if thresholds.max_score is None else thresholds.max_score)),
    ):
        counts.remove(option, int((left & low).sum()))
        left &= ~low
    rows = np.flatnonzero(left)
    if thresholds.sampling == "random":
        keys = np.random.default_rng((thresholds.seed, number)).random(len(near.query))
        rows = rows[np.lexsort((keys[rows], near.query[rows]))]
    chosen = (
        rows[ranks(near.query[rows]) <= thresholds.negatives]
        if judge is None
        else _judged(rows, near.query, thresholds.negatives, judge, counts)
    )
    return np.sort(chosen)


def _judged(rows: Ints, query: Ints, count: int, judge: Judge, counts: Counts) -> Ints:
    """Return the first rows of each query that the judge lets pass, asking in rounds about as many as are missing."""
    passed: list[Ints] = []
    missing = np.full(int(query.max(initial=-1)) + 1, count)
    while len(rows):
        of = query[rows]
        asked = ranks(of) <= missing[of]
        if not asked.any():
            break
        batch = rows[asked]
        good = batch[judge(batch)]
        counts.cross_encoded += len(batch)
        counts.remove("--cross-encoder", len(batch) - len(good))
        passed.append(good)
        missing -= np.bincount(query[good], minlength=len(missing))
        rows = rows[~asked]
    return np.concatenate(passed) if passed else rows


def count_gaps(positive: Scores, score: Scores) -> dict[int, int]:
    """Return the number of negatives in each bin of gaps."""
    bins = np.floor((positive.astype(np.float64) - score) / GAP + 1e-6).astype(int)
    values, numbers = np.unique(bins, return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))
