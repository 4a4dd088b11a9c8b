"""CSV and TSV, plain or compressed: a header row, then rows in one of several dialects (`grammar`).

Every value is text, and an empty field is null: number detection would drop leading zeros of postcodes and differ between
shards. Only a pass over the file can find which newlines are inside quotes, so planning reads the whole file; with the
byte offsets from that pass, readers seek directly to their piece. Quotes count only at the start of a field. A line that
is no valid row is a broken line, and reading continues with the next line.
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
    """Row as bytes.

    Attributes:
        end: Offset of the byte after its newline.
        data: The row without its last newline; empty if the row is quarantined.
        bad: The quarantined row, or None.
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
        """Return the names in the header, all with type text.

        Raises:
            DataError: The file has other content, or no row with as many fields as the header.
        """
        return dict.fromkeys(_checked_header(shard), pa.string())

    def pieces(self, shard: Shard, rows: int) -> list[Piece]:
        """Return byte ranges of `rows` rows each, found by a pass over the file."""
        header, start = _header(shard)
        with reading(shard, _WHAT):
            records = _records(shard, start, END, count=len(header))
            return cut(shard, ((record.start, record.end) for record in records), rows)

    def head(self, shard: Shard, rows: int) -> Piece:
        """Return a piece of everything after the header: the caller stops when it has enough rows."""
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
    """Return the shard's planned dialect, or detect it if there is none."""
    return shard.dialect or choose(shard).dialect


def _grammar(shard: Shard) -> Grammar:
    return grammar(_dialect(shard), delimiter_of(shard.path))


@lru_cache(maxsize=4096)
def _header(shard: Shard) -> tuple[tuple[str, ...], int]:
    """Return the column names and the offset after the header; no names for a file without a row."""
    with reading(shard, _WHAT):
        of = _grammar(shard)
        for record in _records(shard, 0, END, count=None):
            fields = record.bad or _fields(shard, record, of, None)
            if isinstance(fields, QuarantinedRow):
                raise DataError(
                    f"the header of {shard.path!r} cannot be read: {fields.error}. Fix or leave out the file"
                )
            return tuple(name or "" for name in fields), record.end
        return (), 0


@lru_cache(maxsize=4096)
def _checked_header(shard: Shard) -> tuple[str, ...]:
    """Return the column names of a file that is CSV and has a valid row or only a header."""
    with reading(shard, _WHAT):
        if (mismatch := check_header(shard)) is not None:
            raise refused(shard, *mismatch)
        header, start = _header(shard)
        of = _grammar(shard)
        first_broken: QuarantinedRow | None = None
        for record in _records(shard, start, END, count=len(header)):
            fields = record.bad or _fields(shard, record, of, len(header))
            if not isinstance(fields, QuarantinedRow):
                return header
            first_broken = first_broken or fields
        if first_broken is not None:
            raise refused(shard, *no_rows(header, first_broken.error))
        return header


def _plain_fields(data: bytes, quote: str, delimiter: str) -> list[Field] | None:
    """Return the fields of a row without quotes and carriage returns, as most rows are; None for any other row."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    # Search in text: in bytes, the search for an absent character takes ten times as long.
    return None if quote in text or "\r" in text else cast(list[Field], text.split(delimiter))


def _fields(shard: Shard, record: _Record, of: Grammar, count: int | None) -> list[Field] | QuarantinedRow:
    """Return the fields of a row, or the quarantined row."""
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
        # One comparison per column is faster than one per value in Python.
        values = pa.array([row[index] for row in rows], pa.string())
        empty = pc.equal(pc.binary_length(values), 0)
        columns[name] = pc.if_else(empty, None, values) if pc.any(empty).as_py() else values
    return pa.table({**columns, POSITION: pa.array(at, pa.int64())})


# ---------------------------------------------------------------------------------------------------- row boundaries


def _row_ends(data: bytes, of: Grammar, count: int | None) -> tuple[Offsets, Offsets] | None:
    """Return the ends of rows in text that starts with a row, and the indices of multi-line rows that may be invalid.

    Returns None if a quote is in an unexpected place. If each opening quote follows a delimiter, a newline or a quote, and
    each closing quote precedes one, then a newline ends a row exactly if the number of quotes before it is even.
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
    """Return indices of multi-line rows that do not have `count` fields, or whose lines each have that many delimiters.

    The arguments are offsets in one block: of quotes, newlines, delimiters, and ends of rows.
    """
    outside = marks[np.searchsorted(quotes, marks) % 2 == 0]
    fields = np.diff(np.searchsorted(outside, ends), prepend=0) + 1
    whole_lines = np.diff(np.searchsorted(marks, newlines), prepend=0) == count - 1
    last_lines = np.searchsorted(newlines, ends)  # number of lines up to each row's end
    lines = np.diff(last_lines, prepend=0)
    like_rows = np.diff(np.concatenate([[0], np.cumsum(whole_lines)])[last_lines], prepend=0) == lines
    return np.flatnonzero((lines > 1) & ((fields != count) | like_rows))


def _records(
    shard: Shard, start: int, stop: int, *, count: int | None = None, largest: int = LARGEST_VALUE_BYTES
) -> Iterator[_Record]:
    """Yield the rows whose first byte is in `start <= p < stop`. Blank lines are no rows.

    A quote that is never closed would make one row of the rest of the file. This is detected at the end of the file, or
    when the row exceeds `largest`: then only its first line is quarantined, and reading continues with the next line. The
    same applies to a multi-line row that does not have the fields of the header, or that contains other rows.

    Args:
        shard: The shard to read.
        start: Offset of the first row, which starts there.
        stop: Offset at which reading stops: rows that start there or later are not read.
        count: Number of fields in the header; None for the header itself.
        largest: Size of the largest row that is kept in memory, in bytes.
    """
    of = _grammar(shard)
    pending, origin = b"", start
    for block in blocks(shard, start, stop, longest=largest):
        if block.data is None:
            yield from _assemble(shard, pending, origin, of, count, closed=True)[0]
            end = block.start + block.size_bytes
            yield _Record(block.start, end, b"", too_large(shard, block.start, block.size_bytes))
            pending, origin = b"", end
            continue
        if block.start == 0:
            # A byte order mark before a quote would move the quote inside the field.
            pending = block.data.removeprefix(BOM)
            origin = len(block.data) - len(pending)
        else:
            origin = origin if pending else block.start
            pending += block.data
        while True:
            records, used = _whole_rows(shard, pending, origin, of, count)
            yield from records
            pending, origin = pending[used:], origin + used
            if len(pending) <= largest:
                break
            line_end = pending.index(b"\n") + 1
            yield _broken(shard, origin, origin + line_end, UNCLOSED)
            pending, origin = pending[line_end:], origin + line_end
    yield from _assemble(shard, pending, origin, of, count, closed=True)[0]


def _whole_rows(shard: Shard, data: bytes, origin: int, of: Grammar, count: int | None) -> tuple[list[_Record], int]:
    """Return the rows that end in `data`, and the number of bytes that they take."""
    row_ends = _row_ends(data, of, count)
    if row_ends is None:
        return _assemble(shard, data, origin, of, count, closed=False)
    ends, doubtful = row_ends
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
    """Return the rows that end in `data`, parsed one by one, and the number of bytes that they take.

    Args:
        shard: For the errors.
        data: Whole lines, from the start of a row.
        origin: Offset of the first line.
        of: Grammar of the rows.
        count: Number of fields in the header; None for the header itself.
        closed: Whether `data` ends with the file, so that an incomplete row is broken.
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
