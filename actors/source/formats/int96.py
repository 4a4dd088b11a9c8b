"""INT96 timestamps of Parquet: a day and the nanoseconds of the day, as written by Spark, Hive and Impala.

Used by the Parquet format. Arrow converts them to 64-bit timestamps and reports no overflow: nanoseconds wrap around
outside the years 1677 to 2262, and microseconds drop smaller parts. So they are read as microseconds and compared with
the same values read as nanoseconds, which have the lowest bits of every value, and as seconds, which have the whole
range. Only columns of this type are read again.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

_MOST_S = 9_223_372_036_853  # 2^63 microseconds, without the last second

Unit = Literal["us", "ns", "s"]


def columns(file: pq.ParquetFile, names: list[str]) -> list[str]:
    """Return the names of columns with INT96 values, at any depth."""
    # Most files have no timestamps, and then the leaf columns need not be checked.
    with_timestamps = {name for name in names if _has_timestamps(file.schema_arrow.field(name).type)}
    if not with_timestamps:
        return []
    leaves = (file.schema.column(index) for index in range(len(file.schema)))
    int96_names = {leaf.path.split(".")[0] for leaf in leaves if leaf.physical_type == "INT96"}
    # A name with a dot looks like the path of a nested column.
    return [name for name in names if name in with_timestamps and name.split(".")[0] in int96_names]


def _has_timestamps(kind: pa.DataType) -> bool:
    if types.is_timestamp(kind):
        return True
    return types.is_nested(kind) and any(_has_timestamps(kind.field(index).type) for index in range(kind.num_fields))


def misread(us: pa.Array, ns: pa.Array, s: pa.Array) -> dict[int, str]:
    """Return the rows with a timestamp that is not exact in microseconds, with an error message.

    Args:
        us: A column with INT96 read as microseconds.
        ns: The same as nanoseconds, modulo 2^64.
        s: The same as seconds, rounded down.
    """
    return dict(_misread(us, ns, s))


def _misread(us: pa.Array, ns: pa.Array, s: pa.Array) -> list[tuple[int, str]]:
    kind = us.type
    if types.is_timestamp(kind):
        # A plain timestamp beside INT96 ones in the same column has its own unit each time.
        return _differing(us, ns, s) if (ns.type.unit, s.type.unit) == ("ns", "s") else []
    if not types.is_nested(kind):
        return []
    if types.is_struct(kind):
        parts = zip(us.flatten(), ns.flatten(), s.flatten(), strict=True)
        return [lost for part in parts for lost in _misread(*part)]
    if types.is_map(kind):
        us, ns, s = (_as_lists(array) for array in (us, ns, s))
    lost_children = _misread(us.flatten(), ns.flatten(), s.flatten())
    if not lost_children:
        return []
    lengths = us.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(us)), lengths)
    return [(int(rows[at]), text) for at, text in lost_children]


def _as_lists(array: pa.MapArray) -> pa.ListArray:
    kind = array.type
    return array.cast(pa.list_(pa.struct([pa.field("key", kind.key_type), pa.field("value", kind.item_type)])))


def _differing(us: pa.Array, ns: pa.Array, s: pa.Array) -> list[tuple[int, str]]:
    micro, nano, second = (_numbers(array) for array in (us, ns, s))
    wrapped = (second < -_MOST_S) | (second > _MOST_S)
    below = nano - micro * 1000  # modulo 2^64, as both are
    lost: list[tuple[int, str]] = []
    for index in np.flatnonzero(wrapped | (below != 0)):
        if wrapped[index]:
            text = "an INT96 timestamp outside the range of 64-bit microseconds"
        else:
            text = (
                f"the INT96 timestamp {us[int(index)].cast(pa.string()).as_py()} and {below[index]} ns has a part below a "
                f"microsecond, which Delta Lake cannot store. Round the column to microseconds in the source"
            )
        lost.append((int(index), text))
    return lost


def _numbers(array: pa.Array) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = array.view(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return numbers
