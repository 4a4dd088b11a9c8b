"""Parquet: cut by row groups, only the needed columns, a few MB at a time.

Planning reads footers alone. A row group larger than a unit is cut by row range. The trade-off: Arrow cannot enter a
row group in its middle, so such a piece decodes the needed columns from the group's first row on; that is far cheaper
than to encode them, and files with row groups of about a unit's size do not pay it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.errors import DataError
from actors.progress_counter import count_progress
from actors.schema import POSITION, Piece, QuarantinedRow, Shard
from actors.source.formats import int96
from actors.source.formats.base import BATCH_BYTES, BATCH_ROWS, Wanted, columns_of, reading

_WHAT = "Parquet"
_BUFFER_BYTES = 1 << 20  # of each column on a local disk
_BELIEVED_ROWS = 10_000_000
_MOST_ROWS_PER_BYTE = 1_000  # a column that says the same in every row is next to nothing
_REMOTE_BUFFER_BYTES = 4 << 20  # each is a request of its own


@dataclass(frozen=True, slots=True)
class _Footer:
    """What planning needs of a footer; small, so that those of a whole corpus can be kept."""

    schema: pa.Schema
    group_rows: tuple[int, ...]


class Parquet:
    """See `Format`."""

    name = "parquet"
    whole_file = False
    schemaless = False

    def columns(self, shard: Shard) -> dict[str, pa.DataType]:
        """The top-level columns."""
        schema = _footer(shard).schema
        return columns_of(schema.names, schema.types)

    def pieces(self, shard: Shard, rows: int) -> list[Piece]:
        """Whole row groups, as many as make up to `rows` rows; a larger one is cut into even row ranges."""
        bounds, at = [0], 0
        for count in _footer(shard).group_rows:
            if at > bounds[-1] and at - bounds[-1] + count > rows:
                bounds.append(at)
            parts = -(-count // rows)
            if parts > 1:
                bounds += [at + count * part // parts for part in range(1, parts + 1)]
            at += count
        if at > bounds[-1]:
            bounds.append(at)
        return [Piece(shard, start, stop, stop - start) for start, stop in pairwise(bounds)]

    def head(self, shard: Shard, rows: int) -> Piece:
        """The first rows."""
        count = min(rows, sum(_footer(shard).group_rows))
        return Piece(shard, 0, count, count)

    def read(self, piece: Piece, wanted: Wanted) -> Iterator[pa.Table | QuarantinedRow]:
        """See `Format.read`."""
        shard = piece.shard
        with reading(shard, _WHAT), _opened(shard) as file:
            names = wanted.present(shard, file.schema_arrow.names)
            position = piece.start
            lost = _lost_times(file, piece, names)
            for start, batch in _batches(file, piece, names):
                first, last = max(piece.start, start), min(piece.stop, start + batch.num_rows)
                if first >= last:
                    continue
                part = batch.slice(first - start, last - first)
                columns = {name: part.column(name) for name in names}
                table = pa.table({**columns, POSITION: pa.array(np.arange(first, last, dtype=np.int64))})
                position = last
                if lost:
                    yield from _bad_rows(table, shard, wanted, lost)
                    table = table.filter(pc.invert(pc.is_in(table[POSITION], value_set=pa.array(lost, pa.int64()))))
                yield table
            if position != piece.stop:
                raise DataError(
                    f"{shard.path!r} ends at row {position}, but its footer promises rows up to {piece.stop}: the file "
                    f"is damaged. Replace it or leave it out of the source"
                )


@contextmanager
def _opened(shard: Shard, unit: int96.Unit = "us") -> Iterator[pq.ParquetFile]:
    """The file, with INT96 timestamps in this unit."""
    local = storage.is_local(shard.path)
    # Buffered column by column: memory does not grow with the row group, and a store sees few, large requests.
    buffer_bytes = _BUFFER_BYTES if local else _REMOTE_BUFFER_BYTES
    with storage.open_arrow(shard.path) as source:
        yield pq.ParquetFile(source, buffer_size=buffer_bytes, pre_buffer=False, coerce_int96_timestamp_unit=unit)


@lru_cache(maxsize=1 << 16)
def _footer(shard: Shard) -> _Footer:
    with reading(shard, _WHAT), _opened(shard) as file:
        groups = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        # Nobody has read these rows yet. A plan is made of them all the same, and would fill the driver's memory.
        if min(groups, default=0) < 0 or sum(groups) > max(_BELIEVED_ROWS, _MOST_ROWS_PER_BYTE * shard.size_bytes):
            raise DataError(
                f"{shard.path!r} has {shard.size_bytes} bytes and a footer that promises {sum(groups)} rows, which "
                f"cannot be: the file is damaged. Replace it or leave it out of the source"
            )
        return _Footer(_shared(_with_intervals(file).remove_metadata()), tuple(groups))


def _with_intervals(file: pq.ParquetFile) -> pa.Schema:
    """The schema, with Parquet's intervals as such: to Arrow they are 12 bytes that say nothing."""
    schema = file.schema_arrow
    if "fixed_size_binary[12]" not in str(schema):
        return schema
    leaves = [file.schema.column(index) for index in range(len(file.schema))]
    paths = [leaf.path for leaf in leaves if leaf.converted_type == "INTERVAL"]
    for index, name in enumerate(schema.names):
        if any(path == name or path.startswith(f"{name}.") for path in paths):
            schema = schema.set(index, pa.field(name, pa.month_day_nano_interval()))
    return schema


