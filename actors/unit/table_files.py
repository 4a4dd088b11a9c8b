"""Paths of table files, and columns of a table file with fixed types, whichever tool wrote the file.

    <table>/data/<run>/<partition folders>/<unit>-<attempt>.parquet

Other tools write elsewhere in the table's folder. A file that another tool rewrote (a delete, an optimize) may declare
view or large list types, which many Arrow functions do not accept. Partition columns are not in files, and partition
folders must not be read as columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.schema import CHUNK, END, GRID_H, GRID_W, HASH, ID, SHARD, START, TOKENS
from actors.vectors import VectorColumn

_DATA = "data"
TYPES = pa.schema(
    [
        (ID, pa.string()),
        (CHUNK, pa.int32()),
        (START, pa.int32()),
        (END, pa.int32()),
        (GRID_H, pa.int32()),
        (GRID_W, pa.int32()),
        (TOKENS, pa.int32()),
        (HASH, pa.string()),
        (SHARD, pa.string()),
    ]
)


def data_folder(table: str, *run: str) -> str:
    """Return the URL of the folder of a table's files, or of those of one run."""
    return storage.join(table, _DATA, *run)


def data_path(run: str, folders: Iterable[str], name: str) -> str:
    """Return the path of a new file relative to the table, from its partition folders and its name without ending."""
    return "/".join([_DATA, run, *folders, f"{name}.parquet"])


def run_of(path: str) -> str | None:
    """Return the run that wrote a file, from its path relative to the table; None for a file of another tool."""
    first, *rest = path.split("/", 2)
    return rest[0] if first == _DATA and len(rest) > 1 else None


def partition_folders(path: str) -> list[str]:
    """Return the partition folders in the path of a file relative to the table."""
    return path.split("/")[0 if run_of(path) is None else 2 : -1]


def relative_path(url: str) -> str:
    """Return the path relative to the table of a file in its `data_folder`."""
    return f"{_DATA}/{url.rpartition(f'/{_DATA}/')[2]}"


def read_stored(table: str, path: str, names: Iterable[str], outputs: Sequence[VectorColumn] = ()) -> pa.Table:
    """Return columns of one file; a column that the file lacks (written by another tool) is null.

    Args:
        table: URL of the table's folder.
        path: Path of the file, relative to `table`.
        names: Columns of `TYPES`.
        outputs: Columns of vectors, which follow them.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    types = {name: TYPES.field(name).type for name in names} | {output.name: output.type for output in outputs}
    url = storage.join(table, path)
    # For small files, which are the most common, three times as fast as `pq.read_table`.
    with storage.open_read(url) as file:
        stored = pq.ParquetFile(file)
        rows = stored.read(columns=list(types)) if stored.num_row_groups <= 1 else None
    if rows is None:
        # Many vectors may lie between the columns of two row groups, and a buffered reader would read them too.
        with storage.open_arrow(url) as file:
            rows = pq.ParquetFile(file, metadata=stored.metadata, pre_buffer=True).read(columns=list(types))
    for name, kind in types.items():
        if name not in rows.column_names:  # written by another tool
            rows = rows.append_column(name, pa.nulls(rows.num_rows, kind))
    return rows.select(list(types)).cast(pa.schema(list(types.items())))
