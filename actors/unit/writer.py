"""Writes one unit: a Parquet file per partition value, the file of quarantined rows, and finally the receipt.

Called by the write stage. Every file is built in memory and uploaded whole. Its name contains the unit and the attempt,
so no attempt overwrites the files of another. The receipt is created only if absent: the first attempt to finish wins,
and nothing refers to the files of the others. The trade-off: a unit with many partition values writes many small files.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.errors import InvariantBroken, StorageError
from actors.schema import (
    CHUNK,
    END,
    GRID_H,
    GRID_W,
    HASH,
    ID,
    KEPT_TEXT,
    QUARANTINE_SCHEMA,
    SHARD,
    START,
    TOKENS,
    QuarantinedRow,
)
from actors.unit.delta_statistics import delta_statistics
from actors.unit.receipt import DataFile, Receipt
from actors.unit.row_hashes import digest_of
from actors.unit.table_files import data_path
from actors.unit.unit_batch import UnitBatch
from actors.vectors import Precision, VectorColumn

# Directory name of a null partition value, for Delta Lake and Hive readers.
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_GROUP_BYTES = 1 << 20  # many vectors of a row group
UNITS_A_FOLDER = 1000  # receipts per folder: a store lists this many objects in one response
_LONGEST_NAME = 100  # characters of a part of a directory name: disks allow 255 bytes, object keys 1,024 in all


@dataclass(frozen=True, slots=True)
class WriterSpec:
    """Settings of the writer, small enough to be sent with every task.

    Attributes:
        table: URL of the table's folder.
        ledger: URL of the run's folder.
        run: Name of the run, part of every data path.
        schema: Columns of the table in order, partition columns included.
        lineage: JSON for the footer of each file, under the key `vectide`.
        outputs: Outputs of the model, columns of `schema` too.
    """

    table: str
    ledger: str
    run: str
    schema: pa.Schema
    partition_by: tuple[str, ...]
    precision: Precision
    lineage: str
    outputs: tuple[VectorColumn, ...]


def receipt_path(unit: int) -> str:
    """Return the path of a unit's receipt relative to the run's folder; there is one folder per 1,000 units."""
    return f"receipts/{unit // UNITS_A_FOLDER:06d}/{unit:09d}.json"


def write_unit(batch: UnitBatch, spec: WriterSpec) -> Receipt:
    """Write the unit's files and then its receipt.

    Args:
        batch: A unit with vectors: `batch.table` has every column of `spec.schema`.
        spec: Location and format of the files.

    Returns:
        The valid receipt: the one of this attempt, or of the attempt that finished first.

    Raises:
        StorageError: a write failed. Nothing refers to the files written so far; another attempt is safe.
        InvariantBroken: the counts of the unit are inconsistent, or a vector is not finite.
    """
    if batch.table is None:
        raise InvariantBroken(f"unit {batch.unit} reached the writer without rows.")
    started = time.perf_counter()
    attempt = secrets.token_hex(6)
    written: list[str] = []
    try:
        files = _write_partitions(batch, spec, attempt, written)
        quarantine: tuple[str, ...] = ()
        if batch.bad:
            quarantine = (f"quarantine/{batch.unit:09d}-{attempt}.parquet",)
            url = storage.join(spec.ledger, *quarantine)
            storage.put(url, quarantine_bytes(batch.bad, batch.unit))
            written.append(url)
    except StorageError:
        _discard(written)  # no other attempt has this attempt's name, so no receipt can refer to these files
        raise
    seconds = {**batch.seconds, "write": time.perf_counter() - started}
    batch.figures.reasons = dict(Counter(row.reason for row in batch.bad))
    batch.figures.finished_s = round(time.time(), 3)
    receipt = Receipt(
        unit=batch.unit,
        attempt=attempt,
        files=tuple(files),
        rows_read=batch.rows_read,
        documents=batch.counts.get("documents", batch.table.num_rows),
        rows=sum(file.rows for file in files),
        rows_quarantined=len(batch.bad),
        tokens=batch.counts.get("tokens", 0),
        truncated=batch.counts.get("truncated", 0),
        encoded=batch.counts.get("encoded", 0),
        quarantine=quarantine,
        padding=batch.counts.get("padding", 0),
        animated=batch.counts.get("animated", 0),
        unconverted=batch.counts.get("unconverted", 0),
        seconds={stage: round(value, 4) for stage, value in seconds.items()},
        figures=batch.figures.to_json(),
    )
    receipt.check()
    url = storage.join(spec.ledger, receipt_path(batch.unit))
    if storage.create(url, receipt.to_json().encode()):
        return receipt
    # Another attempt has created the receipt. No receipt will refer to the files of this attempt.
    _discard(written)
    return Receipt.from_json(storage.read(url))


def _discard(urls: list[str]) -> None:
    for url in urls:
        try:
            storage.delete(url)
        except StorageError:
            continue  # the file is harmless: nothing refers to it, and vacuum deletes it


def quarantine_bytes(bad: list[QuarantinedRow], unit: int) -> bytes:
    """Return the Parquet file of a unit's quarantined rows (`QUARANTINE_SCHEMA`)."""
    rows = [
        {
            "shard": row.shard,
            "position": row.position,
            "id": row.id,
            "reason": row.reason,
            "error": row.error,
            "unit": unit,
        }
        for row in bad
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA), sink, compression="zstd", store_schema=False)
    return bytes(sink.getvalue())


