"""Exact nearest rows to query vectors, batch by batch, with memory for one batch and the best rows so far.

Used by search, and by the quality gate of a re-embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.schema import ID
from actors.vectors import VectorColumn


def scan_top_k(
    queries: pa.Array, batches: Iterable[pa.RecordBatch], k: int, column: VectorColumn
) -> list[list[tuple[float, dict[str, Any]]]]:
    """Return the `k` nearest rows of each query with their scores, best first.

    Args:
        queries: Unit vectors, as an encoder returns them for this column.
        batches: Rows with their vectors and the columns to return.
        k: Rows per query.
        column: The column with the vectors to compare.
    """
    best = TopK(len(queries), k)
    for batch in batches:
        if batch.num_rows:
            best.add(column.scores(queries, batch.column(column.name)), batch.drop_columns([column.name]))
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
