"""How a JSON value becomes a value of an Arrow column.

Used by JSON Lines. The type of a column is fixed when the run is planned, from the heads of the files: whole numbers
are int64, numbers float64, true and false bool, and everything else - text, nested values, a mixture - is text. A text
column takes any value: text as it is, anything else as its JSON, whole numbers without decimals. A column of numbers or
of booleans takes only those; a row whose value does not fit is set aside as `wrong_type`. Nothing is rounded or guessed
at: the type of a column does not depend on which rows share a block.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import orjson
import pyarrow as pa

Rule = Literal["text", "id", "any"]

_EXACT = 1 << 53
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


class _MisfitError(Exception):
    """A value does not fit its column; the text says why."""


def kind_of(value: Any) -> type:
    """The Python type of a JSON value; `NotANumber` for NaN."""
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
    if not fits:
        raise _MisfitError(f"is not {kind}, the type of this column when the run was planned, but {_shown(value)}")
    return float(value) if kind == pa.float64() else value


def _as_text(value: Any, rule: Rule) -> str:
    if type(value) is str:
        return value
    # The parser makes floats of whole numbers beyond 64 bits: two ids could become one.
    if rule == "id" and type(value) is not int:
        raise _MisfitError(f"is neither text nor a whole number of at most 64 bits but {_shown(value)}")
    if value in (_INFINITY, -_INFINITY):
        return "Infinity" if value > 0 else "-Infinity"
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise _MisfitError(f"cannot be kept as JSON text: {error}") from error


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 80 else f"{text[:77]}...") if isinstance(value, str) else text
