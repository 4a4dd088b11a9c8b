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
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from actors.errors import DataError
from actors.formats.base import BATCH_ROWS, LARGEST_VALUE_BYTES, Wanted, reading, sample
from actors.formats.lines import END, blocks, cut, too_large, without_compression
from actors.schema import POSITION, BadRow, Piece, Shard

_WHAT = "CSV"
_UNCLOSED = "a quote is opened in this line and never closed"

# The module's own limit is 128 KiB a field; ours is on the whole row. The setting is the process's.
csv.field_size_limit(LARGEST_VALUE_BYTES)


@dataclass(frozen=True, slots=True)
class _Record:
    """One row as bytes.

    Attributes:
        end: Offset of the byte after it, its newline included.
        data: Without the last newline; None where it is set aside, for `bad`.
    """

    start: int
    end: int
    data: bytes | None
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
        text = (record.data or b"").decode()
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


def _records(shard: Shard, start: int, stop: int, *, largest: int = LARGEST_VALUE_BYTES) -> Iterator[_Record]:
    """The rows whose first byte is in `start <= p < stop`, `start` being where a row starts. Blank lines are none.

    A quote that is never closed would swallow the rest of the file as one row. It is found out at the end (or when
    the row grows beyond `largest`): then its line alone is set aside, and reading goes on behind it.
    """
    delimiter = _delimiter(shard).encode()
    held: list[tuple[int, int, bytes]] = []
    for block in blocks(shard, start, stop, longest=largest):
        if block.data is None:
            records, _ = _assemble(shard, held, delimiter, closed=True)
            yield from records
            held = []
            yield _Record(
                block.start, block.start + block.size_bytes, None, too_large(shard, block.start, block.size_bytes)
            )
            continue
        starts, lines = block.split()
        fresh = [*zip(starts, starts[1:], lines, strict=False)]
        if not held and b'"' not in block.data:
            yield from (_Record(*line) for line in fresh if line[2].strip(b"\r"))
            continue
        records, held = _assemble(shard, [*held, *fresh], delimiter, closed=False)
        yield from records
        while held and held[-1][1] - held[0][0] > largest:
            yield _broken(shard, held[0])
            records, held = _assemble(shard, held[1:], delimiter, closed=False)
            yield from records
    records, _ = _assemble(shard, held, delimiter, closed=True)
    yield from records


def _broken(shard: Shard, line: tuple[int, int, bytes]) -> _Record:
    return _Record(line[0], line[1], None, BadRow(shard.path, line[0], None, "broken_line", _UNCLOSED))


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
            if data.strip(b"\r"):
                records.append(_Record(lines[first][0], lines[after - 1][1], data))
            first = after
        elif closed:
            records.append(_broken(shard, lines[first]))
            first += 1
        else:
            return records, lines[first:]
    return records, []
