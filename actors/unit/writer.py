"""Writes one unit: a Parquet file per partition value, the quarantine, and last of all the receipt.

Called by the write stage. Every file is built in memory and put whole under a name made of unit and attempt, so no
attempt can overwrite another's; the receipt is created only if absent, so the first attempt to finish wins and the
others' files are never named by anything. The trade-off: a unit of very many partition values makes very many small
files.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import secrets
import time
import urllib.parse
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.errors import InvariantBroken, StorageError
from actors.schema import CHUNK, EMBEDDING, END, HASH, ID, QUARANTINE_SCHEMA, SHARD, START, TOKENS, QuarantinedRow
from actors.unit.receipt import DataFile, Receipt
from actors.unit.rounding import Precision, round_mantissa
from actors.unit.unit_batch import UnitBatch

# Delta Lake and Hive readers take this directory name for a null partition value.
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
UNITS_A_FOLDER = 1000  # of receipts: what a store lists in one answer
_LONGEST_STATISTIC = 64
_LONGEST_PATH = 1024
_LONGEST_NAME = 100  # of a part of a directory name: disks take 255 bytes, and keys of stores 1,024 in all


@dataclass(frozen=True, slots=True)
class WriterSpec:
    """What the writer needs to know, small enough to travel with every task.

    Attributes:
        table: URL of the table's folder.
        ledger: URL of the folder of the run's plan.
        run: Name of the run, part of every data path.
        schema: Columns of the table in order, partition columns included.
        lineage: JSON that goes into each file's footer under the key `vectide`.
    """

    table: str
    ledger: str
    run: str
    schema: pa.Schema
    partition_by: tuple[str, ...]
    precision: Precision
    lineage: str


def receipt_path(unit: int) -> str:
    """Where a unit's receipt lies, relative to the folder of the plan: a folder for each thousand units."""
    return f"receipts/{unit // UNITS_A_FOLDER:06d}/{unit:09d}.json"


def write_unit(batch: UnitBatch, spec: WriterSpec) -> Receipt:
    """Put the unit's files and then its receipt.

    Args:
        batch: A unit with vectors: `batch.table` has every column of `spec.schema`, `embedding` as a
            FixedSizeList<float32> or List<float32>.
        spec: Where and how to write it.

    Returns:
        The receipt that stands: this attempt's, or that of the attempt that finished first.

    Raises:
        StorageError: a put failed. What was written is unreferenced; another attempt is safe.
        InvariantBroken: the unit does not add up.
    """
    if batch.table is None:
        raise InvariantBroken(f"unit {batch.unit} came to the writer without rows.")
    started = time.perf_counter()
    attempt = secrets.token_hex(6)
    written: list[str] = []
    try:
        files = _write_partitions(batch, spec, attempt, written)
        quarantine = None
        if batch.bad:
            quarantine = f"quarantine/{batch.unit:09d}-{attempt}.parquet"
            url = storage.join(spec.ledger, quarantine)
            storage.put(url, quarantine_bytes(batch.bad, batch.unit))
            written.append(url)
    except StorageError:
        _discard(written)  # no receipt names them, and none ever will: the attempt's name is ours alone
        raise
    seconds = {**batch.seconds, "write": time.perf_counter() - started}
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
        seconds={stage: round(value, 4) for stage, value in seconds.items()},
    )
    receipt.check()
    url = storage.join(spec.ledger, receipt_path(batch.unit))
    if storage.create(url, receipt.to_json().encode()):
        return receipt
    # Another attempt finished first. It is known, not guessed, that ours lost, so its files may go.
    _discard(written)
    return Receipt.from_json(storage.read(url))


def _discard(urls: list[str]) -> None:
    for url in urls:
        try:
            storage.delete(url)
        except StorageError:
            continue  # an orphan costs space, not truth; vacuum finds it


def quarantine_bytes(bad: list[QuarantinedRow], unit: int) -> bytes:
    """The Parquet file of a unit's bad rows (`QUARANTINE_SCHEMA`)."""
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
    files = []
    for values, part in split_by(table, spec.partition_by):
        named = zip(spec.partition_by, values, strict=True)
        folder = "/".join(f"{_quoted(name)}={_hive(value)}" for name, value in named)
        path = "/".join(filter(None, ["data", spec.run, folder, f"{batch.unit:09d}-{attempt}.parquet"]))
        data, stats = parquet_bytes(part, spec.lineage)
        url = storage.join(spec.table, path)
        storage.put(url, data)
        written.append(url)
        partition = dict(zip(spec.partition_by, values, strict=True))
        files.append(DataFile(path, len(data), part.num_rows, partition, stats))
    return files


def _all_rows(batch: UnitBatch, spec: WriterSpec) -> pa.Table:
    """What was encoded now and what had its vectors before."""
    parts = [
        stored_table(part, spec.schema, spec.precision)
        for part in (batch.ready, batch.table)
        if part is not None and part.num_rows
    ]
    return pa.concat_tables([spec.schema.empty_table(), *parts])


