"""Finds the shards that the rows of each table file come from.

Used by a refresh, which replaces the rows of changed shards and must keep the rows of other shards in the same file.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from actors import storage
from actors.schema import CHUNK, SHARD
from actors.unit.table_files import read_stored
from pipeline.table import delta_table
from pipeline.table.kept_rows import KEYS, Kept

_THREADS = 16


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of the table, with the counts that a refresh needs.

    Attributes:
        path: Path relative to the table's folder.
        rows: Number of rows.
        shards: Path of each source object that rows come from, to the number of its rows.
        others: Number of further rows that another tool added and that are kept.
    """

    path: str
    rows: int
    shards: dict[str, int]
    others: int = 0


def scan_files(table: str, version: DeltaTable, kept: Kept | None = None) -> list[TableFile]:
    """Return the shards of each file of a version, from the log if it has a single one, else from the shard column.

    Args:
        table: URL of the table's folder.
        version: The table, opened at that version.
        kept: Rows that another tool added, which belong to no shard. If given, every file is read.
    """

    def scan(path: str, rows: int | None, least: str | None, most: str | None, nulls: int | None) -> TableFile:
        # Older tables have escaped texts in the log, of which deltalake (1.6) reads characters from U+20000 on as others.
        is_read_right = least is not None and max(least, default="") <= "\uffff"
        if kept is None and rows is not None and not nulls and least is not None and least == most and is_read_right:
            return TableFile(path, rows, {least: rows})
        return scan_file(table, path, kept)

    actions = delta_table.actions_of(version)
    known = [
        actions[name].to_pylist() if name in actions.column_names else [None] * actions.num_rows
        for name in (f"min.{SHARD}", f"max.{SHARD}", f"null_count.{SHARD}")
    ]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(scan, actions["path"].to_pylist(), actions["num_records"].to_pylist(), *known))


def scan_paths(table: str, paths: Iterable[str]) -> list[TableFile]:
    """Return the shards of files that the log does not list any more."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda path: scan_file(table, path, None), paths))


def scan_file(table: str, path: str, kept: Kept | None) -> TableFile:
    """Return the shards of one file. Rows without a shard, which only other tools write, count under an empty path."""
    if kept is None:
        rows = read_stored(table, path, [SHARD])
        ours = rows
    else:
        names = [name for name in KEYS.names if name != CHUNK]
        with storage.open_read(storage.join(table, path)) as file:
            stored_names = pq.ParquetFile(file).schema_arrow.names
        rows = read_stored(table, path, [*names, CHUNK] if CHUNK in stored_names else names)
        ours = rows.filter(pc.invert(kept.is_added(rows)))
    column = pc.fill_null(ours[SHARD], "")
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}
    return TableFile(path, rows.num_rows, counts, rows.num_rows - ours.num_rows)
