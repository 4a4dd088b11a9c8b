"""Columns from folder names: `lang=de/year=2024/part-0.parquet` has `lang` and `year` (`source.hive: true`).

Used by the source check, which finds the columns and freezes their types, and by the reader, which adds the values of a
shard's path to each of its rows. The rules are those that Spark, DuckDB and pyarrow share:

- each folder `name=value` of a path counts, also those before a wildcard; the file's own name does not;
- names and values are percent-decoded; `__HIVE_DEFAULT_PARTITION__` and an empty value are null, and a shard without the
  folder has null;
- if a file has a kept column of the same name, the folder's value is used.

A column is int64 if each of its values is a whole number in the form in which int64 is printed, else text: `007` stays
`007`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import pyarrow as pa

from actors.errors import ConfigError, DataError
from actors.schema import Shard

NULLS = ("__HIVE_DEFAULT_PARTITION__", "")  # Hive writes both as the first; Delta Lake has no empty partition value
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")
_INT64 = range(-(1 << 63), 1 << 63)

Columns = tuple[tuple[str, pa.DataType], ...]


@dataclass(frozen=True, slots=True)
class HiveColumn:
    """Column from the folder names of a corpus.

    Attributes:
        type: int64 or string.
        values: Number of distinct values, without null.
        shards: Number of shards with a folder of this name.
    """

    name: str
    type: pa.DataType
    values: int
    shards: int


def keys(path: str) -> dict[str, str | None]:
    """Return names and values of the `name=value` folders of a path; of two with one name, the inner one."""
    return dict(_pairs(path))


def _pairs(path: str) -> list[tuple[str, str | None]]:
    if "=" not in path:
        return []
    parts = (folder.partition("=") for folder in path.split("/")[:-1])
    return [(_decoded(name), None if raw in NULLS else _decoded(raw)) for name, mark, raw in parts if mark and name]


def _decoded(text: str) -> str:
    """Return percent-decoded text; text whose codes are not UTF-8 is returned unchanged."""
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError:
        return text


def columns(shards: Iterable[Shard]) -> tuple[HiveColumn, ...]:
    """Return the columns from the folder names of a corpus, in order of first occurrence."""
    values: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for shard in shards:
        for name, value in keys(shard.path).items():
            counts[name] = counts.get(name, 0) + 1
            values.setdefault(name, set())
            if value is not None:
                values[name].add(value)
    return tuple(
        HiveColumn(name, pa.int64() if seen and all(map(_is_whole, seen)) else pa.string(), len(seen), counts[name])
        for name, seen in values.items()
    )


def _is_whole(value: str) -> bool:
    return _WHOLE.fullmatch(value) is not None and int(value) in _INT64


def check_names(wanted: Iterable[str], shards: Iterable[Shard]) -> None:
    """Check that each wanted name has one spelling, and one value in each path.

    Raises:
        ConfigError: Its case differs between folders, so that some rows would have nulls; or a path has two values.
    """
    folded = {name.lower() for name in wanted}
    spelled: dict[str, tuple[str, str]] = {}
    for shard in shards:
        values_by_name: dict[str, str | None] = {}
        for name, value in _pairs(shard.path):
            if name.lower() not in folded:
                continue
            if values_by_name.setdefault(name, value) != value:
                raise ConfigError(
                    f"source.hive: {shard.path!r} has two folders for {name!r}, with the values "
                    f"{values_by_name[name]!r} and {value!r}. Rename one of them"
                )
            first, path = spelled.setdefault(name.lower(), (name, shard.path))
            if first != name:
                raise ConfigError(
                    f"source.hive: the folders are named {first!r} in {path!r} and {name!r} in {shard.path!r}, which "
                    f"differ only in case. Rename one of them"
                )


def values(wanted: Columns, shard: Shard, rows: int) -> dict[str, pa.Array]:
    """Return the columns of a shard's path, [rows] each, null if the path lacks one.

    Raises:
        DataError: A value does not fit the planned type.
    """
    path_values = keys(shard.path)
    arrays = {}
    for name, kind in wanted:
        try:
            arrays[name] = pa.repeat(_scalar(path_values.get(name), kind), rows)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(
                f"{shard.path!r} gives {name!r} the value {path_values[name]!r}, which is not {kind}, the type in the "
                f"plan of the run. Rename that folder or leave it out of the source"
            ) from None
    return arrays


def _scalar(value: str | None, kind: pa.DataType) -> pa.Scalar:
    """Return a folder's value in a type whose text form is that value again.

    Raises:
        ArrowInvalid: The value is not of that type.
        ArrowNotImplementedError: Text cannot be cast to that type.
    """
    if value is None:
        return pa.scalar(None, kind)
    cast = pa.scalar(value, pa.string()).cast(kind)
    if pa.types.is_integer(kind) and str(cast.as_py()) != value:
        raise pa.ArrowInvalid(f"{value!r} is not how {kind} is written")
    return cast


def hint(name: str, shards: Iterable[Shard]) -> str:
    """Return a hint for the error of a missing column that is a folder name, else an empty text."""
    for shard in shards:
        for folder in shard.path.split("/")[:-1]:
            if _decoded(folder.partition("=")[0]) == name and "=" in folder:
                return f"; the folder {folder!r} has it: set source.hive: true to read it as a column"
    return ""


def overlap(
    wanted: Iterable[str], columns_by_shard: Mapping[Shard, Mapping[str, object]]
) -> dict[str, tuple[Shard | None, Shard | None]]:
    """Return for each wanted name a shard that has both column and folder, and one that has only the column."""
    result: dict[str, tuple[Shard | None, Shard | None]] = {}
    for name in wanted:
        both, alone = None, None
        for shard, file_columns in columns_by_shard.items():
            if name in file_columns:
                if name in keys(shard.path):
                    both = both or shard
                else:
                    alone = alone or shard
        result[name] = both, alone
    return result
