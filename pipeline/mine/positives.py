"""Pairs by their queries, and the rows of a table that are their positives.

The pairs are read twice: first for hashes and ids, which take some hundred bytes a pair, then for the texts of the queries,
block by block. A pair's positive is the row with the id that it names, or the rows with its text, by content hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import ConfigError, DataError
from actors.schema import CONTENT, HASH, ID
from actors.source.blank import blank_rows
from actors.source.content_hash import content_hashes
from pipeline.plan.rows import Columns, Part, read_rows
from pipeline.scan.table_scan import TableScan

_OPTIONS = {"source.uri": "--pairs", "source.text": "--passage", "source.keep": "--query", "source.id": "--id"}


@dataclass(frozen=True, slots=True)
class Source:
    """Where the pairs are.

    Attributes:
        uri: URL of files or of a Delta table.
        query: Column of the queries.
        passages: Columns of the passages, joined by a blank line, as the job of the table joins them.
        passage_id: Column of the table's ids of the passages; None: they are found by their text.
        id: Column of the pairs' ids; None: made from file path and position.
    """

    uri: str
    query: str = "query"
    passages: tuple[str, ...] = ("passage",)
    passage_id: str | None = None
    id: str | None = None

    def read(self) -> Iterator[Part]:
        """Yield parts of the pairs; `CONTENT` is the passage, or the query where passages have ids."""
        if self.passage_id is None:
            return read_rows(self.uri, Columns(self.passages, _OPTIONS, (self.query,), id=self.id))
        options = {**_OPTIONS, "source.text": "--query", "source.keep": "--passage-id"}
        ids = (self.passage_id,)
        return read_rows(self.uri, Columns((self.query,), options, ids, ids, self.id))


@dataclass(frozen=True)
class Pairs:
    """The pairs with a positive in the table, sorted by query.

    Attributes:
        ids: Id of each pair.
        query: Number of its query, int64 [pairs], ascending; queries are numbered as they appear.
        positive_ids: Id of its positive's row; of copies the smallest.
        positive: Number of its positive, int64 [pairs].
        hashes: For each positive the content hashes of its rows: offsets, int64 [positives + 1], and hashes.
        read: Pairs that were read.
        bad: Pairs that cannot be used, by reason.
        missing: Pairs whose positive is not in the table.
        example: Positive that is not in the table; empty if none.
        digest: Hash of the pairs.
        first: Place of the first pair of each query among the usable pairs, int64 [queries], ascending.
    """

    ids: pa.ChunkedArray
    query: npt.NDArray[np.int64]
    positive_ids: pa.Array
    positive: npt.NDArray[np.int64]
    hashes: tuple[npt.NDArray[np.int64], pa.Array]
    read: int
    bad: Counter[str]
    missing: int
    example: str
    digest: str
    first: npt.NDArray[np.int64]

    @property
    def queries(self) -> int:
        """Number of distinct queries."""
        return int(self.query[-1]) + 1 if len(self.query) else 0

    def of(self, first: int, stop: int) -> slice:
        """Return the pairs of the queries `first <= query < stop`."""
        return slice(*np.searchsorted(self.query, [first, stop]))

    def hashes_of(self, positive: int) -> list[str]:
        """Return the content hashes of a positive's rows."""
        offsets, hashes = self.hashes
        return list(hashes[offsets[positive] : offsets[positive + 1]].to_pylist())


def index_pairs(source: Source, scan: TableScan) -> Pairs:
    """Read the pairs, and find their positives in the table.

    Raises:
        ConfigError: a column is missing, or there is no pair.
        DataError: a file cannot be read.
        StorageError: the store refused or failed.
    """
    bad: Counter[str] = Counter()
    digest = blake2b(digest_size=16)
    names = (ID, _QUERY_HASH, _KEY)
    chunks: dict[str, list[pa.Array]] = {name: [] for name in names}
    for part in _usable(source, bad):
        for name in names:
            chunks[name].extend(part[name].cast(pa.large_string()).chunks)
            for text in part[name].to_pylist():
                digest.update(text.encode() + b"\0")
    ids, queries, keys = (pa.chunked_array(chunks[name], pa.large_string()) for name in names)
    read = len(ids) + bad.total()
    if not read:
        raise ConfigError(f"--pairs {source.uri!r} has no rows; give at least one pair")
    key = _encoded(keys.chunks)
    rows = _rows_of(scan, key.dictionary, by_id=source.passage_id is not None)
    number = np.full(len(key.dictionary) + 1, -1)
    number[rows.keys] = np.arange(len(rows.keys))
    positive = number[key.indices.to_numpy()]
    found = positive >= 0
    lost = np.flatnonzero(~found)
    example = str(key.dictionary[key.indices[int(lost[0])].as_py()]) if len(lost) else ""
    query = _encoded(queries.filter(pa.array(found)).chunks)
    numbers = query.indices.to_numpy().astype(np.int64)
    first = np.flatnonzero(found)[np.unique(numbers, return_index=True)[1]]
    order = np.argsort(numbers, kind="stable")
    kept_positive = positive[found][order]
    return Pairs(
        ids.filter(pa.array(found)).take(pa.array(order)),
        numbers[order],
        rows.ids.take(pa.array(kept_positive)),
        kept_positive,
        (rows.offsets, rows.hashes),
        read,
        bad,
        len(lost),
        example,
        digest.hexdigest(),
        first,
    )


