"""Finds rows that a refresh reads only to quarantine them again, since an earlier row has their id; they are not encoded.

The driver of a refresh collects the rows with an id for which a row is quarantined. If the first row of an id has a stored
vector, the others are listed in the ledger, and the readers leave them out. All other duplicate ids are found once the
units are written (`pipeline.ledger.duplicates`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.schema import HASH, ID, POSITION, SHARD, QuarantinedRow
from actors.unit.row_hashes import hash_strings
from pipeline.ledger.duplicates import ERROR
from pipeline.reuse.spill import contains
from pipeline.reuse.vector_index import Index

_ROWS = pa.schema([(ID, pa.string()), (SHARD, pa.string()), (POSITION, pa.int64()), (HASH, pa.string())])


class RepeatedIds:
    """Rows with the ids of quarantined rows. Several threads may add rows.

    Args:
        quarantine: The quarantined rows of the run before.
    """

    def __init__(self, quarantine: pa.Table) -> None:
        ids = quarantine.filter(pc.equal(quarantine["reason"], "duplicate_id"))["id"].drop_null()
        self._ids = np.unique(hash_strings(ids))
        self._rows = [_ROWS.empty_table()]

    @property
    def are_none(self) -> bool:
        """Whether no row is quarantined for its id."""
        return len(self._ids) == 0

    def add(self, rows: pa.Table, bad: Iterable[QuarantinedRow] = ()) -> None:
        """Add those rows that have one of the ids: of a part of a shard, or of the table (without positions) if they stay.

        Args:
            rows: Valid rows.
            bad: Quarantined rows, of which those that repeat an id of `rows` are added.
        """
        repeats = [
            {ID: row.id, SHARD: row.shard, POSITION: row.position} for row in bad if row.reason == "duplicate_id"
        ]
        rows = rows.filter(pa.array(contains(self._ids, hash_strings(rows[ID]))))
        for field in _ROWS:
            if field.name not in rows.column_names:
                rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
        self._rows += [rows.select(_ROWS.names).cast(_ROWS), pa.Table.from_pylist(repeats, schema=_ROWS)]

    def to_leave_out(self, index: Index) -> pa.Table:
        """Return shard and position of each row after the first of its id, if that one stays or has a stored vector.

        Args:
            index: The texts with a stored vector.
        """
        rows = pa.concat_tables(self._rows).sort_by([(name, "ascending") for name in (ID, SHARD, POSITION)])
        ids, read = rows[ID].combine_chunks(), rows[POSITION].is_valid().to_numpy()
        first = np.ones(len(ids), dtype=bool)
        first[1:] = pc.not_equal(ids.slice(1), ids.slice(0, max(len(ids) - 1, 0))).to_numpy(zero_copy_only=False)
        firsts = np.maximum.accumulate(np.where(first, np.arange(len(ids)), 0))
        is_certain = ~read | index.has(rows[HASH])
        return rows.filter(pa.array(read & ~first & is_certain[firsts])).select([SHARD, POSITION])


@lru_cache(maxsize=1)
def _places(plan: str) -> pa.Array:
    """Return shard and position of the rows to leave out, a text each; loaded once a process."""
    rows = pq.read_table(pa.BufferReader(storage.read(storage.join(plan, "duplicates.parquet"))))
    return _as_texts(rows).combine_chunks()


def _as_texts(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows[POSITION].cast(pa.string()), rows[SHARD], " ")


def leave_out(rows: pa.Table, plan: str) -> tuple[pa.Table, list[QuarantinedRow]]:
    """Return the rows of a unit without those that the plan leaves out, and these as quarantined rows.

    Args:
        rows: Rows of a unit as read.
        plan: URL of the plan's folder.
    """
    out = pc.is_in(_as_texts(rows), value_set=_places(plan))
    bad = [
        QuarantinedRow(row[SHARD], row[POSITION], row[ID], "duplicate_id", ERROR)
        for row in rows.filter(out).select([SHARD, POSITION, ID]).to_pylist()
    ]
    return rows.filter(pc.invert(out)), bad
