"""Reads of the Delta table: versions, files, schema, and the embedding spec of the vectors.

Used by everything that reads a table; `commit` writes it. The embedding spec of a version is stored in the schema, as
metadata of the vector column, and not in the table's properties: the schema changes in the same commit as the files, so no
reader sees vectors of one model under the name of another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from actors import storage
from actors.errors import ConfigError, NoSuchVersion, StorageError, TableConflict
from actors.storage import providers
from actors.storage.errors import redact
from actors.unit.table_files import data_folder, relative_path, run_of
from actors.vectors import VectorColumn, outputs_of
from pipeline.table import version_records

# Keys of each of our commits in the log.
RUN = "vectide.run"
COMMIT = "vectide.commit"
OPERATION = "vectide.operation"
ROWS = "vectide.rows"
FILES = "vectide.files"
FINGERPRINT = "vectide.fingerprint"
MODEL = "vectide.model"
KEPT = "vectide.kept"
# Name of the run if neither log nor records name it.
FORGOTTEN = "forgotten"
# Key in the metadata of the vector column.
_EMBEDDING_SPEC = "vectide.embedding_spec"
# Value of the key `kind` of a lineage, of a table that `vectide curate` made.
CURATION = "curation"
OF_CURATION = (
    "is a table of `vectide curate`: it has texts and verdicts, and no vectors. Write its kept rows to files, and backfill "
    "these into another table"
)
# The same key before the first release.
_OLD_EMBEDDING_SPEC = "vectide.made"


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """Model and settings that made the vectors of a version; of a curated table, its steps.

    Attributes:
        fingerprint: Hash of everything that changes vectors.
        lineage: Model and settings by name.
        encoder: The job's encoder section, with which a search loads the model.
    """

    fingerprint: str
    lineage: dict[str, Any]
    encoder: dict[str, Any]

    @property
    def outputs(self) -> tuple[VectorColumn, ...]:
        """The columns of vectors; none of a curated table."""
        return () if self.is_curation else outputs_of(self.lineage)

    @property
    def is_curation(self) -> bool:
        """True for a table of `vectide curate`, which has no vectors."""
        return self.lineage.get("kind") == CURATION

    def to_json(self) -> str:
        """Return the spec as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, slots=True)
class State:
    """Version of a table, and the run that made its rows.

    Attributes:
        run: `FORGOTTEN` if neither the log nor a record names it.
        kept: The run whose ledger has the rows of other tools that are kept; None if there are none.
    """

    run: str
    version: int
    kept: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.run}@{self.version}"


def storage_options(url: str) -> dict[str, str] | None:
    """Return the options with which `deltalake` reaches the same store as fsspec, from the environment."""
    store = providers.of(url)
    return store.table_options(url) if store else None


