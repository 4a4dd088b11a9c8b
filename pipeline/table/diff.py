"""Differences between two versions of a table: rows added, changed, removed.

Called by `jobs diff` and by `changes`. Reads only files that one of the two versions lacks, and of them every column except
vectors, which follow from the text and the embedding spec. Rows are compared in passes of `LIMIT_ROWS` rows in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from actors import storage
from actors.schema import CHUNK, EMBEDDING, ID, SHARD, TOKENS
from actors.unit.row_hashes import hash_strings
from pipeline.table import delta_table

LIMIT_ROWS = 10_000_000
_THREADS = 16
_ODD = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0x2545F4914F6CDD1D)
_CHANGES = ("added", "changed", "removed")


@dataclass(frozen=True, slots=True)
class Difference:
    """Numbers of rows that differ between two versions. In a table of chunks a row is a chunk.

    Attributes:
        embedding_spec_changed: Whether the embedding specs differ; then every row that both versions have is changed.
    """

    table: str
    old: int
    new: int
    added: int
    changed: int
    removed: int
    embedding_spec_changed: bool


class Comparison:
    """Two versions of one table.

    Args:
        url: URL of the table.
        old: The version to compare with, mostly the earlier one.
        new: The version to compare.
    """

    def __init__(self, url: str, old: DeltaTable, new: DeltaTable) -> None:
        self.url = url
        before, after = delta_table.embedding_spec_of(old), delta_table.embedding_spec_of(new)
        self.outputs = after.outputs if after is not None else ()
        self.embedding_spec_changed = before is None or after is None or before.fingerprint != after.fingerprint
        old_files, new_files = delta_table.file_sizes(old), delta_table.file_sizes(new)
        self.went = [path for path in old_files if path not in new_files]
        self.came = [path for path in new_files if path not in old_files]
        self._partitions = {**delta_table.partition_values(old), **delta_table.partition_values(new)}
        self.schema = delta_table.plain_schema(new)
        self._rows = sum(
            rows[path]
            for rows, paths in ((delta_table.file_rows(old), self.went), (delta_table.file_rows(new), self.came))
            for path in paths
        )
        self.keys = [ID, CHUNK] if CHUNK in self.schema.names or CHUNK in delta_table.schema_of(old).names else [ID]

    def rows(self, limit_rows: int = LIMIT_ROWS) -> Iterator[pa.Table]:
        """Yield key columns and `change` (added, changed or removed) of each row that differs."""
        passes = max(1, math.ceil(self._rows / limit_rows))
        for number in range(passes):
            removed, added = (self._side(paths, number, passes) for paths in (self.went, self.came))
            both = removed.join(added, keys=self.keys, join_type="full outer", left_suffix="_old", right_suffix="_new")
            old, new = both["digest_old"], both["digest_new"]
            same = pc.fill_null(pc.equal(old, new), False)
            change = pc.if_else(pc.is_null(old), "added", pc.if_else(pc.is_null(new), "removed", "changed"))
            yield both.select(self.keys).append_column("change", change).filter(pc.invert(same))

    def _side(self, paths: list[str], number: int, passes: int) -> pa.Table:
        """Return keys and digests of the rows of one pass. A key that occurs more than once has the sum of its digests."""

        def load(path: str) -> pa.Table:
            rows = self.read(path)
            ids = hash_strings(rows[ID])
            digest = self._digests(rows, path)
            columns = {name: _key(rows, name) for name in self.keys}
            table = pa.table({**columns, "digest": pa.array(digest)})
            return table if passes == 1 else table.filter(pa.array(ids % np.uint64(passes) == number))

        empty = pa.schema(
            [*((name, pa.string() if name == ID else pa.int32()) for name in self.keys), ("digest", pa.uint64())]
        ).empty_table()
        with ThreadPoolExecutor(_THREADS) as pool:
            rows = pa.concat_tables([empty, *pool.map(load, paths)])
        summed = rows.group_by(self.keys).aggregate([("digest", "sum")])
        return summed.rename_columns([*self.keys, "digest"])

    def read(self, path: str, *, vectors: bool = False) -> pa.Table:
        """Return the rows of one file with all columns, partition columns included, and vectors only if asked."""
        with storage.open_read(storage.join(self.url, path)) as stored:
            file = pq.ParquetFile(stored)
            names = [name for name in file.schema_arrow.names if vectors or name != EMBEDDING]
            rows = file.read(columns=names)
        for name, value in self._partitions[path].items():
            rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
        return rows

    def _digests(self, rows: pa.Table, path: str) -> npt.NDArray[np.uint64]:
        """Return a digest of each row, uint64 [rows], of the columns that do not follow from other columns."""
        digest = np.zeros(rows.num_rows, dtype=np.uint64)
        if self.embedding_spec_changed:
            digest += np.uint64(path in set(self.came))
        with np.errstate(over="ignore"):
            for name in sorted(set(rows.column_names) - {ID, EMBEDDING, TOKENS, SHARD}):
                texts = rows[name].cast(pa.string())
                hashes = hash_strings(pc.fill_null(texts, ""))
                hashes[pc.is_null(texts).to_numpy()] = _NULL
                digest = digest * _ODD + hashes
                digest ^= digest >> np.uint64(29)
        return digest


def _key(rows: pa.Table, name: str) -> pa.ChunkedArray | pa.Array:
    """Return a key column; in a table of whole documents each row is chunk 0."""
    if name not in rows.column_names:
        return pa.array(np.zeros(rows.num_rows, dtype=np.int32))
    return rows[name].cast(pa.string() if name == ID else pa.int32())


def diff(table: str, old: int, new: int, *, limit_rows: int = LIMIT_ROWS) -> Difference:
    """Return how many rows were added, changed and removed from one version to another.

    Args:
        table: URI of the table.
        old: Number of the version to compare with.
        new: Number of the version to compare.
        limit_rows: Number of rows in memory at once.

    Raises:
        ConfigError: there is no table.
        TableConflict: there is no such version, or something else made the table.
        StorageError: a file of one of them is gone.
    """
    url = storage.absolute(table)
    comparison = compare(url, old, new)
    counts = dict.fromkeys(_CHANGES, 0)
    for rows in comparison.rows(limit_rows):
        for entry in pc.value_counts(rows["change"]).to_pylist():
            counts[entry["values"]] += entry["counts"]
    return Difference(url, old, new, **counts, embedding_spec_changed=comparison.embedding_spec_changed)


def compare(url: str, old: int, new: int | None) -> Comparison:
    """Return a comparison of two versions of the table at `url`; None is the current one.

    Raises:
        TableConflict: there is no such version, or a vacuum took some of its files.
    """
    before, after = delta_table.need_table(url, old), delta_table.need_table(url, new)
    comparison = Comparison(url, before, after)
    for table, paths in ((before, comparison.went), (after, comparison.came)):
        delta_table.need_files(url, table, paths)
    return comparison
