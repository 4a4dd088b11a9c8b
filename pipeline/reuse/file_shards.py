"""Which shards the rows of each file of a table come from.

Asked by a refresh, which replaces the rows of shards that changed and must leave those of others in the same file.
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
    """One file of the table, as far as a refresh needs to know it.

    Attributes:
        shards: Paths of the source objects that its rows come from, to how many rows each.
        others: How many more rows it has that another tool added and that are kept.
    """

    path: str
    rows: int
    shards: dict[str, int]
    others: int = 0


def scan_files(table: str, version: DeltaTable, kept: Kept | None = None) -> list[TableFile]:
    """Which shards each file of a version has rows of: from the log where it is one, else from that column alone.

    Args:
        table: URL of the table's folder.
        version: The table, open.
        kept: Rows that another tool added, which are of no shard; then every file is asked.
    """

    def scan(path: str, rows: int | None, least: str | None, most: str | None, nulls: int | None) -> TableFile:
        if kept is None and rows is not None and not nulls and least is not None and least == most:
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
    """As `scan_files`, for files of which the log says nothing any more."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda path: scan_file(table, path, None), paths))


def scan_file(table: str, path: str, kept: Kept | None) -> TableFile:
    """Which shards one file has rows of. A row without a shard, which only another tool writes, counts under an empty one."""
    if kept is None:
        rows = read_stored(table, path, [SHARD])
        ours = rows
    else:
        names = [name for name in KEYS.names if name != CHUNK]
        stored = pq.ParquetFile(storage.open_read(storage.join(table, path)))
        rows = read_stored(table, path, [*names, CHUNK] if CHUNK in stored.schema_arrow.names else names)
        ours = rows.filter(pc.invert(kept.is_added(rows)))
    column = pc.fill_null(ours[SHARD], "")
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}
    return TableFile(path, rows.num_rows, counts, rows.num_rows - ours.num_rows)
