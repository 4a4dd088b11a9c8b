"""Measures of judged queries over any exact search: the table as it is, a version before its commit, or vectors in memory.

A document is as near to a query as its best row, where a table has a row for each chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.schema import ID
from pipeline.quality.judged import Judged
from pipeline.quality.metrics import DEPTH, retrieval_values

# Returns the k nearest rows of some queries, as `pipeline.scan.top_k.nearest` does.
Search = Callable[[pa.Array, int], pa.Table]

_QUERIES = 4096  # of one pass over the table


def measure(
    judged: Judged, queries: pa.Array, search: Search, *, depth: int = DEPTH
) -> dict[str, npt.NDArray[np.float64]]:
    """Return each measure of each judged query, float64 [queries].

    Args:
        judged: The queries.
        queries: Their vectors, in the same order.
        search: Searches the documents.
        depth: Documents of a query that count.
    """
    names, parts = list(judged.judgements), []
    for start in range(0, len(names), _QUERIES):
        part = names[start : start + _QUERIES]
        found = dict(zip(part, nearest_documents(search, queries.slice(start, _QUERIES), depth), strict=True))
        parts.append(retrieval_values({name: judged.judgements[name] for name in part}, found))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def nearest_documents(
    search: Search, queries: pa.Array, depth: int, *, among: Container[str] | None = None
) -> list[dict[str, float]]:
    """Return the `depth` nearest documents of each query with their scores, by id.

    A query whose nearest rows are of fewer documents is searched again for more rows.

    Args:
        search: Searches the documents.
        queries: Vectors of the queries.
        depth: Documents of each query.
        among: Ids of the documents that count; None: all.
    """
    from pipeline.scan.top_k import QUERY, SCORE  # importing torch takes seconds

    documents: list[dict[str, float]] = [{} for _ in range(len(queries))]
    waiting, k = np.arange(len(queries)), depth
    while len(waiting):
        found = search(queries.take(pa.array(waiting)), k)
        of_query, scores, ids = (found[name].to_pylist() for name in (QUERY, SCORE, ID))
        for number, score, row_id in zip(of_query, scores, ids, strict=True):
            best = documents[waiting[number]]
            if row_id is not None and len(best) < depth and (among is None or row_id in among):
                best.setdefault(row_id, score)
        rows = np.bincount(np.array(of_query, np.int64), minlength=len(waiting))
        few = np.array([len(documents[number]) < depth for number in waiting])
        waiting, k = waiting[few & (rows == k)], 4 * k
    return documents
