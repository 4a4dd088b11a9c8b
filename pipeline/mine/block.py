"""Mines the negatives of a block of queries: one pass over the table for the nearest rows and for the positives' scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.schema import HASH, ID
from actors.vectors import Floats
from pipeline.mine.choose import Counts, Ints, Judge, Near, Scores, Thresholds, choose, count_gaps
from pipeline.mine.cross_encoder import Score, texts_of
from pipeline.mine.positives import Pairs
from pipeline.scan.block import Block
from pipeline.scan.products import Queries
from pipeline.scan.table_scan import TableScan
from pipeline.scan.top_k import QUERY, SCORE, Hashes, nearest, ranks

SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("positive_id", pa.string()),
        ("positive_score", pa.float32()),
        ("negative_ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("ranks", pa.list_(pa.int32())),
    ]
)


_LOWEST = np.float32(-1e30)  # score of a positive whose row has no vector


@dataclass(frozen=True, slots=True)
class Rules:
    """What is mined beside the thresholds.

    Attributes:
        max_missing: Largest share of pairs whose positive is not in the table.
        cross_encoder: A cross-encoder that checks each negative; None: none.
        cross_margin: Least difference of its scores of the positive and of a negative.
    """

    thresholds: Thresholds
    max_missing: float = 0.05
    cross_encoder: str | None = None
    cross_margin: float = 0.2


class Miner:
    """Mines blocks of queries.

    Args:
        scan: The table.
        pairs: The pairs.
        rules: Which rows may be negatives.
        encode: Returns the dense vectors of queries, float32 [queries, dim].
        score: The cross-encoder.
    """

    def __init__(
        self,
        scan: TableScan,
        pairs: Pairs,
        rules: Rules,
        encode: Callable[[Sequence[str]], Floats],
        score: Score | None,
    ) -> None:
        self._scan, self._pairs, self._rules = scan, pairs, rules
        self._encode, self._score = encode, score

    def mine(self, first: int, texts: list[str], report: Callable[[int], None]) -> tuple[pa.Table, Counts]:
        """Return the negatives of some queries, one row a pair (`SCHEMA`), and the numbers.

        Args:
            first: Number of the first query.
            texts: The queries.
            report: Called with the number of rows that were scanned.
        """
        queries = Queries(self._encode(texts))
        block = _Block(self._pairs, first, len(texts))
        rows = 0

        def add(count: int) -> None:
            nonlocal rows
            rows += count
            report(rows)

        blocks = (replace(each, rows=each.rows.select([ID, HASH])) for each in self._scan.blocks())
        thresholds = self._rules.thresholds
        found = nearest(queries, block.scored(queries, blocks), thresholds.last_rank, exclude=block.hashes, report=add)
        counts, positives = Counts(), block.positive_scores()
        if not found.num_rows:
            counts.without = len(block.query)
            return SCHEMA.empty_table(), counts
        near, ids = _near(found), found[ID].combine_chunks()
        judge = None if self._score is None else self._judge(self._score, block, texts, near, ids)
        chosen = choose(near, block.lowest(positives), thresholds, number=first, counts=counts, judge=judge)
        table = _table(block, near, ids, chosen, positives=positives, most=thresholds.negatives, counts=counts)
        return table, counts

    def _judge(self, score: Score, block: _Block, texts: list[str], near: Near, ids: pa.Array) -> Judge:
        """Return the judge that compares the scores of the cross-encoder."""
        names = ids.to_pylist()
        stored = texts_of(self._scan, [*names, *block.ids])
        of_positives = score([(texts[query], stored[name]) for query, name in zip(block.query, block.ids, strict=True)])
        lowest = block.lowest(of_positives)

        def judge(rows: Ints) -> npt.NDArray[np.bool_]:
            scores = score([(texts[near.query[row]], stored[names[row]]) for row in rows])
            return np.asarray(lowest[near.query[rows]] - scores > self._rules.cross_margin, bool)

        return judge


class _Block:
    """Pairs of some queries.

    Attributes:
        query: Number of each pair's query in the block, int64 [pairs].
        ids: Id of each pair's positive.
        names: Id of each pair.
        hashes: Content hashes of the positives, by query.
    """

    def __init__(self, pairs: Pairs, first: int, count: int) -> None:
        span = pairs.of(first, first + count)
        self.query: Ints = pairs.query[span] - first
        self.ids: list[str] = pairs.positive_ids[span].to_pylist()
        self.names = pairs.ids[span]
        self._of_pairs = [pairs.hashes_of(each) for each in pairs.positive[span].tolist()]
        lists: list[list[str]] = [[] for _ in range(count)]
        for query, hashes in zip(self.query.tolist(), self._of_pairs, strict=True):
            lists[query] += [each for each in hashes if each not in lists[query]]
        self.hashes = Hashes(lists)
        self._count = count
        keys = ((query, each) for query, values in enumerate(lists) for each in values)
        self._places = {key: place for place, key in enumerate(keys)}
        self._scores = np.full(len(self._places), _LOWEST)

    def scored(self, queries: Queries, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield blocks of rows, and keep the highest score of each query with a row of each of its hashes."""
        for block in blocks:
            found = self.hashes.pairs(block)
            np.maximum.at(self._scores, found.hash, queries.exact(block, found.query, found.row))
            yield block

    def positive_scores(self) -> Scores:
        """Return the score of each pair's positive, float32 [pairs]: the highest of its rows."""
        of_pairs = zip(self.query.tolist(), self._of_pairs, strict=True)
        highest = [max(self._scores[self._places[query, each]] for each in hashes) for query, hashes in of_pairs]
        return np.array(highest, np.float32)

    def lowest(self, scores: Scores) -> Scores:
        """Return the lowest score of the positives of each query, float32 [queries]."""
        lowest = np.full(self._count, np.inf, np.float32)
        np.minimum.at(lowest, self.query, scores)
        return lowest


