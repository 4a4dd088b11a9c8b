"""Converts JSON values to Arrow columns.

Used by JSON Lines. The type of a column is fixed when the run is planned, from the heads of the files: whole numbers
are int64, numbers float64, true and false bool, and everything else - text, nested values, a mixture, whole numbers
beyond 64 bits - is text. A text column accepts any value: text unchanged, anything else as its JSON, whole numbers
without decimals. A column of numbers or booleans accepts only those; a row whose value does not fit is quarantined as
`wrong_type`. Nothing is rounded or guessed: the type of a column does not depend on which rows share a block.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

import orjson
import pyarrow as pa
import pyarrow.compute as pc

Rule = Literal["text", "id", "any"]

_EXACT = 1 << 53
_BEYOND = float(1 << 63)
_INFINITY = float("inf")
_NONE = type(None)
# Python types of JSON values that Arrow converts correctly without a check of each value.
_UNCHECKED: dict[pa.DataType, set[type]] = {
    pa.string(): {str, _NONE},
    pa.float64(): {float, _NONE},
    pa.bool_(): {bool, _NONE},
}
_WHOLE: set[type] = {int, _NONE}


class NotANumber:
    """Marker for NaN among the Python types of values: it determines a column's type less than a float does."""


class LargeNumber:
    """Marker for a whole number beyond int64 among the Python types of values: only text keeps all its digits."""


class _InvalidValueError(Exception):
    """A value does not fit its column; the text has the reason."""


def kind_of(value: Any) -> type:
    """Return the Python type of a JSON value; `NotANumber` for NaN, `LargeNumber` for a whole number beyond int64."""
    if type(value) is int:
        return int if -(1 << 63) <= value < 1 << 63 else LargeNumber
    return NotANumber if _is_nan(value) else type(value)


def kind_name(value: Any) -> str:
    """Return the kind of a JSON value, for a message."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", _NONE: "null"}
    return names.get(type(value), "a number")


def _is_nan(value: Any) -> bool:
    return type(value) is float and math.isnan(value)


def inferred(kinds: set[type]) -> pa.DataType:
    """Return the type of a column whose values have these types (from `kind_of`)."""
    kinds = kinds - {_NONE}
    if not kinds:
        return pa.null()
    if NotANumber in kinds:
        kinds = (kinds - {NotANumber}) or {float}
        kinds = kinds | {float} if kinds == {int} else kinds
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def column(values: Sequence[Any], kind: pa.DataType, rule: Rule) -> tuple[pa.Array, dict[int, str]]:
    """Return values as an array of `kind`, with null for values that do not fit, and the errors of those by index.

    Args:
        values: Values from the JSON parser.
        kind: The column's type.
        rule: "text" allows only text and null, "id" only text and whole numbers, "any" whatever fits `kind`.
    """
    if pa.types.is_null(kind):
        kind = pa.string()
    kinds = set(map(type, values))
    if kinds <= _UNCHECKED.get(kind, set()) and (rule == "any" or kind != pa.float64()):
        return pa.array(values, kind), {}
    if rule != "text" and kinds <= _WHOLE and kind in (pa.string(), pa.int64()):
        # The parser returns floats for numbers beyond 64 bits, so each of these ints is exact.
        with contextlib.suppress(OverflowError, pa.ArrowInvalid):  # above the largest int64: checked one by one
            whole = pa.array(values, pa.int64())
            return whole.cast(kind), {}
    has_floats = float in kinds
    out: list[Any] = []
    errors: dict[int, str] = {}
    for index, value in enumerate(values):
        try:
            missing = value is None or (has_floats and _is_nan(value) and (rule != "any" or kind != pa.float64()))
            out.append(None if missing else _value(value, kind, rule))
        except _InvalidValueError as error:
            out.append(None)
            errors[index] = str(error)
    return pa.array(out, kind), errors


def _value(value: Any, kind: pa.DataType, rule: Rule) -> Any:
    """Convert one value that is not null."""
    if rule == "text" and type(value) is not str:
        raise _InvalidValueError(f"is not text but {_shown(value)}")
    if type(value) is float and value.is_integer() and abs(value) < _EXACT and not pa.types.is_floating(kind):
        value = int(value)
    if kind == pa.string():
        return _as_text(value, rule)
    if kind == pa.bool_():
        fits = type(value) is bool
    elif kind == pa.int64():
        fits = type(value) is int and -(1 << 63) <= value < 1 << 63
    else:
        fits = kind == pa.float64() and type(value) in (int, float)
        if fits and type(value) is int and not _is_exact(value):
            raise _InvalidValueError(
                f"is a whole number that {kind}, the type of this column, cannot represent: {_shown(value)}"
            )
    if not fits:
        raise _InvalidValueError(
            f"is not {kind}, the type of this column when the run was planned, but {_shown(value)}"
        )
    return float(value) if kind == pa.float64() else value


def _is_exact(value: int) -> bool:
    """Return whether a float64 represents this whole number: it or its shortest decimal form equals the number."""
    if abs(value) <= _EXACT:
        return True
    number = float(value)
    return number == value or Decimal(repr(number)) == value


def has_rounded(array: pa.Array, values: Sequence[Any]) -> bool:
    """Return whether some values may be whole numbers beyond 64 bits, which the fast parser returns as floats.

    Args:
        array: Result of `column` for the values.
        values: Values from the JSON parser.
    """
    if array.type == pa.float64():
        ends = pc.min_max(array).as_py()
        return ends["min"] is not None and (ends["min"] <= -_BEYOND or ends["max"] >= _BEYOND)
    kinds = set(map(type, values))
    if float in kinds and any(type(value) is float and abs(value) >= _BEYOND for value in values):
        return True
    # Inside nested values, such floats are found by their written form.
    nested = array.type == pa.string() and not kinds.isdisjoint((dict, list))
    return nested and bool(pc.any(pc.match_substring_regex(array, r"[0-9]e\+?[0-9]{2}")).as_py())


def _as_text(value: Any, rule: Rule) -> str:
    if type(value) is str:
        return value
    # The parser returns floats for whole numbers beyond 64 bits: two ids could become one.
    if rule == "id" and type(value) is not int:
        raise _InvalidValueError(f"is neither text nor a whole number of at most 64 bits but {_shown(value)}")
    if type(value) is int:
        return str(value)
    if value in (_INFINITY, -_INFINITY):
        return "Infinity" if value > 0 else "-Infinity"
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        if "64-bit" in str(error):
            return json.dumps(_without_nan(value), ensure_ascii=False, separators=(",", ":"))
        raise _InvalidValueError(f"cannot be kept as JSON text: {error}") from error


def _without_nan(value: Any) -> Any:
    """Return the value with null in place of numbers that are not finite, as the fast writer does."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 80 else f"{text[:77]}...") if isinstance(value, str) else text
