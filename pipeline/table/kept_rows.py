"""Removals and additions of rows by other tools that `--foreign-commits keep` keeps.

Stored in a run's ledger as `kept`, and used by its stages. A removed row is identified by its id and the hash of its text
(and its shard, if ids may repeat): it stays removed if the source moves it, and is embedded again if its text changes. An
added row is identified by id, chunk, shard and hash. The source's row with the id of an added row is quarantined.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.schema import CHUNK, HASH, ID, POSITION, SHARD, QuarantinedRow

# Columns that identify a row; null if another tool wrote none.
KEYS = pa.schema([(ID, pa.string()), (CHUNK, pa.int32()), (SHARD, pa.string()), (HASH, pa.string())])
KEPT = pa.schema([("kind", pa.string()), *KEYS])
REMOVED, ADDED = "removed", "added"
REASON = "changed_by_other_tool"
_ERROR = (
    "another tool removed this row from the table, or put another in its place, and a refresh was set to keep that; "
    "vectide refresh --foreign-commits restore brings it back"
)
_TAKEN = "another tool added a row of this id to the table, and a refresh was set to keep that"


def row_keys(rows: pa.Table) -> pa.ChunkedArray:
    """Return one text a row, equal for equal keys. A missing column counts as null."""
    return _joined(rows, KEYS.names)


def document_keys(rows: pa.Table, *, by_shard: bool) -> pa.ChunkedArray:
    """Return one text a row, equal for all chunks of a document."""
    return _joined(rows, [ID, HASH, SHARD] if by_shard else [ID, HASH])


def _joined(rows: pa.Table, names: list[str]) -> pa.ChunkedArray:
    columns = []
    for name in names:
        if name in rows.column_names:
            column = rows[name].cast(pa.string())
            columns.append(pc.if_else(pc.is_null(column), "-", pc.binary_join_element_wise("+", column, "")))
        else:
            columns.append(pa.chunked_array([pa.array(["-"] * rows.num_rows, pa.string())]))
    return pc.binary_join_element_wise(*columns, "\0")


def kept_table(removed: pa.Table, added: pa.Table) -> pa.Table:
    """Return removed and added rows (`KEYS`) as one table (`KEPT`), each once."""
    parts = []
    for kind, rows in ((REMOVED, removed), (ADDED, added)):
        kinds = pa.array([kind] * rows.num_rows, pa.string())
        parts.append(rows.select(KEYS.names).cast(KEYS).add_column(0, KEPT.field("kind"), kinds))
    whole = pa.concat_tables(parts)
    return whole.group_by(KEPT.names, use_threads=False).aggregate([]).select(KEPT.names).cast(KEPT)


def of_kind(kept: pa.Table, kind: str) -> pa.Table:
    """Return the removed or the added rows of a table (`KEPT`)."""
    return kept.filter(pc.equal(kept["kind"], kind))


@dataclass(frozen=True, slots=True)
class Kept:
    """The kept rows of one run, for lookups.

    Attributes:
        removed: Keys of documents.
        added: Keys of rows; `ids` are their ids.
    """

    removed: pa.Array
    added: pa.Array
    ids: pa.Array
    by_shard: bool

    def is_added(self, rows: pa.Table) -> pa.ChunkedArray:
        """Return whether another tool added each row (bool, none null)."""
        return pc.is_in(row_keys(rows), value_set=self.added)

    def split(self, rows: pa.Table) -> tuple[pa.Table, list[QuarantinedRow]]:
        """Return the source rows that belong into the table, and the others as quarantined rows."""
        removed = pc.is_in(document_keys(rows, by_shard=self.by_shard), value_set=self.removed)
        taken = pc.is_in(rows[ID].cast(pa.string()), value_set=self.ids)
        out = pc.or_(removed, taken)
        if not pc.any(out, min_count=0).as_py():
            return rows, []
        bad = []
        for row, is_removed in zip(
            rows.filter(out).select([SHARD, POSITION, ID]).to_pylist(), removed.filter(out).to_pylist(), strict=True
        ):
            error = _ERROR if is_removed else _TAKEN
            bad.append(QuarantinedRow(row[SHARD], row[POSITION], row[ID], REASON, error))
        return rows.filter(pc.invert(out)), bad


def look_up(kept: pa.Table, *, unique_ids: bool) -> Kept:
    """Return the kept rows of a table (`KEPT`) for lookups.

    Args:
        kept: The table.
        unique_ids: Whether each id has one source row.
    """
    removed, added = of_kind(kept, REMOVED), of_kind(kept, ADDED)
    ids = added[ID].drop_null() if unique_ids else pa.chunked_array([], pa.string())
    return Kept(
        document_keys(removed, by_shard=not unique_ids).combine_chunks(),
        row_keys(added).combine_chunks(),
        ids.combine_chunks(),
        not unique_ids,
    )


@lru_cache(maxsize=2)
def kept_of(plan: str, *, unique_ids: bool) -> Kept:
    """Return the kept rows of a plan; loaded once a process.

    Args:
        plan: URL of the plan's folder.
        unique_ids: See `look_up`.
    """
    try:
        table = pq.read_table(pa.BufferReader(storage.read(storage.join(plan, "kept.parquet"))))
    except FileNotFoundError:
        table = KEPT.empty_table()
    return look_up(table, unique_ids=unique_ids)


def bad_rows(removed: pa.Table) -> list[QuarantinedRow]:
    """Return removed documents (`KEYS`) as quarantined rows, each once."""
    documents = removed.group_by([ID, SHARD, HASH], use_threads=False).aggregate([])
    return [QuarantinedRow(row[SHARD] or "", -1, row[ID], REASON, _ERROR) for row in documents.to_pylist()]
