"""The table as Delta Lake keeps it: which version there is, which files are in it, how its vectors were made.

Used by everything that reads a table; `publish` writes it. `deltalake` keeps the log. How the vectors of a version were
made stands in the schema, as metadata of their column, and not in the table's properties: a schema changes in the same
commit as the files, so no reader can see the vectors of one model under the name of another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from actors import storage
from actors.errors import ConfigError, NoSuchVersion, StorageError, TableConflict
from actors.schema import EMBEDDING
from actors.storage import providers
from actors.storage.errors import redact
from actors.unit.writer import as_text
from pipeline.table import version_records

# What each of our commits says of itself, in the log.
RUN = "vectide.run"
COMMIT = "vectide.commit"
OPERATION = "vectide.operation"
ROWS = "vectide.rows"
FILES = "vectide.files"
FINGERPRINT = "vectide.fingerprint"
MODEL = "vectide.model"
KEPT = "vectide.kept"
# The run of a table whose log and records do not say which one made its rows.
FORGOTTEN = "forgotten"
# What the column of vectors says of itself, in the schema.
_EMBEDDING_SPEC = "vectide.embedding_spec"
# The name of the same before the first release.
_OLD_EMBEDDING_SPEC = "vectide.made"


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """How the vectors of a version were made.

    Attributes:
        fingerprint: Hash of what changes vectors.
        lineage: All that they are made of.
        encoder: The job's encoder section, from which a search finds the model again.
    """

    fingerprint: str
    lineage: dict[str, Any]
    encoder: dict[str, Any]


@dataclass(frozen=True, slots=True)
class State:
    """What a table holds at one moment: the run that its rows were made by, and the version.

    Attributes:
        run: `FORGOTTEN` where neither the log nor a record says which it was.
        kept: The run whose ledger says which rows of other tools are kept; None where there are none.
    """

    run: str
    version: int
    kept: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.run}@{self.version}"


def storage_options(url: str) -> dict[str, str] | None:
    """What `deltalake` needs to reach the same store as fsspec does. From the environment, like everything else."""
    store = providers.of(url)
    return store.table_options(url) if store else None


def open_table(url: str, version: int | None = None) -> DeltaTable | None:
    """The table at `url`, or None where there is none.

    Raises:
        NoSuchVersion: there is none of this number.
        StorageError: the store refused or failed.
    """
    try:
        return DeltaTable(url, version=version, storage_options=storage_options(url))
    except TableNotFoundError:
        return None
    except DeltaError as error:
        if version is not None:
            raise NoSuchVersion(
                f"{url!r} has no version {version}; `vectide versions` lists those that it has"
            ) from None
        raise failure(url, "open the table", error) from None
    except OSError as error:
        raise failure(url, "open the table", error) from None


def need_table(url: str, version: int | None = None) -> DeltaTable:
    """The table at `url`, which must be one that vectide made.

    Raises:
        ConfigError: there is none.
        NoSuchVersion: there is none of this number.
        TableConflict: something else made the table.
    """
    table = open_table(url, version)
    if table is None:
        raise ConfigError(f"there is no table at {url!r}; make one with `vectide backfill`")
    if embedding_spec_of(table) is None:
        raise TableConflict(f"{url!r} is a Delta table that vectide did not make: it names no model")
    return table


def place_of(table: DeltaTable) -> str:
    """Where an open table lies, as the rest of us name it: `deltalake` escapes a space, a `%` or an `é`."""
    return unquote(table.table_uri).rstrip("/")


def failure(url: str, what: str, error: Exception) -> StorageError:
    """What to raise for an error of `deltalake`.

    Raises:
        VectideError: the store itself is the matter, not the table: storage says so in its own words.
    """
    storage.exists(storage.join(url, "_delta_log", "_last_checkpoint"))
    return StorageError(f"cannot {what} {url!r}: {redact(error)}. Run the same command again: finished work is kept")


@contextmanager
def asking(table: DeltaTable) -> Iterator[None]:
    """Around whatever an open table asks the store for: the errors of `deltalake` become ours."""
    try:
        yield
    except (DeltaError, OSError) as error:
        raise failure(place_of(table), "read the table", error) from None


def embedding_spec_of(table: DeltaTable) -> EmbeddingSpec | None:
    """The embedding spec of the vectors of this version; None for a table that vectide did not make.

    Raises:
        TableConflict: a development version of vectide made the table, with other names in its ledger.
    """
    schema = schema_of(table)
    if EMBEDDING not in schema.names:
        return None
    metadata = schema.field(EMBEDDING).metadata or {}
    if _OLD_EMBEDDING_SPEC.encode() in metadata:
        raise TableConflict(
            f"{place_of(table)!r} was made by a version of vectide from before the first release, whose ledger has other "
            f"names. Name another table.uri and backfill it anew"
        )
    text = metadata.get(_EMBEDDING_SPEC.encode())
    return EmbeddingSpec(**json.loads(text)) if text else None


def with_embedding_spec(schema: pa.Schema, embedding_spec: EmbeddingSpec) -> pa.Schema:
    """`schema` with the making in the column of vectors."""
    index = schema.get_field_index(EMBEDDING)
    text = json.dumps(
        {
            "fingerprint": embedding_spec.fingerprint,
            "lineage": embedding_spec.lineage,
            "encoder": embedding_spec.encoder,
        },
        sort_keys=True,
    )
    return schema.set(index, schema.field(index).with_metadata({_EMBEDDING_SPEC: text}))


def schema_of(table: DeltaTable) -> pa.Schema:
    """The columns of this version, as Arrow."""
    return pa.schema(table.schema().to_arrow())


def plain_schema(table: DeltaTable) -> pa.Schema:
    """The columns of this version without what they say of themselves, as files are written."""
    return pa.schema([field.remove_metadata() for field in schema_of(table)])


def actions_of(table: DeltaTable, *, flatten: bool = True) -> pa.Table:
    """What the log says of each file of this version, one row a file.

    There a path is a URL; here it is the file's name, as a commit must name it to take it out: a removal of another name
    removes nothing, and says nothing.
    """
    with asking(table):
        actions = pa.table(table.get_add_actions(flatten=flatten))
    paths = [unquote(path) for path in actions.column("path").to_pylist()]
    return actions.set_column(actions.column_names.index("path"), "path", pa.array(paths, pa.string()))


def file_sizes(table: DeltaTable) -> dict[str, int]:
    """Path relative to the table to size in bytes, for every file of this version."""
    actions = actions_of(table)
    return dict(zip(actions.column("path").to_pylist(), actions.column("size_bytes").to_pylist(), strict=True))


def file_rows(table: DeltaTable) -> dict[str, int]:
    """Path relative to the table to rows, for every file of this version; 0 where another tool did not count them."""
    actions = actions_of(table)
    counts = [count or 0 for count in actions.column("num_records").to_pylist()]
    return dict(zip(actions.column("path").to_pylist(), counts, strict=True))


def stored_sizes(url: str, paths: Iterable[str]) -> dict[str, int]:
    """What is in the store beside these files of a table: path relative to it to size in bytes.

    Lists the folders of the runs that they come from, a thousand names a request, and opens nothing.
    """
    there: dict[str, int] = {}
    for run in sorted({path.split("/", 2)[1] for path in paths if path.startswith("data/")}):
        for shard in storage.walk(storage.join(url, "data", run)):
            there[relative(shard.path)] = shard.size_bytes
    return there


def relative(path: str) -> str:
    """The path of a data file relative to its table."""
    return "data/" + path.rpartition("/data/")[2]


def need_files(url: str, table: DeltaTable, paths: list[str]) -> None:
    """Raise TableConflict where files of a version were taken by a vacuum. One listing for each run that made some."""
    gone = absent_files(url, paths)
    if gone:
        raise TableConflict(
            f"{len(gone)} files of version {table.version()} of {url!r} are gone ({gone[0]!r} first): a vacuum took them. "
            f"Name a later version; `vectide versions` lists them"
        )


def absent_files(url: str, paths: Iterable[str]) -> list[str]:
    """Which of these files of a table are not in the store; also such as another tool wrote elsewhere in its folder."""
    wanted = list(paths)
    there = stored_sizes(url, wanted)
    return [
        path
        for path in wanted
        if path not in there and (path.startswith("data/") or not storage.exists(storage.join(url, path)))
    ]


def partition_values(table: DeltaTable) -> dict[str, dict[str, str | None]]:
    """Path relative to the table to partition values in Delta Lake's text form, for every file of this version."""
    actions = actions_of(table)
    names = [name for name in actions.column_names if name.startswith("partition.")]
    rows = actions.select(["path", *names]).to_pylist()
    return {row["path"]: {name.removeprefix("partition."): as_text(row[name]) for name in names} for row in rows}


