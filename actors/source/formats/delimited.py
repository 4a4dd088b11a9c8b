"""CSV and TSV, plain or compressed: a header row, then rows in one of several dialects (`grammar`).

Every value is text, and an empty field is null: a guess at numbers would cost postcodes their zeros, and differ from
shard to shard. Only a pass over the file can tell which newlines are inside quotes, so planning reads it whole; the
byte offsets that it finds let readers go straight to their piece. Quotes count at the start of a field only. What cannot be
a row is a broken line: it ends with its line, and reading goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import DataError
from actors.schema import POSITION, Dialect, Piece, QuarantinedRow, Shard
from actors.source.formats.base import BATCH_ROWS, LARGEST_VALUE_BYTES, Wanted, reading, refused
from actors.source.formats.csv_shape import check_header, no_rows
from actors.source.formats.dialects import choose
from actors.source.formats.grammar import UNCLOSED, Grammar, grammar
from actors.source.formats.lines import BOM, END, blocks, cut, delimiter_of, too_large

_WHAT = "CSV"

Offsets = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Field = str | None


class _Record(NamedTuple):
    """One row as bytes.

    Attributes:
        end: Offset of the byte after it, its newline included.
        data: Without the last newline; empty where it is set aside, for `bad`.
    """

    start: int
    end: int
    data: bytes
    bad: QuarantinedRow | None = None


class Delimited:
    """See `Format`."""

    name = "csv"
    whole_file = False
    schemaless = False

    def columns(self, shard: Shard) -> dict[str, pa.DataType]:
        """The header's names, all of them text.

        Raises:
            DataError: the file holds something else, or rows none of which has the fields of the header.
        """
        return dict.fromkeys(_checked_header(shard), pa.string())

    def pieces(self, shard: Shard, rows: int) -> list[Piece]:
        """Byte ranges of `rows` rows each, found by a pass over the file."""
        header, begin = _header(shard)
        with reading(shard, _WHAT):
            return cut(shard, ((one.start, one.end) for one in _records(shard, begin, END, count=len(header))), rows)

    def head(self, shard: Shard, rows: int) -> Piece:
        """All behind the header: a reader stops when it has enough."""
        return Piece(shard, _header(shard)[1], END, rows, rows_exact=False)

    def read(self, piece: Piece, wanted: Wanted) -> Iterator[pa.Table | QuarantinedRow]:
        """See `Format.read`."""
        shard = piece.shard
        header = _header(shard)[0]
        names = wanted.present(shard, header)
        rows: list[list[Field]] = []
        at: list[int] = []
        size = 0
        with reading(shard, _WHAT):
            of = _grammar(shard)
            width, delimiter, quote = len(header), of.delimiter, of.quote or "\r"
            for record in _records(shard, piece.start, piece.stop, count=width):
                start, end, data, bad = record
                fields = None if of.backslash or bad else _plain_fields(data, quote, delimiter)
                if fields is None or len(fields) != width:
                    outcome = bad or _fields(shard, record, of, width)
                    if isinstance(outcome, QuarantinedRow):
                        yield outcome
                        continue
                    fields = outcome
                rows.append(fields)
                at.append(start)
                size += end - start
                if len(rows) >= BATCH_ROWS or size >= 4 << 20:
                    yield _table(header, names, rows, at)
                    rows, at, size = [], [], 0
            if rows:
                yield _table(header, names, rows, at)


def _dialect(shard: Shard) -> Dialect:
    """The dialect that was decided; one that is found out, where none was."""
    return shard.dialect or choose(shard).dialect


def _grammar(shard: Shard) -> Grammar:
    return grammar(_dialect(shard), delimiter_of(shard.path))


@lru_cache(maxsize=4096)
def _header(shard: Shard) -> tuple[tuple[str, ...], int]:
    """The column names, and the offset behind them: no names for a file without a row."""
    with reading(shard, _WHAT):
        of = _grammar(shard)
        for record in _records(shard, 0, END, count=None):
            fields = record.bad or _fields(shard, record, of, None)
            if isinstance(fields, QuarantinedRow):
                raise DataError(
                    f"the header of {shard.path!r} cannot be read: {fields.error}. Mend or leave out the file"
                )
            return tuple(name or "" for name in fields), record.end
        return (), 0


@lru_cache(maxsize=4096)
def _checked_header(shard: Shard) -> tuple[str, ...]:
    """The column names of a file that is CSV, and has a row or only a header."""
    with reading(shard, _WHAT):
        if (found := check_header(shard)) is not None:
            raise refused(shard, *found)
        header, begin = _header(shard)
        of = _grammar(shard)
        first: QuarantinedRow | None = None
        for record in _records(shard, begin, END, count=len(header)):
            fields = record.bad or _fields(shard, record, of, len(header))
            if not isinstance(fields, QuarantinedRow):
                return header
            first = first or fields
        if first is not None:
            raise refused(shard, *no_rows(header, first.error))
        return header


def _plain_fields(data: bytes, quote: str, delimiter: str) -> list[Field] | None:
    """The fields of a row that holds nothing but text and delimiters, as most rows; None for any other."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    # A text is searched, for bytes take ten times as long to say that one of them is not there.
    return None if quote in text or "\r" in text else cast(list[Field], text.split(delimiter))


