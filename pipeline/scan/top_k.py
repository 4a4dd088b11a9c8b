"""Exact scans of a table's vectors, block by block: the nearest rows, and counts of rows above a score.

Used by search and by the quality gate of a re-embedding. Memory is bounded: one block, the scores of some millions of
pairs, and the best rows so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from actors.schema import HASH, ID
from actors.vectors import VectorColumn
from pipeline.scan.block import Block
from pipeline.scan.products import Queries

# Columns of a result, beside those of the table.
QUERY, SCORE, PLACE = "_query", "_score", "_place"
EMPTY = pa.schema([(QUERY, pa.int32()), (SCORE, pa.float32()), (PLACE, pa.int64())])
_SCORES = 1 << 22  # approximate scores at a time, so that they stay in the processor's cache
_FEWEST_ROWS = 4096  # rows of a product at least


def nearest(
    queries: Queries,
    blocks: Iterable[Block],
    k: int,
    *,
    exclude: Sequence[Iterable[str]] | None = None,
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
    best = _Best(len(queries), k, exclude)
    for block in blocks:
        if block.rows.num_rows:
            for start, scores, margins in _products(queries, block):
                best.add(queries, block, start, scores, margins)
        report(block.rows.num_rows)
    return best.table


def count_above(
    queries: Queries,
    blocks: Iterable[Block],
    thresholds: npt.NDArray[np.float32],
    *,
    ignore: Sequence[Iterable[str]] | None = None,
) -> npt.NDArray[np.int64]:
    """Return for each query the number of rows whose score is above its threshold, int64 [queries].

    Args:
        queries: Query vectors.
        blocks: Rows, with `HASH` if `ignore` is given.
        thresholds: float32 [queries]. A score that is equal to it is not above.
        ignore: For each query the content hashes of rows that are not counted.
    """
    counts = np.zeros(len(queries), np.int64)
    ignored = None if ignore is None else _Excluded(ignore)
    for block in blocks:
        for start, scores, margins in _products(queries, block):
            low, high = (_column(thresholds + sign * margins, scores) for sign in (-1, 1))
            above = scores > high
            counts += above.sum(dim=1).cpu().numpy()
            query, row = _pairs((scores >= low) & ~above, start)
            counts += _counted(queries.exact(block, query, row) > thresholds[query], query, len(queries))
        if ignored is not None and block.rows.num_rows:
            query, row = ignored.pairs(block)
            counts -= _counted(queries.exact(block, query, row) > thresholds[query], query, len(queries))
    return counts


def nearest_of_batches(
    queries: pa.Array,
    batches: Iterable[pa.RecordBatch],
    k: int,
    column: VectorColumn,
    *,
    report: Callable[[int], None] = lambda _: None,
) -> pa.Table:
    """Return the `k` rows with the highest scores for each query, as `nearest` does, of batches with any kind of vectors.

    Args:
        queries: Query vectors, as an encoder returns them for this column.
        batches: Rows with the column of vectors, `ID` and the columns to return.
        k: Rows per query.
        column: The column of vectors.
        report: Called with the number of rows after each batch.
    """
    if column.kind == "dense":
        return nearest(Queries(column.matrix(queries)), _blocks(batches, column), k, report=report)
    best, first = EMPTY.empty_table(), 0
    for batch in batches:
        scores = column.scores(queries, batch.column(column.name))
        scores[np.isnan(scores)] = -np.inf
        count = min(k, batch.num_rows)
        row = np.argpartition(-scores, count - 1, axis=1)[:, :count].ravel() if count else np.zeros(0, np.int64)
        query = np.repeat(np.arange(len(queries)), count)
        fit = np.isfinite(scores[query, row])
        found = _found(batch.drop_columns([column.name]), first, query[fit], row[fit], scores[query, row][fit])
        best = _cut(_joined(best, found), k)
        first += batch.num_rows
        report(batch.num_rows)
    return best


def _blocks(batches: Iterable[pa.RecordBatch], column: VectorColumn) -> Iterator[Block]:
    first = 0
    for batch in batches:
        yield Block.of(batch, column, first)
        first += batch.num_rows


def merge(results: Sequence[pa.Table], k: int) -> pa.Table:
    """Return the best `k` rows per query of several results of `nearest` over different blocks."""
    joined = _joined(*results)
    return _cut(joined, k) if joined.num_rows else joined


def _joined(*results: pa.Table) -> pa.Table:
    """Return the rows of results, of which some may have no rows and no columns of rows."""
    return pa.concat_tables([result for result in results if result.num_columns > len(EMPTY)] or [EMPTY.empty_table()])


def _found(
    rows: pa.RecordBatch,
    first: int,
    query: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
) -> pa.Table:
    """Return pairs of a query and a row as a result; `first` is the place of the first of the rows."""
    taken = rows.take(pa.array(row))
    columns = [pa.array(query.astype(np.int32)), pa.array(scores), pa.array(row + first), *taken.columns]
    return pa.Table.from_arrays(columns, [*EMPTY.names, *taken.schema.names])


class _Best:
    """The best rows of each query so far."""

    def __init__(self, queries: int, k: int, exclude: Sequence[Iterable[str]] | None) -> None:
        self._k = k
        self._excluded = None if exclude is None else _Excluded(exclude)
        self._floors = np.full(queries, -np.inf)  # the k-th score, or -inf below k rows
        self.table = EMPTY.empty_table()

    def add(
        self,
        queries: Queries,
        block: Block,
        start: int,
        scores: torch.Tensor,
        margins: npt.NDArray[np.float64],
    ) -> None:
        """Add rows from `start` on with their approximate scores, [queries, rows]."""
        floors = self._floors
        if np.isneginf(floors).any():
            floors = np.maximum(floors, self._first_floors(scores, margins))
        lowest = np.maximum(floors - margins, np.finfo(np.float32).min)
        active = np.flatnonzero(scores.amax(dim=1).float().cpu().numpy() >= lowest)
        if not len(active):
            return
        few = scores if len(active) == len(scores) else scores[torch.from_numpy(active).to(scores.device)]
        query, row = _pairs(few >= _column(lowest[active], few), start)
        query = active[query]
        if self._excluded is not None:
            kept = ~self._excluded.contains(query, block.rows.column(HASH).take(pa.array(row)))
            query, row = query[kept], row[kept]
        exact = queries.exact(block, query, row)
        better = exact >= self._floors[query]
        query, row, exact = query[better], row[better], exact[better]
        if len(row):
            self._merge(block, query, row, exact)

    def _first_floors(self, scores: torch.Tensor, margins: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return a score that `k` of these rows reach for certain, or -inf."""
        count = self._k + (0 if self._excluded is None else self._excluded.most)
        if count > scores.shape[1]:
            return np.full(len(margins), -np.inf)
        lowest: npt.NDArray[np.float32] = scores.topk(count, dim=1).values[:, -1].float().cpu().numpy()
        return lowest - margins

    def _merge(
        self,
        block: Block,
        query: npt.NDArray[np.int64],
        row: npt.NDArray[np.int64],
        exact: npt.NDArray[np.float32],
    ) -> None:
        found = _found(block.rows, block.first, query, row, exact)
        self.table = _cut(_joined(self.table, found), self._k).combine_chunks()
        queries = self.table.column(QUERY).to_numpy()
        full = np.flatnonzero(np.bincount(queries, minlength=len(self._floors)) == self._k)
        last = np.searchsorted(queries, full, side="right") - 1
        self._floors[full] = self.table.column(SCORE).to_numpy()[last]


