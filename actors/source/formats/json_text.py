"""Parses lines that are not strict JSON: accepts the extensions of Python and pandas, and names other mistakes.

Called by JSON Lines only for lines that the fast parser refuses. Accepted are NaN, Infinity and -Infinity at any depth, a
number too large for float64 (it becomes Infinity, as in Python), and half of a surrogate pair, which becomes U+FFFD. Not
accepted are comments, trailing commas, single quotes and names without quotes: a guess could be wrong.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import Any

_BOM = "\ufeff"
_SURROGATE = re.compile("[\ud800-\udfff]")
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
_DIGITS = 20  # characters of the longest 64-bit whole number
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_BLANKS = " \t\r\n"


def parse_line(line: bytes) -> Any | tuple[str, str] | None:
    """Return the value of a line; a reason (see `actors.schema.REASONS`) and an error; or None for a blank line."""
    if not line.strip():
        return None
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return "invalid_utf8", str(error)
    text = text.strip(_BLANKS).removeprefix(_BOM)  # concatenated files have byte order marks inside
    if not text:
        return None
    try:
        value = json.loads(text, parse_int=_whole)
    except json.JSONDecodeError as error:
        name = mistake(text, error.pos)
        return "broken_line", f"{name}: {error}" if name else str(error)
    except RecursionError:
        return "broken_line", "the value is nested too deeply"
    return _without_half_pairs(value) if "\\u" in text else value


def _whole(digits: str) -> int | float:
    """Return a whole number of at most 64 bits, else the nearest float, as the fast parser does."""
    if len(digits) > _DIGITS:
        return float(digits)
    value = int(digits)
    return value if _LEAST <= value <= _MOST else float(value)


def _all_digits(digits: str) -> int | float:
    """Return a whole number, or Infinity if a float would overflow to it."""
    return float(digits) if len(digits) > _DIGITS and math.isinf(float(digits)) else int(digits)


def exact_number(line: bytes, name: str, value: Any) -> Any:
    """Return the value of a name in a line, with all digits of whole numbers that the parser returned as floats.

    Args:
        line: A line that is a row.
        name: A name in it.
        value: Its value from the parser.
    """
    if not (isinstance(value, (dict, list)) or (type(value) is float and -_LEAST <= abs(value) < math.inf)):
        return value
    with contextlib.suppress(ValueError, RecursionError):
        # A number of more than 309 digits is Infinity already.
        row = json.loads(line.decode().strip(_BLANKS).removeprefix(_BOM), parse_int=_all_digits)
        return _without_half_pairs(row).get(name, value)
    return value


def _without_half_pairs(value: Any) -> Any:
    """Return the value with each half of a surrogate pair replaced, in names too."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_half_pairs(each) for each in value]
    if isinstance(value, dict):
        return {_without_half_pairs(name): _without_half_pairs(each) for name, each in value.items()}
    return value


def mistake(text: str, at: int) -> str | None:
    """Return the name of the mistake at character `at`, where the JSON parser stopped; None if it is unknown.

    Args:
        text: The line, stripped.
        at: Index of a character, or the length of the text.
    """
    rest = text[at:].lstrip(_BLANKS)
    before = text[:at].rstrip(_BLANKS)
    if rest.startswith(("//", "/*", "#")):
        return "a comment, which JSON has not"
    if rest.startswith(("}", "]")) and before.endswith(","):
        return "a trailing comma, which JSON does not allow"
    if rest == "," and before.endswith(("}", "]")):
        return "a comma behind the object, as in a JSON array; write one object a line without it"
    if rest.startswith(("{", "[")) and before.endswith(("}", "]")):
        return "several JSON values on one line; write one object a line"
    if rest.startswith("'"):
        return "single quotes, as Python prints a dict; write the line with json.dumps"
    if (word := _WORD.match(rest)) is None:
        return None
    if word.group() in ("None", "True", "False"):
        return f"{word.group()}, as Python prints a dict; write the line with json.dumps"
    if word.group().lower() in ("undefined", "nan", "inf", "infinity"):
        return f"{word.group()}, which is no JSON value; write null or NaN"
    if before.endswith(("{", ",")) and rest[word.end() :].lstrip(_BLANKS).startswith(":"):
        return f"the name {word.group()} without double quotes, which JSON does not allow"
    return None
