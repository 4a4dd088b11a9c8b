"""What a job says about its source, checked against the files that are there.

`check_source` is called when a run is planned; the `SourceSpec` that it makes travels to every reader. The trade-off:
it looks at the footer or head of every shard, which planning has to do anyway, so that a wrong column is found before
the first GPU second is paid, and not by the unit that meets it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from actors import storage
from actors.errors import ConfigError
from actors.formats import Format, Wanted, open_format
from actors.formats.jsonl import refuse_without_text
from actors.formats.types import is_id, is_text, merged, stored_type
from actors.schema import HASH, ID, POSITION, RESERVED, SHARD, TASK, Shard

TEXT = "_text"
_THREADS = 16


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What to read of a source. Made by `check_source`.

    Attributes:
        format: Name of the format, never "auto".
        root: The corpus's folder, as `corpus_root` gives it: ids made of paths are relative to it.
        id: The id column, or None for ids made of path and position.
        text: The columns that are embedded, joined by a blank line.
        keep: Columns to carry along, with the types that they are stored as.
        task: The column with the name of each row's task, or None.
        unique_ids: Whether a repeated id is set aside.
    """

    format: str
    root: str
    text: tuple[str, ...] = ("text",)
    id: str | None = None
    keep: tuple[tuple[str, pa.DataType], ...] = ()
    task: str | None = None
    unique_ids: bool = True

    def wanted(self) -> Wanted:
        """The source columns to read, each once."""
        types = dict.fromkeys([*self.text, *filter(None, (self.id, self.task))], pa.string())
        return Wanted({**types, **dict(self.keep)}, self.text, self.id, self.task)

    def schema(self) -> pa.Schema:
        """The columns of `ReadResult.table`."""
        task = [(TASK, pa.string())] if self.task else []
        ours = [(TEXT, pa.string()), *task, (HASH, pa.string()), (SHARD, pa.string()), (POSITION, pa.int64())]
        return pa.schema([(ID, pa.string()), *self.keep, *ours])


def corpus_root(uri: str, shards: Sequence[Shard]) -> str:
    """The folder that a corpus's paths are relative to: what stands before the first wildcard; the folder itself; or
    the folder of a single file. Spelled as the shards' paths are."""
    uri = storage.absolute(uri)
    if not storage.is_local(uri):
        fs, path = storage.filesystem(uri)
        uri = str(fs.unstrip_protocol(path)).rstrip("/")
    marks = [uri.index(mark) for mark in "*?[" if mark in uri]
    if marks:
        return uri[: min(marks)].rpartition("/")[0]
    if any(shard.path == uri for shard in shards):
        return uri.rpartition("/")[0]
    return uri


def check_source(
    shards: Sequence[Shard],
    *,
    root: str,
    format: str = "auto",  # noqa: A002  (the key's name in a job file)
    text: Sequence[str] = ("text",),
    id: str | None = None,  # noqa: A002
    keep: Sequence[str] = (),
    task: str | None = None,
    unique_ids: bool = True,
) -> SourceSpec:
    """A source, found to be readable as a job file says.

    A kept column that some shards lack is null there. Shards without rows say nothing.

    Raises:
        ConfigError: a column is missing or of a type that it cannot have; formats are mixed; there is nothing at all.
        DataError: a shard cannot be read.
        SourceChanged: a shard is not the one that was listed.
    """
    if not shards:
        raise ConfigError(f"there are no files at {root!r}. Check source.uri, and that names do not begin with . or _")
    source_format = _one_format(format, shards)
    for shard in shards:
        _check_path(shard.path)
    if reserved := [name for name in keep if name in RESERVED or name.startswith("_")]:
        raise ConfigError(f"source.keep names {reserved[0]!r}, which the table uses itself. Rename it in the source")
    if not text:
        raise ConfigError("source.text names no column. Name at least one")
    if taken := [name for name in (*text, id, task) if name in (POSITION, SHARD)]:
        raise ConfigError(f"{taken[0]!r} is a name that readers use themselves. Rename that column in the source")

    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(shards, pool.map(source_format.columns, shards), strict=True))
    found = {shard: columns for shard, columns in found.items() if columns}
    if not found:
        raise ConfigError(
            f"none of the {len(shards)} files at {root!r} has a row that can be read as {source_format.name}"
        )

    for key, name in [*(("text", name) for name in text), ("id", id), ("task_column", task)]:
        if name is not None:
            _check_needed(key, name, found, schemaless=source_format.schemaless)
    if source_format.name == "jsonl":
        for shard in found:
            refuse_without_text(shard, text)
    kept = tuple((name, _kept_type(name, found, schemaless=source_format.schemaless)) for name in keep)
    return SourceSpec(source_format.name, root, tuple(text), id, kept, task, unique_ids)