def _write_partitions(batch: UnitBatch, spec: WriterSpec, attempt: str, written: list[str]) -> list[DataFile]:
    table = _all_rows(batch, spec)
    batch.figures.measure_norms(table, spec.outputs)
    files = []
    for values, part in split_by(table, spec.partition_by):
        named = zip(spec.partition_by, values, strict=True)
        folders = (f"{_quoted(name)}={_hive(value)}" for name, value in named)
        path = data_path(spec.run, folders, f"{batch.unit:09d}-{attempt}")
        data, stats = parquet_bytes(part, spec.lineage, spec.outputs)
        url = storage.join(spec.table, path)
        storage.put(url, data)
        written.append(url)
        partition = dict(zip(spec.partition_by, values, strict=True))
        digest = digest_of(part, partition)
        files.append(DataFile(path, len(data), part.num_rows, partition, stats, digest))
    return files


def _all_rows(batch: UnitBatch, spec: WriterSpec) -> pa.Table:
    """Return the rows that had their vectors before, then the newly encoded rows."""
    parts = [stored_table(part, spec) for part in (batch.ready, batch.table) if part is not None and part.num_rows]
    return pa.concat_tables([spec.schema.empty_table(), *parts])


def stored_table(table: pa.Table, spec: WriterSpec) -> pa.Table:
    """Return rows with the table's columns and types, with vectors as they are stored."""
    made = {}
    for output in spec.outputs:
        made[output.name] = output.stored(table.column(output.name), spec.precision)
        if output.count_name is not None:
            made[output.count_name] = output.counts(made[output.name])
    columns = [made[name] if name in made else table.column(name) for name in spec.schema.names]
    typed = zip(columns, spec.schema.types, strict=True)
    return pa.Table.from_arrays(
        [column if column.type == kind else pc.cast(column, kind) for column, kind in typed], schema=spec.schema
    )


def parquet_bytes(table: pa.Table, lineage: str, outputs: Sequence[VectorColumn]) -> tuple[bytes, str]:
    """Return one Parquet file and its Delta statistics.

    Vectors (`outputs`) are byte-stream-split encoded, so that zstd compresses cleared mantissa bits well; lists of int8 take
    the least with a dictionary. Blobs are plain and not compressed. A row group has about `_GROUP_BYTES` of many vectors, so
    that a reader of some rows reads little else. The footer has no Arrow schema (see `VectorColumn.type`).
    """
    vectors = {output.name: output for output in outputs if output.name in table.column_names}
    plain = [name for name in table.column_names if name not in vectors]
    dictionary = [
        name for name in plain if pa.types.is_string(table.schema.field(name).type) and name not in (ID, HASH)
    ]
    blobs = {name for name, output in vectors.items() if output.layout == "blob"}
    dictionary += [output.leaf for output in vectors.values() if output.number == pa.int8()]
    split = {output.leaf: "BYTE_STREAM_SPLIT" for output in vectors.values() if output.number == pa.float32()}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression={leaf: "none" if leaf in blobs else "zstd" for leaf in _leaves(table.schema)} if blobs else "zstd",
        store_schema=False,
        use_dictionary=dictionary or False,
        column_encoding=split or None,
        write_statistics=plain,
        write_page_checksum=True,
    ) as writer:
        for group in _row_groups(table, vectors.values()):
            writer.write_table(group)
        writer.add_key_value_metadata({"vectide": lineage})
    return bytes(sink.getvalue()), delta_statistics(table)


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the paths of the columns of a Parquet file; a nested column has several."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    return [column.path for column in pq.read_metadata(pa.BufferReader(sink.getvalue())).schema]


