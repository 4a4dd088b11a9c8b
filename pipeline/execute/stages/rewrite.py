"""Rows of the table that stay, in files that cannot: files that also hold rows of shards that changed.

Used by the first stage for units of a refresh that `carry`. Nothing is read from the source and nothing is encoded.
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
def _replaced(plan: str) -> pa.Array:
    """The shards whose rows go."""
    data = storage.read(storage.join(plan, "replaced.parquet"))
    return pq.read_table(pa.BufferReader(data))["path"].combine_chunks()


def carry(unit: Unit, spec: WriterSpec) -> UnitBatch:
    """The rows that stay of the unit's files, with everything that the table stores.

    Raises:
        DataError: a vector among them is not finite, and there is no text here to encode again.
    """
    parts = [spec.schema.empty_table()]
    for piece in unit.pieces:
        file = storage.open_read(storage.join(spec.table, piece.shard.path))
        rows = pq.read_table(file, partitioning=None)
        partition = json.loads(piece.shard.etag)
        rows = rows.select([name for name in rows.column_names if name in spec.schema.names and name not in partition])
        for field in spec.schema:  # a file of another tool may lack columns
            if field.name not in rows.column_names and field.name not in partition:
                rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
        rows = rows.cast(pa.schema([spec.schema.field(name) for name in rows.column_names]))
        replaced = _replaced(spec.ledger)
        if len(replaced):
            going = pc.is_in(rows[SHARD], value_set=replaced)
            kept = kept_of(spec.ledger, unique_ids=True)
            rows = rows.filter(pc.or_(pc.invert(going), kept.is_added(rows)))
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
    """Raises where a vector of a file of the table is not finite: it must not be published again."""
    vectors = rows[EMBEDDING].combine_chunks()
    values = vectors.flatten().to_numpy(zero_copy_only=False)
    good = np.isfinite(values)
    if good.all():
        return
    numbers = np.unique(pc.list_parent_indices(vectors).to_numpy()[~good])
    raise DataError(
        f"{path} of the table has {len(numbers)} rows whose vectors are not finite (first: id {rows[ID][int(numbers[0])].as_py()!r}). "
        "Another tool, or a version before this was checked, wrote them. Delete those rows and refresh with "
        "`--foreign-commits restore`, which encodes their texts again, or backfill into a new table."
    )
