"""Converts Arrow views (lists, texts and bytes stored as references into a buffer) to plain arrays, at any depth.

Used by the cast of columns. Arrow has few kernels for views, and its cast of a list view drops values after a null (seen
in pyarrow 26).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types


def _is_list_view(kind: pa.DataType) -> bool:
    return bool(types.is_list_view(kind) or types.is_large_list_view(kind))


@lru_cache(maxsize=1024)
def _has_views(kind: pa.DataType) -> bool:
    if types.is_string_view(kind) or types.is_binary_view(kind) or _is_list_view(kind):
        return True
    return types.is_nested(kind) and any(_has_views(kind.field(index).type) for index in range(kind.num_fields))


def without_views(array: pa.Array) -> pa.Array:
    """Return the same values without views. The bytes of texts are not checked.

    Raises:
        ArrowNotImplementedError: A view is in a type that is not supported here, such as a union.
    """
    kind = array.type
    if not _has_views(kind):
        return array
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return array.cast(pa.string() if types.is_string_view(kind) else pa.binary())
    if types.is_struct(kind):
        children = [without_views(array.field(index)) for index in range(kind.num_fields)]
        return pa.StructArray.from_arrays(children, [child.name for child in kind], mask=array.is_null())
    if types.is_map(kind):
        pair = pa.struct([pa.field("key", kind.key_type), pa.field("value", kind.item_type)])
        pairs = array.cast(pa.list_(pair))
        flat = without_views(pairs.flatten())
        return pa.MapArray.from_arrays(_offsets(pairs), flat.field(0), flat.field(1), mask=array.is_null())
    if not (_is_list_view(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        raise pa.ArrowNotImplementedError(f"views inside {kind}")
    return pa.ListArray.from_arrays(_offsets(array), without_views(array.flatten()), mask=array.is_null())


def _offsets(lists: pa.Array) -> pa.Array:
    """Return the start of each list in the result of `flatten`."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
