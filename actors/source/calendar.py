"""Checks that dates and timestamps are of the years 1 to 9999, which SQL, Python and pandas all support.

Used by the cast of columns. Whole columns are compared at once, nested ones leaf by leaf.
"""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

_DAYS = (-719_162, 2_932_896)  # 0001-01-01 and 9999-12-31, in days since 1970-01-01
_DAY_US = 86_400_000_000


@lru_cache(maxsize=1024)
def has_times(kind: pa.DataType) -> bool:
    """Return whether values of this stored type contain dates or timestamps, at any depth."""
    if types.is_date32(kind) or types.is_timestamp(kind):
        return True
    return types.is_nested(kind) and any(has_times(kind.field(index).type) for index in range(kind.num_fields))


@lru_cache(maxsize=1024)
def has_naive_times(kind: pa.DataType) -> bool:
    """Return whether values of this type contain timestamps without a time zone, at any depth."""
    if types.is_timestamp(kind):
        return kind.tz is None
    return types.is_nested(kind) and any(has_naive_times(kind.field(index).type) for index in range(kind.num_fields))


def check_years(array: pa.Array) -> None:
    """Check that all dates and timestamps of an array of a stored type are of the years 1 to 9999.

    Raises:
        ArrowInvalid: One is not; the message has its value.
    """
    kind = array.type
    if not has_times(kind) or len(array) == array.null_count:
        return
    if types.is_nested(kind):
        for child in _children(array):
            check_years(child)
        return
    day = 1 if types.is_date32(kind) else _DAY_US
    numbers = array.view(pa.int32() if day == 1 else pa.int64())
    least, most = _DAYS[0] * day, (_DAYS[1] + 1) * day - 1
    is_outside = pc.or_(pc.less(numbers, least), pc.greater(numbers, most))
    if pc.any(is_outside).as_py():
        value = array.filter(is_outside)[:1].cast(pa.string())[0].as_py()
        raise pa.ArrowInvalid(f"{value} is not of the years 1 to 9999, which are what readers of the table can show")


def _children(array: pa.Array) -> list[pa.Array]:
    """Return the child values of a nested array, without those under a null or outside the slice."""
    if types.is_map(array.type):
        pair = pa.struct([pa.field("key", array.type.key_type), pa.field("value", array.type.item_type)])
        array = array.cast(pa.list_(pair))
    flat = array.flatten()
    return list(flat) if isinstance(flat, list) else [flat]
