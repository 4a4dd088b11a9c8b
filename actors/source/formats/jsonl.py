"""JSON Lines: one JSON object per line, plain or compressed (.gz, .zst).

Plain files are cut by bytes, without reading them; compressed ones at rows that a pass has counted. Lines are parsed
one by one (`json_values` has the rules for values), because Arrow's own JSON reader refuses a whole block for one
broken line and infers types per block. The trade-off: a core parses some hundred MB/s, fewer than with Arrow. A line that the
fast parser refuses is parsed by `json_text`, which accepts NaN and Infinity.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from actors import looks
from actors.schema import POSITION, Piece, QuarantinedRow, Shard
from actors.source.formats import json_values
from actors.source.formats.base import BATCH_ROWS, Wanted, reading, refused
from actors.source.formats.json_shape import no_lines, no_rows, no_texts
from actors.source.formats.json_text import exact_number, parse_line
from actors.source.formats.lines import END, Block, blocks, compression, cut, open_lines, too_large

_HEAD_ROWS = 1000
_HEAD_BYTES = 256 << 10
_FIRST_LINES, _LINE_BYTES = 8, 4096
_WHAT = "JSON Lines"


class JsonLines:
    """See `Format`."""

    name = "jsonl"
    whole_file = False
    schemaless = True

    def columns(self, shard: Shard) -> dict[str, pa.DataType]:
        """Return the keys of the first rows, with types that fit all those rows. Empty if the file has no content.

        Raises:
            DataError: The file has content, and no line is a valid row.
        """
        return dict(_checked_columns(shard))

    def pieces(self, shard: Shard, rows: int) -> list[Piece]:
        """Return byte ranges: of even size for a plain file, with rows estimated from its head; else exact."""
        if compression(shard.path):
            with reading(shard, _WHAT):
                return cut(shard, _spans(shard), rows)
        if shard.size_bytes == 0:
            return []
        row_bytes = max(1.0, _head(shard).row_bytes)
        count = max(1, round(shard.size_bytes / (rows * row_bytes)))
        bounds = [shard.size_bytes * index // count for index in range(count + 1)]
        return [
            Piece(shard, start, stop, max(1, round((stop - start) / row_bytes)), rows_exact=False)
            for start, stop in pairwise(bounds)
            if stop > start
        ]

    def head(self, shard: Shard, rows: int) -> Piece:
        """Return the whole file as one piece: the caller stops when it has enough rows."""
        return Piece(shard, 0, END, rows, rows_exact=False)

    def read(self, piece: Piece, wanted: Wanted) -> Iterator[pa.Table | QuarantinedRow]:
        """See `Format.read`."""
        with reading(piece.shard, _WHAT):
            for block in blocks(piece.shard, piece.start, piece.stop):
                if block.data is None:
                    yield too_large(piece.shard, block.start, block.size_bytes)
                else:
                    yield from _read_block(piece.shard, block, wanted)


def _parse(line: bytes) -> dict[str, Any] | tuple[str, str] | None:
    """Return a row; a reason and an error; or None for a blank line."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = parse_line(line)
        if row is None or type(row) is tuple:
            return row
    if type(row) is not dict:
        return "broken_line", f"a row is a JSON object, and this is {json_values.kind_name(row)}"
    return row


def _read_block(shard: Shard, block: Block, wanted: Wanted) -> Iterator[pa.Table | QuarantinedRow]:
    rows: list[dict[str, Any]] = []
    at: list[int] = []
    text = [*wanted.text, *filter(None, [wanted.image])]
    starts, lines = block.split()

    def line_at(start: int) -> bytes:
        return lines[bisect_left(starts, start)]

    for start, line in zip(starts, lines, strict=False):
        row = _parse(line)
        if row is None:
            continue
        if isinstance(row, tuple):
            yield QuarantinedRow(shard.path, start, None, *row)
            continue
        if text and not any(name in row for name in text):
            error = f"the row has none of the columns {list(text)} to embed; it has {list(row)[:20]}"
            yield QuarantinedRow(shard.path, start, _id(row, wanted), "missing_text", error)
            continue
        rows.append(row)
        at.append(start)
        if len(rows) == BATCH_ROWS:
            yield from _table(shard, rows, at, line_at, wanted)
            rows, at = [], []
    if rows:
        yield from _table(shard, rows, at, line_at, wanted)


def _id(row: dict[str, Any], wanted: Wanted) -> str | None:
    value = row.get(wanted.id) if wanted.id else None
    known = isinstance(value, (str, int, float)) and json_values.kind_of(value) is not json_values.NotANumber
    return str(value) if known else None


