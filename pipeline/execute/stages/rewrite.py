"""Copies rows of table files, for files that must be rewritten: the rows of unchanged shards are kept.

Used by the first stage of a refresh, and by compaction, for rewrite units. It reads nothing from the
source and encodes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.errors import DataError
from actors.schema import CHUNK, ID, SHARD, QuarantinedRow, RewriteUnit
from actors.unit.unit_batch import UnitBatch
from actors.unit.writer import WriterSpec
from actors.vectors import VectorColumn, reusable
from pipeline.table.kept_rows import document_keys, kept_of

_UNFIT = (
    "its vector in the table is not finite or not of unit length: another tool, or a version before this was checked, wrote "
    "it; --retry-quarantined encodes its text again"
)


@lru_cache(maxsize=1)
def _replaced(ledger: str) -> pa.Array:
    """Return the shards whose rows are removed."""
    data = storage.read(storage.join(ledger, "replaced.parquet"))
    return pq.read_table(pa.BufferReader(data))["path"].combine_chunks()


def copy_rows(unit: RewriteUnit, spec: WriterSpec) -> UnitBatch:
    """Return the rows of the unit's files that are kept, with all columns of the table.

    A refresh quarantines a row that vectide wrote and that has no unit vector: its text is not in the table, and
    `--retry-quarantined` reads its shard.

    Raises:
        DataError: a vector of another row is not finite, or a value does not fit the new type of its column.
    """
    parts, bad = [spec.schema.empty_table()], []
    for file in unit.files:
        with storage.open_read(storage.join(spec.table, file.path)) as opened:
            rows = pq.read_table(opened, partitioning=None)
        partition = file.partition
        rows = rows.select([name for name in rows.column_names if name in spec.schema.names and name not in partition])
        for field in spec.schema:  # a file written by another tool may lack columns
            if field.name not in rows.column_names and field.name not in partition:
                rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
        rows = pa.table({name: _cast(rows[name], spec.schema.field(name), file.path) for name in rows.column_names})
        replaced = _replaced(spec.ledger)
        if len(replaced):
            removed = pc.is_in(rows[SHARD], value_set=replaced)
            added = kept_of(spec.ledger, unique_ids=True).is_added(rows)
            kept = pc.or_(pc.invert(removed), added)
            rows, unfit = _split_unfit(rows.filter(kept), added.filter(kept), spec.outputs)
            bad += unfit
        _check_finite(rows, spec.outputs, file.path)
        for name, value in partition.items():
            column = pa.array([value] * rows.num_rows, pa.string())
            rows = rows.append_column(name, pc.cast(column, spec.schema.field(name).type))
        parts.append(rows.select(spec.schema.names).cast(spec.schema))
    ready = pa.concat_tables(parts)
    documents = _documents(ready).num_rows
    return UnitBatch(
        unit.number,
        table=ready.slice(0, 0),
        ready=ready,
        bad=bad,
        rows_read=documents + len(bad),
        counts={"documents": documents},
    )


def _cast(column: pa.ChunkedArray, field: pa.Field, path: str) -> pa.ChunkedArray:
    """Return a column of a table file with its type in the new version."""
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} of the table has rows of another tool whose {field.name!r} is {column.type}, and the source now makes it "
            f"{field.type}: {error}. Change or delete those rows, or refresh with `--foreign-commits restore`, which removes them"
        ) from None


def _documents(rows: pa.Table) -> pa.Table:
    """Of each document one row: its first chunk."""
    return rows.filter(pc.equal(pc.fill_null(rows[CHUNK], 0), 0)) if CHUNK in rows.column_names else rows


def _split_unfit(
    rows: pa.Table, added: pa.ChunkedArray, outputs: Sequence[VectorColumn]
) -> tuple[pa.Table, list[QuarantinedRow]]:
    """Rows that may be published again, and the documents that may not.

    Args:
        rows: Rows of the table that stay.
        added: Bool [rows], those that another tool added and a person keeps: they may have no vector, or one of another model.
        outputs: Columns of vectors.
    """
    fit = pc.or_(pa.array(reusable(rows, outputs)), added)
    if pc.all(fit, min_count=0).as_py():
        return rows, []
    # A document of which a chunk is missing would look like a shorter one, so the whole document is quarantined.
    keys = document_keys(rows, by_shard=True)
    unfit = pc.and_(pc.is_in(keys, value_set=keys.filter(pc.invert(fit)).combine_chunks()), pc.invert(added))
    bad = _documents(rows.filter(unfit)).select([SHARD, ID]).to_pylist()
    return rows.filter(pc.invert(unfit)), [
        QuarantinedRow(row[SHARD] or "", -1, row[ID], "encode_failed", _UNFIT) for row in bad
    ]


def _check_finite(rows: pa.Table, outputs: Sequence[VectorColumn], path: str) -> None:
    """Raise DataError if a vector of a table file is not finite: it must not be published again."""
    finite = np.logical_and.reduce([output.finite(rows[output.name]) for output in outputs])
    if finite.all():
        return
    numbers = np.flatnonzero(~finite)
    first_id = rows[ID][int(numbers[0])].as_py()
    raise DataError(
        f"{path} of the table has {len(numbers)} rows whose vectors are not finite (first: id {first_id!r}). "
        "Delete those rows, or refresh with `--foreign-commits restore` where another tool wrote them, or backfill "
        "into a new table."
    )
