"""Rules for Arrow types: text types, stored types of kept columns, and the common type of several shards.

Used by the formats and by the source check. A kept column is stored in a type that Parquet and Delta Lake both have, and
no value changes by the cast. If there is no such type, the job is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, reduce

import pyarrow as pa
from pyarrow import types

from actors.source.column_names import alike

_WIDEST = 38  # digits of a decimal of Delta Lake
# Digits that a decimal needs for every number of the type.
_DIGITS = {pa.int8(): 3, pa.int16(): 5, pa.int32(): 10, pa.int64(): 19}
_WIDER = {8: pa.int16(), 16: pa.int32(), 32: pa.int64(), 64: pa.int64()}


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type has text. A dictionary of text is text, and so is JSON."""
    if isinstance(kind, pa.BaseExtensionType):
        return bool(kind.extension_name == "arrow.json")
    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_id(kind: pa.DataType) -> bool:
    """Return whether this type can be an id: text, whole numbers, and floats, to which pandas converts those."""
    return is_text(kind) or bool(types.is_integer(kind) or types.is_floating(kind))


def stored_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the stored type of a kept column of `kind`, or None if Delta Lake has none for it.

    Encodings are removed (dictionary, large, view), unsigned numbers get the next wider signed type, timestamps get
    microseconds, a decimal gets 128 bits, and nulls are text. A value that does not fit (a uint64 from 2^63 on, a part
    below a microsecond) is quarantined by the reader.
    """
    plain = _plain(kind)
    return None if plain is None else _without_nulls(plain)


def merged(kinds: Iterable[pa.DataType]) -> pa.DataType | None:
    """Return the type that fits values of all `kinds`, or None. The order of `kinds` does not matter.

    Nulls fit any type, at any depth. Numbers are widened if no value is rounded: whole numbers to wider ones, to
    decimals, and to floats (an int64 that no float64 equals is quarantined by the reader); float32 to float64; decimals
    to more digits, up to 38 in all. A date is a timestamp without a zone, text is binary. Structs get the fields of
    both, by name where their orders differ. Types that never mix: text and numbers, decimals and floats, timestamps
    with and without a zone.
    """
    plain = [_plain(kind) for kind in kinds]
    return reduce(_join, plain, pa.null())


@lru_cache(maxsize=1024)
def fits(kind: pa.DataType, target: pa.DataType) -> bool:
    """Return whether a column of `kind` may be cast to the stored type `target` without changing a value."""
    both = merged([kind, target])
    return both is not None and _in_order(_without_nulls(both)) == _in_order(target)


def refusal(kind: pa.DataType) -> str | None:
    """Return the reason why a table cannot have a column of `kind`, with the path inside a nested type; else None."""
    for path, part in _parts(kind, ""):
        inside = f" ({part} in {path})" if path else ""
        if isinstance(part, list):
            if pair := alike(part):
                where = f"{path or 'the type'} has the fields {pair[0]!r} and {pair[1]!r}"
                return f"{where}, which are the same name to Delta Lake and its readers, because they ignore case"
            if with_nul := [name for name in part if "\0" in name]:
                return f"{path or 'the type'} has the field {with_nul[0]!r}, and no name may have a NUL character in it"
        elif types.is_struct(part) and not part.num_fields:
            return f"Parquet has no struct without fields{inside}"
        elif not (_is_list(part) or types.is_map(part) or types.is_struct(part)) and _plain(part) is None:
            return f"Delta Lake has no such type{inside}"
    return None


def _parts(kind: pa.DataType, path: str) -> list[tuple[str, pa.DataType | list[str]]]:
    """Return a type and all types inside it with their paths, and the field names of each struct."""
    if types.is_dictionary(kind):
        return _parts(kind.value_type, path)
    inner: list[tuple[str, pa.DataType]] = []
    parts: list[tuple[str, pa.DataType | list[str]]] = [(path, kind)]
    if _is_list(kind):
        inner = [(f"{path}[]", kind.value_type)]
    elif types.is_map(kind):
        inner = [(f"{path}[key]", kind.key_type), (f"{path}[value]", kind.item_type)]
    elif types.is_struct(kind):
        parts.append((path, [child.name for child in kind]))
        inner = [(f"{path}.{child.name}".lstrip("."), child.type) for child in kind]
    for inner_path, part in inner:
        parts += _parts(part, inner_path)
    return parts


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


@lru_cache(maxsize=1024)
def _plain(kind: pa.DataType) -> pa.DataType | None:
    """Return the stored type, but with null types unchanged."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.string() if is_text(kind) else None
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if is_text(kind):
        return pa.string()
    if types.is_null(kind) or types.is_boolean(kind) or types.is_signed_integer(kind) or types.is_date32(kind):
        return kind
    if types.is_unsigned_integer(kind):
        return _WIDER[kind.bit_width]
    if types.is_floating(kind):
        return pa.float32() if kind == pa.float16() else kind
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_binary_view(kind):
        return pa.binary()
    if types.is_date64(kind):
        return pa.date32()
    if types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if types.is_decimal(kind):
        return _decimal(kind.precision - kind.scale, kind.scale)
    return _plain_nested(kind)