def _fields(shard: Shard, record: _Record, of: Grammar, count: int | None) -> list[Field] | QuarantinedRow:
    """The fields of a row, or what is wrong with it."""
    try:
        text = record.data.decode()
    except UnicodeDecodeError as error:
        return QuarantinedRow(shard.path, record.start, None, "invalid_utf8", str(error))
    text = text.removesuffix("\r")
    quote = of.quote
    fields: list[Field] | str
    if not of.backslash and (quote is None or (quote not in text and "\r" not in text)):
        fields = cast(list[Field], text.split(of.delimiter))  # without a copy
    else:
        fields = of.fields(text)
    if isinstance(fields, str):
        return QuarantinedRow(shard.path, record.start, None, "broken_line", fields)
    if count is not None and len(fields) != count:
        error_text = f"{len(fields)} fields where the header has {count}"
        return QuarantinedRow(shard.path, record.start, None, "broken_line", error_text)
    return fields


def _table(header: Sequence[str], names: list[str], rows: list[list[Field]], at: list[int]) -> pa.Table:
    columns = {}
    for name in names:
        index = header.index(name)
        # Null by one comparison a column is faster than by one a value in Python.
        values = pa.array([row[index] for row in rows], pa.string())
        empty = pc.equal(pc.binary_length(values), 0)
        columns[name] = pc.if_else(empty, None, values) if pc.any(empty).as_py() else values
    return pa.table({**columns, POSITION: pa.array(at, pa.int64())})


# ------------------------------------------------------------------------------------------------- where the rows are


def _row_ends(data: bytes, of: Grammar, count: int | None) -> tuple[Offsets, Offsets] | None:
    """Where rows end in text that starts with a row, and which rows over several lines may be none (their numbers), if all
    of its quotes are where they should be; else None.

    If each opening quote follows a delimiter, a newline or a quote, and each closing one is followed by such, then a
    newline ends a row where the quotes before it are even in number.
    """
    if of.backslash and b"\\" in data and (of.quote is not None or b"\\\n" in data):
        return None
    raw = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(raw == ord("\n"))
    if of.quote is None or of.quote.encode() not in data:
        return newlines + 1, newlines[:0]
    quote, mark = ord(of.quote), ord(of.delimiter)
    quotes = np.flatnonzero(raw == quote)
    border = np.zeros(256, dtype=bool)
    border[[ord("\n"), mark]] = True
    border[quote] = of.dialect.escape != "none"
    opening, closing = quotes[0::2], quotes[1::2]
    if not border[raw[opening[opening > 0] - 1]].all():
        return None
    border[ord("\r")] = True
    if not border[raw[closing[closing < len(data) - 1] + 1]].all():
        return None
    outside = np.searchsorted(quotes, newlines) % 2 == 0
    ends = newlines[outside] + 1
    if count is None or outside.all() or not len(ends):
        return ends, newlines[:0]
    marks = np.flatnonzero(raw == mark)
    return ends, _doubtful(quotes, newlines[newlines < ends[-1]], marks[marks < ends[-1]], ends, count)


