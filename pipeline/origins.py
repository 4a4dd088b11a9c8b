"""Which shards the rows of each file of a table come from.

Asked by a refresh, which replaces the rows of shards that changed and must leave those of others in the same file.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.compute as pc
from deltalake import DeltaTable

from actors.schema import SHARD
from actors.stored import read_stored
from pipeline import delta

_THREADS = 16


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of the table, as far as a refresh needs to know it.

    Attributes:
        shards: Paths of the source objects that its rows come from, to how many rows each.
    """

    path: str
    rows: int
    shards: dict[str, int]


def scan_files(table: str, version: DeltaTable) -> list[TableFile]:
    """Which shards each file of a version has rows of: from the log where it is one, else from that column alone."""

    def scan(path: str, rows: int, least: str | None, most: str | None) -> TableFile:
        if least is not None and least == most:
            return TableFile(path, rows, {least: rows})
        column = read_stored(table, path, [SHARD])[SHARD]
        counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}
        return TableFile(path, len(column), counts)

    actions = delta.actions_of(version)
    ends = [
        actions[name].to_pylist() if name in actions.column_names else [None] * actions.num_rows
        for name in (f"min.{SHARD}", f"max.{SHARD}")
    ]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(scan, actions["path"].to_pylist(), actions["num_records"].to_pylist(), *ends))
