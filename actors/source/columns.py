"""Casts columns to the planned types without changing a value, and finds the rows where that fails.

Used by the reader. Whole columns are checked and cast at once. Only if that fails, a binary search finds the invalid
values. The trade-off: a column with many invalid values is slow, but such a run exceeds its quarantine limit anyway. The
types alone decide which casts are allowed (`actors.source.formats.types.fits`): Arrow itself would truncate a timestamp
to its date, parse a text as a number, round a decimal or drop a field of a struct without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from actors.source.calendar import check_years, has_times
from actors.source.formats.types import fits, is_text
from actors.source.views import without_views

_EXACT = float(1 << 53)

# Index of an invalid row to the reason and the error of its quarantine.
Invalid = dict[int, tuple[str, str]]


def cast_column(array: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Invalid]:
    """Cast an array to `kind`, a stored type. Invalid values become null.

    Dates and timestamps outside the years 1 to 9999 are invalid.

    Raises:
        ArrowNotImplementedError: Values of this array's type may not be cast to `kind`.
    """
    array, invalid = _valid(array)
    same = array.type.equals(kind)
    if same and not has_times(kind):
        return array, invalid
    if not same and not fits(array.type, kind):
        raise pa.ArrowNotImplementedError(f"a value of type {array.type} may change when it is cast to {kind}")
    try:
        return _cast(array, kind), invalid
    except pa.ArrowInvalid:
        array = _copied(array, range(len(array)))
        failed = {index: ("wrong_type", error) for index, error in _failing(array, lambda part: _cast_one(part, kind))}
    return _cast(_without(array, failed), kind), {**failed, **invalid}


def id_strings(array: pa.Array) -> tuple[pa.Array, Invalid]:
    """Return ids as text, whole numbers without decimals. A number that is not whole or not exact becomes null.

    Raises:
        ArrowNotImplementedError: This type cannot be an id.
    """
    array, invalid = _valid(array)
    if is_text(array.type) or types.is_integer(array.type) or types.is_null(array.type):
        return array.cast(pa.string()), invalid
    if not types.is_floating(array.type):
        raise pa.ArrowNotImplementedError(f"ids are text or whole numbers, not {array.type}")
    array = array.cast(pa.float64())
    whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), _EXACT))
    for index in pc.indices_nonzero(pc.invert(pc.fill_null(whole, True))).to_pylist():
        invalid[index] = ("wrong_type", f"the id {array[index].as_py()!r} is not a whole number below 2^53")
    return _without(array, invalid).cast(pa.int64()).cast(pa.string()), invalid


def _valid(array: pa.Array) -> tuple[pa.Array, Invalid]:
    """Return the array without views and without top-level encodings. Values that break a rule of their type, such as
    UTF-8, become null."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    array = without_views(array)
    try:
        array.validate(full=True)
        return array, {}
    except pa.ArrowInvalid:
        invalid = {
            # Other rules are those of a type: the digits of a decimal, the whole days of a date64.
            index: ("invalid_utf8" if "UTF8" in error else "wrong_type", error)
            for index, error in _failing(array, lambda part: part.validate(full=True))
        }
    return _without(array, invalid), invalid


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    array = array.cast(kind)
    check_years(array)
    return array


def _cast_one(array: pa.Array, kind: pa.DataType) -> None:
    """Cast as `_cast` does; for an array of one value, raise an error with the value, the rule and the fix."""
    try:
        _cast(array, kind)
    except pa.ArrowInvalid as error:
        if len(array) != 1:
            raise
        value, reason = array[0], str(error).split("\n")[0]
        if types.is_timestamp(array.type) and "would lose data" in reason:
            text = array.cast(pa.string())[0].as_py()
            reason = (
                f"{text} has a part below a microsecond, which Delta Lake cannot store. Round the column to microseconds "
                f"in the source"
            )
        elif types.is_integer(array.type):
            reason = f"{value.as_py()} is not exact as {kind}: {reason}"
        elif types.is_nested(array.type) and "would lose data" in reason:
            reason = f"{reason}. Delta Lake's timestamps are whole microseconds; round them in the source"
        raise pa.ArrowInvalid(reason) from None


def _failing(array: pa.Array, check: Callable[[pa.Array], object], first: int = 0) -> Iterator[tuple[int, str]]:
    """Yield the index of each value that fails `check`, with the error. Searches by halving."""
    try:
        check(array)
        return
    except pa.ArrowInvalid as error:
        if len(array) == 1:
            yield first, str(error).split("\n")[0]
            return
    middle = len(array) // 2
    for start, stop in ((0, middle), (middle, len(array))):
        yield from _failing(_copied(array, range(start, stop)), check, first + start)


def _copied(array: pa.Array, rows: range) -> pa.Array:
    """Copy some rows of an array, because Arrow checks and casts all children of a nested slice."""
    return array.take(pa.array(rows, pa.int64()))


def _without(array: pa.Array, invalid: Invalid) -> pa.Array:
    """Return the array with null in place of invalid values."""
    if not invalid:
        return array
    return array.take(pa.array([None if index in invalid else index for index in range(len(array))], pa.int64()))