def _doubtful(quotes: Offsets, newlines: Offsets, marks: Offsets, ends: Offsets, count: int) -> Offsets:
    """The numbers of rows over several lines that have not `count` fields, or whose lines have as many delimiters each.

    All places are offsets in one block: of quotes, newlines and delimiters, and of the ends of its rows.
    """
    outside = marks[np.searchsorted(quotes, marks) % 2 == 0]
    fields = np.diff(np.searchsorted(outside, ends), prepend=0) + 1
    whole_lines = np.diff(np.searchsorted(marks, newlines), prepend=0) == count - 1
    last_lines = np.searchsorted(newlines, ends)  # the number of lines up to each row's end
    lines = np.diff(last_lines, prepend=0)
    like_rows = np.diff(np.concatenate([[0], np.cumsum(whole_lines)])[last_lines], prepend=0) == lines
    return np.flatnonzero((lines > 1) & ((fields != count) | like_rows))


def _records(
    shard: Shard, start: int, stop: int, *, count: int | None = None, largest: int = LARGEST_VALUE_BYTES
) -> Iterator[_Record]:
    """The rows whose first byte is in `start <= p < stop`, `start` being where a row starts. Blank lines are none.

    A quote that is never closed would swallow the rest of the file as one row. It is found out at the end (or when
    the row grows beyond `largest`): then its line alone is set aside, and reading goes on behind it. So it is where
    a row of several lines has not the fields of the header, or holds other rows.

    Args:
        shard: What to read.
        start: Offset of the first row.
        stop: No row that starts there or behind it is read.
        count: Fields of the header; None for the header itself.
        largest: Bytes of the largest row that is held.
    """
    of = _grammar(shard)
    held, origin = b"", start
    for block in blocks(shard, start, stop, longest=largest):
        if block.data is None:
            yield from _assemble(shard, held, origin, of, count, closed=True)[0]
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
            records, rest = _whole_rows(shard, held, origin, of, count)
            yield from records
            held, origin = held[rest:], origin + rest
            if len(held) <= largest:
                break
            first = held.index(b"\n") + 1
            yield _broken(shard, origin, origin + first, UNCLOSED)
            held, origin = held[first:], origin + first
    yield from _assemble(shard, held, origin, of, count, closed=True)[0]


def _whole_rows(shard: Shard, data: bytes, origin: int, of: Grammar, count: int | None) -> tuple[list[_Record], int]:
    """The rows that end in `data`, and how much of it they take."""
    found = _row_ends(data, of, count)
    if found is None:
        return _assemble(shard, data, origin, of, count, closed=False)
    ends, doubtful = found
    if count is not None:
        for index in doubtful.tolist():
            start = int(ends[index - 1]) if index else 0
            if isinstance(of.fields_over_lines(data[start : ends[index] - 1], count), str):
                return _assemble(shard, data, origin, of, count, closed=False)
    spans = pairwise([0, *ends.tolist()])
    rows = [_Record(origin + start, origin + end, data[start : end - 1]) for start, end in spans]
    return [row for row in rows if not _is_blank(row.data)], int(ends[-1]) if len(ends) else 0


def _is_blank(data: bytes) -> bool:
    return not data or (data[0] == ord("\r") and not data.strip(b"\r"))


def _broken(shard: Shard, start: int, end: int, error: str) -> _Record:
    return _Record(start, end, b"", QuarantinedRow(shard.path, start, None, "broken_line", error))


def _assemble(
    shard: Shard, data: bytes, origin: int, of: Grammar, count: int | None, *, closed: bool
) -> tuple[list[_Record], int]:
    """The rows that end in `data`, one by one, and how much of it they take.

    Args:
        shard: For the errors.
        data: Whole lines, from the start of a row.
        origin: Offset of the first one.
        of: How rows are written.
        count: Fields of the header; None for the header itself.
        closed: Nothing will follow, so a row that is not whole is broken.
    """
    records: list[_Record] = []
    at = 0
    while at < len(data):
        end = of.row_end(data, at, closed=closed)
        if end is None:
            return records, at
        line_end = data.find(b"\n", at) + 1 or len(data)
        error = end if isinstance(end, str) else None
        if isinstance(end, int):
            row = data[at:end].removesuffix(b"\n")
            if end > line_end and count is not None:
                fields = of.fields_over_lines(row, count)
                error = fields if isinstance(fields, str) else None
            if error is None:
                if not _is_blank(row):
                    records.append(_Record(origin + at, origin + end, row))
                at = end
                continue
        records.append(_broken(shard, origin + at, origin + line_end, str(error)))
        at = line_end
    return records, at
