"""Checks the source settings of a job against the files of the source.

`check_source` is called when a run is planned and returns the `SourceSpec` that every reader gets. It reads the footer or
head of every shard, which planning does anyway, so a wrong column is found before any GPU time is spent.
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
from actors.inputs import MODALITIES
from actors.schema import CONTENT, HASH, ID, PAGE, POSITION, SHARD, TASK, Shard
from actors.source import hive
from actors.source.column_names import kept_names, misnamed
from actors.source.formats import Wanted, common_format
from actors.source.formats.base import REPEATED
from actors.source.formats.jsonl import refuse_without_text
from actors.source.formats.types import fits, is_id, is_text, merged, refusal, stored_type
from actors.source.picture_cells import is_picture
from actors.source.pictures import Pictures
from actors.storage.patterns import literal_depth

_THREADS = 16
_WORDS = {pa.string(): "text", pa.binary(): "bytes"}


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """Settings of the readers, as returned by `check_source`.

    Attributes:
        format: Name of the format, never "auto".
        root: The corpus's folder, from `corpus_root`: ids from paths are relative to it.
        id: The id column, or None for ids from path and position.
        text: The columns that are embedded, joined by a blank line.
        keep: Columns to copy to the table, with their stored types.
        task: The column with the name of each row's task, or None.
        unique_ids: Whether rows with a repeated id are quarantined.
        folders: Those of the columns above that are folder names, with their types.
        renamed: Name in the table by name in the source, of those in `keep` for which they differ.
        modality: Key of `actors.inputs.MODALITIES`: the content of the embedded columns.
        pictures: Settings of a source with pictures; None for any other.
        keeps_empty: Whether rows without text are rows too, and the texts are among `keep`: then nothing is embedded.
        texts: Those of the columns in `keep` whose values must be text or null.
    """

    format: str
    root: str
    text: tuple[str, ...] = ("text",)
    id: str | None = None
    keep: tuple[tuple[str, pa.DataType], ...] = ()
    task: str | None = None
    unique_ids: bool = True
    folders: hive.Columns = ()
    modality: str = "text"
    renamed: tuple[tuple[str, str], ...] = ()
    pictures: Pictures | None = None
    keeps_empty: bool = False
    texts: tuple[str, ...] = ()

    def kept_schema(self) -> pa.Schema:
        """Return the kept columns as the table names them."""
        names = dict(self.renamed)
        return pa.schema([(names.get(name, name), kind) for name, kind in self.keep])

    def wanted(self) -> Wanted:
        """Return the columns to read from files, each once."""
        folders = dict(self.folders)
        image = None if self.pictures is None else self.pictures.column
        types = {
            **dict.fromkeys([*self.text, *filter(None, (self.id, self.task, image))], pa.string()),
            **dict(self.keep),
        }
        return Wanted(
            {name: kind for name, kind in types.items() if name not in folders},
            tuple(name for name in self.text if name not in folders),
            None if self.id in folders else self.id,
            None if self.task in folders else self.task,
            self.pictures,
            self.texts,
        )

    def schema(self) -> pa.Schema:
        """Return the schema of `ReadResult.table`."""
        task = [(TASK, pa.string())] if self.task else []
        added = [
            (CONTENT, MODALITIES[self.modality].type),
            *task,
            (HASH, pa.string()),
            (SHARD, pa.string()),
            (POSITION, pa.int64()),
        ]
        return pa.schema([(ID, pa.string()), *self.kept_schema(), *added])


def corpus_root(uri: str, shards: Sequence[Shard]) -> str:
    """Return the folder that a corpus's paths are relative to, in the spelling of the shards' paths.

    It is the part of the URL before the first wildcard, the folder itself, or the folder of a single file. A part that
    looks like a wildcard but occurs in a shard's path is a name, as in `actors.storage.glob`.
    """
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
    keep: Sequence[str] | Mapping[str, str] = (),
    task: str | None = None,
    unique_ids: bool = True,
    folders_of: Sequence[Shard] = (),
    known: Mapping[str, pa.DataType] | None = None,
    modality: str = "text",
    pictures: Pictures | None = None,
    needs_text: bool = True,
) -> SourceSpec:
    """Check that a source can be read with these settings of a job file, for a model of this modality.

    A kept column that some shards lack is null there. Shards without rows are ignored. The `name=value` folders of
    `folders_of`, which is the whole corpus if `source.hive` is on, are columns too. `known` has the types of kept columns
    in other shards; they are merged with the types in `shards`. `keep` may map names in the source to names in the table.
    Unless `needs_text`, columns in `text` that no shard has are left out.

    Raises:
        ConfigError: A column is missing, occurs twice, or has an invalid type or name; formats are mixed; or there are no
            files or rows.
        DataError: A shard cannot be read.
        SourceChanged: A shard changed after it was listed.
    """
    if not shards:
        raise ConfigError(f"there are no files at {root!r}. Check source.uri, and that names do not begin with . or _")
    source_format = common_format(format, (shard.path for shard in shards))
    image = None if pictures is None else pictures.column
    names = kept_names(keep)
    if wrong := misnamed(names):
        raise ConfigError(f"source.{wrong}")
    if not text:
        raise ConfigError("source.text names no column. Name at least one")
    content = pa.string() if pictures is not None else MODALITIES[modality].type
    if len(text) > 1 and not is_text(content):
        raise ConfigError(
            f"source.text names {len(text)} columns, and only texts are joined; the model takes {modality}. Name one"
        )
    if reserved := [name for name in (*text, *names, id, task, image) if name in (POSITION, SHARD)]:
        raise ConfigError(f"{reserved[0]!r} is reserved for the readers. Rename that column in the source")

    with ThreadPoolExecutor(_THREADS) as pool:
        listed = zip(shards, pool.map(source_format.columns, shards), strict=True)
        columns_by_shard = {shard: columns for shard, columns in listed if columns}
    page = PAGE if source_format.name == "pages" else None  # the number of a page is no folder's
    needed = (*text, id, task, image, page)
    folders = _folder_columns(folders_of, columns_by_shard, keep=list(names), needed=needed) if folders_of else ()
    types = dict(folders)
    for shard in columns_by_shard if folders_of else ():
        folder_types = {name: types.get(name, pa.string()) for name in hive.keys(shard.path)}
        columns_by_shard[shard] = {**columns_by_shard[shard], **folder_types}
    if not columns_by_shard:
        raise ConfigError(
            f"none of the {len(shards)} files at {root!r} has a row that can be read as {source_format.name}"
        )

    if not needs_text:
        text = [name for name in text if any(name in columns for columns in columns_by_shard.values())]
    for key, name in [*(("text", name) for name in text), ("id", id), ("task_column", task), ("image", image)]:
        if name is not None:
            _check_not_repeated(key, name, columns_by_shard)
            everywhere = key != "text" or image is None
            _check_needed(
                key, name, columns_by_shard, content, schemaless=source_format.schemaless, everywhere=everywhere
            )
    if source_format.name == "jsonl":
        for shard in columns_by_shard:
            refuse_without_text(shard, [*text, *filter(None, [image])])
    for name in names:
        if name not in types:
            _check_not_repeated("keep", name, columns_by_shard)
    kept = tuple(
        (
            name,
            types[name]
            if name in types
            else _kept_type(name, columns_by_shard, (known or {}).get(name), schemaless=source_format.schemaless),
        )
        for name in names
    )
    renamed = tuple((name, stored) for name, stored in names.items() if name != stored)
    return SourceSpec(
        source_format.name, root, tuple(text), id, kept, task, unique_ids, folders, modality, renamed, pictures
    )


ColumnsByShard = Mapping[Shard, Mapping[str, pa.DataType]]


def _folder_columns(
    shards: Sequence[Shard], columns_by_shard: ColumnsByShard, *, keep: Sequence[str], needed: Sequence[str | None]
) -> hive.Columns:
    """Return the job's columns that are folder names. Those in `needed` are text, unchanged from the path."""
    named = list(dict.fromkeys([*keep, *filter(None, needed)]))
    folder_types = {column.name: column.type for column in hive.columns(shards)}
    hive.check_names(named, shards)
    wanted = [name for name in named if name in folder_types]
    for name, (both, alone) in hive.overlap(wanted, columns_by_shard).items():
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
    return tuple((name, pa.string() if name in needed else folder_types[name]) for name in wanted)


