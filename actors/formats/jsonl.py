"""JSON Lines: one JSON object a line, plain or compressed (.gz, .zst).

Plain files are cut by bytes, without reading them; compressed ones at rows that a pass has counted. Lines are parsed
one by one (`json_values` has the rules for values), because Arrow's own JSON reader refuses a whole block for one
broken line and guesses types per block. The trade-off: a core parses some hundred MB/s instead of some more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import orjson
import pyarrow as pa

from actors.formats import json_values
from actors.formats.base import BATCH_ROWS, Wanted, reading, sample
from actors.formats.lines import END, Block, blocks, compression, cut, too_large
from actors.schema import POSITION, BadRow, Piece, Shard

_HEAD_ROWS = 1000
_HEAD_BYTES = 256 << 10
_WHAT = "JSON Lines"


class JsonLines:
    """See `Format`."""

    name = "jsonl"
    whole_file = False
    schemaless = True

    def columns(self, shard: Shard) -> dict[str, pa.DataType]:
        """Keys of the first rows, with types that all of those rows fit. Empty where no row could be parsed."""
        return dict(_head(shard)[0])

    def pieces(self, shard: Shard, rows: int) -> list[Piece]:
        """Byte ranges of even size for a plain file, rows being an estimate from its head; else exact."""
        if compression(shard.path):
            with reading(shard, _WHAT):
                return cut(shard, _spans(shard), rows)
        if shard.size_bytes == 0:
            return []
        row_bytes = max(1.0, _head(shard)[1])
        count = max(1, round(shard.size_bytes / (rows * row_bytes)))
        bounds = [shard.size_bytes * index // count for index in range(count + 1)]
        return [
            Piece(shard, start, stop, max(1, round((stop - start) / row_bytes)), rows_exact=False)
            for start, stop in pairwise(bounds)
            if stop > start
        ]

    def head(self, shard: Shard, rows: int) -> Piece:
        """The whole file: a reader stops when it has enough."""
        return Piece(shard, 0, END, rows, rows_exact=False)

    def read(self, piece: Piece, wanted: Wanted) -> Iterator[pa.Table | BadRow]:
        """See `Format.read`."""
        with reading(piece.shard, _WHAT):
            for block in blocks(piece.shard, piece.start, piece.stop):
                if block.data is None:
                    yield too_large(piece.shard, block.start, block.size_bytes)
                else:
                    yield from _read_block(piece.shard, block, wanted)

    def sample(self, shard: Shard, columns: Sequence[str], rows: int) -> pa.Table:
        """See `Format.sample`."""
        return sample(self, shard, columns, rows)


def _parse(line: bytes) -> dict[str, Any] | tuple[str, str] | None:
    """A row; or a reason and an error; or None for a blank line."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if not line.strip():
            return None
        try:
            line.decode()
        except UnicodeDecodeError as not_text:
            return "invalid_utf8", str(not_text)
        return "broken_line", str(error)
    if type(row) is not dict:
        return "broken_line", f"a row is a JSON object, and this is a {type(row).__name__}"
    return row


def _read_block(shard: Shard, block: Block, wanted: Wanted) -> Iterator[pa.Table | BadRow]:
    rows: list[dict[str, Any]] = []
    at: list[int] = []
    text = wanted.text
    starts, lines = block.split()
    for start, line in zip(starts, lines, strict=False):
        row = _parse(line)
        if row is None:
            continue
        if isinstance(row, tuple):
            yield BadRow(shard.path, start, None, *row)
            continue
        if text and not any(name in row for name in text):
            error = f"the row has none of the text columns {list(text)}; it has {list(row)[:20]}"
            yield BadRow(shard.path, start, _id(row, wanted), "missing_text", error)
            continue
        rows.append(row)
        at.append(start)
        if len(rows) == BATCH_ROWS:
            yield from _table(shard, rows, at, wanted)
            rows, at = [], []
    if rows:
        yield from _table(shard, rows, at, wanted)


def _id(row: dict[str, Any], wanted: Wanted) -> str | None:
    value = row.get(wanted.id) if wanted.id else None
    return str(value) if isinstance(value, (str, int, float)) else None


def _table(shard: Shard, rows: list[dict[str, Any]], at: list[int], wanted: Wanted) -> Iterator[pa.Table | BadRow]:
    """The rows as a table, less those with a value that does not fit its column."""
    columns: dict[str, pa.Array] = {}
    wrong: dict[int, str] = {}
    for name, kind in wanted.types.items():
        rule: json_values.Rule = "text" if name in wanted.strict else "id" if name == wanted.id else "any"
        columns[name], misfits = json_values.column([row.get(name) for row in rows], kind, rule)
        for index, error in misfits.items():
            wrong.setdefault(index, f"{name!r} {error}")
    columns[POSITION] = pa.array(at, pa.int64())
    table = pa.table(columns)
    if wrong:
        for index, error in sorted(wrong.items()):
            yield BadRow(shard.path, at[index], _id(rows[index], wanted), "wrong_type", error)
        table = table.filter(pa.array([index not in wrong for index in range(len(rows))]))
    if table.num_rows:
        yield table


def _spans(shard: Shard) -> Iterator[tuple[int, int]]:
    """Where each row of a file starts and ends."""
    for block in blocks(shard, 0, END):
        if block.data is None:
            yield block.start, block.start + block.size_bytes
            continue
        starts, lines = block.split()
        for index, line in enumerate(lines):
            if line.strip():
                yield starts[index], starts[index + 1]


@lru_cache(maxsize=4096)
def _head(shard: Shard) -> tuple[tuple[tuple[str, pa.DataType], ...], float]:
    """What the first rows tell: columns with types, and bytes a row (newline counted)."""
    seen: dict[str, set[type]] = {}
    count, size = 0, 0
    with reading(shard, _WHAT):
        for block in blocks(shard, 0, _HEAD_BYTES):
            starts, lines = block.split()
            for index, line in enumerate(lines[: _HEAD_ROWS - count]):
                size = starts[index + 1]
                row = _parse(line)
                count += row is not None
                if isinstance(row, dict):
                    for name, value in row.items():
                        seen.setdefault(name, set()).add(type(value))
            if block.data is None:
                size = block.start + block.size_bytes
                count += 1
            if count >= _HEAD_ROWS:
                break
    return tuple((name, json_values.inferred(kinds)) for name, kinds in seen.items()), size / max(1, count)