def _plain_nested(kind: pa.DataType) -> pa.DataType | None:
    if _is_list(kind):
        inner = _plain(kind.value_type)
        return pa.list_(inner) if inner is not None else None
    if types.is_map(kind):
        key, item = _plain(kind.key_type), _plain(kind.item_type)
        return pa.map_(key, item) if key is not None and item is not None else None
    if types.is_struct(kind) and kind.num_fields:
        inner_types = [_plain(child.type) for child in kind]
        if any(inner is None for inner in inner_types):
            return None
        return pa.struct([pa.field(child.name, inner) for child, inner in zip(kind, inner_types, strict=True)])
    return None


def _without_nulls(kind: pa.DataType) -> pa.DataType:
    """Return a plain type with text in place of null."""
    if types.is_null(kind):
        return pa.string()
    if types.is_list(kind):
        return pa.list_(_without_nulls(kind.value_type))
    if types.is_map(kind):
        return pa.map_(_without_nulls(kind.key_type), _without_nulls(kind.item_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(child.name, _without_nulls(child.type)) for child in kind])
    return kind


def _in_order(kind: pa.DataType) -> pa.DataType:
    """Return a type with the fields of its structs sorted by name."""
    if types.is_list(kind):
        return pa.list_(_in_order(kind.value_type))
    if types.is_map(kind):
        return pa.map_(_in_order(kind.key_type), _in_order(kind.item_type))
    if types.is_struct(kind):
        fields = sorted(((child.name, child.type) for child in kind), key=lambda field: field[0])
        return pa.struct([pa.field(name, _in_order(inner)) for name, inner in fields])
    return kind


def _join(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    """Return the common type of two plain types, or None."""
    if one is None or other is None or one == other or types.is_null(other):
        return one if other is not None else None
    if types.is_null(one):
        return other
    if types.is_list(one) and types.is_list(other):
        inner = _join(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    if types.is_map(one) and types.is_map(other):
        key, item = _join(one.key_type, other.key_type), _join(one.item_type, other.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if types.is_struct(one) and types.is_struct(other):
        return _join_structs(one, other)
    pair = {one, other}
    if pair == {pa.string(), pa.binary()}:
        return pa.binary()
    if pair == {pa.date32(), pa.timestamp("us")}:
        return pa.timestamp("us")
    return _join_numbers(one, other)


def _join_structs(one: pa.StructType, other: pa.StructType) -> pa.DataType | None:
    first, second = ({child.name: child.type for child in kind} for kind in (one, other))
    if len(first) < one.num_fields or len(second) < other.num_fields:
        return None  # a repeated name: its values cannot be assigned
    # Sorted if the orders differ, so that the order of the shards does not matter.
    names = list(first) if list(first) == list(second) else sorted({*first, *second})
    joined = [_join(first.get(name, pa.null()), second.get(name, pa.null())) for name in names]
    if any(kind is None for kind in joined):
        return None
    return pa.struct([pa.field(name, kind) for name, kind in zip(names, joined, strict=True)])


def _join_numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    first, second = sorted((one, other), key=_rank)
    if _rank(first) < 0:
        return None
    if types.is_integer(first) and types.is_integer(second):
        return max(first, second, key=lambda kind: kind.bit_width)
    if types.is_integer(first) and types.is_floating(second):
        # A float32 represents every whole number of 24 bits.
        return second if first.bit_width <= 16 else pa.float64()
    if types.is_floating(first) and types.is_floating(second):
        return pa.float64()
    if types.is_floating(first):
        return None
    scale = max(0 if types.is_integer(first) else first.scale, second.scale)
    digits = _DIGITS[first] if types.is_integer(first) else first.precision - first.scale
    return _decimal(max(digits, second.precision - second.scale), scale)


def _rank(kind: pa.DataType) -> int:
    """Return 0 for whole numbers, 1 for floats, 2 for decimals, -1 for other types."""
    tests = (types.is_integer, types.is_floating, types.is_decimal)
    return next((rank for rank, test in enumerate(tests) if test(kind)), -1)


def _decimal(digits: int, scale: int) -> pa.DataType | None:
    """Return the decimal with these digits before and after the point, or None if Delta Lake has none."""
    digits, scale = max(digits, 0), max(scale, 0)
    return pa.decimal128(max(digits + scale, 1), scale) if digits + scale <= _WIDEST else None
