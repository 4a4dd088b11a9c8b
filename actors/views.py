"""List views as plain lists, at any depth.

Used where columns are cast. Arrow's own cast of a list view drops values behind a null (seen in pyarrow 26).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types


@lru_cache(maxsize=1024)
def has_views(kind: pa.DataType) -> bool:
    """Whether there is a list view in values of this type, at any depth."""
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        return True
    return types.is_nested(kind) and any(has_views(kind.field(index).type) for index in range(kind.num_fields))


def without_views(array: pa.Array) -> pa.Array:
    """The same values, with lists in place of list views."""
    kind = array.type
    if not has_views(kind):
        return array
    if types.is_struct(kind):
        children = [without_views(array.field(index)) for index in range(kind.num_fields)]
        return pa.StructArray.from_arrays(children, [child.name for child in kind], mask=array.is_null())
    if types.is_map(kind):
        pairs = without_views(
            array.cast(pa.list_(pa.struct([pa.field("key", kind.key_type), pa.field("value", kind.item_type)])))
        )
        flat = pairs.flatten()
        return pa.MapArray.from_arrays(_offsets(pairs), flat.field(0), flat.field(1), mask=array.is_null())
    return pa.ListArray.from_arrays(_offsets(array), without_views(array.flatten()), mask=array.is_null())


def _offsets(lists: pa.Array) -> pa.Array:
    """Where each list begins among the values that `flatten` gives."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