def _row_groups(table: pa.Table, outputs: Iterable[VectorColumn]) -> Iterator[pa.Table]:
    """Yield the rows of each row group: all rows of the file, unless they have many vectors."""
    sizes = np.zeros(table.num_rows, np.int64)
    for output in outputs:
        if output.count_name is not None:
            sizes += pc.fill_null(table.column(output.count_name), 0).to_numpy() * np.int64(output.vector_bytes)
    groups = (np.cumsum(sizes) - sizes) // _GROUP_BYTES
    starts = np.flatnonzero(np.diff(groups, prepend=-1)).tolist() or [0]
    for start, stop in pairwise([*starts, table.num_rows]):
        yield table.slice(start, stop - start)


def split_by(table: pa.Table, columns: tuple[str, ...]) -> list[tuple[tuple[str | None, ...], pa.Table]]:
    """Return the rows of each combination of partition values, in order of first occurrence, without these columns.

    Values are in Delta Lake's text form. The protocol defines an empty text as null.
    """
    if table.num_rows == 0:
        return []
    if not columns:
        return [((), table)]
    codes: npt.NDArray[np.int64] = np.zeros(table.num_rows, dtype=np.int64)
    texts = []
    for name in columns:
        text = [as_text(value) for value in table.column(name).to_pylist()]
        known = {value: code for code, value in enumerate(dict.fromkeys(text))}
        codes = codes * len(known) + np.array([known[value] for value in text], dtype=np.int64)
        texts.append(text)
    rest = table.drop_columns(list(columns))
    _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
    groups = []
    for code in np.argsort(firsts):
        values = tuple(text[firsts[code]] for text in texts)
        groups.append((values, rest.take(pa.array(np.flatnonzero(inverse == code)))))
    return groups


def as_text(value: object) -> str | None:
    """Return a partition value in Delta Lake's text form."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.datetime):
        return value.isoformat(sep=" ")
    return str(value)


def _hive(value: str | None) -> str:
    """Return a partition value as a directory name. The log has the exact value, so the name only has to be unique."""
    if value is None:
        return NULL_PARTITION
    return "%5F" + value[1:] if value == NULL_PARTITION else _quoted(value)


def _quoted(text: str) -> str:
    """Return a text as part of a directory name: URL-escaped, without path separators, and not too long for any disk.

    URL escapes, because Polars reads values from the path and not from the log. Of a value that was too long, Polars
    shows the shortened form.
    """
    quoted = urllib.parse.quote(text, safe="")
    if len(quoted) <= _LONGEST_NAME:
        return quoted
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    # Whole characters: Polars cannot read a table that has a part of one in a path.
    lengths = accumulate(len(urllib.parse.quote(character, safe="")) for character in text)
    count = sum(length <= _LONGEST_NAME for length in lengths)
    return f"{urllib.parse.quote(text[:count], safe='')}~{digest}"


def table_schema(
    keep: pa.Schema,
    outputs: Sequence[VectorColumn],
    *,
    chunked: bool = False,
    keep_text: bool = False,
    grids: bool = False,
) -> pa.Schema:
    """Return the columns of a table of documents, or of chunks, in order.

    Args:
        keep: Kept columns.
        outputs: Outputs of the model.
        chunked: Whether a row is a chunk.
        keep_text: Whether the table has the embedded text.
        grids: Whether it has the grids of pictures.
    """
    return pa.schema(
        [
            pa.field(ID, pa.string()),
            *(pa.field(name, pa.int32()) for name in (CHUNK, START, END) if chunked),
            *([pa.field(KEPT_TEXT, pa.string())] if keep_text else []),
            *keep,
            *(field for output in outputs for field in output.fields),
            *(pa.field(name, pa.int32()) for name in (GRID_H, GRID_W) if grids),
            pa.field(TOKENS, pa.int32()),
            pa.field(HASH, pa.string()),
            pa.field(SHARD, pa.string()),
        ]
    )
