"""Columns made of folder names: `lang=de/year=2024/part-0.parquet` gives `lang` and `year` (`source.hive: true`).

Used by the source check, which finds the columns and freezes their types, and by the reader, which gives every row of a
shard the values of its path. The rules are those of Spark, DuckDB and pyarrow where the three agree:

- each folder `name=value` of a path counts, also those before a wildcard; the file's own name does not;
- names and values are percent-decoded; `__HIVE_DEFAULT_PARTITION__` and an empty value are null, and so is the column of a
  shard without such a folder;
- where a file has a kept column of the same name, the folder's value is the one that counts.

A column is int64 where each of its values is a whole number that int64 gives back as it was written, else text: `007`
stays `007`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import pyarrow as pa

from actors.errors import ConfigError, DataError
from actors.schema import Shard

NULLS = ("__HIVE_DEFAULT_PARTITION__", "")  # Hive itself writes both as the first; Delta Lake has no empty partition
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")
_INT64 = range(-(1 << 63), 1 << 63)

Columns = tuple[tuple[str, pa.DataType], ...]


@dataclass(frozen=True, slots=True)
class HiveColumn:
    """One column that the folders of a corpus have.

    Attributes:
        type: int64 or string.
        values: How many different values there are, null not counted.
        shards: How many shards have a folder of this name.
    """

    name: str
    type: pa.DataType
    values: int
    shards: int


def keys(path: str) -> dict[str, str | None]:
    """Names and values of the `name=value` folders of a shard's path; of two of one name the inner one counts."""
    return dict(_pairs(path))


def _pairs(path: str) -> list[tuple[str, str | None]]:
    if "=" not in path:
        return []
    parts = (folder.partition("=") for folder in path.split("/")[:-1])
    return [(_decoded(name), None if raw in NULLS else _decoded(raw)) for name, mark, raw in parts if mark and name]


def _decoded(text: str) -> str:
    """Percent-codes as their characters; text whose codes are not UTF-8 stays as it is."""
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError:
        return text


def columns(shards: Iterable[Shard]) -> tuple[HiveColumn, ...]:
    """The columns that the folders of a corpus have, in the order in which they are met."""
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
    """Check that each wanted name means one value in each path.

    Raises:
        ConfigError: folders spell it in two cases, so that some rows would have nulls; or one path has two values.
    """
    folded = {name.lower() for name in wanted}
    spelled: dict[str, tuple[str, str]] = {}
    for shard in shards:
        there: dict[str, str | None] = {}
        for name, value in _pairs(shard.path):
            if name.lower() not in folded:
                continue
            if there.setdefault(name, value) != value:
                raise ConfigError(
                    f"source.hive: {shard.path!r} has two folders for {name!r}, with the values {there[name]!r} and "
                    f"{value!r}. Rename one of them"
                )
            first, path = spelled.setdefault(name.lower(), (name, shard.path))
            if first != name:
                raise ConfigError(
                    f"source.hive: the folders are named {first!r} in {path!r} and {name!r} in {shard.path!r}, which "
                    f"differ by case alone. Rename one of them"
                )


def values(wanted: Columns, shard: Shard, rows: int) -> dict[str, pa.Array]:
    """The columns of a shard's path, [rows] each, null where the path lacks one.

    Raises:
        DataError: a value is none of the planned type.
    """
    there = keys(shard.path)
    found = {}
    for name, kind in wanted:
        try:
            found[name] = pa.repeat(_scalar(there.get(name), kind), rows)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(
                f"{shard.path!r} gives {name!r} the value {there[name]!r}, which is not {kind} as the run was planned "
                f"with. Rename that folder or leave it out of the source"
            ) from None
    return found


def _scalar(value: str | None, kind: pa.DataType) -> pa.Scalar:
    """A folder's value as a type that gives it back as it was written.

    Raises:
        ArrowInvalid: it is no value of that type.
        ArrowNotImplementedError: no text is.
    """
    if value is None:
        return pa.scalar(None, kind)
    cast = pa.scalar(value, pa.string()).cast(kind)
    if pa.types.is_integer(kind) and str(cast.as_py()) != value:
        raise pa.ArrowInvalid(f"{value!r} is not how {kind} is written")
    return cast


def hint(name: str, shards: Iterable[Shard]) -> str:
    """What to add to an error about a missing column where folders have one of that name; else empty."""
    for shard in shards:
        for folder in shard.path.split("/")[:-1]:
            if _decoded(folder.partition("=")[0]) == name and "=" in folder:
                return f"; the folder {folder!r} has it: set source.hive: true to read it as a column"
    return ""


def overlap(
    wanted: Iterable[str], found: Mapping[Shard, Mapping[str, object]]
) -> dict[str, tuple[Shard | None, Shard | None]]:
    """Of each wanted name: a shard that has it as a column and as a folder, and one that has it as a column alone."""
    result: dict[str, tuple[Shard | None, Shard | None]] = {}
    for name in wanted:
        both, alone = None, None
        for shard, there in found.items():
            if name in there:
                if name in keys(shard.path):
                    both = both or shard
                else:
                    alone = alone or shard
        result[name] = both, alone
    return result
