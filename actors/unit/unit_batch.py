"""Transport of a unit between stages: one Ray Data block with one row that contains an Arrow stream.

Every stage unpacks its input and packs its output. Ray Data splits a block of plain rows above 128 MiB, merges it with
others, and drops it when it is empty. It does none of this with a single row, so a unit without valid rows still
reaches the writer and gets its receipt. Unpacking is zero-copy: the Arrow buffers point into the object store. Packing
costs one memory copy.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

import pyarrow as pa

from actors.errors import VectideError
from actors.schema import QuarantinedRow
from actors.unit.figures import Figures

SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("header", pa.binary()),
        ("rows", pa.large_binary()),
        ("inputs", pa.large_binary()),
        ("ready", pa.large_binary()),
    ]
)


@dataclass(slots=True)
class UnitBatch:
    """Data of a unit between two stages.

    Attributes:
        table: Rows of the source, and from the encode stage on those of the table; None after the unit failed.
        inputs: What the encoder needs of these rows (`actors.inputs`), until they are encoded.
        ready: Rows that already have all columns of the table, or None.
        bad: Rows quarantined so far.
        rows_read: Source rows read.
        error: Error of a failed unit; later stages pass it on to the driver.
        seconds: Wall time by stage.
        counts: Totals by name (tokens, truncated, ...).
        figures: What only the report shows.
    """

    unit: int
    table: pa.Table | None = None
    inputs: pa.Table | None = None
    ready: pa.Table | None = None
    bad: list[QuarantinedRow] = field(default_factory=list)
    rows_read: int = 0
    error: VectideError | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)


def pack(batch: UnitBatch) -> pa.Table:
    """Return the batch as a table of one row (`SCHEMA`)."""
    header = pickle.dumps((batch.bad, batch.rows_read, batch.error, batch.seconds, batch.counts, batch.figures))
    arrays = [pa.array([batch.unit], pa.int64()), pa.array([header], pa.binary())]
    arrays += [_stream(table) for table in (batch.table, batch.inputs, batch.ready)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _stream(table: pa.Table | None) -> pa.Array:
    """Return a table as a large_binary array of one value; copies it once."""
    if table is None:
        return pa.array([None], pa.large_binary())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    buffer = sink.getvalue()
    offsets = pa.array([0, buffer.size], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])


def unpack(block: pa.Table) -> UnitBatch:
    """Return the unit batch of a block.

    The header is unpickled: it comes from a stage of this package through Ray's object store, never from a file.
    """
    unit = block.column("unit")[0].as_py()
    bad, rows_read, error, seconds, counts, figures = pickle.loads(block.column("header")[0].as_py())  # noqa: S301
    return UnitBatch(
        unit=unit,
        table=_table(block.column("rows")),
        inputs=_table(block.column("inputs")),
        ready=_table(block.column("ready")),
        bad=bad,
        rows_read=rows_read,
        error=error,
        seconds=dict(seconds),
        counts=dict(counts),
        figures=figures,
    )


def _table(column: pa.ChunkedArray) -> pa.Table | None:
    scalar = column.chunk(0)[0]
    return pa.ipc.open_stream(scalar.as_buffer()).read_all() if scalar.is_valid else None
