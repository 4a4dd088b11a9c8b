"""CSV and TSV, plain or compressed: a header row, quoted fields with newlines and doubled quotes.

Every value is text, and an empty field is null: a guess at numbers would cost postcodes their zeros, and differ from
shard to shard. Only a pass over the file can tell which newlines are inside quotes, so planning reads it whole; the
byte offsets that it finds let readers go straight to their piece. Quotes are read as Python's csv module reads them: they
count at the start of a field only.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from actors.errors import DataError
from actors.formats.base import BATCH_ROWS, LARGEST_VALUE_BYTES, Wanted, reading, sample
from actors.formats.lines import BOM, END, Block, blocks, cut, too_large, without_compression
from actors.schema import POSITION, BadRow, Piece, Shard

_WHAT = "CSV"
_UNCLOSED = "a quote is opened in this line and never closed"

Offsets = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

# The module's own limit is 128 KiB a field; ours is on the whole row. The setting is the process's.
csv.field_size_limit(LARGEST_VALUE_BYTES)


class _Record(NamedTuple):
    """One row as bytes.

    Attributes:
        end: Offset of the byte after it, its newline included.
        data: Without the last newline; empty where it is set aside, for `bad`.
    """

    start: int
    end: int
    data: bytes
    bad: BadRow | None = None


class Delimited:
    """See `Format`."""

    name = "csv"
    whole_file = False
    schemaless = False

    def columns(self, shard: Shard) -> dict[str, pa.DataType]:
        """The header's names, all of them text."""
        return dict.fromkeys(_header(shard)[0], pa.string())

    def pieces(self, shard: Shard, rows: int) -> list[Piece]:
        """Byte ranges of `rows` rows each, found by a pass over the file."""
        begin = _header(shard)[1]
        with reading(shard, _WHAT):
            return cut(shard, ((one.start, one.end) for one in _records(shard, begin, END)), rows)

    def head(self, shard: Shard, rows: int) -> Piece:
        """All behind the header: a reader stops when it has enough."""
        return Piece(shard, _header(shard)[1], END, rows, rows_exact=False)

    def read(self, piece: Piece, wanted: Wanted) -> Iterator[pa.Table | BadRow]:
        """See `Format.read`."""
        shard = piece.shard
        header = _header(shard)[0]
        names = wanted.present(shard, header)
        delimiter = _delimiter(shard)
        rows: list[list[str]] = []
        at: list[int] = []
        size = 0
        with reading(shard, _WHAT):
            for record in _records(shard, piece.start, piece.stop):
                fields = record.bad or _fields(shard, record, delimiter, len(header))
                if isinstance(fields, BadRow):
                    yield fields
                    continue
                rows.append(fields)
                at.append(record.start)
                size += record.end - record.start
                if len(rows) >= BATCH_ROWS or size >= 4 << 20:
                    yield _table(header, names, rows, at)
                    rows, at, size = [], [], 0
            if rows:
                yield _table(header, names, rows, at)

    def sample(self, shard: Shard, columns: Sequence[str], rows: int) -> pa.Table:
        """See `Format.sample`."""
        return sample(self, shard, columns, rows)


def _delimiter(shard: Shard) -> str:
    return "\t" if without_compression(shard.path).endswith((".tsv", ".tab")) else ","


@lru_cache(maxsize=4096)
def _header(shard: Shard) -> tuple[tuple[str, ...], int]:
    """The column names, and the offset behind them: no names for a file without a row."""
    with reading(shard, _WHAT):
        for record in _records(shard, 0, END):
            fields = record.bad or _fields(shard, record, _delimiter(shard), None)
            if isinstance(fields, BadRow):
                raise DataError(
                    f"the header of {shard.path!r} cannot be read: {fields.error}. Mend or leave out the file"
                )
            return tuple(fields), record.end
        return (), 0


def _fields(shard: Shard, record: _Record, delimiter: str, count: int | None) -> list[str] | BadRow:
    """The fields of a row, or what is wrong with it."""
    try:
        text = record.data.decode()
    except UnicodeDecodeError as error:
        return BadRow(shard.path, record.start, None, "invalid_utf8", str(error))
    text = text.removesuffix("\r")
    if '"' not in text and "\r" not in text:
        fields = text.split(delimiter)
    else:
        try:
            fields = next(csv.reader((text,), delimiter=delimiter))
        except csv.Error as error:
            return BadRow(shard.path, record.start, None, "broken_line", str(error))
    if count is not None and len(fields) != count:
        error_text = f"{len(fields)} fields where the header has {count}"
        return BadRow(shard.path, record.start, None, "broken_line", error_text)
    return fields


def _table(header: Sequence[str], names: list[str], rows: list[list[str]], at: list[int]) -> pa.Table:
    columns = {
        name: pa.array([row[index] or None for row in rows], pa.string())
        for name, index in ((name, header.index(name)) for name in names)
    }
    return pa.table({**columns, POSITION: pa.array(at, pa.int64())})


# ------------------------------------------------------------------------------------------------- where the rows are


