"""Grammar of delimited text for each dialect: finds the end of a row and its fields.

Used by CSV. Four families: quotes doubled inside quotes (RFC 4180), quotes escaped by a backslash inside quotes (Spark),
backslash escapes without quotes (text exports of MySQL and PostgreSQL), and neither (IANA TSV). An invalid row is
distinguished from a row whose end is not in the data yet. All patterns are possessive, so each byte is matched once.
"""

from __future__ import annotations

import csv
import re
from functools import lru_cache
from typing import cast

from actors.schema import Dialect
from actors.source.formats.base import LARGEST_VALUE_BYTES

UNCLOSED = "a quote is opened in this line and never closed"
_GARBAGE = "a quoted field that starts in this line is followed by other text"
_SWALLOWED = "a quote is opened in this line, and the next rows would be part of its field"
_RETURN = "a carriage return inside an unquoted field"

# Characters after a backslash in text exports of MySQL and PostgreSQL; any other character means itself.
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0", "Z": "\x1a"}
_NUMBER = re.compile(rb"\d+")
_HEX = re.compile(rb"[0-9a-f]*\d[0-9a-f]*", re.IGNORECASE)  # a part of a UUID, or a number in hex
# This many lines that each look like a row count as rows, even if no column counts up.
_MANY_LINES = 10

# The module limits a field to 128 KiB; here the whole row is limited. The setting is process-wide.
csv.field_size_limit(LARGEST_VALUE_BYTES)