def _near(found: pa.Table) -> Near:
    """Return a result of a scan as arrays. A row is a copy if a row before it has its id or its hash."""
    query = found[QUERY].to_numpy().astype(np.int64)
    copy = np.zeros(len(query), bool)
    for name in (ID, HASH):
        codes = found[name].combine_chunks().dictionary_encode()
        numbers = codes.indices.fill_null(-1).to_numpy().astype(np.int64)
        is_first = np.zeros(len(query), bool)
        is_first[np.unique(query * (len(codes.dictionary) + 1) + numbers, return_index=True)[1]] = True
        copy |= ~is_first
    return Near(query, found[SCORE].to_numpy(), ranks(query), copy)


def _table(
    block: _Block, near: Near, ids: pa.Array, chosen: Ints, *, positives: Scores, most: int, counts: Counts
) -> pa.Table:
    """Return the negatives of each pair that has some, and count them."""
    of = near.query[chosen]
    start, stop = (np.searchsorted(of, block.query, side=side) for side in ("left", "right"))
    lengths = stop - start
    counts.pairs, counts.full = int((lengths > 0).sum()), int((lengths == most).sum())
    counts.without, counts.chosen = int((lengths == 0).sum()), int(lengths.sum())
    pairs = np.flatnonzero(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths[pairs])])
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths[pairs])
    rows = chosen[np.repeat(start[pairs], lengths[pairs]) + inside]
    counts.gaps = count_gaps(np.repeat(positives[pairs], lengths[pairs]), near.score[rows])
    places = pa.array(offsets.astype(np.int32))

    def lists(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(places, values)

    columns = [
        block.names.take(pa.array(pairs)).cast(pa.string()),
        pa.array(block.ids, pa.string()).take(pa.array(pairs)),
        pa.array(positives[pairs]),
        lists(ids.take(pa.array(rows))),
        lists(pa.array(near.score[rows])),
        lists(pa.array(near.rank[rows].astype(np.int32))),
    ]
    return pa.table(columns, schema=SCHEMA)
