"""Exact nearest rows to query vectors, batch by batch, with memory for one batch and the best rows so far.

Used by search, and by the quality gate of a re-embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.schema import EMBEDDING, ID


def unit_vectors(batch: pa.RecordBatch, dim: int) -> npt.NDArray[np.float32]:
    """Return the vectors as float32 [rows, dim], normalized again because they were rounded before they were stored.

    A row without a vector of this width, as another tool may have added it, is NaN, so that it is near to nothing.
    """
    column = batch.column(EMBEDDING)
    fit = pc.fill_null(pc.equal(pc.list_value_length(column), dim), False).to_numpy(zero_copy_only=False)
    fitting = column if fit.all() else column.filter(pa.array(fit))
    vectors = fitting.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    if not fit.all():
        whole = np.full((len(fit), dim), np.nan, dtype=np.float32)
        whole[fit] = vectors
        vectors = whole
    unit: npt.NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def scan_top_k(
    queries: npt.NDArray[np.float32], batches: Iterable[pa.RecordBatch], k: int
) -> list[list[tuple[float, dict[str, Any]]]]:
    """Return the `k` nearest rows of each query with their scores, best first.

    Args:
        queries: Unit vectors, float32 [queries, dim].
        batches: Rows with their vectors (`EMBEDDING`) and the columns to return.
        k: Rows per query.
    """
    best = TopK(len(queries), k)
    for batch in batches:
        if batch.num_rows:
            best.add(queries @ unit_vectors(batch, queries.shape[1]).T, batch.drop_columns([EMBEDDING]))
    return best.rows()


class TopK:
    """Collects the best rows of each query.

    Args:
        queries: Number of queries.
        k: Rows per query.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._best: list[list[tuple[float, dict[str, Any]]]] = [[] for _ in range(queries)]

    def add(self, scores: npt.NDArray[np.float32], rows: pa.RecordBatch) -> None:
        """Add a batch: scores float32 [queries, rows], and the columns of the rows to return."""
        count = min(self._k, scores.shape[1])
        top = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        for query, best in enumerate(self._best):
            floor = best[-1][0] if len(best) == self._k else -np.inf
            better = [int(row) for row in top[query] if scores[query, row] > floor]
            if not better:
                continue
            values_of_rows = rows.take(pa.array(better)).to_pylist()
            best.extend((float(scores[query, row]), values) for row, values in zip(better, values_of_rows, strict=True))
            best.sort(key=lambda pair: (-pair[0], pair[1][ID] or ""))
            del best[self._k :]

    def rows(self) -> list[list[tuple[float, dict[str, Any]]]]:
        """Return for each query its rows with their scores, best first."""
        return self._best