def _table(
    shard: Shard, rows: list[dict[str, Any]], at: list[int], line_at: Callable[[int], bytes], wanted: Wanted
) -> Iterator[pa.Table | QuarantinedRow]:
    """Yield the rows as a table, and as quarantined rows those with a value that does not fit its column."""
    columns: dict[str, pa.Array] = {}
    errors: dict[int, str] = {}
    for name, kind in wanted.types.items():
        rule: json_values.Rule = "text" if name in wanted.strict else "id" if name == wanted.id else "any"
        values = [row.get(name) for row in rows]
        columns[name], invalid = json_values.column(values, kind, rule)
        if rule == "any" and json_values.has_rounded(columns[name], values):
            values = [exact_number(line, name, value) for line, value in zip(map(line_at, at), values, strict=True)]
            columns[name], invalid = json_values.column(values, kind, rule)
        for index, error in invalid.items():
            errors.setdefault(index, f"{name!r} {error}")
    columns[POSITION] = pa.array(at, pa.int64())
    table = pa.table(columns)
    if errors:
        for index, error in sorted(errors.items()):
            yield QuarantinedRow(shard.path, at[index], _id(rows[index], wanted), "wrong_type", error)
        table = table.filter(pa.array([index not in errors for index in range(len(rows))]))
    if table.num_rows:
        yield table


def _spans(shard: Shard) -> Iterator[tuple[int, int]]:
    """Yield the start and end offsets of each row of a file."""
    for block in blocks(shard, 0, END):
        if block.data is None:
            yield block.start, block.start + block.size_bytes
            continue
        starts, lines = block.split()
        for index, line in enumerate(lines):
            if line.strip():
                yield starts[index], starts[index + 1]


class _Head(NamedTuple):
    """Facts about the first rows of a file.

    Attributes:
        columns: Names with types.
        row_bytes: Mean size of a row with its newline.
        lines: The first lines that are not blank, to recognize other content.
        has_row: Whether one of the lines is a valid row.
        whole: Whether the file has no other lines.
    """

    columns: tuple[tuple[str, pa.DataType], ...]
    row_bytes: float
    lines: tuple[bytes, ...]
    has_row: bool
    whole: bool


@lru_cache(maxsize=4096)
def _head(shard: Shard) -> _Head:
    seen: dict[str, set[type]] = {}
    count, size = 0, 0
    first: list[bytes] = []
    has_row = False
    with reading(shard, _WHAT):
        for block in blocks(shard, 0, _HEAD_BYTES):
            starts, lines = block.split()
            for index, line in enumerate(lines[: _HEAD_ROWS - count]):
                size = starts[index + 1]
                row = _parse(line)
                count += row is not None
                if row is not None and len(first) < _FIRST_LINES:
                    first.append(line[:_LINE_BYTES])
                if isinstance(row, dict):
                    has_row = True
                    for name, value in row.items():
                        exact = exact_number(line, name, value) if type(value) is float else value
                        seen.setdefault(name, set()).add(json_values.kind_of(exact))
            if block.data is None:
                size = block.start + block.size_bytes
                count += 1
            if count >= _HEAD_ROWS:
                break
    columns = tuple((name, json_values.inferred(kinds)) for name, kinds in seen.items())
    whole = count < _HEAD_ROWS and (size < _HEAD_BYTES or (not compression(shard.path) and size >= shard.size_bytes))
    return _Head(columns, size / max(1, count), tuple(first), has_row, whole)


def refuse_without_text(shard: Shard, text: Sequence[str]) -> None:
    """Raise DataError if no row of a short file has a text column.

    Otherwise one object around a list of documents would count as one row without a text.
    """
    head = _head(shard)
    names = [name for name, _ in head.columns]
    if head.has_row and head.whole and not any(name in names for name in text):
        raise refused(shard, *no_texts(names, head.lines, text))


@lru_cache(maxsize=4096)
def _checked_columns(shard: Shard) -> tuple[tuple[str, pa.DataType], ...]:
    """Return the columns of a file with valid rows or without content.

    Raises:
        DataError: The file has other content.
    """
    head = _head(shard)
    if (content := no_lines(head.lines)) is not None:
        raise refused(shard, *content)
    if not head.has_row:
        error = _first_error(shard)
        if error is not None:
            raise refused(shard, *no_rows(head.lines, _first_bytes(shard), error))
    return head.columns


def _first_error(shard: Shard) -> str | None:
    """Return the error of the first line of a file without any valid row; None if a row is valid or all are blank."""
    first: str | None = None
    with reading(shard, _WHAT):
        for block in blocks(shard, 0, END):
            if block.data is None:
                first = first or too_large(shard, block.start, block.size_bytes).error
                continue
            for line in block.split()[1]:
                row = _parse(line)
                if isinstance(row, dict):
                    return None
                if row is not None:
                    first = first or row[1]
    return first


def _first_bytes(shard: Shard) -> bytes:
    """Return the first bytes of the text."""
    with reading(shard, _WHAT), open_lines(shard) as file:
        data: bytes = file.read(looks.HEAD_BYTES)
    return data
