"""Writes the table of a curation: every row with its measures and verdict, in one commit.

The files are written in the order of the source, and one receipt names them. It is created only if absent, so a run that
was killed after it only commits.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.errors import InvariantBroken
from actors.schema import ID, POSITION, SHARD, QuarantinedRow
from actors.unit.figures import Figures
from actors.unit.receipt import DataFile, Receipt
from actors.unit.row_hashes import digest_of
from actors.unit.table_files import data_path
from actors.unit.writer import parquet_bytes, quarantine_bytes, receipt_path
from pipeline.curate.context import Context
from pipeline.curate.decide import read_result
from pipeline.curate.read import Measured
from pipeline.ledger.duplicates import ERROR
from pipeline.ledger.ledger import Ledger

_FILE_BYTES = 64 << 20  # of rows in memory


def write_table(context: Context, ledger: Ledger, results: Sequence[Measured], verdicts: Iterable[pa.Table]) -> Receipt:
    """Write the files of the table, the quarantined rows and the receipt; return the receipt of the first who finished."""
    started_s = time.perf_counter()
    attempt = secrets.token_hex(6)
    schema = context.schema()
    files: list[DataFile] = []
    waiting: list[pa.Table] = []
    waiting_bytes = 0
    repeated: list[QuarantinedRow] = []

    def flush() -> None:
        rows = pa.concat_tables(waiting).combine_chunks()
        waiting.clear()
        if rows.num_rows:
            files.append(_write(context, ledger, rows, f"{len(files):09d}-{attempt}"))

    read = [ID, *context.read_columns().names, SHARD, POSITION]
    for result, found in zip(results, verdicts, strict=True):
        rows = read_result(result, read)
        numbers = found["n"]  # not appended: the source may have a column of this name
        for name in found.column_names[1:]:
            rows = rows.append_column(name, found[name])
        rows, copies = rows.filter(pc.is_valid(numbers)), rows.filter(pc.is_null(numbers))
        repeated += [
            QuarantinedRow(row[SHARD], row[POSITION], row[ID], "duplicate_id", ERROR)
            for row in copies.select([SHARD, POSITION, ID]).to_pylist()
        ]
        waiting.append(rows.select(schema.names).cast(schema))
        waiting_bytes += waiting[-1].nbytes
        if waiting_bytes >= _FILE_BYTES:
            flush()
            waiting_bytes = 0
    if waiting:
        flush()
    bad = [read_quarantine(result) for result in results if result.quarantined]
    quarantine: tuple[str, ...] = ()
    reasons = Counter(reason for rows in bad for reason in rows["reason"].to_pylist())
    if bad or repeated:
        quarantine = (f"quarantine/{attempt}.parquet",)
        own = pq.read_table(pa.BufferReader(quarantine_bytes(repeated, 0)))
        reasons["duplicate_id"] += len(repeated)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables([*bad, own]), sink, compression="zstd", store_schema=False)
        storage.put(storage.join(ledger.home(), *quarantine), bytes(sink.getvalue()))
    rows_written = sum(file.rows for file in files)
    receipt = Receipt(
        unit=0,
        attempt=attempt,
        files=tuple(files),
        rows_read=sum(result.rows + result.quarantined for result in results),
        documents=rows_written,
        rows=rows_written,
        rows_quarantined=sum(reasons.values()),
        tokens=0,
        truncated=0,
        quarantine=quarantine,
        seconds={"write": round(time.perf_counter() - started_s, 4)},
        figures=Figures(finished_s=round(time.time(), 3), reasons=dict(+reasons)).to_json(),
    )
    receipt.check()
    url = storage.join(ledger.home(), receipt_path(0))
    storage.create(url, receipt.to_json().encode())
    return Receipt.from_json(storage.read(url))


def _write(context: Context, ledger: Ledger, rows: pa.Table, name: str) -> DataFile:
    path = data_path(ledger.run, (), name)
    data, stats = parquet_bytes(rows, context.spec.to_json(), ())
    storage.put(storage.join(context.url, path), data)
    return DataFile(path, len(data), rows.num_rows, {}, stats, digest_of(rows, {}))


def read_quarantine(result: Measured) -> pa.Table:
    """Return the quarantined rows of a unit."""
    rows = pq.read_table(pa.BufferReader(storage.read(result.quarantine)))
    if rows.num_rows != result.quarantined:
        raise InvariantBroken(
            f"{result.quarantine!r} has {rows.num_rows} rows, and {result.quarantined} were quarantined."
        )
    return rows
