"""Differences between two versions of a table: rows added, changed, removed.

Called by `jobs diff` and by `changes`. Reads only files that one of the two versions lacks, and of them every column except
vectors, which follow from the text and the embedding spec. Rows are compared in passes of `LIMIT_ROWS` rows in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from actors import storage
from actors.errors import InvariantBroken
from actors.schema import CHUNK, GRID_H, GRID_W, ID, SHARD, TOKENS
from actors.unit.receipt import DataFile
from actors.unit.row_hashes import hash_strings, row_hashes
from actors.vectors import has_many
from pipeline.table import commit, delta_table
from pipeline.table.row_diff import read_rows

LIMIT_ROWS = 10_000_000
_THREADS = 16
_CHANGES = ("added", "changed", "removed")
# Columns that do not count: they follow from others, or say where a row was read.
_FOLLOWING = (TOKENS, SHARD)


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


class Side:
    """Files of one version in the order of their paths, and the rows in them, numbered from the first file to the last.

    Args:
        url: URL of the table.
        table: The version.
        without: Paths of files that are left out.
    """

    def __init__(self, url: str, table: DeltaTable, without: set[str]) -> None:
        self.url = url
        self.schema = delta_table.plain_schema(table)
        files = [file for path, file in sorted(commit.sized_files(table).items()) if path not in without]
        delta_table.need_files(url, table, [file.path for file in files])
        self.files = [file if file.rows else replace(file, rows=self._count(file)) for file in files]
        # The number of the first row of each file, and that of all rows.
        self.starts = [0, *accumulate(file.rows for file in self.files)]

    def _count(self, file: DataFile) -> int:
        """Return the rows of a file that the log does not count."""
        with storage.open_read(storage.join(self.url, file.path)) as stored:
            return int(pq.ParquetFile(stored).metadata.num_rows)

    def read(self, file: DataFile, names: list[str]) -> Iterator[pa.Table]:
        """Yield some columns of a file in batches, partition columns included.

        Raises:
            InvariantBroken: the file has another number of rows than the log says.
        """
        rows = 0
        for batch in read_rows(self.url, file, self.schema, names):
            rows += batch.num_rows
            yield batch
        if rows != file.rows:
            raise InvariantBroken(f"{file.path!r} of {self.url!r} has {rows} rows, and the log says {file.rows}.")


class Comparison:
    """Two versions of one table.

    Args:
        url: URL of the table.
        old: The version to compare with, mostly the earlier one.
        new: The version to compare.
        every_file: Whether to compare also the files that both versions have.

    Raises:
        TableConflict: a vacuum took some of the files.
    """

    def __init__(self, url: str, old: DeltaTable, new: DeltaTable, *, every_file: bool = False) -> None:
        before, after = delta_table.embedding_spec_of(old), delta_table.embedding_spec_of(new)
        self.outputs = after.outputs if after is not None else ()
        specs = [spec for spec in (before, after) if spec is not None]
        outputs = [output for spec in specs for output in spec.outputs]
        grids = (GRID_H, GRID_W) if has_many(outputs) else ()  # otherwise a kept column may have such a name
        self._following = {*_FOLLOWING, *grids, *(field.name for output in outputs for field in output.fields)}
        self.embedding_spec_changed = before is None or after is None or before.fingerprint != after.fingerprint
        both = set() if every_file else delta_table.file_sizes(old).keys() & delta_table.file_sizes(new).keys()
        self.old, self.new = Side(url, old, both), Side(url, new, both)
        self.keys = [ID, CHUNK] if CHUNK in {*self.old.schema.names, *self.new.schema.names} else [ID]

    def rows(self, limit_rows: int = LIMIT_ROWS) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield, for `limit_rows` rows at a time, those that differ, and key and number of every row of the new side.

        A row that differs has its key, `change` (added, changed or removed) and `number`, that of the first row with this
        key on the old side. Rows with the same key are compared together.
        """
        passes = max(1, math.ceil((self.old.starts[-1] + self.new.starts[-1]) / limit_rows))
        for number in range(passes):
            old, new = (self._load(side, number, passes) for side in (self.old, self.new))
            removed, added = (
                rows.group_by(self.keys).aggregate([("hash", "sum"), ("number", "min")]) for rows in (old, new)
            )
            both = removed.join(added, keys=self.keys, join_type="full outer", left_suffix="_old", right_suffix="_new")
            before, after = both["hash_sum_old"], both["hash_sum_new"]
            change = pc.if_else(pc.is_null(before), "added", pc.if_else(pc.is_null(after), "removed", "changed"))
            differs = pa.table({**{name: both[name] for name in self.keys}, "number": both["number_min_old"]})
            same = pc.fill_null(pc.equal(before, after), False)
            yield differs.append_column("change", change).filter(pc.invert(same)), new

    def _load(self, side: Side, number: int, passes: int) -> pa.Table:
        """Return key, hash and number of the rows of one pass."""
        names = [name for name in side.schema.names if name not in self._following]
        other_spec = np.uint64(self.embedding_spec_changed and side is self.new)

        def load(place: int) -> pa.Table:
            parts, row = [empty], side.starts[place]
            for batch in side.read(side.files[place], names):
                hashes = row_hashes(batch) + other_spec
                numbers = pa.array(np.arange(row, row + batch.num_rows))
                row += batch.num_rows
                rows = pa.table({**self.key_columns(batch), "hash": pa.array(hashes), "number": numbers})
                if passes > 1:
                    rows = rows.filter(pa.array(hash_strings(rows[ID]) % np.uint64(passes) == number))
                parts.append(rows)
            return pa.concat_tables(parts)

        empty = pa.schema([*self.key_schema, ("hash", pa.uint64()), ("number", pa.int64())]).empty_table()
        with ThreadPoolExecutor(_THREADS) as pool:
            return pa.concat_tables([empty, *pool.map(load, range(len(side.files)))])

    @property
    def key_schema(self) -> pa.Schema:
        """Names and types of the key columns."""
        return pa.schema([(name, pa.string() if name == ID else pa.int32()) for name in self.keys])

    def key_columns(self, rows: pa.Table) -> dict[str, pa.ChunkedArray]:
        """Return the key columns of rows; in a table of whole documents each row is chunk 0."""
        zeros = pa.chunked_array([np.zeros(rows.num_rows, dtype=np.int32)])
        return {
            field.name: (rows[field.name] if field.name in rows.column_names else zeros).cast(field.type)
            for field in self.key_schema
        }


def diff(table: str, old: int, new: int, *, limit_rows: int = LIMIT_ROWS) -> Difference:
    """Return how many rows were added, changed and removed from one version to another.

    Args:
        table: URI of the table.
        old: Number of the version to compare with.
        new: Number of the version to compare.
        limit_rows: Number of rows in memory at once.

    Raises:
        ConfigError: there is no table.
        TableConflict: there is no such version, a vacuum took its files, or something else made the table.
    """
    url = storage.absolute(table)
    comparison = Comparison(url, delta_table.need_table(url, old), delta_table.need_table(url, new))
    counts = dict.fromkeys(_CHANGES, 0)
    for rows, _ in comparison.rows(limit_rows):
        for entry in pc.value_counts(rows["change"]).to_pylist():
            counts[entry["values"]] += entry["counts"]
    return Difference(url, old, new, **counts, embedding_spec_changed=comparison.embedding_spec_changed)
