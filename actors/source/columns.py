"""Columns as the job wants them: valid UTF-8, cast without a change of value, and the rows where that fails.

Used by the reader. Whole columns are checked and cast at once; only when that fails are the values at fault looked for,
by halving. The trade-off: a column full of bad values is slow to take apart, and a run with so many does not pass anyway.
What a value may become is decided by the types alone (`actors.source.formats.types.fits`): Arrow itself would cut a timestamp
to its date, read a number from a text, round a decimal or leave out a field of a struct without an error.
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

# Index of a row to the reason it is set aside for, and what was wrong.
Misfits = dict[int, tuple[str, str]]


def fitted(array: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Misfits]:
    """An array as `kind`, a stored type, with null where a value is not valid or does not fit.

    Dates and timestamps fit in the years 1 to 9999.

    Raises:
        ArrowNotImplementedError: values of this array's type may not be cast to `kind`.
    """
    array, misfits = _valid(array)
    same = array.type.equals(kind)
    if same and not has_times(kind):
        return array, misfits
    if not same and not fits(array.type, kind):
        raise pa.ArrowNotImplementedError(f"a value of type {array.type} may change when it is cast to {kind}")
    try:
        return _cast(array, kind), misfits
    except pa.ArrowInvalid:
        array = _copied(array, range(len(array)))
        wrong = {index: ("wrong_type", error) for index, error in _failing(array, lambda part: _fit_one(part, kind))}
    return _cast(_without(array, wrong), kind), {**wrong, **misfits}


def id_strings(array: pa.Array) -> tuple[pa.Array, Misfits]:
    """Ids as text: whole numbers without decimals. Null where a number is not whole, or too large to be exact.

    Raises:
        ArrowNotImplementedError: ids cannot be made of this type.
    """
    array, misfits = _valid(array)
    if is_text(array.type) or types.is_integer(array.type) or types.is_null(array.type):
        return array.cast(pa.string()), misfits
    if not types.is_floating(array.type):
        raise pa.ArrowNotImplementedError(f"ids are text or whole numbers, not {array.type}")
    array = array.cast(pa.float64())
    whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), _EXACT))
    for index in pc.indices_nonzero(pc.invert(pc.fill_null(whole, True))).to_pylist():
        misfits[index] = ("wrong_type", f"the id {array[index].as_py()!r} is not a whole number below 2^53")
    return _without(array, misfits).cast(pa.int64()).cast(pa.string()), misfits


def _valid(array: pa.Array) -> tuple[pa.Array, Misfits]:
    """The array without views and without encodings of its outermost level, and null where it holds bytes that are not UTF-8."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    array = without_views(array)
    try:
        array.validate(full=True)
        return array, {}
    except pa.ArrowInvalid:
        wrong = {
            # The other rules are those of a type: a decimal's digits, the whole days of a date64.
            index: ("invalid_utf8" if "UTF8" in error else "wrong_type", error)
            for index, error in _failing(array, lambda part: part.validate(full=True))
        }
    return _without(array, wrong), wrong


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    array = array.cast(kind)
    check_years(array)
    return array


def _fit_one(array: pa.Array, kind: pa.DataType) -> None:
    """As `_cast`; the error for an array of one value says what is wrong for a person who sees the row."""
    try:
        _cast(array, kind)
    except pa.ArrowInvalid as error:
        if len(array) != 1:
            raise
        value, reason = array[0], str(error).split("\n")[0]
        if types.is_timestamp(array.type) and "would lose data" in reason:
            text = array.cast(pa.string())[0].as_py()
            reason = (
                f"{text} has a part below a microsecond, which Delta Lake cannot hold. Round the column to microseconds "
                f"in the source"
            )
        elif types.is_integer(array.type):
            reason = f"{value.as_py()} is not exact as {kind}: {reason}"
        elif types.is_nested(array.type) and "would lose data" in reason:
            reason = f"{reason}. Delta Lake's timestamps are whole microseconds; round them in the source"
        raise pa.ArrowInvalid(reason) from None


def _failing(array: pa.Array, check: Callable[[pa.Array], object], first: int = 0) -> Iterator[tuple[int, str]]:
    """Index of each value that fails `check` alone, with the error."""
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
    """Some rows of an array and nothing else: Arrow checks and casts the children of a nested slice as a whole."""
    return array.take(pa.array(rows, pa.int64()))


def _without(array: pa.Array, misfits: Misfits) -> pa.Array:
    """The array with null in place of the misfits."""
    if not misfits:
        return array
    return array.take(pa.array([None if index in misfits else index for index in range(len(array))], pa.int64()))