def open_table(url: str, version: int | None = None) -> DeltaTable | None:
    """Return the table at `url`, or None if there is none.

    Raises:
        NoSuchVersion: there is no version of this number.
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


def need_table(url: str, version: int | None = None, *, curated: bool = False) -> DeltaTable:
    """Return the table at `url`, which vectide must have made.

    Args:
        url: URL of the table.
        version: Number of the version; the newest by default.
        curated: Whether it may be a table of `vectide curate`.

    Raises:
        ConfigError: there is no table.
        NoSuchVersion: there is no version of this number.
        TableConflict: something else made the table, or it is one of another kind.
    """
    table = open_table(url, version)
    if table is None:
        raise ConfigError(f"there is no table at {url!r}; make one with `vectide backfill`")
    embedding_spec = embedding_spec_of(table)
    if embedding_spec is None:
        raise TableConflict(f"{url!r} is a Delta table that vectide did not make: it names no model")
    if embedding_spec.is_curation and not curated:
        raise TableConflict(f"{url!r} {OF_CURATION}")
    return table


def place_of(table: DeltaTable) -> str:
    """Return the URL of an open table, without the escapes of `deltalake` (a space, a `%`, an `é`)."""
    return unquote(table.table_uri).rstrip("/")


def failure(url: str, what: str, error: Exception) -> StorageError:
    """Return the error to raise for an error of `deltalake`.

    Raises:
        VectideError: the store itself fails, not the table.
    """
    storage.exists(storage.join(url, "_delta_log", "_last_checkpoint"))
    return StorageError(f"cannot {what} {url!r}: {redact(error)}. Run the same command again: finished work is kept")


@contextmanager
def asking(table: DeltaTable) -> Iterator[None]:
    """Turn errors of `deltalake` in a block that reads an open table into ours."""
    try:
        yield
    except (DeltaError, OSError) as error:
        raise failure(place_of(table), "read the table", error) from None


def embedding_spec_of(table: DeltaTable) -> EmbeddingSpec | None:
    """Return the embedding spec of this version; None for a table that vectide did not make.

    Raises:
        TableConflict: a development version of vectide made the table, with other names in its ledger.
    """
    metadata = {key: value for field in schema_of(table) for key, value in (field.metadata or {}).items()}
    if _OLD_EMBEDDING_SPEC.encode() in metadata:
        raise TableConflict(
            f"{place_of(table)!r} was made by a version of vectide from before the first release, whose ledger has other "
            f"names. Name another table.uri and backfill it anew"
        )
    text = metadata.get(_EMBEDDING_SPEC.encode())
    return EmbeddingSpec(**json.loads(text)) if text else None


def with_embedding_spec(schema: pa.Schema, embedding_spec: EmbeddingSpec) -> pa.Schema:
    """Return `schema` with the embedding spec in the metadata of the first vector column, without vectors of the first."""
    index = schema.get_field_index(embedding_spec.outputs[0].name) if embedding_spec.outputs else 0
    return schema.set(index, schema.field(index).with_metadata({_EMBEDDING_SPEC: embedding_spec.to_json()}))


def schema_of(table: DeltaTable) -> pa.Schema:
    """Return the columns of this version."""
    return pa.schema(table.schema().to_arrow())


def plain_schema(table: DeltaTable) -> pa.Schema:
    """Return the columns of this version without metadata, as they are in data files."""
    return pa.schema([field.remove_metadata() for field in schema_of(table)])


def actions_of(table: DeltaTable, *, flatten: bool = True) -> pa.Table:
    """Return the add action of each file of this version, one row a file.

    Paths are without URL escapes, as a commit must name them: a remove action with another name silently removes nothing.
    """
    with asking(table):
        actions = pa.table(table.get_add_actions(flatten=flatten))
    paths = [unquote(path) for path in actions.column("path").to_pylist()]
    return actions.set_column(actions.column_names.index("path"), "path", pa.array(paths, pa.string()))


def file_sizes(table: DeltaTable) -> dict[str, int]:
    """Return path relative to the table to size in bytes, for every file of this version."""
    actions = actions_of(table)
    return dict(zip(actions.column("path").to_pylist(), actions.column("size_bytes").to_pylist(), strict=True))


def stored_sizes(url: str, paths: Iterable[str]) -> dict[str, int]:
    """Return the files in the folders of the runs that wrote `paths`: path relative to the table to size in bytes.

    Lists these folders, a thousand names a request, and opens no file.
    """
    sizes: dict[str, int] = {}
    for run in sorted({run for path in paths if (run := run_of(path)) is not None}):
        for shard in storage.walk(data_folder(url, run)):
            sizes[relative_path(shard.path)] = shard.size_bytes
    return sizes


def need_files(url: str, table: DeltaTable, paths: list[str]) -> None:
    """Raise TableConflict if a vacuum deleted files of a version. Lists the folder of each run that wrote some."""
    deleted = absent_files(url, paths)
    if deleted:
        raise TableConflict(
            f"{len(deleted)} files of version {table.version()} of {url!r} are gone ({deleted[0]!r} first): a vacuum took them. "
            f"Name a later version; `vectide versions` lists them"
        )


def absent_files(url: str, paths: Iterable[str]) -> list[str]:
    """Return those of these files of a table that are not in the store, also files that another tool wrote."""
    wanted = list(paths)
    sizes = stored_sizes(url, wanted)
    return [
        path
        for path in wanted
        if path not in sizes and (run_of(path) is not None or not storage.exists(storage.join(url, path)))
    ]


def log_entries(table: DeltaTable) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield number and actions of each commit in the log up to this version, newest first.

    Reads the files of the log: `DeltaTable.history` numbers the whole log from the version that was opened.
    """
    for version in range(int(table.version()), -1, -1):
        try:
            text = storage.read(storage.join(place_of(table), "_delta_log", f"{version:020d}.json"))
        except FileNotFoundError:  # removed by a clean-up of the log
            return
        yield version, [json.loads(line) for line in text.splitlines() if line.strip()]


def info_of(actions: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the commit info among the actions of a commit; empty if there is none."""
    return next((dict(action["commitInfo"]) for action in actions if action.get("commitInfo")), {})


def commits(table: DeltaTable) -> Iterator[dict[str, Any]]:
    """Yield the info of each commit in the log up to this version, newest first, with its `version`."""
    for version, actions in log_entries(table):
        if info := info_of(actions):
            yield {**info, "version": version}


def state_of(table: DeltaTable | None) -> State | None:
    """Return version and run of an open table; None for a table without rows that vectide wrote.

    If the log was cleaned up, the run is taken from our record (`pipeline.table.version_records`).
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
    """Return whether a commit of this name was made, from the state of the table, without reading the log."""
    if table is None:
        return False
    with asking(table):
        return table.transaction_version(commit) is not None


def published_version(table: DeltaTable | None, commit: str) -> int | None:
    """Return the version that a commit made, or None if it was not made.

    If neither the log nor a record has the number, return the open version.
    """
    if table is None or not is_published(table, commit):
        return None
    for entry in commits(table):
        if entry.get(COMMIT) == commit:
            return int(entry["version"])
    known = version_records.version_of(place_of(table), commit)
    return int(table.version()) if known is None else known


def column_names(table: DeltaTable) -> tuple[str, ...]:
    """Return the columns of this version in order, each as `name: type`."""
    return tuple(f"{field.name}: {field.type}" for field in schema_of(table))
