"""Recognizes files that are named as CSV or TSV and are something else. Called by CSV when a run is planned."""

from __future__ import annotations

import re
from collections.abc import Sequence

import orjson

from actors import looks
from actors.schema import Shard
from actors.source.formats.lines import BOM, delimiter_of, open_lines

_OTHERS = (";", "|", "\t", ",")
_NAMES = {";": "semicolons", "|": "vertical bars", "\t": "tabs", ",": "commas"}
_SEPARATOR_LINE = re.compile(rb"\"?sep=.\"?\r?", re.IGNORECASE)
_IN_QUOTES = re.compile(rb'"(?:[^"]|"")*"')


def check_header(shard: Shard) -> tuple[str, str] | None:
    """Return the content of a shard whose first line is no CSV header, and the fix; None if it may be one."""
    with open_lines(shard) as file:
        head: bytes = file.read(looks.HEAD_BYTES)
    if (content := looks.foreign(head)) is not None:
        return content
    text = head.removeprefix(BOM).lstrip(b"\r\n")
    first, *rest = text.split(b"\n", 2)
    if (content := _json(first, has_more=len(rest) > 0)) is not None:
        return content
    if _SEPARATOR_LINE.fullmatch(first):
        return "a first line `sep=` as Excel writes, which is no header", "Remove that line"
    if b"\r" in _IN_QUOTES.sub(b"", first.rstrip(b"\r")) and len(head) < looks.HEAD_BYTES and b"\n" not in text:
        return "lines that end with a carriage return alone", "Convert the line ends, as in `tr '\\r' '\\n'`"
    if b"\r" in _IN_QUOTES.sub(b"", first.rstrip(b"\r")) and len(first) == len(text):
        return "lines that end with a carriage return alone", "Convert the line ends, as in `tr '\\r' '\\n'`"
    return _other_delimiter(first, rest[0] if rest else b"", delimiter_of(shard.path))


def _json(first: bytes, *, has_more: bool) -> tuple[str, str] | None:
    line = first.strip()
    if not line.startswith((b"{", b"[")):
        return None
    fix = "Rename it to end in .jsonl, or set source.format: jsonl"
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        several = has_more and line in (b"{", b"[", b"[{")
        return ("JSON over several lines", "Write one object a line, and name the file .jsonl") if several else None
    if isinstance(value, dict):
        return "JSON Lines", fix
    return "a JSON array", "Write one object a line, as in `jq -c '.[]'`, and name the file .jsonl"


def _other_delimiter(first: bytes, second: bytes, delimiter: str) -> tuple[str, str] | None:
    """Return the error for another delimiter: one that splits the header and the next line, as the expected one does not."""
    bare, after = (_IN_QUOTES.sub(b"", line) for line in (first, second))
    if delimiter.encode() in bare:
        return None
    for other in _OTHERS:
        mark = other.encode()
        if other != delimiter and mark in bare and (mark in after or not second.strip()):
            want = _NAMES[delimiter]
            fix = "Rename it to end in .tsv" if other == "\t" else "Rename it to end in .csv" if other == "," else ""
            fix = fix or f"Write it with {want}"
            return f"fields between {_NAMES[other]}, where its name says {want}", fix
    return None


def no_rows(header: Sequence[str], error: str) -> tuple[str, str]:
    """Return the content of a file without any valid row, and the fix."""
    shown = list(header)[:20]
    return f"no line that is a row below its header {shown}; the first: {error}", "Fix the file"
