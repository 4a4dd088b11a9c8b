"""Comparison of the rows of two sets of files of a table, by all their columns, vectors included.

Finds the rows that another tool's commit changed. Rows are compared by 64-bit hashes, 16 bytes a row. The keys of rows with
other hashes are then read from the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from actors import storage
from actors.schema import HASH, ID, SHARD
from actors.unit.receipt import DataFile
from actors.unit.row_hashes import Hashes, digest_of, row_hashes, total
from pipeline.table import delta_table
from pipeline.table.kept_rows import KEYS

_BATCH_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class RowDifference:
    """Rows that only one side has.

    Attributes:
        removed: Keys (`kept_rows.KEYS`) of rows that only the first side has; `added`: that only the second has.
        removed_rows: Number of them, repeats counted; the same for `added_rows`.
        partial: Number of documents that lost some of their chunks and kept others.
    """

    removed: pa.Table
    added: pa.Table
    removed_rows: int
    added_rows: int
    partial: int


def compare_rows(url: str, table: DeltaTable, went: list[DataFile], came: list[DataFile]) -> RowDifference:
    """Compare the rows of removed files with those of added files.

    Args:
        url: URL of the table.
        table: The table; both sides are read with its types.
        went: Files that are no longer in the table, but in the store.
        came: Files that are in the table.
    """
    schema = delta_table.plain_schema(table)
    old, new = (_sorted_counts(url, schema, files) for files in (went, came))
    removed, removed_rows = _surplus(old, new)
    added, added_rows = _surplus(new, old)
    removed_keys = _keys(url, schema, went, removed)
    added_keys = _keys(url, schema, came, added)
    partial = 0
    if removed_keys.num_rows and "chunk" in schema.names:
        # Chunks that stay of documents that lost a chunk.
        staying = _documents(_keys(url, schema, came, added, others=True))
        partial = pc.sum(pc.is_in(_documents(removed_keys).unique(), value_set=staying.unique()), min_count=0).as_py()
    return RowDifference(removed_keys, added_keys, removed_rows, added_rows, partial)


def digest_of_file(url: str, table: DeltaTable, file: DataFile) -> int:
    """Read a file and return the digest of its rows, as the writer computes it (`actors.unit.row_hashes`)."""
    schema = delta_table.plain_schema(table)
    names = [name for name in schema.names if name not in file.partition]
    return total(digest_of(rows, file.partition) for rows in read_rows(url, file, schema, names))


def same_rows(url: str, table: DeltaTable, old: list[DataFile], new: list[DataFile]) -> bool | None:
    """Return whether two sets of files hold the same rows, by their digests. Only the new files are read.

    None if the digest of an old file is unknown.
    """
    digests = [file.digest for file in old if file.digest is not None]
    if len(digests) < len(old):
        return None
    return total(digests) == total(digest_of_file(url, table, file) for file in new)


def _documents(keys: pa.Table) -> pa.ChunkedArray:
    texts = [pc.fill_null(keys[name], "") for name in (ID, SHARD, HASH)]
    return pc.binary_join_element_wise(*texts, "\0")


def _sorted_counts(url: str, schema: pa.Schema, files: Iterable[DataFile]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Return the hash of each distinct row, sorted, and its number of occurrences."""
    parts = [row_hashes(rows) for file in files for rows in read_rows(url, file, schema, schema.names)]
    values, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]), return_counts=True)
    return values, counts.astype(np.int64)


def _surplus(
    left: tuple[Hashes, npt.NDArray[np.int64]], right: tuple[Hashes, npt.NDArray[np.int64]]
) -> tuple[Hashes, int]:
    """Return the hashes that `left` has more often than `right`, and the number of those rows."""
    values, counts = left
    right_counts = np.zeros(len(values), np.int64)
    if len(right[0]):
        places = np.minimum(np.searchsorted(right[0], values), len(right[0]) - 1)
        same = right[0][places] == values
        right_counts[same] = right[1][places[same]]
    more = np.maximum(counts - right_counts, 0)
    return values[more > 0], int(more.sum())


def _keys(url: str, schema: pa.Schema, files: Iterable[DataFile], wanted: Hashes, *, others: bool = False) -> pa.Table:
    """Return the keys of the rows with one of these hashes, each hash once; or those of all `others`."""
    parts = [KEYS.empty_table()]
    seen: Hashes = np.zeros(0, np.uint64)
    if len(wanted) == 0 and not others:
        return parts[0]
    names = [name for name in KEYS.names if name in schema.names]
    for file in files:
        for rows in read_rows(url, file, schema, schema.names):
            hashes = row_hashes(rows)
            mask = np.isin(hashes, wanted, invert=others)
            if not others:
                _, firsts = np.unique(hashes, return_index=True)
                once = np.zeros(len(hashes), dtype=bool)
                once[firsts] = True
                mask &= once & ~np.isin(hashes, seen)
                seen = np.concatenate([seen, hashes[mask]])
            keys = rows.select(names).filter(pa.array(mask))
            for number, field in enumerate(KEYS):
                if field.name not in names:
                    keys = keys.add_column(number, field, pa.nulls(keys.num_rows, field.type))
            parts.append(keys.select(KEYS.names).cast(KEYS))
    return pa.concat_tables(parts)


def read_rows(url: str, file: DataFile, schema: pa.Schema, names: Iterable[str]) -> Iterable[pa.Table]:
    """Yield the rows of a file in batches, with the table's columns and types; a column that the file lacks is null."""
    with storage.open_read(storage.join(url, file.path)) as opened:
        stored = pq.ParquetFile(opened)
        wanted = list(names)
        present = [name for name in stored.schema_arrow.names if name in wanted]
        for batch in stored.iter_batches(_BATCH_ROWS, columns=present):
            rows = pa.Table.from_batches([batch])
            columns = []
            for name in wanted:
                kind = schema.field(name).type
                if name in file.partition:
                    value = pa.array([file.partition[name]] * rows.num_rows, pa.string())
                    columns.append(pa.chunked_array([pc.cast(value, kind)]))
                elif name in present:
                    columns.append(rows[name].cast(kind))
                else:
                    columns.append(pa.chunked_array([pa.nulls(rows.num_rows, kind)]))
            yield pa.Table.from_arrays(columns, names=wanted)
