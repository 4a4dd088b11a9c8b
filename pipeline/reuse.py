"""Where in the table the vector of a text is: made by the driver of a refresh, asked by its readers.

The index holds only texts that the refresh will meet, found by reading the hashes of the changed shards first: 16 bytes
of memory for each of their rows, and one pass over the `_hash` column of the table. It is frozen in the ledger, so that
every worker and every later attempt sees the same one. Vectors come back bit for bit as they were stored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.schema import CHUNK, EMBEDDING, END, HASH, ID, START, TOKENS
from actors.stored import read_stored

SCHEMA = pa.schema([("hash", pa.string()), ("file", pa.string()), ("row", pa.int64()), ("count", pa.int32())])
# What a vector brings along from the table; everything else of a row comes from the source as it is now.
STORED = (EMBEDDING, TOKENS, CHUNK, START, END)
CACHE_BYTES = 1 << 30
_THREADS = 16


def build_index(table: str, paths: Iterable[str], wanted: npt.NDArray[np.bytes_] | None) -> pa.Table:
    """The first place of each wanted text (`SCHEMA`), sorted by hash.

    Args:
        table: URL of the table's folder.
        paths: Files with vectors of the right making, the best ones first.
        wanted: Sorted content hashes, as bytes; None for all.
    """

    def find(path: str) -> pa.Table:
        rows = read_stored(table, path, [ID, HASH])
        hashes = _bytes(rows[HASH])
        # Chunks of one document stand together; a document begins where the id or the hash changes.
        ids = rows[ID].combine_chunks()
        first = np.ones(len(hashes), dtype=bool)
        if len(hashes) > 1:
            same_id = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(zero_copy_only=False)
            first[1:] = ~same_id | (hashes[1:] != hashes[:-1])
        starts = np.flatnonzero(first)
        counts = np.diff(np.append(starts, len(hashes)))
        mask = np.ones(len(starts), dtype=bool) if wanted is None else contains(wanted, hashes[starts])
        found = starts[mask]
        columns = [rows[HASH].take(pa.array(found)), [path] * len(found), found, counts[mask].astype(np.int32)]
        return pa.table(columns, schema=SCHEMA)

    with ThreadPoolExecutor(_THREADS) as pool:
        index = pa.concat_tables([SCHEMA.empty_table(), *pool.map(find, paths)]).sort_by("hash")
    if index.num_rows == 0:
        return index
    hashes = _bytes(index["hash"])
    return index.filter(pa.array(np.append([True], hashes[1:] != hashes[:-1])))


def contains(ordered: npt.NDArray[np.bytes_], values: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
    """Which of `values` are in `ordered`."""
    if len(ordered) == 0:
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values, dtype=bool)


def _bytes(column: pa.ChunkedArray) -> npt.NDArray[np.bytes_]:
    """Hashes as fixed-width bytes, which sort and compare without Python."""
    return np.asarray(column.to_numpy(), dtype="S32")


class Reuse:
    """The index of one run, in one process."""

    def __init__(self, table: str, index: pa.Table) -> None:
        self._table = table
        self._hashes = _bytes(index["hash"])
        files = index["file"].combine_chunks()
        files = files if pa.types.is_dictionary(files.type) else files.dictionary_encode()
        self._files = files.dictionary.to_pylist()
        self._codes = files.indices.to_numpy()
        self._rows = index["row"].to_numpy()
        self._counts = index["count"].to_numpy()
        self._cache: OrderedDict[str, pa.Table] = OrderedDict()
        self._cached_bytes = 0

    def split(self, rows: pa.Table, names: Iterable[str]) -> tuple[pa.Table, pa.Table | None]:
        """The rows that need the encoder, and the others with what the table has of them.

        Args:
            rows: A unit as read, with `_hash`.
            names: Columns of the table; those in `STORED` are taken from it.
        """
        hashes = _bytes(rows[HASH])
        known = contains(self._hashes, hashes)
        if not known.any():
            return rows, None
        places = np.searchsorted(self._hashes, hashes[known])
        stored = [name for name in STORED if name in set(names)]
        old = self._fetch(places, stored)
        repeats = np.repeat(np.flatnonzero(known), self._counts[places])
        ready = rows.take(pa.array(repeats))
        for name in stored:
            ready = ready.append_column(name, old[name])
        return rows.filter(pa.array(~known)), ready

    def _fetch(self, places: npt.NDArray[np.int64], stored: list[str]) -> pa.Table:
        """The stored rows of index entries, in their order."""
        order: dict[str, list[int]] = {}
        for number, place in enumerate(places):
            order.setdefault(self._files[self._codes[place]], []).append(number)
        parts, ends = [], np.cumsum(self._counts[places])
        target = np.empty(int(ends[-1]), dtype=np.int64)
        filled = 0
        for path, numbers in order.items():
            here = places[numbers]
            counts = self._counts[here]
            within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
            parts.append(self._file(path, stored).take(pa.array(np.repeat(self._rows[here], counts) + within)))
            begins = np.repeat(ends[numbers] - counts, counts) + within
            target[begins] = np.arange(filled, filled + len(within))
            filled += len(within)
        return pa.concat_tables(parts).combine_chunks().take(pa.array(target))

    def _file(self, path: str, stored: list[str]) -> pa.Table:
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        table = read_stored(self._table, path, stored)
        self._cache[path] = table
        self._cached_bytes += table.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, gone = self._cache.popitem(last=False)
            self._cached_bytes -= gone.nbytes
        return table


@lru_cache(maxsize=1)
def reuse_of(table: str, plan: str) -> Reuse:
    """The index among a run's frozen tables; loaded once a process."""
    data = storage.read(storage.join(plan, "reuse.parquet"))
    return Reuse(table, pq.read_table(pa.BufferReader(data), read_dictionary=["file"]))