@lru_cache(maxsize=4)
def _patterns(delimiter: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Whether a line that starts outside quotes ends inside them; and the rest of a quoted field.

    Possessive throughout, so that no line takes more than one look at each byte.
    """
    quoted = rb'"(?:[^"]++|"")*+"[^%s]*+' % delimiter
    plain = rb'[^"%s][^%s]*+' % (delimiter, delimiter)
    opened = rb'(?:(?:%s|%s|)%s)*+"(?:[^"]++|"")*+\Z' % (quoted, plain, delimiter)
    closing = rb'(?:[^"]++|"")*+"[^%s]*+(?:%s|\Z)' % (delimiter, delimiter)
    return re.compile(opened), re.compile(closing)


def _ends_open(line: bytes, delimiter: bytes, *, is_open: bool) -> bool:
    """Whether the quote state at the end of a line is open."""
    if b'"' not in line:
        return is_open
    opened, closing = _patterns(delimiter)
    if not is_open:
        return opened.match(line) is not None
    match = closing.match(line)
    return match is None or opened.match(line, match.end()) is not None


def _row_ends(data: bytes, delimiter: bytes) -> Offsets | None:
    """Where rows end in text that starts with a row, if all of its quotes are where they should be; else None.

    If each opening quote follows a delimiter, a newline or a quote, and each closing one is followed by such, then a
    newline ends a row where the quotes before it are even in number.
    """
    raw = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(raw == ord("\n"))
    if b'"' in data:
        quotes = np.flatnonzero(raw == ord('"'))
        border = np.zeros(256, dtype=bool)
        border[[ord("\n"), ord('"'), delimiter[0]]] = True
        opening, closing = quotes[0::2], quotes[1::2]
        if not border[raw[opening[opening > 0] - 1]].all():
            return None
        border[ord("\r")] = True
        if not border[raw[closing[closing < len(data) - 1] + 1]].all():
            return None
        newlines = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
    return newlines + 1


def _records(shard: Shard, start: int, stop: int, *, largest: int = LARGEST_VALUE_BYTES) -> Iterator[_Record]:
    """The rows whose first byte is in `start <= p < stop`, `start` being where a row starts. Blank lines are none.

    A quote that is never closed would swallow the rest of the file as one row. It is found out at the end (or when
    the row grows beyond `largest`): then its line alone is set aside, and reading goes on behind it.
    """
    delimiter = _delimiter(shard).encode()
    held, origin = b"", start
    for block in blocks(shard, start, stop, longest=largest):
        if block.data is None:
            yield from _assemble(shard, _lines(held, origin), delimiter, closed=True)[0]
            end = block.start + block.size_bytes
            yield _Record(block.start, end, b"", too_large(shard, block.start, block.size_bytes))
            held, origin = b"", end
            continue
        if block.start == 0:
            # Before a quote, a byte order mark would make it one inside of a field.
            held = block.data.removeprefix(BOM)
            origin = len(block.data) - len(held)
        else:
            origin = origin if held else block.start
            held += block.data
        while True:
            records, rest = _whole_rows(shard, held, origin, delimiter)
            yield from records
            held, origin = held[rest:], origin + rest
            if len(held) <= largest:
                break
            first = held.index(b"\n") + 1
            yield _broken(shard, (origin, origin + first, b""))
            held, origin = held[first:], origin + first
    yield from _assemble(shard, _lines(held, origin), delimiter, closed=True)[0]


def _whole_rows(shard: Shard, data: bytes, origin: int, delimiter: bytes) -> tuple[list[_Record], int]:
    """The rows that end in `data`, and how much of it they take."""
    ends = _row_ends(data, delimiter)
    if ends is None:
        records, rest = _assemble(shard, _lines(data, origin), delimiter, closed=False)
        return records, rest[0][0] - origin if rest else len(data)
    spans = pairwise([0, *ends.tolist()])
    rows = [_Record(origin + start, origin + end, data[start : end - 1]) for start, end in spans]
    return [row for row in rows if not _is_blank(row.data)], int(ends[-1]) if len(ends) else 0


def _is_blank(data: bytes) -> bool:
    return not data or (data[0] == ord("\r") and not data.strip(b"\r"))


def _lines(data: bytes, origin: int) -> list[tuple[int, int, bytes]]:
    """Start, end and bytes of each line, its newline counted but left out."""
    block = Block(origin, data, len(data))
    starts, lines = block.split()
    return [*zip(starts, starts[1:], lines, strict=False)]


def _broken(shard: Shard, line: tuple[int, int, bytes]) -> _Record:
    return _Record(line[0], line[1], b"", BadRow(shard.path, line[0], None, "broken_line", _UNCLOSED))


def _assemble(
    shard: Shard, lines: list[tuple[int, int, bytes]], delimiter: bytes, *, closed: bool
) -> tuple[list[_Record], list[tuple[int, int, bytes]]]:
    """Rows from lines of (start, end, bytes), and the lines of a last row that is not whole yet.

    Args:
        shard: For the errors.
        lines: In order, from the start of a row.
        delimiter: One byte.
        closed: No line will follow, so a row that is not whole is broken.
    """
    records: list[_Record] = []
    first = 0
    while first < len(lines):
        after, is_open = first, True
        while is_open and after < len(lines):
            is_open = _ends_open(lines[after][2], delimiter, is_open=after > first)
            after += 1
        if not is_open:
            data = lines[first][2] if after == first + 1 else b"\n".join(line for _, _, line in lines[first:after])
            if not _is_blank(data):
                records.append(_Record(lines[first][0], lines[after - 1][1], data))
            first = after
        elif closed:
            records.append(_broken(shard, lines[first]))
            first += 1
        else:
            return records, lines[first:]
    return records, []
