"""Rows of other tools that a refresh was told to keep: those that they removed, and those that they added.

Frozen in a run's ledger as `kept`, and used by its stages. A removed row is known by its id and the hash of its text (and
its shard, where ids may repeat), so it stays away wherever the source moves it, and comes back when its text changes. An
added row is known by id, chunk, shard and hash. The source's own row of an id that was added is set aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.schema import CHUNK, HASH, ID, POSITION, SHARD, QuarantinedRow

# Columns that say which row it is; null where another tool wrote none.
KEYS = pa.schema([(ID, pa.string()), (CHUNK, pa.int32()), (SHARD, pa.string()), (HASH, pa.string())])
KEPT = pa.schema([("kind", pa.string()), *KEYS])
REMOVED, ADDED = "removed", "added"
REASON = "changed_by_other_tool"
_ERROR = (
    "another tool removed this row from the table, or put another in its place, and a refresh was told to keep that; "
    "vectide refresh --foreign-commits restore brings it back"
)
_TAKEN = "another tool added a row of this id to the table, and a refresh was told to keep that"


def row_keys(rows: pa.Table) -> pa.ChunkedArray:
    """One text a row (string), equal where two rows are the same one. A column that is missing counts as null."""
    return _joined(rows, KEYS.names)


def document_keys(rows: pa.Table, *, by_shard: bool) -> pa.ChunkedArray:
    """As `row_keys`, for a document: what all its chunks share."""
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
    """Removed and added rows (`KEYS`) as one table (`KEPT`), each once."""
    parts = []
    for kind, rows in ((REMOVED, removed), (ADDED, added)):
        kinds = pa.array([kind] * rows.num_rows, pa.string())
        parts.append(rows.select(KEYS.names).cast(KEYS).add_column(0, KEPT.field("kind"), kinds))
    whole = pa.concat_tables(parts)
    return whole.group_by(KEPT.names, use_threads=False).aggregate([]).select(KEPT.names).cast(KEPT)


def of_kind(kept: pa.Table, kind: str) -> pa.Table:
    """The removed or the added rows of a table (`KEPT`)."""
    return kept.filter(pc.equal(kept["kind"], kind))


@dataclass(frozen=True, slots=True)
class Kept:
    """The rows of one run that are kept, ready to be looked up.

    Attributes:
        removed: Keys of documents.
        added: Keys of rows; `ids` are their ids.
    """

    removed: pa.Array
    added: pa.Array
    ids: pa.Array
    by_shard: bool

    def is_added(self, rows: pa.Table) -> pa.ChunkedArray:
        """Which rows of the table (bool, none null) another tool added."""
        return pc.is_in(row_keys(rows), value_set=self.added)

    def split(self, rows: pa.Table) -> tuple[pa.Table, list[QuarantinedRow]]:
        """Rows of the source that belong into the table, and the others with the reason."""
        gone = pc.is_in(document_keys(rows, by_shard=self.by_shard), value_set=self.removed)
        taken = pc.is_in(rows[ID].cast(pa.string()), value_set=self.ids)
        out = pc.or_(gone, taken)
        if not pc.any(out, min_count=0).as_py():
            return rows, []
        bad = []
        for row, is_gone in zip(
            rows.filter(out).select([SHARD, POSITION, ID]).to_pylist(), gone.filter(out).to_pylist(), strict=True
        ):
            error = _ERROR if is_gone else _TAKEN
            bad.append(QuarantinedRow(row[SHARD], row[POSITION], row[ID], REASON, error))
        return rows.filter(pc.invert(out)), bad


def look_up(kept: pa.Table, *, unique_ids: bool) -> Kept:
    """A table (`KEPT`) for looking up.

    Args:
        kept: The table.
        unique_ids: Whether an id stands for one row of the source.
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
    """The kept rows among a run's frozen tables; loaded once a process.

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
    """Removed documents (`KEYS`) as rows that are set aside, each once."""
    documents = removed.group_by([ID, SHARD, HASH], use_threads=False).aggregate([])
    return [QuarantinedRow(row[SHARD] or "", -1, row[ID], REASON, _ERROR) for row in documents.to_pylist()]