def _check_not_repeated(key: str, name: str, columns_by_shard: ColumnsByShard) -> None:
    """Raise ConfigError if a shard has two columns of this name."""
    for shard, columns in columns_by_shard.items():
        if columns.get(name) == REPEATED:
            raise ConfigError(
                f"source.{key} names {name!r}, and {shard.path!r} has two columns of that name. Rename one of them"
            )


def _allowed(key: str, kind: pa.DataType, content: pa.DataType) -> str | None:
    """Return the types that a column of this key may have if `kind` is none of them; `content` is the type of texts."""
    if key == "id":
        return None if is_id(kind) else "text or whole numbers"
    if key == "image":
        return None if is_picture(kind) else "bytes, text (paths, URLs, base64), or a struct with bytes or path"
    wanted = content if key == "text" else pa.string()
    return None if fits(kind, wanted) else _WORDS[wanted]


def _check_needed(
    key: str,
    name: str,
    columns_by_shard: ColumnsByShard,
    content: pa.DataType,
    *,
    schemaless: bool,
    everywhere: bool = True,
) -> None:
    """Raise ConfigError unless a column of these keys has a valid type, in every shard or where it is.

    `content` is the type of texts.
    """
    having = [shard for shard, columns in columns_by_shard.items() if name in columns]
    if not having:
        raise _missing(key, name, columns_by_shard)
    for shard, columns in columns_by_shard.items():
        if name not in columns and everywhere and not schemaless:
            raise ConfigError(
                f"source.{key} names {name!r}, which {having[0].path!r} has and {shard.path!r} has not: it has "
                f"{list(columns)}. Leave that file out or add the column"
            )
        kind = columns.get(name, pa.null())
        # A schemaless format is checked row by row: its head may be all nulls, or differ from later rows.
        if schemaless or pa.types.is_null(kind):
            continue
        if (allowed := _allowed(key, kind, content)) is not None:
            raise ConfigError(
                f"source.{key} names {name!r}, which is {kind} in {shard.path!r}; it must be {allowed}. Name another "
                f"column or cast this one"
            )