class Grammar:
    """Grammar of one dialect with one delimiter. Created by `grammar`."""

    def __init__(self, dialect: Dialect, delimiter: str) -> None:
        self.dialect = dialect
        self.delimiter = delimiter
        self.quote = None if dialect.quote == "none" else dialect.quote
        self.backslash = dialect.escape == "backslash"
        d, q = re.escape(delimiter), re.escape(self.quote or "")
        # Created once, because each reader would create its own from arguments.
        self._csv = csv.reader(
            (),
            delimiter=delimiter,
            quotechar=self.quote,
            quoting=csv.QUOTE_MINIMAL if q else csv.QUOTE_NONE,
            strict=True,
            doublequote=dialect.escape == "double",
        ).dialect
        self._row, self._open = self._patterns(d, q)
        inside = self._inside(q)
        self._field = re.compile(rf"{q}({inside}){q}|(?:[^{q}{d}][^{d}]*+)?") if q else None
        self._plain = re.compile(rf"(?:[^{d}\\]++|\\.|\\\Z)*+", re.DOTALL)
        self._quoted_escape = re.compile(rf"\\([\"'\\\n\r{d}])|{q}({q})") if q else None
        self._bare_escape = re.compile(rf"\\([{q}\\])")

    def _inside(self, q: str) -> str:
        if self.backslash:
            return rf"(?:[^{q}\\]++|\\[\s\S]|{q}{q})*+"
        return rf"(?:[^{q}]++|{q}{q})*+" if self.dialect.escape == "double" else rf"[^{q}]*+"

    def _patterns(self, d: str, q: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes] | None]:
        """Return the patterns of a whole row, and of a row whose end is not in the data yet."""
        if not q:
            row = r"(?:[^\n\\]++|\\[\s\S])*+\\?(?:\n|\Z)" if self.backslash else r"[^\n]*+(?:\n|\Z)"
            return re.compile(row.encode()), None
        quoted = rf"{q}{self._inside(q)}{q}"
        bare = rf"(?:[^{q}{d}\n][^{d}\n]*+)?"
        field = rf"(?:{quoted}(?:(?={d})|\r?(?=\n|\Z))|{bare})"
        row = rf"{field}(?:{d}{field})*+(?:\n|\Z)"
        opened = rf"(?:{field}{d})*+{q}{self._inside(q)}\\?\Z"
        return re.compile(row.encode()), re.compile(opened.encode())

    def row_end(self, data: bytes, start: int, *, closed: bool) -> int | str | None:
        """Return the end of the row that starts at `start`, after its newline.

        Returns None if the end is not in `data` yet, and an error message if there is no valid row.

        Args:
            data: Whole lines; the last one of a file may lack its newline.
            start: Start of a row.
            closed: Whether `data` ends with the file.
        """
        match = self._row.match(data, start)
        if match is not None:
            end = match.end()
            # A newline after a backslash is part of a value: the row continues.
            if (
                self.quote is None
                and self.backslash
                and not closed
                and end == len(data)
                and self._continues(match.group())
            ):
                return None
            return end
        opened = self._open is not None and self._open.match(data, start) is not None
        if opened and not closed:
            return None
        return UNCLOSED if opened else _GARBAGE

    def _continues(self, row: bytes) -> bool:
        if not row.endswith(b"\n"):
            return True
        body = row[:-1]
        return (len(body) - len(body.rstrip(b"\\"))) % 2 == 1

    def fields(self, text: str) -> list[str | None] | str:
        """Return the fields of a row without its line end, or an error message. A null (a backslash and N) is None."""
        quote, delimiter = self.quote, self.delimiter
        if self.backslash and ("\\" in text or (quote is not None and quote in text)):
            return self._escaped_fields(text)
        if quote is None:
            return cast(list[str | None], text.split(delimiter))
        if quote not in text:
            return _RETURN if "\r" in text else cast(list[str | None], text.split(delimiter))
        try:
            return cast(list[str | None], next(csv.reader((text,), self._csv)))
        except csv.Error as error:
            return str(error)

    def _escaped_fields(self, text: str) -> list[str | None] | str:
        fields: list[str | None] = []
        pattern = self._plain if self._field is None else self._field
        at = 0
        while (match := pattern.match(text, at)) is not None:
            if self._quoted_escape is None:
                fields.append(None if match[0] == "\\N" else _unescaped(match[0]))
            elif match[1] is not None:
                fields.append(self._quoted_escape.sub(lambda escape: escape[1] or escape[2], match[1]))
            else:
                fields.append(None if match[0] == "\\N" else self._bare_escape.sub(r"\1", match[0]))
            at = match.end()
            if at == len(text):
                return fields
            if text[at] != self.delimiter:
                break
            at += 1
        return _GARBAGE

    def fields_over_lines(self, row: bytes, count: int) -> list[str | None] | str | None:
        """Return the fields of a multi-line row, None if it is not UTF-8, or an error message if it is not valid.

        It is not valid if it does not have `count` fields, or if each of its lines looks like a row. An unclosed quote
        may be paired with one many rows later. The lines between them look like rows: each has as many fields as the
        header, and one column counts up or has one form throughout.
        """
        is_utf8 = True
        try:
            text = row.decode()
        except UnicodeDecodeError:
            text, is_utf8 = row.decode("utf-8", "replace"), False
        fields = self.fields(text.removesuffix("\r"))
        if isinstance(fields, str):
            return fields
        if len(fields) != count:
            return f"{len(fields)} fields where the header has {count}, over several lines"
        result = fields if is_utf8 else None
        if count < 2:
            return result
        lines = row.split(b"\n")
        mark = self.delimiter.encode()
        if any(line.count(mark) != count - 1 for line in lines):
            return result
        parts = [line.rstrip(b"\r").split(mark) for line in lines]
        many = len(lines) >= _MANY_LINES and all(all(each) for each in parts)
        return _SWALLOWED if many or any(_is_a_key(column) for column in zip(*parts, strict=True)) else result


def _is_a_key(values: tuple[bytes, ...]) -> bool:
    """Return whether values look like a column of ids: numbers that count up, or distinct texts of one form."""
    if len(set(values)) < len(values):
        return False
    if all(value.isdigit() for value in values):
        numbers = [int(value[:30]) for value in values]
        if len(numbers) == 2:
            return numbers[1] == numbers[0] + 1
        return numbers == sorted(numbers) or (len(values[0]) >= 4 and len({len(value) for value in values}) == 1)
    number = _HEX if len({len(value) for value in values}) == 1 else _NUMBER
    forms = {number.sub(b"9", value) for value in values}
    form = next(iter(forms))
    return len(forms) == 1 and b"9" in form and b" " not in form and len(form) >= 2


def _unescaped(value: str) -> str:
    if "\\" not in value:
        return value
    return re.sub(r"\\([\s\S])", lambda escape: _ESCAPED.get(escape[1], escape[1]), value)


@lru_cache(maxsize=32)
def grammar(dialect: Dialect, delimiter: str) -> Grammar:
    """Return the grammar of a dialect with a delimiter."""
    return Grammar(dialect, delimiter)
