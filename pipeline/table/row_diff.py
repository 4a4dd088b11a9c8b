"""Which rows two sets of files of a table do not share, by all their columns, vectors too.

Used to find what another tool's commit has changed: its files are read once, column by column, and rows are compared by
64-bit hashes, 16 bytes a row; only rows whose hashes differ are then read by name.
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
from pipeline.ledger.duplicates import hash_strings
from pipeline.table import delta_table
from pipeline.table.kept_rows import KEYS

_ODD = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0x2545F4914F6CDD1D)
_BATCH_ROWS = 16_384

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class RowDifference:
    """Rows that only one side has.

    Attributes:
        removed: Keys (`others.KEYS`) of rows that only the first side has; `added`: that only the second has.
        removed_rows: How many, repeats counted; so for `added_rows`.
        partial: Documents that lost some of their chunks and kept others.
    """

    removed: pa.Table
    added: pa.Table
    removed_rows: int
    added_rows: int
    partial: int


def compare_rows(url: str, table: DeltaTable, went: list[DataFile], came: list[DataFile]) -> RowDifference:
    """Compare the rows of files that went with those of files that came.

    Args:
        url: Of the table.
        table: The table; its types count for both sides.
        went: Files that are not in the table any more, but in the store.
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
        # What stays of a document that lost a chunk.
        staying = _documents(_keys(url, schema, came, added, others=True))
        partial = pc.sum(pc.is_in(_documents(removed_keys).unique(), value_set=staying.unique()), min_count=0).as_py()
    return RowDifference(removed_keys, added_keys, removed_rows, added_rows, partial)


def _documents(keys: pa.Table) -> pa.ChunkedArray:
    texts = [pc.fill_null(keys[name], "") for name in (ID, SHARD, HASH)]
    return pc.binary_join_element_wise(*texts, "\0")


def _sorted_counts(url: str, schema: pa.Schema, files: Iterable[DataFile]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hash of each row that there is, in order, and how often it is there."""
    parts = [row_hashes(rows) for file in files for rows in _read(url, file, schema, schema.names)]
    values, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]), return_counts=True)
    return values, counts.astype(np.int64)


def _surplus(
    left: tuple[Hashes, npt.NDArray[np.int64]], right: tuple[Hashes, npt.NDArray[np.int64]]
) -> tuple[Hashes, int]:
    """The hashes that `left` has more often than `right`, and how many rows that is."""
    values, counts = left
    there = np.zeros(len(values), np.int64)
    if len(right[0]):
        places = np.minimum(np.searchsorted(right[0], values), len(right[0]) - 1)
        same = right[0][places] == values
        there[same] = right[1][places[same]]
    more = np.maximum(counts - there, 0)
    return values[more > 0], int(more.sum())


def _keys(url: str, schema: pa.Schema, files: Iterable[DataFile], wanted: Hashes, *, others: bool = False) -> pa.Table:
    """Keys of the rows with one of these hashes, each hash once; or of all `others`."""
    parts = [KEYS.empty_table()]
    seen: Hashes = np.zeros(0, np.uint64)
    if len(wanted) == 0 and not others:
        return parts[0]
    names = [name for name in KEYS.names if name in schema.names]
    for file in files:
        for rows in _read(url, file, schema, schema.names):
            hashes = row_hashes(rows)
            mask = np.isin(hashes, wanted, invert=others)
            if not others:
                _, firsts = np.unique(hashes, return_index=True)
                once = np.zeros(len(hashes), dtype=bool)
                once[firsts] = True
                mask &= once & ~np.isin(hashes, seen)
                seen = np.concatenate([seen, hashes[mask]])
            found = rows.select(names).filter(pa.array(mask))
            for number, field in enumerate(KEYS):
                if field.name not in names:
                    found = found.add_column(number, field, pa.nulls(found.num_rows, field.type))
            parts.append(found.select(KEYS.names).cast(KEYS))
    return pa.concat_tables(parts)


def _read(url: str, file: DataFile, schema: pa.Schema, names: Iterable[str]) -> Iterable[pa.Table]:
    """The rows of a file with the table's columns and types, some at a time; a column that the file lacks is null."""
    with storage.open_read(storage.join(url, file.path)) as opened:
        stored = pq.ParquetFile(opened)
        wanted = list(names)
        there = [name for name in stored.schema_arrow.names if name in wanted]
        for batch in stored.iter_batches(_BATCH_ROWS, columns=there):
            rows = pa.Table.from_batches([batch])
            columns = []
            for name in wanted:
                kind = schema.field(name).type
                if name in file.partition:
                    value = pa.array([file.partition[name]] * rows.num_rows, pa.string())
                    columns.append(pa.chunked_array([pc.cast(value, kind)]))
                elif name in there:
                    columns.append(rows[name].cast(kind))
                else:
                    columns.append(pa.chunked_array([pa.nulls(rows.num_rows, kind)]))
            yield pa.Table.from_arrays(columns, names=wanted)


def row_hashes(rows: pa.Table) -> Hashes:
    """uint64 [rows]: of all columns."""
    digest: Hashes = np.zeros(rows.num_rows, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for name in sorted(rows.column_names):
            digest = digest * _ODD + _column_hashes(rows[name])
            digest ^= digest >> np.uint64(29)
    return digest


def _column_hashes(column: pa.ChunkedArray) -> Hashes:
    """uint64 [rows]: of one column."""
    if pa.types.is_list(column.type) and pa.types.is_float32(column.type.value_type):
        hashes = _vector_hashes(column.combine_chunks())
    else:
        texts = _texts(column)
        hashes = hash_strings(pc.fill_null(texts, ""))
    hashes[pc.is_null(column).to_numpy()] = _NULL
    return hashes


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # nested, or bytes
        return pa.chunked_array([pa.array([None if v is None else repr(v) for v in column.to_pylist()], pa.string())])


def _vector_hashes(column: pa.Array) -> Hashes:
    """uint64 [rows]: of the bits of vectors of any lengths."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = pc.fill_null(column.flatten(), float("nan")).to_numpy(zero_copy_only=False).astype(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    longest = int(lengths.max(initial=0))
    hashes: Hashes = lengths.astype(np.uint64) + np.uint64(1)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(max(longest, 1), _ODD, dtype=np.uint64), dtype=np.uint64)
        if len(lengths) and (lengths == longest).all() and longest:
            hashes += ((bits + np.uint64(1)).reshape(len(lengths), longest) * powers).sum(axis=1, dtype=np.uint64)
        elif len(bits):
            starts = np.cumsum(lengths) - lengths
            within = np.arange(len(bits)) - np.repeat(starts, lengths)
            running = np.concatenate(
                [np.zeros(1, np.uint64), np.cumsum((bits + np.uint64(1)) * powers[within], dtype=np.uint64)]
            )
            hashes += running[starts + lengths] - running[starts]
        hashes ^= hashes >> np.uint64(33)
        hashes *= np.uint64(0xFF51AFD7ED558CCD)
    return hashes