@lru_cache(maxsize=256)
def _shared(schema: pa.Schema) -> pa.Schema:
    """One object for all the shards that have the same schema."""
    return schema


def _batches(file: pq.ParquetFile, piece: Piece, names: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of the row groups that a piece touches, each with its first row's number in the file."""
    metadata = file.metadata
    counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    starts = [*accumulate(counts, initial=0)]
    touched = [
        index
        for index, count in enumerate(counts)
        if count and starts[index] < piece.stop and starts[index] + count > piece.start
    ]
    if not touched:
        return
    rows = _batch_rows(metadata, touched, set(names))
    start = starts[touched[0]]
    for batch in file.iter_batches(batch_size=rows, row_groups=touched, columns=names, use_threads=False):
        count_progress()  # the piece may begin far behind the group's first row
        yield start, batch
        start += batch.num_rows
        if start >= piece.stop:
            return


def _lost_times(file: pq.ParquetFile, piece: Piece, names: list[str]) -> dict[int, str]:
    """Positions of a piece's rows with an INT96 timestamp that microseconds cannot hold, and what is wrong with each."""
    names = int96.columns(file, names)
    if not names:
        return {}
    lost: dict[int, str] = {}
    with _opened(piece.shard, "ns") as fine, _opened(piece.shard, "s") as coarse:
        readers = [_batches(each, piece, names) for each in (file, fine, coarse)]
        for (start, batch), (_, in_ns), (_, in_s) in zip(*readers, strict=True):
            for name in names:
                for row, text in int96.misread(batch[name], in_ns[name], in_s[name]).items():
                    if piece.start <= start + row < piece.stop:
                        lost[start + row] = f"{name!r}: {text}"
    return lost


def _bad_rows(table: pa.Table, shard: Shard, wanted: Wanted, lost: dict[int, str]) -> Iterator[QuarantinedRow]:
    ids = table[wanted.id] if wanted.id else None
    for row, position in enumerate(table[POSITION].to_pylist()):
        if position in lost:
            name = None if ids is None or ids[row].as_py() is None else str(ids[row].as_py())
            yield QuarantinedRow(shard.path, position, name, "wrong_type", lost[position])


def _batch_rows(metadata: pq.FileMetaData, groups: list[int], names: set[str]) -> int:
    """Rows of a batch of about `BATCH_BYTES`, from the sizes in the footer."""
    row_bytes = 1.0
    for index in groups:
        group = metadata.row_group(index)
        chunks = (group.column(number) for number in range(group.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in names)
        row_bytes = max(row_bytes, size / max(1, group.num_rows))
    return max(1, min(BATCH_ROWS, int(BATCH_BYTES / row_bytes)))
