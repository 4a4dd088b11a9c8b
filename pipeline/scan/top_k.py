"""Exact scans of a table's vectors, block by block: the nearest rows, and counts of rows above a score.

Used by search and by the quality gate of a re-embedding. Memory is bounded: some blocks, the scores of some millions of
pairs, and the best rows so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from actors.schema import HASH, ID
from pipeline.scan.block import Block
from pipeline.scan.products import Queries

# Columns of a result, beside those of the table.
QUERY, SCORE, PLACE = "_query", "_score", "_place"
EMPTY = pa.schema([(QUERY, pa.int32()), (SCORE, pa.float32()), (PLACE, pa.int64())])
_MOST = 1 << 14  # candidates before the thresholds are raised, and rows that are kept; more for a large k
_MOST_BYTES = 1 << 26  # of blocks in memory before exact scores are computed
_FIRST_ROWS, _FIRST_PAIRS = 1024, 1 << 13  # of the first round of a scan
_PAIRS_OF_ROUND = 1 << 23  # pairs of a query and a row of a round, any of which may be a candidate
_MANY = 0.75  # share of queries that are still counted below which the others are left out of the products


def nearest(
    queries: Queries,
    blocks: Iterable[Block],
    k: int,
    *,
    exclude: Sequence[Iterable[str]] | Hashes | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> pa.Table:
    """Return the `k` rows with the highest scores for each query.

    Args:
        queries: Query vectors.
        blocks: Rows, with the columns to return and `ID`; with `HASH` if `exclude` is given.
        k: Rows per query, 1 or more.
        exclude: For each query the content hashes of rows that are not returned.
        report: Called with the number of rows after each block.

    Returns:
        A table with `QUERY` (int32), `SCORE` (float32), `PLACE` (int64, the row's position in the scan) and the columns of
        the blocks, sorted by query, score (highest first), id, place. It has no columns of rows if there is no block.
    """
    best = _Best(queries, k, exclude)
    for block in blocks:
        best.add(block)
        report(block.rows.num_rows)
    return best.table()


def count_above(
    queries: Queries,
    blocks: Iterable[Block],
    thresholds: npt.NDArray[np.float32],
    *,
    ignore: Sequence[Iterable[str]] | None = None,
    most: int | None = None,
) -> npt.NDArray[np.int64]:
    """Return for each query the number of rows whose score is above its threshold, int64 [queries].

    Args:
        queries: Query vectors.
        blocks: Rows, with `HASH` if `ignore` is given.
        thresholds: float32 [queries]. A score that is equal to it is not above.
        ignore: For each query the content hashes of rows that are not counted.
        most: A larger number is returned as this one. A query that has reached it is compared with no more rows.
    """
    counts = np.zeros(len(queries), np.int64)
    limit = np.iinfo(np.int64).max if most is None else most
    ignored = None if ignore is None else Hashes(ignore)
    numbers, asked = np.arange(len(queries)), queries  # the queries that are left
    for block in blocks:
        out_query, out_row = (numbers[:0],) * 2 if ignored is None else ignored.pairs(block)[:2]
        wrong = queries.exact(block, out_query, out_row) > thresholds[out_query]
        out_query, out_row = out_query[wrong], out_row[wrong]
        start, stop = 0, 0
        while (start := stop) < block.rows.num_rows and len(numbers):
            stop = min(start + _round(asked), block.rows.num_rows)
            counted = counts < limit
            limits = np.where(counted[numbers], thresholds[numbers], np.inf)
            margins = asked.margins(block)
            query, row, value = asked.candidates(block, start, stop, limits - margins)
            above = value > (limits + margins)[query]
            counts[numbers] += _counted(above, query, len(numbers))
            counts -= _counted(counted[out_query] & (out_row >= start) & (out_row < stop), out_query, len(queries))
            near = ~above & (counts[numbers] < limit)[query]
            query, row = query[near], row[near]
            is_above = asked.exact(block, query, row) > limits[query]
            counts[numbers] += _counted(is_above, query, len(numbers))
            left = counts[numbers] < limit
            if left.sum() < _MANY * len(left):
                numbers = numbers[left]
                asked = Queries(queries.vectors[numbers], device=queries.device.type)
    return np.minimum(counts, limit)


def merge(results: Sequence[pa.Table], k: int) -> pa.Table:
    """Return the best `k` rows per query of several results of `nearest` over different blocks."""
    together = joined(*results)
    return cut(together, k) if together.num_rows else together


def joined(*results: pa.Table) -> pa.Table:
    """Return the rows of results, of which some may have no rows and no columns of rows."""
    return pa.concat_tables([result for result in results if result.num_columns > len(EMPTY)] or [EMPTY.empty_table()])


def found(
    rows: pa.RecordBatch,
    places: npt.NDArray[np.int64],
    query: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
) -> pa.Table:
    """Return pairs of a query and a row as a result, with the place of each."""
    taken = rows.take(pa.array(row))
    columns = [pa.array(query.astype(np.int32)), pa.array(scores), pa.array(places), *taken.columns]
    return pa.Table.from_arrays(columns, [*EMPTY.names, *taken.schema.names])


class _Part(NamedTuple):
    """Candidates among some rows of a block, with approximate scores and the largest error of each query's scores."""

    block: Block
    margins: npt.NDArray[np.float64]
    query: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]

    def those(self, wanted: npt.NDArray[np.bool_]) -> _Part:
        """Return some of the candidates."""
        return self._replace(query=self.query[wanted], row=self.row[wanted], value=self.value[wanted])


