"""How a JSON value becomes a value of an Arrow column.

Used by JSON Lines. The type of a column is fixed when the run is planned, from the heads of the files: whole numbers
are int64, numbers float64, true and false bool, and everything else - text, nested values, a mixture, whole numbers
beyond 64 bits - is text. A text
column takes any value: text as it is, anything else as its JSON, whole numbers without decimals. A column of numbers or
of booleans takes only those; a row whose value does not fit is set aside as `wrong_type`. Nothing is rounded or guessed
at: the type of a column does not depend on which rows share a block.
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
# Python types of JSON values that Arrow takes as they are, without a look at each.
_AS_THEY_ARE: dict[pa.DataType, set[type]] = {
    pa.string(): {str, _NONE},
    pa.float64(): {float, _NONE},
    pa.bool_(): {bool, _NONE},
}


_WHOLE: set[type] = {int, _NONE}


class NotANumber:
    """Stands for NaN among the Python types of values: it says less of a column's type than a float does."""


class LargeNumber:
    """Stands for a whole number beyond int64 among the Python types of values: only text holds all of its digits."""


class _MisfitError(Exception):
    """A value does not fit its column; the text says why."""


def kind_of(value: Any) -> type:
    """The Python type of a JSON value; `NotANumber` for NaN, `LargeNumber` for a whole number beyond int64."""
    if type(value) is int:
        return int if -(1 << 63) <= value < 1 << 63 else LargeNumber
    return NotANumber if _is_nan(value) else type(value)


def kind_name(value: Any) -> str:
    """What a JSON value is, for a message."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", _NONE: "null"}
    return names.get(type(value), "a number")


def _is_nan(value: Any) -> bool:
    return type(value) is float and math.isnan(value)


def inferred(kinds: set[type]) -> pa.DataType:
    """The type of a column whose values have these types, as `kind_of` names them."""
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
    """Values as an array of `kind`, null where one does not fit, and what is wrong with those, by index.

    Args:
        values: As the JSON parser gives them.
        kind: The column's type.
        rule: "text": only text and null are right; "id": only text and whole numbers; "any": whatever fits `kind`.
    """
    if pa.types.is_null(kind):
        kind = pa.string()
    kinds = set(map(type, values))
    if kinds <= _AS_THEY_ARE.get(kind, set()) and (rule == "any" or kind != pa.float64()):
        return pa.array(values, kind), {}
    if rule != "text" and kinds <= _WHOLE and kind in (pa.string(), pa.int64()):
        # The parser makes floats of numbers beyond 64 bits, so each of these is exact.
        with contextlib.suppress(OverflowError, pa.ArrowInvalid):  # above the largest int64: looked at one by one
            whole = pa.array(values, pa.int64())
            return whole.cast(kind), {}
    has_floats = float in kinds
    out: list[Any] = []
    wrong: dict[int, str] = {}
    for index, value in enumerate(values):
        try:
            missing = value is None or (has_floats and _is_nan(value) and (rule != "any" or kind != pa.float64()))
            out.append(None if missing else _value(value, kind, rule))
        except _MisfitError as error:
            out.append(None)
            wrong[index] = str(error)
    return pa.array(out, kind), wrong


def _value(value: Any, kind: pa.DataType, rule: Rule) -> Any:
    """One value that is not null."""
    if rule == "text" and type(value) is not str:
        raise _MisfitError(f"is not text but {_shown(value)}")
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
            raise _MisfitError(f"is a whole number that {kind}, the type of this column, cannot hold: {_shown(value)}")
    if not fits:
        raise _MisfitError(f"is not {kind}, the type of this column when the run was planned, but {_shown(value)}")
    return float(value) if kind == pa.float64() else value


def _is_exact(value: int) -> bool:
    """Whether a float64 stands for this whole number: it equals it, or its shortest decimal form does."""
    if abs(value) <= _EXACT:
        return True
    number = float(value)
    return number == value or Decimal(repr(number)) == value


def has_rounded(array: pa.Array, values: Sequence[Any]) -> bool:
    """Whether some of the values may be whole numbers beyond 64 bits, of which the fast parser makes floats.

    Args:
        array: What `column` made of the values.
        values: As the JSON parser gives them.
    """
    if array.type == pa.float64():
        ends = pc.min_max(array).as_py()
        return ends["min"] is not None and (ends["min"] <= -_BEYOND or ends["max"] >= _BEYOND)
    kinds = set(map(type, values))
    if float in kinds and any(type(value) is float and abs(value) >= _BEYOND for value in values):
        return True
    # Inside nested values the parser's floats are found by how they are written.
    nested = array.type == pa.string() and not kinds.isdisjoint((dict, list))
    return nested and bool(pc.any(pc.match_substring_regex(array, r"[0-9]e\+?[0-9]{2}")).as_py())


def _as_text(value: Any, rule: Rule) -> str:
    if type(value) is str:
        return value
    # The parser makes floats of whole numbers beyond 64 bits: two ids could become one.
    if rule == "id" and type(value) is not int:
        raise _MisfitError(f"is neither text nor a whole number of at most 64 bits but {_shown(value)}")
    if type(value) is int:
        return str(value)
    if value in (_INFINITY, -_INFINITY):
        return "Infinity" if value > 0 else "-Infinity"
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        if "64-bit" in str(error):
            return json.dumps(_without_nan(value), ensure_ascii=False, separators=(",", ":"))
        raise _MisfitError(f"cannot be kept as JSON text: {error}") from error


def _without_nan(value: Any) -> Any:
    """The value with null for what is not finite inside of it, as the fast writer has it."""
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
