"""Metrics: overlap of neighbours, the measures of trec_eval for judged queries, and Spearman's correlation.

Used by the quality gate of a re-embedding and by evaluations. The functions do no I/O: they take neighbours and scores, as
`pipeline.scan` finds them. ir-measures (the extra `quality`) computes the measures of retrieval, as trec_eval does: of
documents with equal scores, the one with the larger id comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.quality.bootstrap import Score, Values

DEPTH = 1000  # documents of a query that MAP counts, as in mteb
MAIN = "nDCG@10"
# The names of the measures here, and those of ir-measures.
_MEASURES = {MAIN: MAIN, "MAP": f"AP@{DEPTH}", "Recall@10": "R@10", "Recall@100": "R@100", "P@1": "P@1"}
_RECIPROCAL_RANK = "MRR@10"


def mean_overlap(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Return the mean share of neighbours in common, 0 to 1, of two int64 [queries, neighbours]."""
    shares = [len(np.intersect1d(a, b)) / first.shape[1] for a, b in zip(first, second, strict=True)]
    return float(np.mean(shares))


def retrieval_values(
    judgements: Mapping[str, Mapping[str, int]], results: Mapping[str, Mapping[str, float]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return each measure of each judged query, float64 [queries] in the order of `judgements`.

    Args:
        judgements: Relevance of documents, by query and document.
        results: Scores of the documents found, by query and document; a query without any counts as 0.
    """
    import ir_measures

    # ir-measures has no reciprocal rank with a cut that orders equal scores as trec_eval does.
    top_10 = {
        query: dict(sorted(found.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)[:10])
        for query, found in results.items()
    }
    values = {}
    for names, run in ((_MEASURES, results), ({_RECIPROCAL_RANK: "RR"}, top_10)):
        measures = {ir_measures.parse_measure(measure): name for name, measure in names.items()}
        by_name: dict[str, dict[str, Any]] = {name: {} for name in names}
        for each in ir_measures.iter_calc(list(measures), judgements, run):
            by_name[measures[each.measure]][each.query_id] = each.value
        for name, found in by_name.items():
            values[name] = np.array([found.get(query, 0.0) for query in judgements], np.float64)
    return values


def rank_values(ranks: npt.NDArray[np.int64]) -> dict[str, Values]:
    """Return nDCG@10 and accuracy@1 of queries with one relevant document, from the rank of it, 1 for the first."""
    return {MAIN: np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0), "accuracy@1": (ranks == 1).astype(np.float64)}


def spearman(first: Values, second: Values) -> Score:
    """Return the function that computes the correlation of the ranks of some draws of pairs.

    Args:
        first: The first value of each pair.
        second: The second value of each pair.
    """
    ranks = _ranks(first), _ranks(second)

    def score(counts: npt.NDArray[np.int64]) -> Values:
        centred = []
        for ranked in ranks:
            places = ranked(counts)
            centred.append(places - (counts * places).sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True))
        a, b = centred
        spread = np.sqrt((counts * a * a).sum(axis=1) * (counts * b * b).sum(axis=1))
        correlation: Values = (counts * a * b).sum(axis=1) / np.where(spread == 0, np.inf, spread)
        return correlation

    return score


def _ranks(values: Values) -> Score:
    """Return the function that computes the rank of each value in some draws; equal values share the mean of theirs."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    order, starts = np.argsort(group, kind="stable"), np.cumsum(sizes) - sizes

    def ranks(counts: npt.NDArray[np.int64]) -> Values:
        drawn = np.add.reduceat(counts[:, order], starts, axis=1)
        places: Values = np.cumsum(drawn, axis=1) - (drawn - 1) / 2
        return places[:, group]

    return ranks