def log_entries(table: DeltaTable) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The actions of each commit up to this version, newest first, with its number; as far as the log goes back.

    Read from the log's own files: `DeltaTable.history` numbers the whole log from whichever version was opened.
    """
    for version in range(int(table.version()), -1, -1):
        try:
            text = storage.read(storage.join(place_of(table), "_delta_log", f"{version:020d}.json"))
        except FileNotFoundError:  # cleared away, as the log's retention says
            return
        yield version, [json.loads(line) for line in text.splitlines() if line.strip()]


def info_of(actions: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What a commit says of itself; nothing where it does not."""
    return next((dict(action["commitInfo"]) for action in actions if action.get("commitInfo")), {})


def commits(table: DeltaTable) -> Iterator[dict[str, Any]]:
    """What each commit up to this version says of itself, newest first, with its `version`; as far as the log goes back."""
    for version, actions in log_entries(table):
        if info := info_of(actions):
            yield {**info, "version": version}


def state_of(table: DeltaTable | None) -> State | None:
    """The run that made the rows of this version; None for a table that holds nothing of ours.

    Where the log was cleaned up, a record of ours says it (`pipeline.table.version_records`).
    """
    if table is None:
        return None
    version = int(table.version())
    oldest = version + 1
    for number, actions in log_entries(table):
        oldest, info = number, info_of(actions)
        if run := info.get(RUN):
            return State(str(run), version, info.get(KEPT))
    anchor = version_records.newest(place_of(table), table) if oldest > 0 else None
    if anchor is not None:
        return State(anchor.run, version, anchor.kept)
    return State(FORGOTTEN, version) if file_sizes(table) else None


def is_published(table: DeltaTable | None, commit: str) -> bool:
    """Whether a commit of this name was made. One look at the state of the table, however long its log is."""
    if table is None:
        return False
    with asking(table):
        return table.transaction_version(commit) is not None


def published_version(table: DeltaTable | None, commit: str) -> int | None:
    """The version that a commit made, or None.

    Where neither the log nor a record says which number a commit got that was made, the version that is open.
    """
    if table is None or not is_published(table, commit):
        return None
    for entry in commits(table):
        if entry.get(COMMIT) == commit:
            return int(entry["version"])
    known = version_records.version_of(place_of(table), commit)
    return int(table.version()) if known is None else known


def column_names(table: DeltaTable) -> tuple[str, ...]:
    """The columns of this version in order, each as `name: type`."""
    return tuple(f"{field.name}: {field.type}" for field in schema_of(table))