def stored_table(table: pa.Table, schema: pa.Schema, precision: Precision) -> pa.Table:
    """The unit's rows with the table's columns and types, vectors rounded and as plain lists.

    Lists rather than fixed-size lists: with the fixed-size type in the footer, readers refuse the Delta table.
    """
    columns = []
    for field in schema:
        column = table.column(field.name)
        if field.name == EMBEDDING:
            columns.append(_stored_vectors(column, precision))
        else:
            columns.append(column if column.type == field.type else pc.cast(column, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _stored_vectors(column: pa.ChunkedArray, precision: Precision) -> pa.ChunkedArray:
    chunks = []
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise InvariantBroken("a vector that is not finite came to the writer.")
        # Rows of another tool that stay may have no vector, or one of another width.
        offsets = np.zeros(len(chunk) + 1, dtype=np.int32)
        np.cumsum(pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False), out=offsets[1:])
        mask = chunk.is_null() if chunk.null_count else None
        rounded = pa.array(round_mantissa(values, precision))
        chunks.append(pa.ListArray.from_arrays(pa.array(offsets), rounded, mask=mask))
    return pa.chunked_array(chunks, pa.list_(pa.float32()))


def parquet_bytes(table: pa.Table, lineage: str) -> tuple[bytes, str]:
    """One Parquet file and its Delta statistics.

    Vectors go in byte-stream-split, which with zstd stores cleared mantissa bits in next to nothing; the Arrow schema
    stays out of the footer (see `stored_table`).
    """
    plain = [field.name for field in table.schema if field.name != EMBEDDING]
    dictionary = [
        name for name in plain if pa.types.is_string(table.schema.field(name).type) and name not in (ID, HASH)
    ]
    encoding = {f"{EMBEDDING}.list.element": "BYTE_STREAM_SPLIT"} if EMBEDDING in table.column_names else None
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        store_schema=False,
        use_dictionary=dictionary or False,
        column_encoding=encoding,
        write_statistics=plain,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"vectide": lineage})
    return bytes(sink.getvalue()), delta_statistics(table)


def delta_statistics(table: pa.Table) -> str:
    """`numRecords`, and the range and null count of columns that a reader may prune by, as Delta Lake's JSON."""
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for field in table.schema:
        column = table.column(field.name)
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            continue
        nulls[field.name] = column.null_count
        if not (pa.types.is_string(field.type) or pa.types.is_integer(field.type)) or column.null_count == len(column):
            continue
        ends = pc.min_max(column).as_py()
        # A long text says nothing worth its bytes in the log, and a cut maximum would be a lie.
        # The shard is worth its bytes: a refresh need not open a file that is of one.
        longest = _LONGEST_PATH if field.name == SHARD else _LONGEST_STATISTIC
        if all(not isinstance(end, str) or len(end) <= longest for end in ends.values()):
            least[field.name], most[field.name] = ends["min"], ends["max"]
    document = {"numRecords": table.num_rows, "minValues": least, "maxValues": most, "nullCount": nulls}
    return json.dumps(document, separators=(",", ":"))


def split_by(table: pa.Table, columns: tuple[str, ...]) -> list[tuple[tuple[str | None, ...], pa.Table]]:
    """The rows of each combination of partition values, in the order of first sight, without those columns.

    Values are Delta Lake's text forms. An empty text is null there, by the protocol.
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
    """A partition value as Delta Lake writes it."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.datetime):
        return value.isoformat(sep=" ")
    return str(value)


def _hive(value: str | None) -> str:
    """A partition value as a directory name. The log has the value itself, so this one need only be its own."""
    if value is None:
        return NULL_PARTITION
    return "%5F" + value[1:] if value == NULL_PARTITION else _quoted(value)


def _quoted(text: str) -> str:
    """A text as part of a directory name: nothing in it can be a path, and no disk finds it too long.

    Escapes are those of a URL, because Polars takes values from the path and not from the log; one that was too long it
    shows as it stands here.
    """
    quoted = urllib.parse.quote(text, safe="")
    if len(quoted) <= _LONGEST_NAME:
        return quoted
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{quoted[:_LONGEST_NAME].rpartition('%')[0] or quoted[:_LONGEST_NAME]}~{digest}"


def table_schema(keep: pa.Schema, *, chunked: bool = False) -> pa.Schema:
    """The columns of a table of documents, or of chunks, in order."""
    return pa.schema(
        [
            pa.field(ID, pa.string()),
            *(pa.field(name, pa.int32()) for name in (CHUNK, START, END) if chunked),
            *keep,
            pa.field(EMBEDDING, pa.list_(pa.float32())),
            pa.field(TOKENS, pa.int32()),
            pa.field(HASH, pa.string()),
            pa.field(SHARD, pa.string()),
        ]
    )
