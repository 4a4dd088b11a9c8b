"""The nearest rows to some vectors, exactly, batch by batch: memory for one batch and the best so far.

Used by search, and by the gate of a second generation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.schema import EMBEDDING, ID


def unit_vectors(batch: pa.RecordBatch, dim: int) -> npt.NDArray[np.float32]:
    """float32 [rows, dim], unit length again after the rounding that they were stored with.

    A row without a vector of this width, as another tool may have added it, is NaN, so that it is near to nothing.
    """
    column = batch.column(EMBEDDING)
    fit = pc.fill_null(pc.equal(pc.list_value_length(column), dim), False).to_numpy(zero_copy_only=False)
    found = column if fit.all() else column.filter(pa.array(fit))
    vectors = found.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    if not fit.all():
        whole = np.full((len(fit), dim), np.nan, dtype=np.float32)
        whole[fit] = vectors
        vectors = whole
    unit: npt.NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


class TopK:
    """The best rows of each query so far.

    Args:
        queries: How many there are.
        k: Rows for each.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._found: list[list[tuple[float, dict[str, Any]]]] = [[] for _ in range(queries)]

    def add(self, scores: npt.NDArray[np.float32], rows: pa.RecordBatch) -> None:
        """Take in a batch: scores float32 [queries, rows], and the columns that are to be kept of the rows."""
        count = min(self._k, scores.shape[1])
        top = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        for query, found in enumerate(self._found):
            floor = found[-1][0] if len(found) == self._k else -np.inf
            wanted = [int(row) for row in top[query] if scores[query, row] > floor]
            if not wanted:
                continue
            taken = rows.take(pa.array(wanted)).to_pylist()
            found.extend((float(scores[query, row]), values) for row, values in zip(wanted, taken, strict=True))
            found.sort(key=lambda pair: (-pair[0], pair[1][ID] or ""))
            del found[self._k :]

    def rows(self) -> list[list[tuple[float, dict[str, Any]]]]:
        """For each query its rows with their scores, best first."""
        return self._found
