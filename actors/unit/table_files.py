"""Columns of a file of the table, with our types whoever wrote it.

Used by refresh, publish and compaction. Another tool's rewrite (a delete, an optimize) may leave views or large lists in
a file's footer, which many of Arrow's functions do not take; partition columns are not in files, and folders named after
them must not be taken for columns.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.schema import CHUNK, EMBEDDING, END, HASH, ID, SHARD, START, TOKENS

TYPES = pa.schema(
    [
        (ID, pa.string()),
        (CHUNK, pa.int32()),
        (START, pa.int32()),
        (END, pa.int32()),
        (EMBEDDING, pa.list_(pa.float32())),
        (TOKENS, pa.int32()),
        (HASH, pa.string()),
        (SHARD, pa.string()),
    ]
)


def read_stored(table: str, path: str, names: list[str] | tuple[str, ...]) -> pa.Table:
    """Columns of one file.

    Args:
        table: URL of the table's folder.
        path: The file's, relative to it.
        names: Columns of `TYPES`; one that the file lacks, as another tool's may, is null.

    Raises:
        FileNotFoundError: there is no such file.
    """
    # Three times as fast for a small file as `pq.read_table`, and tables are mostly small files.
    rows = pq.ParquetFile(storage.open_read(storage.join(table, path))).read(columns=list(names))
    for name in names:
        if name not in rows.column_names:  # another tool's rows
            rows = rows.append_column(name, pa.nulls(rows.num_rows, TYPES.field(name).type))
    return rows.select(list(names)).cast(pa.schema([TYPES.field(name) for name in names]))