Found = Mapping[Shard, Mapping[str, pa.DataType]]


def _check_path(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"the name of {path!r} is not UTF-8, so no id can be made of it. Rename the file") from None


def _one_format(name: str, shards: Sequence[Shard]) -> Format:
    first = open_format(name, shards[0].path)
    if name == "auto":
        for shard in shards:
            if (other := open_format(name, shard.path)) is not first:
                raise ConfigError(
                    f"{shards[0].path!r} is {first.name} and {shard.path!r} is {other.name}: a source has one format. "
                    f"Narrow source.uri, or set source.format if they are the same"
                )
    return first


def _check_needed(key: str, name: str, found: Found, *, schemaless: bool) -> None:
    """A text, id or task column is there, in every shard, with a type that it may have."""
    having = [shard for shard, columns in found.items() if name in columns]
    if not having:
        raise _missing(key, name, found)
    for shard, columns in found.items():
        if name not in columns and not schemaless:
            raise ConfigError(
                f"source.{key} names {name!r}, which {having[0].path!r} has and {shard.path!r} has not: it has "
                f"{list(columns)}. Leave that file out or add the column"
            )
        kind = columns.get(name, pa.null())
        # Rows of a schemaless format are judged one by one: the head may be all nulls, or not what follows.
        if schemaless or pa.types.is_null(kind):
            continue
        if not (is_id(kind) if key == "id" else is_text(kind)):
            what = "text or whole numbers" if key == "id" else "text"
            raise ConfigError(
                f"source.{key} names {name!r}, which is {kind} in {shard.path!r}; it must be {what}. Name another "
                f"column or cast this one"
            )


def _kept_type(name: str, found: Found, *, schemaless: bool) -> pa.DataType:
    """The type as which a kept column is stored, over all shards."""
    kinds: dict[pa.DataType, Shard] = {}
    for shard, columns in found.items():
        if name in columns:
            kinds.setdefault(columns[name], shard)
    if not kinds:
        raise _missing("keep", name, found)
    if schemaless:
        return stored_type(merged(kinds) or pa.string()) or pa.string()
    stored = []
    for kind, shard in kinds.items():
        if (target := stored_type(kind)) is None:
            raise ConfigError(
                f"source.keep names {name!r}, which is {kind} in {shard.path!r}: Delta Lake has no such type. Cast the "
                f"column in the source or leave it out of source.keep"
            )
        if not pa.types.is_null(kind):
            stored.append(target)
    if (one := merged(stored or [pa.string()])) is None:
        shown = ", ".join(f"{kind} in {shard.path!r}" for kind, shard in list(kinds.items())[:3])
        raise ConfigError(
            f"source.keep names {name!r}, which is not of one type: {shown}. Cast the column or leave it out"
        )
    return one


def _missing(key: str, name: str, found: Found) -> ConfigError:
    known = list(dict.fromkeys(column for columns in found.values() for column in columns))
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"source.{key} names the column {name!r}, which is not there; there are {known[:50]}{hint}")
