"""What a job says about its source, checked against the files that are there.

`check_source` is called when a run is planned; the `SourceSpec` that it makes travels to every reader. The trade-off:
it looks at the footer or head of every shard, which planning has to do anyway, so that a wrong column is found before
the first GPU second is paid, and not by the unit that meets it.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from actors import storage
from actors.errors import ConfigError
from actors.schema import HASH, ID, POSITION, SHARD, TASK, Shard
from actors.source import hive
from actors.source.column_names import misnamed
from actors.source.formats import Format, Wanted, open_format
from actors.source.formats.base import REPEATED
from actors.source.formats.jsonl import refuse_without_text
from actors.source.formats.types import is_id, is_text, merged, refusal, stored_type
from actors.storage.patterns import literal_depth

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
        folders: Those of the columns above that are made of folder names, with their types.
    """

    format: str
    root: str
    text: tuple[str, ...] = ("text",)
    id: str | None = None
    keep: tuple[tuple[str, pa.DataType], ...] = ()
    task: str | None = None
    unique_ids: bool = True
    folders: hive.Columns = ()

    def wanted(self) -> Wanted:
        """The columns to read from files, each once."""
        folders = dict(self.folders)
        types = {**dict.fromkeys([*self.text, *filter(None, (self.id, self.task))], pa.string()), **dict(self.keep)}
        return Wanted(
            {name: kind for name, kind in types.items() if name not in folders},
            tuple(name for name in self.text if name not in folders),
            None if self.id in folders else self.id,
            None if self.task in folders else self.task,
        )

    def schema(self) -> pa.Schema:
        """The columns of `ReadResult.table`."""
        task = [(TASK, pa.string())] if self.task else []
        ours = [(TEXT, pa.string()), *task, (HASH, pa.string()), (SHARD, pa.string()), (POSITION, pa.int64())]
        return pa.schema([(ID, pa.string()), *self.keep, *ours])


def corpus_root(uri: str, shards: Sequence[Shard]) -> str:
    """The folder that a corpus's paths are relative to: what stands before the first wildcard; the folder itself; or
    the folder of a single file. Spelled as the shards' paths are. A part that looks like a wildcard and that shards have
    in their paths is a name, as in `actors.storage.glob`."""
    uri = storage.absolute(uri)
    if not storage.is_local(uri):
        fs, path = storage.filesystem(uri)
        uri = str(fs.unstrip_protocol(path)).rstrip("/")
    parts = uri.split("/")
    depth = literal_depth(parts, lambda path: any(f"{shard.path}/".startswith(f"{path}/") for shard in shards))
    if depth < len(parts):
        return "/".join(parts[:depth])
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
    folders_of: Sequence[Shard] = (),
    known: Mapping[str, pa.DataType] | None = None,
) -> SourceSpec:
    """A source, found to be readable as a job file says.

    A kept column that some shards lack is null there. Shards without rows say nothing. The `name=value` folders of
    `folders_of`, which are the whole corpus where `source.hive` is on, are columns too. `known` has the types of kept
    columns in shards that are not among these: they are joined with the types that are found.

    Raises:
        ConfigError: a column is missing, there twice, or of a type or name that it cannot have; formats are mixed; there
            is nothing at all.
        DataError: a shard cannot be read.
        SourceChanged: a shard is not the one that was listed.
    """
    if not shards:
        raise ConfigError(f"there are no files at {root!r}. Check source.uri, and that names do not begin with . or _")
    source_format = _one_format(format, shards)
    for shard in shards:
        _check_path(shard.path)
    if wrong := misnamed(keep):
        raise ConfigError(f"source.{wrong}")
    if not text:
        raise ConfigError("source.text names no column. Name at least one")
    if taken := [name for name in (*text, id, task) if name in (POSITION, SHARD)]:
        raise ConfigError(f"{taken[0]!r} is a name that readers use themselves. Rename that column in the source")

    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(shards, pool.map(source_format.columns, shards), strict=True))
    found = {shard: columns for shard, columns in found.items() if columns}
    folders = _folder_columns(folders_of, found, keep=keep, needed=(*text, id, task)) if folders_of else ()
    types = dict(folders)
    for shard in found if folders_of else ():
        found[shard] = {**found[shard], **{name: types.get(name, pa.string()) for name in hive.keys(shard.path)}}
    if not found:
        raise ConfigError(
            f"none of the {len(shards)} files at {root!r} has a row that can be read as {source_format.name}"
        )

    for key, name in [*(("text", name) for name in text), ("id", id), ("task_column", task)]:
        if name is not None:
            _check_once(key, name, found)
            _check_needed(key, name, found, schemaless=source_format.schemaless)
    if source_format.name == "jsonl":
        for shard in found:
            refuse_without_text(shard, text)
    for name in keep:
        if name not in types:
            _check_once("keep", name, found)
    kept = tuple(
        (
            name,
            types[name]
            if name in types
            else _kept_type(name, found, (known or {}).get(name), schemaless=source_format.schemaless),
        )
        for name in keep
    )
    return SourceSpec(source_format.name, root, tuple(text), id, kept, task, unique_ids, folders)


