"""Metrics of retrieval: overlap of neighbours, and nDCG of judged queries.

Used by the quality gate of a re-embedding. The functions do no I/O: they take neighbours and scores, as `pipeline.scan`
finds them. ir-measures (the extra `quality`) computes nDCG, as trec_eval does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def mean_overlap(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Return the mean share of neighbours in common, 0 to 1, of two int64 [queries, neighbours]."""
    shares = [len(np.intersect1d(a, b)) / first.shape[1] for a, b in zip(first, second, strict=True)]
    return float(np.mean(shares))


def mean_ndcg(
    judgements: Iterable[Mapping[str, Any]],
    queries: Sequence[str],
    results: Iterable[Mapping[str, float]],
    *,
    k: int,
) -> float:
    """Return nDCG@k, averaged over the judged queries.

    Args:
        judgements: `query` and `doc` of each, and `relevance`: 1 if absent.
        queries: Ids of the queries.
        results: Scores of the documents found for each query, by document id.
        k: Documents of each query that count.
    """
    import ir_measures

    qrels = [ir_measures.Qrel(str(row["query"]), str(row["doc"]), int(row.get("relevance", 1))) for row in judgements]
    run = [
        ir_measures.ScoredDoc(query, document, score)
        for query, scores in zip(queries, results, strict=True)
        for document, score in scores.items()
    ]
    measure = ir_measures.nDCG @ k
    return float(ir_measures.calc_aggregate([measure], qrels, run)[measure])
