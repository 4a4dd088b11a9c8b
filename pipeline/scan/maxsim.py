"""MaxSim, the score of late interaction: queries and rows that have many vectors each.

The score of a query and a row is the sum, over the query's vectors, of the largest cosine with one of the row's. Rows are
scored in blocks: one product of matrices over their concatenated vectors, and the largest of each row's; or by a kernel
that reads vectors of int8 where they are and writes only the largest products. Nothing is padded, so a row whose cosines
are all negative gets its own score. A row without vectors, or with one that is not finite, gets minus infinity.

Products of float32 depend a little on the block that a row is in. The rows that may be among the best therefore get their
score from products of float64, so equal vectors get equal scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from actors import kernels
from actors.encoders.compute.threads import Threads
from actors.vectors import Floats, VectorColumn
from pipeline.scan.top_k import EMPTY, QUERY, SCORE, cut, found, joined

_BLOCK_BYTES = 1 << 18  # stored vectors of a block: as float32 they fit into a core's cache
_SHORTEST = 1e-12  # a shorter vector counts as zeros
_QUERY_VECTORS = 1024  # of a product at most, unless one query has more


Documents: TypeAlias = "pa.Array | list[pa.Array]"


class Rows(NamedTuple):
    """Rows of a table to score.

    Attributes:
        rows: The columns to return.
        places: Position of each in the scan, int64 [n].
        vectors: The column of vectors, or an array of one row for each row, which may lie anywhere.
        wanted: Pairs of a query and a row to score, bool [queries, n]; None: all.
    """

    rows: pa.RecordBatch
    places: npt.NDArray[np.int64]
    vectors: Documents
    wanted: npt.NDArray[np.bool_] | None = None


class LateQueries:
    """Queries of many vectors.

    Args:
        queries: Query vectors, as an encoder returns them for the column.
        column: The column of a table that they are compared with.

    Attributes:
        counts: Vectors of each query, int64 [queries].
        margins: Largest error of a score of each query, float64 [queries].
    """

    def __init__(self, queries: pa.Array, column: VectorColumn) -> None:
        self._column = column
        self._vectors, offsets = column.ragged(queries)
        self.counts = np.diff(offsets)
        self._starts, self._ends = offsets[:-1], offsets[1:]
        int8 = column.layout == "blob" and column.precision == "int8" and column.dim % 16 == 0
        self._kernels = kernels.find() if int8 else None
        # A float32 sum of `dim` products is off by at most dim 2^-24 of the lengths, and so is a length; some are added.
        self.margins = self.counts * ((2 * column.dim + 64) * 2.0**-24)

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.counts)

    def scores(self, documents: Documents, wanted: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Return the score of each query with each row of the column, float32 [queries, rows], within `margins`.

        Args:
            documents: Stored vectors, as in `Rows`.
            wanted: Pairs of a query and a row to score, bool [queries, rows]; others get minus infinity. None: all.
        """
        scores = np.full((len(self), len(documents)), -np.inf, np.float32)
        if self._kernels is not None and len(documents):
            self._score_by_kernel(self._kernels, documents, wanted, scores)
            return scores
        if isinstance(documents, list):
            documents = pa.concat_arrays(documents)
        step = max(1, _BLOCK_BYTES * len(documents) // max(1, documents.nbytes))

        def score(first: int) -> None:
            for start, stop in self._ranges():
                block = documents.slice(first, step)
                scores[start:stop, first : first + step] = self._scores_of(block, start, stop, np.float32)

        def score_those(query: int, rows: npt.NDArray[np.int64]) -> None:
            scores[query, rows] = self._scores_of(documents.take(pa.array(rows)), query, query + 1, np.float32)[0]

        if wanted is None:
            _side_by_side(partial(score, first) for first in range(0, len(documents), step))
        else:
            _side_by_side(
                partial(score_those, query, rows[first : first + step])
                for query, rows in enumerate(map(np.flatnonzero, wanted))
                for first in range(0, len(rows), step)
            )
        return scores

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the first and the last query, exclusive, of each product."""
        start = 0
        while start < len(self):
            most = self._starts[start] + _QUERY_VECTORS
            stop = max(start + 1, int(np.searchsorted(self._ends, most, side="right")))
            yield start, stop
            start = stop

    def _score_by_kernel(
        self, kernel: kernels.Kernels, documents: Documents, wanted: npt.NDArray[np.bool_] | None, scores: Floats
    ) -> None:
        if isinstance(documents, list):
            rows, counts = np.array([_place_of(document, self._column.dim) for document in documents]).T.copy()
        else:
            stored, counts = self._column.values(documents)
            rows = stored.ctypes.data + (np.cumsum(counts) - counts) * self._column.dim
        ranges = self._ranges() if wanted is None else ((query, query + 1) for query in range(len(self)))
        for start, stop in ranges:
            chosen = np.arange(len(rows)) if wanted is None else np.flatnonzero(wanted[start])
            if len(chosen):
                first = self._starts[start]
                vectors = torch.from_numpy(self._vectors[first : self._ends[stop - 1]])
                largest = kernel.maxsim(rows[chosen], counts[chosen], kernel.packed(vectors))
                largest = np.ascontiguousarray(largest[:, : len(vectors)])
                scores[start:stop, chosen] = np.add.reduceat(largest, self._starts[start:stop] - first, axis=1).T

    def exact(self, documents: Documents, query: npt.NDArray[np.int64], row: npt.NDArray[np.int64]) -> Floats:
        """Return the score of pairs of a query and a row from products of float64, float32 [pairs]."""
        scores = np.empty(len(query), np.float32)

        def score(pair: int) -> None:
            number = int(row[pair])
            document = documents[number] if isinstance(documents, list) else documents.slice(number, 1)
            scores[pair] = self._scores_of(document, int(query[pair]), int(query[pair]) + 1, np.float64)[0, 0]

        _side_by_side(partial(score, pair) for pair in range(len(query)))
        return scores

    def _scores_of(self, documents: pa.Array, start: int, stop: int, dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
        """Return the scores of queries `start <= query < stop`, [queries, rows], from products in a type."""
        scores = np.full((stop - start, len(documents)), -np.inf, dtype)
        stored, counts = self._column.values(documents)
        some = counts > 0
        if some.any():
            vectors = stored.astype(dtype)
            with np.errstate(invalid="ignore", over="ignore"):  # a length that is not finite makes its row not a number
                factors = 1 / np.maximum(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)), _SHORTEST)
            first = self._starts[start]
            of_queries = torch.from_numpy(self._vectors[first : self._ends[stop - 1]].astype(dtype, copy=False))
            products = (of_queries @ torch.from_numpy(vectors).T).numpy()
            with np.errstate(invalid="ignore"):
                products *= factors  # there are fewer of them than numbers in the vectors
            largest = np.maximum.reduceat(products, (np.cumsum(counts) - counts)[some], axis=1)
            scores[:, some] = np.add.reduceat(largest, self._starts[start:stop] - first, axis=0)
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
    sure = np.full(len(queries), -np.inf)  # a score that k rows of the query reach for certain
    for part in parts:
        count = part.rows.num_rows
        if count:
            scores = queries.scores(part.vectors, part.wanted)
            if count >= k:
                sure = np.maximum(sure, np.partition(scores, count - k, axis=1)[:, count - k] - queries.margins)
            query, row = np.nonzero((scores >= (sure - queries.margins)[:, None]) & (scores > -np.inf))
            exact = queries.exact(part.vectors, query, row)
            best = cut(joined(best, found(part.rows, part.places[row], query, row, exact)), k)
            of_query, lowest = best[QUERY].to_numpy(), best[SCORE].to_numpy()
            last = np.searchsorted(of_query, np.arange(len(queries)), side="right") - 1
            full = np.flatnonzero(np.bincount(of_query, minlength=len(queries)) >= k)
            sure[full] = np.maximum(sure[full], lowest[last[full]])
        report(count)
    return best


def _place_of(blob: pa.Array, dim: int) -> tuple[int, int]:
    """Return the address and the number of the int8 vectors of an array of one blob."""
    _, offsets, data = blob.buffers()
    start, stop = np.frombuffer(offsets, np.int32, 2, 4 * blob.offset).tolist()
    whole = data is not None and (stop - start) % dim == 0
    return (data.address + start, (stop - start) // dim) if whole else (0, 0)


def _side_by_side(calls: Iterable[Callable[[], None]]) -> None:
    """Call functions on as many threads as torch uses, each alone on one: threads that share a small product wait more."""
    waiting = iter(calls)
    if torch.get_num_threads() == 1:
        for call in waiting:
            call()
    else:
        for _ in _threads(torch.get_num_threads()).in_order(lambda: next(waiting, None)):
            pass


@cache
def _threads(count: int) -> Threads:
    return Threads(count)
