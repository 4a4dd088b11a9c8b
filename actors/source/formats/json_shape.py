"""Recognizes files that are named as JSON Lines and are something else, from their first lines.

Called by JSON Lines when a run is planned. An array or object over several lines may have lines that look like rows (the
last object of an array has no comma after it), so such a file is refused whatever its other lines are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from actors import looks

_BOM = b"\xef\xbb\xbf"
_CONVERT = "Write one object a line, as in `jq -c '{0}'`"
_NAME = re.compile(rb'"(?:[^"\\]|\\.)*"\s*:')
_LIST = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*\{')
_PYTHON = re.compile(rb"\{\s*'")


def no_lines(lines: Sequence[bytes]) -> tuple[str, str] | None:
    """Return the content of a file that is one JSON value over several lines, and the fix; else None.

    Args:
        lines: The first lines that are not blank; they may be cut.
    """
    first, *rest = [line.removeprefix(_BOM).strip() for line in lines[:3]] or [b""]
    opens_array = first.startswith(b"[{") and (
        first.endswith((b"},", b"{", b",")) or any(line.startswith(b",") for line in rest)
    )
    if rest and (first == b"[" or opens_array):
        return "one JSON array over several lines", _CONVERT.format(".[]")
    opens_object = first == b"{" or (first.startswith(b"{") and first.endswith((b",", b"{", b"[")))
    if opens_object and rest and (_NAME.match(rest[0]) or first.endswith((b"{", b"["))) and not _is_row(rest[0]):
        return "a JSON object over several lines", _CONVERT.format(".")
    return None


def _is_row(line: bytes) -> bool:
    return line.startswith(b"{") and line.endswith(b"}")


def no_rows(lines: Sequence[bytes], head: bytes, error: str) -> tuple[str, str]:
    """Return the content of a file without any valid row, and the fix.

    Args:
        lines: The first lines that are not blank; they may be cut.
        head: The first bytes of the text.
        error: Error of the first line.
    """
    if (content := looks.foreign(head)) is not None:
        return content
    first = (lines[0] if lines else head).removeprefix(_BOM).lstrip()
    if first.startswith(b"\x1e"):
        return "a JSON text sequence (RFC 7464), and no row", "Remove the record separators, as in `tr -d '\\036'`"
    if b"\r{" in first and b"\n" not in first:
        return "lines that end with a carriage return alone", "Convert the line ends, as in `tr '\\r' '\\n'`"
    if first.startswith(b"[") and len(lines) < 2:
        return "one JSON array on one line, and no row", _CONVERT.format(".[]")
    if first.startswith(b"["):
        return "lines that are JSON arrays, and no row", "Write one object a line, with the names of its columns"
    if _PYTHON.match(first):
        return "Python dicts in single quotes, which are no JSON", "Write each line with json.dumps"
    if not first.startswith(b"{") and all(line.count(b",") == first.count(b",") > 0 for line in lines):
        return "lines that look like CSV, and no row of JSON", "Rename it to end in .csv, or set source.format: csv"
    return f"no line that is a row; the first: {error}", "Write one JSON object a line"


def no_texts(names: Sequence[str], lines: Sequence[bytes], text: Sequence[str]) -> tuple[str, str]:
    """Return the content of a file in which no row has a text column, and the fix.

    Args:
        names: All names that its rows have.
        lines: The first lines that are not blank; they may be cut.
        text: The text columns.
    """
    if len(lines) == 1 and (match := _LIST.search(lines[0])) is not None:
        name = match[1].decode("utf-8", "replace")
        return f"one JSON object around a list, {name!r}, and no row with a text", _CONVERT.format(f".{name}[]")
    return f"no row with one of the text columns {list(text)}, but with {list(names)[:20]}", "Add the column"
