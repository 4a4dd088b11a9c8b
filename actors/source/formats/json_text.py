"""Lines that are not JSON by the letter: what Python and pandas write is read, anything else is refused by its name.

Called by JSON Lines for the lines alone that the fast parser refuses. Read are NaN, Infinity and -Infinity at any depth, a
number too large for 64 bits of floating point (it is Infinity, as in Python), and half of a surrogate pair, which becomes
U+FFFD. Not read are comments, trailing commas, single quotes and names without quotes: a guess at them could be wrong.
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
_DIGITS = 20  # the longest whole number of 64 bits has so many characters
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_BLANKS = " \t\r\n"


def parse_line(line: bytes) -> Any | tuple[str, str] | None:
    """The value of a line; or a reason (see `actors.schema.REASONS`) and an error; or None for a blank line."""
    if not line.strip():
        return None
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return "invalid_utf8", str(error)
    text = text.strip(_BLANKS).removeprefix(_BOM)  # files that were put together have marks inside
    if not text:
        return None
    try:
        value = json.loads(text, parse_int=_whole)
    except json.JSONDecodeError as error:
        name = mistake(text, error.pos)
        return "broken_line", f"{name}: {error}" if name else str(error)
    except RecursionError:
        return "broken_line", "the value is nested too deeply"
    return _mended(value) if "\\u" in text else value


def _whole(digits: str) -> int | float:
    """A whole number of at most 64 bits, else the nearest float, as the fast parser gives it."""
    if len(digits) > _DIGITS:
        return float(digits)
    value = int(digits)
    return value if _LEAST <= value <= _MOST else float(value)


def _all_digits(digits: str) -> int | float:
    """A whole number, or Infinity where a float would be, too."""
    return float(digits) if len(digits) > _DIGITS and math.isinf(float(digits)) else int(digits)


def exact_number(line: bytes, name: str, value: Any) -> Any:
    """The value of a name in a line, with all digits of whole numbers that the parser made floats of.

    Args:
        line: A line that is a row.
        name: A name in it.
        value: What the parser gave for it.
    """
    if not (isinstance(value, (dict, list)) or (type(value) is float and -_LEAST <= abs(value) < math.inf)):
        return value
    with contextlib.suppress(ValueError, RecursionError):
        # Beyond 309 digits a number is Infinity already.
        row = json.loads(line.decode().strip(_BLANKS).removeprefix(_BOM), parse_int=_all_digits)
        return _mended(row).get(name, value)
    return value


def _mended(value: Any) -> Any:
    """The value with each half of a surrogate pair replaced, in names too."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_mended(each) for each in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(each) for name, each in value.items()}
    return value


def mistake(text: str, at: int) -> str | None:
    """The name of what is wrong at character `at`, where the JSON parser stopped; None if it is none that is known.

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
