"""Statistics of a file for the log of a Delta table: rows, ranges and nulls, by which readers skip files."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.schema import SHARD

_LONGEST_STATISTIC = 64
_LAST_CHARACTER = "\U0010ffff"
_LONGEST_PATH = 1024


def delta_statistics(table: pa.Table) -> str:
    """Return `numRecords`, and range and null count of each column of a primitive type, as Delta Lake's JSON.

    Every range is there, because deltalake finds no row for a condition on a column whose range is missing. Binary columns
    have none: Delta Lake defines none for them.
    """
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for field in table.schema:
        column = table.column(field.name)
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            continue
        nulls[field.name] = column.null_count
        if column.null_count < len(column):
            # Shard paths may be longer: by their range a refresh knows files of a single shard without opening them.
            longest = _LONGEST_PATH if field.name == SHARD else _LONGEST_STATISTIC
            least[field.name], most[field.name] = _range(column, longest)
    return statistics_json(numRecords=table.num_rows, minValues=least, maxValues=most, nullCount=nulls)


def _range(column: pa.ChunkedArray, longest: int) -> tuple[Any, Any]:
    """Return two values that all values of a column are between; the second may be larger than each of them.

    Texts are shortened to `longest` characters. If a value is NaN, which is in no range, the range has no ends.
    """
    if pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py():
        return -math.inf, math.inf
    least, most = pc.min_max(column).as_py().values()
    if isinstance(most, str):
        end = most[:longest]
        while end + _LAST_CHARACTER < most:
            end += _LAST_CHARACTER
        return least[:longest], end if end == most else end + _LAST_CHARACTER
    if isinstance(most, dt.datetime):  # statistics have milliseconds
        with suppress(OverflowError):
            most += dt.timedelta(microseconds=-most.microsecond % 1000)
    return least, most


def statistics_json(**statistics: Any) -> str:
    """Return the statistics of a file as Delta Lake's JSON, from Python values.

    Characters are not escaped: deltalake (1.6) reads escaped ones from U+20000 on as others.
    """
    return _json(statistics)


def _json(value: object) -> str:
    if isinstance(value, Mapping):
        return (
            "{" + ",".join(f"{json.dumps(key, ensure_ascii=False)}:{_json(part)}" for key, part in value.items()) + "}"
        )
    if isinstance(value, dt.datetime):
        text, zone = value.replace(tzinfo=None).isoformat(timespec="milliseconds"), "" if value.tzinfo is None else "Z"
        return f'"{text}{zone}"'
    if isinstance(value, decimal.Decimal):
        return f"{value:f}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f'"{text}"' if isinstance(value, float) and not math.isfinite(value) else text