Found = Mapping[Shard, Mapping[str, pa.DataType]]


def _folder_columns(
    shards: Sequence[Shard], found: Found, *, keep: Sequence[str], needed: Sequence[str | None]
) -> hive.Columns:
    """Those of the job's columns that folders have. One that is embedded, an id or a task is text: as it is written."""
    named = list(dict.fromkeys([*keep, *filter(None, needed)]))
    there = {column.name: column.type for column in hive.columns(shards)}
    hive.check_names(named, shards)
    wanted = [name for name in named if name in there]
    for name, (both, alone) in hive.overlap(wanted, found).items():
        if both is not None and name in needed:
            raise ConfigError(
                f"source.hive: {both.path!r} has {name!r} as a column and as a folder, and the job needs that column. "
                f"Rename the folder, or set source.hive: false"
            )
        if alone is not None:
            raise ConfigError(
                f"source.hive: {name!r} is a folder of some files and, in {alone.path!r}, a column without such a folder. "
                f"Narrow source.uri to files of one kind, or set source.hive: false"
            )
    return tuple((name, pa.string() if name in needed else there[name]) for name in wanted)


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


def _check_once(key: str, name: str, found: Found) -> None:
    """No shard has two columns of a name that is wanted."""
    for shard, columns in found.items():
        if columns.get(name) == REPEATED:
            raise ConfigError(
                f"source.{key} names {name!r}, and {shard.path!r} has two columns of that name. Rename one of them"
            )


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


def _kept_type(name: str, found: Found, known: pa.DataType | None, *, schemaless: bool) -> pa.DataType:
    """The type as which a kept column is stored, over all shards and those whose type is known already."""
    kinds: dict[pa.DataType, Shard] = {}
    for shard, columns in found.items():
        if name in columns:
            kinds.setdefault(columns[name], shard)
    if not kinds and known is None:
        raise _missing("keep", name, found)
    all_kinds = [*kinds, *([known] if known is not None else [])]
    if schemaless:
        return stored_type(merged(all_kinds) or pa.string()) or pa.string()
    for kind, shard in kinds.items():
        if reason := refusal(kind):
            raise ConfigError(
                f"source.keep names {name!r}, which is {kind} in {shard.path!r}: {reason}. Cast or rename in the source, "
                f"or leave it out of source.keep"
            )
    one = merged(all_kinds)
    if one is None:
        shown = ", ".join(f"{kind} in {shard.path!r}" for kind, shard in _at_odds(kinds))
        shown += f", {known} in the table" if known is not None else ""
        raise ConfigError(
            f"source.keep names {name!r}, which is not of one type: {shown}. Cast the column or leave it out"
        )
    # Each shard's type may be sound by itself, and the fields of all of them together not.
    reason, stored = refusal(one), stored_type(one)
    if reason or stored is None:
        raise ConfigError(
            f"source.keep names {name!r}, which is {one} over all {len(found)} files: {reason}. Rename in the source, or "
            f"leave it out of source.keep"
        )
    return stored


def _at_odds(kinds: Mapping[pa.DataType, Shard]) -> list[tuple[pa.DataType, Shard]]:
    """Two types that have no common one, with a shard of each; or the first few, where each two of them have one."""
    pairs = itertools.combinations(kinds.items(), 2)
    return next(([one, other] for one, other in pairs if merged([one[0], other[0]]) is None), list(kinds.items())[:3])


def _missing(key: str, name: str, found: Found) -> ConfigError:
    known = list(dict.fromkeys(column for columns in found.values() for column in columns))
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = hive.hint(name, found) or (f"; did you mean {near[0]!r}?" if near else "")
    return ConfigError(f"source.{key} names the column {name!r}, which is not there; there are {known[:50]}{hint}")