class _Excluded:
    """Content hashes that are left out, by query.

    Attributes:
        most: The number of hashes of the query that has most.
    """

    def __init__(self, hashes: Sequence[Iterable[str]]) -> None:
        lists = [list(values) for values in hashes]
        self.most = max(map(len, lists), default=0)
        self._queries = np.repeat(np.arange(len(lists)), [len(values) for values in lists])
        self._hashes = pa.array([value for values in lists for value in values], pa.string())

    def contains(self, query: npt.NDArray[np.int64], hashes: pa.Array) -> npt.NDArray[np.bool_]:
        """Return for each pair of a query and the hash of a row if the row is left out."""
        distinct = self._hashes.unique()
        wanted = _codes(self._hashes, distinct) + self._queries * (len(distinct) + 1)
        found = _codes(hashes, distinct)
        return np.isin(found + query * (len(distinct) + 1), wanted) & (found < len(distinct))

    def pairs(self, block: Block) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the pairs of a query and a row of the block that are left out, each once, of rows with a vector."""
        distinct = self._hashes.unique()
        codes = _codes(block.rows.column(HASH), distinct)
        codes[block.unfit] = len(distinct)
        rows = np.flatnonzero(codes < len(distinct))
        order = rows[np.argsort(codes[rows], kind="stable")]
        wanted = _codes(self._hashes, distinct)
        first, last = (np.searchsorted(codes[order], wanted, side=side) for side in ("left", "right"))
        query = np.repeat(self._queries, last - first)
        row = np.concatenate([order[a:b] for a, b in zip(first, last, strict=True)] or [order[:0]])
        pairs = np.unique(np.stack([query, row]), axis=1)
        return pairs[0], pairs[1]


def _codes(values: pa.Array, distinct: pa.Array) -> npt.NDArray[np.int64]:
    """Return the index of each value among `distinct`, and `len(distinct)` for all others."""
    index = pc.fill_null(pc.index_in(values, value_set=distinct), len(distinct))
    codes: npt.NDArray[np.int64] = index.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _products(queries: Queries, block: Block) -> Iterator[tuple[int, torch.Tensor, npt.NDArray[np.float64]]]:
    """Yield the approximate scores of parts of a block: first row, scores, margins."""
    count = block.rows.num_rows
    step = max(_FEWEST_ROWS, _SCORES // len(queries))
    for start in range(0, count, step):
        yield start, *queries.approximate(block, start, min(start + step, count))


def _column(values: npt.NDArray[np.float64], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like.device).unsqueeze(1)


def _pairs(mask: torch.Tensor, start: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return query and row of each true value."""
    pairs = mask.nonzero().cpu().numpy()
    return pairs[:, 0], pairs[:, 1] + start


def _counted(above: npt.NDArray[np.bool_], query: npt.NDArray[np.int64], queries: int) -> npt.NDArray[np.int64]:
    return np.bincount(query[above], minlength=queries)


def _cut(table: pa.Table, k: int) -> pa.Table:
    """Return the best `k` rows of each query, sorted."""
    ids = pc.fill_null(table.column(ID), "")
    keys = pa.table({QUERY: table[QUERY], SCORE: table[SCORE], ID: ids, PLACE: table[PLACE]})
    order = pc.sort_indices(
        keys,
        sort_keys=[(QUERY, "ascending"), (SCORE, "descending"), (ID, "ascending"), (PLACE, "ascending")],
    ).to_numpy()
    query = table[QUERY].to_numpy()[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query, side="left")
    return table.take(pa.array(order[rank < k]))
