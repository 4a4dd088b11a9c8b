"""MaxSim, the score of late interaction: queries and rows that have many vectors each.

The score of a query and a row is the sum, over the query's vectors, of the largest cosine with one of the row's. Rows are
scored in blocks: one product of matrices over their concatenated vectors, and the largest of each row's. Nothing is padded,
so a row whose cosines are all negative gets its own score. A row without vectors, or with one that is not finite, gets
minus infinity.

Products of float32 depend a little on the block that a row is in. The rows that may be among the best therefore get their
score from products of float64, so equal vectors get equal scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.kernels.parallel import parallel_for
from actors.vectors import Floats, VectorColumn
from pipeline.scan.top_k import EMPTY, QUERY, SCORE, cut, found, joined

_BLOCK_BYTES = 1 << 18  # stored vectors of a block: as float32 they fit into a core's cache
_QUERY_VECTORS = 1024  # of a product at most, unless one query has more


class Rows(NamedTuple):
    """Rows of a table to score.

    Attributes:
        rows: The columns to return.
        places: Position of each in the scan, int64 [n].
        vectors: The column of vectors.
        wanted: Pairs of a query and a row to score, bool [queries, n]; None: all.
    """

    rows: pa.RecordBatch
    places: npt.NDArray[np.int64]
    vectors: pa.Array
    wanted: npt.NDArray[np.bool_] | None = None


class LateQueries:
    """Queries of many vectors.

    Args:
        queries: Query vectors, as an encoder returns them for the column.
        column: The column of a table that they are compared with.

    Attributes:
        counts: Vectors of each query, int64 [queries].
    """

    def __init__(self, queries: pa.Array, column: VectorColumn) -> None:
        self.column = column
        self.counts = queries.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        self._vectors: Floats = queries.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, column.dim)
        self._ends = np.cumsum(self.counts)
        # A float32 sum of dim products is off by at most dim 2^-24 of the lengths, and so is a length; some are added.
        self.margins = self.counts * ((2 * column.dim + 64) * 2.0**-24)

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.counts)

    def scores(self, documents: pa.Array) -> Floats:
        """Return the score of each query with each row of the column, float32 [queries, rows], within `margins`."""
        scores = np.full((len(self), len(documents)), -np.inf, np.float32)

        def score(first: int, last: int) -> None:
            part = documents.slice(first, last - first)
            start = 0
            while start < len(self):
                before = self._ends[start] - self.counts[start]
                stop = max(start + 1, int(np.searchsorted(self._ends, before + _QUERY_VECTORS, side="right")))
                scores[start:stop, first:last] = self._scores_of(part, start, stop, np.float32)
                start = stop

        if len(documents):
            parallel_for(score, len(documents), _block_rows(documents))
        return scores

    def scores_of_pairs(self, documents: pa.Array, wanted: npt.NDArray[np.bool_]) -> Floats:
        """Return what `scores` returns for the wanted pairs, bool [queries, rows], and minus infinity for others."""
        scores = np.full(wanted.shape, -np.inf, np.float32)
        step = _block_rows(documents)
        blocks = [
            (query, rows[start : start + step])
            for query, rows in enumerate(map(np.flatnonzero, wanted))
            for start in range(0, len(rows), step)
        ]

        def score(first: int, last: int) -> None:
            for query, rows in blocks[first:last]:
                scores[query, rows] = self._scores_of(documents.take(pa.array(rows)), query, query + 1, np.float32)[0]

        if blocks:
            parallel_for(score, len(blocks), 1)
        return scores

    def exact(self, documents: pa.Array, query: npt.NDArray[np.int64], row: npt.NDArray[np.int64]) -> Floats:
        """Return the score of pairs of a query and a row from products of float64, float32 [pairs]."""
        scores = np.empty(len(query), np.float32)
        for pair, (of_query, of_row) in enumerate(zip(query.tolist(), row.tolist(), strict=True)):
            scores[pair] = self._scores_of(documents.slice(of_row, 1), of_query, of_query + 1, np.float64)[0, 0]
        return scores

    def _scores_of(self, documents: pa.Array, start: int, stop: int, dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
        """Return the scores of queries `start <= query < stop`, [queries, rows], of products in a type."""
        scores = np.full((stop - start, len(documents)), -np.inf, dtype)
        vectors, offsets = self.column.ragged(documents)
        some = np.diff(offsets) > 0
        if some.any():
            before = self._ends[start] - self.counts[start]
            of_queries = self._vectors[before : self._ends[stop - 1]].astype(dtype, copy=False)
            products = of_queries @ vectors.astype(dtype, copy=False).T
            largest = np.maximum.reduceat(products, offsets[:-1][some], axis=1)
            starts = self._ends[start:stop] - self.counts[start:stop] - before
            scores[:, some] = np.add.reduceat(largest, starts, axis=0)
            scores[np.isnan(scores)] = -np.inf
        return scores


def nearest(
    queries: LateQueries, parts: Iterable[Rows], k: int, *, report: Callable[[int], None] = lambda _: None
) -> pa.Table:
    """Return the `k` rows with the highest scores for each query, as `top_k.nearest` does; rows without vectors are left out.

    Args:
        queries: The queries.
        parts: The rows, in parts that fit into memory.
        k: Rows per query, 1 or more.
        report: Called with the number of rows after each part.
    """
    best = EMPTY.empty_table()
    for part in parts:
        count = part.rows.num_rows
        if count:
            if part.wanted is None:
                scores = queries.scores(part.vectors)
            else:
                scores = queries.scores_of_pairs(part.vectors, part.wanted)
            sure = np.full(len(queries), -np.inf)  # a score that k rows of the query reach for certain
            if count >= k:
                sure = np.partition(scores, count - k, axis=1)[:, count - k] - queries.margins
            if best.num_rows:
                of_best = best[QUERY].to_numpy()
                last = np.flatnonzero(np.diff(of_best, append=-1))  # sorted by query, then score: the lowest of each
                full = np.bincount(of_best, minlength=len(queries))[of_best[last]] >= k
                sure[of_best[last[full]]] = np.maximum(sure[of_best[last[full]]], best[SCORE].to_numpy()[last[full]])
            query, row = np.nonzero((scores >= (sure - queries.margins)[:, None]) & np.isfinite(scores))
            exact = queries.exact(part.vectors, query, row)
            best = cut(joined(best, found(part.rows, part.places, query, row, exact)), k)
        report(count)
    return best


def _block_rows(documents: pa.Array) -> int:
    """Return the number of rows of a block."""
    return max(1, _BLOCK_BYTES * len(documents) // max(1, documents.nbytes))
