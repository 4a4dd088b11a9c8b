"""Arrow types: which of them are text, and as which type a kept column is stored.

Used by the formats and by the source check. The rule: a kept column has a type that both Parquet and Delta Lake can
hold, reached without changing a value; where there is none, the job is refused rather than the value bent.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
from pyarrow import types


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text (a dictionary of text does)."""
    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_id(kind: pa.DataType) -> bool:
    """Whether ids can be made of this type: text, whole numbers, and floats, which are what pandas makes of those."""
    return is_text(kind) or bool(types.is_integer(kind) or types.is_floating(kind))


def stored_type(kind: pa.DataType) -> pa.DataType | None:
    """The type as which a kept column of `kind` is stored, or None if Delta Lake has none for it.

    Encodings are taken off (dictionary, large, view), unsigned numbers get the next wider signed type, timestamps get
    microseconds (finer ones lose their nanoseconds, the one loss there is), and a column of nulls is text.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return stored_type(kind.storage_type) if kind.extension_name == "arrow.json" else None
    if types.is_dictionary(kind):
        return stored_type(kind.value_type)
    if is_text(kind) or types.is_null(kind):
        return pa.string()
    if types.is_boolean(kind) or types.is_signed_integer(kind) or types.is_date32(kind) or kind == pa.binary():
        return kind
    if types.is_unsigned_integer(kind):
        return {8: pa.int16(), 16: pa.int32(), 32: pa.int64(), 64: pa.int64()}[kind.bit_width]
    if types.is_floating(kind):
        return pa.float32() if kind == pa.float16() else kind
    if types.is_large_binary(kind) or types.is_fixed_size_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_date64(kind):
        return pa.date32()
    if types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= 38 and kind.scale >= 0 else None
    return _stored_nested(kind)


def _stored_nested(kind: pa.DataType) -> pa.DataType | None:
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = stored_type(kind.value_type)
        return pa.list_(inner) if inner is not None else None
    if types.is_map(kind):
        key, item = stored_type(kind.key_type), stored_type(kind.item_type)
        return pa.map_(key, item) if key is not None and item is not None else None
    if types.is_struct(kind) and kind.num_fields:
        inner_types = [stored_type(child.type) for child in kind]
        if any(inner is None for inner in inner_types):
            return None
        return pa.struct([pa.field(child.name, inner) for child, inner in zip(kind, inner_types, strict=True)])
    return None


def merged(kinds: Iterable[pa.DataType]) -> pa.DataType | None:
    """The one type that values of all `kinds` fit, or None."""
    schemas = [pa.schema([("column", kind)]) for kind in kinds]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
