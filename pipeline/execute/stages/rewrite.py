"""Copies rows of table files, for files that must be rewritten: the rows of unchanged shards are kept.

Used by the first stage of a refresh, and by compaction, for rewrite units (`Unit.carry`). It reads nothing from the
source and encodes nothing.
"""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.errors import DataError
from actors.schema import CHUNK, EMBEDDING, ID, SHARD, Unit
from actors.unit.unit_batch import UnitBatch
from actors.unit.writer import WriterSpec
from pipeline.table.kept_rows import kept_of


@lru_cache(maxsize=1)
def _replaced(ledger: str) -> pa.Array:
    """Return the shards whose rows are removed."""
    data = storage.read(storage.join(ledger, "replaced.parquet"))
    return pq.read_table(pa.BufferReader(data))["path"].combine_chunks()


def copy_rows(unit: Unit, spec: WriterSpec) -> UnitBatch:
    """Return the rows of the unit's files that are kept, with all columns of the table.

    Raises:
        DataError: a vector of them is not finite; it cannot be encoded again, because the text is not in the table.
    """
    parts = [spec.schema.empty_table()]
    for piece in unit.pieces:
        file = storage.open_read(storage.join(spec.table, piece.shard.path))
        rows = pq.read_table(file, partitioning=None)
        partition = json.loads(piece.shard.etag)
        rows = rows.select([name for name in rows.column_names if name in spec.schema.names and name not in partition])
        for field in spec.schema:  # a file written by another tool may lack columns
            if field.name not in rows.column_names and field.name not in partition:
                rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
        rows = rows.cast(pa.schema([spec.schema.field(name) for name in rows.column_names]))
        replaced = _replaced(spec.ledger)
        if len(replaced):
            removed = pc.is_in(rows[SHARD], value_set=replaced)
            kept = kept_of(spec.ledger, unique_ids=True)
            rows = rows.filter(pc.or_(pc.invert(removed), kept.is_added(rows)))
        _check_finite(rows, piece.shard.path)
        for name, value in partition.items():
            column = pa.array([value] * rows.num_rows, pa.string())
            rows = rows.append_column(name, pc.cast(column, spec.schema.field(name).type))
        parts.append(rows.select(spec.schema.names).cast(spec.schema))
    ready = pa.concat_tables(parts)
    documents = ready.num_rows
    if CHUNK in ready.column_names:
        documents = int(np.count_nonzero(pc.fill_null(ready[CHUNK], 0).to_numpy() == 0))
    return UnitBatch(
        unit.number, table=ready.slice(0, 0), ready=ready, rows_read=documents, counts={"documents": documents}
    )


def _check_finite(rows: pa.Table, path: str) -> None:
    """Raise DataError if a vector of a table file is not finite: it must not be published again."""
    vectors = rows[EMBEDDING].combine_chunks()
    values = vectors.flatten().to_numpy(zero_copy_only=False)
    finite = np.isfinite(values)
    if finite.all():
        return
    numbers = np.unique(pc.list_parent_indices(vectors).to_numpy()[~finite])
    first_id = rows[ID][int(numbers[0])].as_py()
    raise DataError(
        f"{path} of the table has {len(numbers)} rows whose vectors are not finite (first: id {first_id!r}). "
        "Another tool, or a version of vectide without this check, wrote them. Delete those rows and refresh with "
        "`--foreign-commits restore`, which encodes their texts again, or backfill into a new table."
    )