def _kept_type(
    name: str, columns_by_shard: ColumnsByShard, known: pa.DataType | None, *, schemaless: bool
) -> pa.DataType:
    """Return the stored type of a kept column, over all shards and the known type of other shards."""
    kinds: dict[pa.DataType, Shard] = {}
    for shard, columns in columns_by_shard.items():
        if name in columns:
            kinds.setdefault(columns[name], shard)
    if not kinds and known is None:
        raise _missing("keep", name, columns_by_shard)
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
        shown = ", ".join(f"{kind} in {shard.path!r}" for kind, shard in _conflicting(kinds))
        shown += f", {known} in the table" if known is not None else ""
        raise ConfigError(
            f"source.keep names {name!r}, which is not of one type: {shown}. Cast the column or leave it out"
        )
    # Each shard's type may be valid while the union of their fields is not.
    reason, stored = refusal(one), stored_type(one)
    if reason or stored is None:
        raise ConfigError(
            f"source.keep names {name!r}, which is {one} over all {len(columns_by_shard)} files: {reason}. Rename in the source, or "
            f"leave it out of source.keep"
        )
    return stored


def _conflicting(kinds: Mapping[pa.DataType, Shard]) -> list[tuple[pa.DataType, Shard]]:
    """Return two types without a common type, with a shard of each; the first three if each pair has a common type."""
    pairs = itertools.combinations(kinds.items(), 2)
    return next(([one, other] for one, other in pairs if merged([one[0], other[0]]) is None), list(kinds.items())[:3])


def _missing(key: str, name: str, columns_by_shard: ColumnsByShard) -> ConfigError:
    """Return the error of a column that no shard has."""
    known = list(dict.fromkeys(column for columns in columns_by_shard.values() for column in columns))
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = hive.hint(name, columns_by_shard) or (f"; did you mean {near[0]!r}?" if near else "")
    return ConfigError(f"source.{key} names the column {name!r}, which no file has; the columns are {known[:50]}{hint}")