def query_texts(source: Source, pairs: Pairs, count: int) -> Iterator[list[str]]:
    """Yield the texts of the queries, `count` at a time, by reading the pairs again.

    Raises:
        DataError: the pairs have changed.
    """
    waiting: list[str] = []
    start = given = 0
    for part in _usable(source, Counter()):
        places = pairs.first[np.searchsorted(pairs.first, start) : np.searchsorted(pairs.first, start + len(part))]
        waiting += part[QUERY_TEXT].take(pa.array(places - start)).to_pylist()
        start += len(part)
        while len(waiting) >= count:
            yield waiting[:count]
            waiting, given = waiting[count:], given + count
    if given + len(waiting) != pairs.queries:
        raise DataError(f"--pairs {source.uri!r} changed while it was read; run the same command again")
    if waiting:
        yield waiting


_QUERY_HASH, _KEY, QUERY_TEXT = "\0query", "\0key", "\0text"


def _usable(source: Source, bad: Counter[str]) -> Iterator[pa.Table]:
    """Yield the pairs with a query and a passage: their ids, texts of queries, hashes of queries, and keys of passages."""
    for part in source.read():
        bad.update(part.bad)
        rows = part.rows
        if source.passage_id is None:
            texts, key = rows[source.query], rows[HASH]
        else:
            texts, key = rows[CONTENT], rows[source.passage_id]
        text = texts.combine_chunks()
        good = np.ones(len(text), bool)
        for column in (text, key.combine_chunks()):
            good[blank_rows(column)] = False
        if not good.all():
            bad["blank query" if source.passage_id is None else "blank passage id"] += int((~good).sum())
        table = pa.table({ID: rows[ID], QUERY_TEXT: text, _QUERY_HASH: content_hashes(text), _KEY: key})
        yield table.filter(pa.array(good))


def _encoded(chunks: list[pa.Array]) -> pa.DictionaryArray:
    """Return texts as numbers of distinct texts, in the order in which they appear."""
    whole = pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_string())
    return whole.dictionary_encode()


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of the table that some keys name: index of the key, smallest id, and offsets into the hashes of the rows."""

    keys: npt.NDArray[np.int64]
    ids: pa.Array
    offsets: npt.NDArray[np.int64]
    hashes: pa.Array


def _rows_of(scan: TableScan, keys: pa.Array, *, by_id: bool) -> _Rows:
    """Find the rows of the table whose id or content hash is one of the keys, in one pass without vectors."""
    parts = []
    for part in scan.columns([ID, HASH]):
        number = pc.index_in(part[ID if by_id else HASH].cast(pa.large_string()), value_set=keys)
        rows = pa.table([number, part[ID], part[HASH]], ["key", "id", "hash"])
        parts.append(rows.filter(pc.is_valid(number)))
    schema = pa.schema([("key", pa.int32()), ("id", pa.string()), ("hash", pa.string())])
    found = pa.concat_tables(parts or [schema.empty_table()]).combine_chunks()
    found = (
        found.group_by(["key", "hash"])
        .aggregate([("id", "min")])
        .sort_by([("key", "ascending"), ("hash", "ascending")])
    )
    key = found["key"].to_numpy().astype(np.int64)
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    offsets = np.append(starts, len(key))
    smallest = [pc.min(found["id_min"].slice(a, b - a)).as_py() for a, b in pairwise(offsets.tolist())]
    return _Rows(key[starts], pa.array(smallest, pa.string()), offsets, found["hash"].combine_chunks())