class _Best:
    """The best rows of each query so far.

    Rows with a high approximate score are candidates. `_sure` is a score that k rows of a query reach for certain; it rises
    with the candidates. Those that are still high enough after some blocks get their exact scores.
    """

    def __init__(self, queries: Queries, k: int, exclude: Sequence[Iterable[str]] | Hashes | None) -> None:
        self._queries, self._k = queries, k
        self._excluded = exclude if exclude is None or isinstance(exclude, Hashes) else Hashes(exclude)
        self._most = max(_MOST, 2 * k * len(queries))
        self._seen = 0  # rows
        self._sure = np.full(len(queries), -np.inf)
        self._parts: list[_Part] = []
        self._waiting = 0  # candidates
        self._bytes = 0  # of blocks in memory
        # Rows with an exact score: some more than k of a query, because ids are compared at the end.
        self._kept = EMPTY.empty_table()
        self._query: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._score: npt.NDArray[np.float32] = np.zeros(0, np.float32)

    def table(self) -> pa.Table:
        """Return the best `k` rows of each query, sorted."""
        self._settle()
        return cut(self._kept, self._k).combine_chunks() if self._kept.num_rows else EMPTY.empty_table()

    def add(self, block: Block) -> None:
        """Add the rows of a block."""
        margins = self._queries.margins(block)
        start, count = 0, block.rows.num_rows
        excluded = None if self._excluded is None else self._excluded.pairs(block)
        places = None if excluded is None else excluded.query * count + excluded.row
        while start < count:
            # With few rows before it, a larger round would have many candidates.
            few = max(_FIRST_ROWS, _FIRST_PAIRS // len(self._queries), 3 * self._seen)
            stop = min(count, start + min(few, _round(self._queries)))
            if np.isneginf(self._sure).any():
                self._sure = np.maximum(self._sure, self._first_sure(block, start, stop, margins, excluded))
            part = _Part(block, margins, *self._queries.candidates(block, start, stop, self._sure - margins))
            if places is not None:
                part = part.those(~np.isin(part.query * count + part.row, places))
            if len(part.query):
                self._parts.append(part)
                self._waiting += len(part.query)
            if self._waiting > self._most:
                self._thin()
                if self._waiting > self._most // 2:  # many equal scores
                    self._settle()
            self._seen += stop - start
            start = stop
        self._bytes += 0 if block.mapped else block.high.nbytes + block.rows.nbytes
        if self._bytes > _MOST_BYTES:
            self._settle()

    def _first_sure(
        self, block: Block, start: int, stop: int, margins: npt.NDArray[np.float64], excluded: Found | None
    ) -> npt.NDArray[np.float64]:
        """Return a score that `k` of these rows reach for certain, or -inf."""
        if self._k > stop - start:
            return np.full(len(margins), -np.inf)
        scores = self._queries.approximate(block, start, stop).float()
        if excluded is not None:
            inside = (excluded.row >= start) & (excluded.row < stop)
            scores[excluded.query[inside], excluded.row[inside] - start] = -torch.inf
        lowest: npt.NDArray[np.float32] = scores.topk(self._k, dim=1).values[:, -1].cpu().numpy()
        return lowest - margins

    def _thin(self) -> None:
        """Raise the sure scores, and leave out the candidates that cannot be among the best any more."""
        query = np.concatenate([self._query, *(part.query for part in self._parts)])
        sure = np.concatenate([self._score, *(part.value - part.margins[part.query] for part in self._parts)])
        self._raise(query, sure)
        self._parts = [part.those(part.value >= (self._sure - part.margins)[part.query]) for part in self._parts]
        self._waiting = sum(len(part.query) for part in self._parts)

    def _raise(self, query: npt.NDArray[np.int64], sure: npt.NDArray[np.floating[Any]]) -> None:
        """Raise the sure scores to the k-th of each query, where there are k."""
        counts = np.bincount(query, minlength=len(self._sure))
        full = np.flatnonzero(counts >= self._k)
        if not len(full):
            return
        # The parts of the queries one after another, each of which is divided at its k-th score; sorting takes thrice as long.
        values = sure[np.argsort(query.astype(np.min_scalar_type(len(counts))), kind="stable")]
        stops = np.cumsum(counts)
        for one, start, stop in zip(full, (stops - counts)[full], stops[full], strict=True):
            part, place = values[start:stop], stop - start - self._k
            part.partition(place)
            self._sure[one] = max(self._sure[one], part[place])

    def _settle(self) -> None:
        """Keep the candidates whose exact score is high enough."""
        self._thin()
        scores = [self._queries.exact(part.block, part.query, part.row) for part in self._parts]
        query = np.concatenate([self._query, *(part.query for part in self._parts)])
        self._raise(query, np.concatenate([self._score, *scores]))
        for part, exact in zip(self._parts, scores, strict=True):
            high = exact >= self._sure[part.query]
            if high.any():
                row = part.row[high]
                best = found(part.block.rows, part.block.places(row), part.query[high], row, exact[high])
                self._kept = joined(self._kept, best)
                self._query = np.concatenate([self._query, part.query[high]])
                self._score = np.concatenate([self._score, exact[high]])
        self._parts, self._waiting, self._bytes = [], 0, 0
        if len(self._query) > self._most:
            self._kept = cut(self._kept, self._k).combine_chunks()
            self._query, self._score = self._kept[QUERY].to_numpy().astype(np.int64), self._kept[SCORE].to_numpy()


class Found(NamedTuple):
    """Rows of a block that have one of a query's hashes: index of the query, of the row and of the hash, int64 each."""

    query: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    hash: npt.NDArray[np.int64]


class Hashes:
    """Content hashes by query.

    Attributes:
        queries: Query of each hash, int64; a query has each hash once.
    """

    def __init__(self, hashes: Sequence[Iterable[str]]) -> None:
        lists = [list(dict.fromkeys(values)) for values in hashes]
        self.queries = np.repeat(np.arange(len(lists)), [len(values) for values in lists])
        listed = pa.array([value for values in lists for value in values], pa.string())
        self._distinct = listed.unique()
        self._wanted = _codes(listed, self._distinct)
        self._last: tuple[Block, Found] | None = None

    def pairs(self, block: Block) -> Found:
        """Return the rows of the block with a hash of a query, of rows with a vector."""
        if self._last is not None and self._last[0] is block:  # scans of several kinds ask for the same block
            return self._last[1]
        codes = _codes(block.rows.column(HASH), self._distinct)
        codes[block.unfit] = len(self._distinct)
        rows = np.flatnonzero(codes < len(self._distinct))
        order = rows[np.argsort(codes[rows], kind="stable")]
        first, last = (np.searchsorted(codes[order], self._wanted, side=side) for side in ("left", "right"))
        number = np.repeat(np.arange(len(self._wanted)), last - first)
        row = np.concatenate([order[a:b] for a, b in zip(first, last, strict=True) if a < b] or [order[:0]])
        found = Found(self.queries[number], row, number)
        self._last = (block, found)
        return found


def _codes(values: pa.Array, distinct: pa.Array) -> npt.NDArray[np.int64]:
    """Return the index of each value among `distinct`, and `len(distinct)` for all others."""
    index = pc.fill_null(pc.index_in(values, value_set=distinct), len(distinct))
    codes: npt.NDArray[np.int64] = index.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _round(queries: Queries) -> int:
    """Return the number of rows that are compared with one set of thresholds."""
    return max(_FIRST_ROWS, _PAIRS_OF_ROUND // max(1, len(queries)))


def _counted(above: npt.NDArray[np.bool_], query: npt.NDArray[np.int64], queries: int) -> npt.NDArray[np.int64]:
    return np.bincount(query[above], minlength=queries)


def cut(table: pa.Table, k: int) -> pa.Table:
    """Return the best `k` rows of each query, sorted."""
    ids = pc.fill_null(table.column(ID), "")
    keys = pa.table({QUERY: table[QUERY], SCORE: table[SCORE], ID: ids, PLACE: table[PLACE]})
    order = pc.sort_indices(
        keys,
        sort_keys=[(QUERY, "ascending"), (SCORE, "descending"), (ID, "ascending"), (PLACE, "ascending")],
    ).to_numpy()
    return table.take(pa.array(order[ranks(table[QUERY].to_numpy()[order]) <= k]))


def ranks(query: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return the rank of each row among those of its query, from 1. Rows are sorted by query."""
    return np.arange(1, len(query) + 1) - np.searchsorted(query, query, side="left")
