"""The table: what Delta Lake says of it, and the one commit that publishes a run.

Used by publish, search and status. `deltalake` keeps the log; here is only what is ours: lineage in the table's
properties, and a commit that a repeat turns into nothing because it carries the run as its application transaction.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from actors import aws, storage
from actors.errors import CommitConflict, CommitUnknown, StorageError, TableConflict
from actors.receipt import DataFile
from actors.refusals import plain
from actors.writer import as_text

LINEAGE = "vectide.lineage"
FINGERPRINT = "vectide.fingerprint"
_ENCODER = "vectide.encoder"


def storage_options(url: str) -> dict[str, str] | None:
    """What `deltalake` needs to reach the same store as fsspec does. From the environment, like everything else."""
    return aws.table_options(url) if aws.is_s3(url) else None


def open_table(url: str, version: int | None = None) -> DeltaTable | None:
    """The table at `url`, or None where there is none.

    Raises:
        TableConflict: there is no such version.
        StorageError: the store refused or failed.
    """
    try:
        return DeltaTable(url, version=version, storage_options=storage_options(url))
    except TableNotFoundError:
        return None
    except DeltaError as error:
        if version is not None:
            raise TableConflict(f"{url!r} has no version {version}: {plain(error)}") from None
        raise _failure(url, "open the table", error) from None
    except OSError as error:
        raise _failure(url, "open the table", error) from None


def _failure(url: str, what: str, error: Exception) -> StorageError:
    """What to raise for an error of `deltalake`.

    Raises:
        VectideError: the store itself is the matter, not the table: storage says so in its own words.
    """
    storage.exists(storage.join(url, "_delta_log", "_last_checkpoint"))
    return StorageError(f"cannot {what} {url!r}: {plain(error)}. Run the same command again: finished work is kept")


@contextmanager
def asking(table: DeltaTable) -> Iterator[None]:
    """Around whatever an open table asks the store for: the errors of `deltalake` become ours."""
    try:
        yield
    except (DeltaError, OSError) as error:
        raise _failure(table.table_uri.rstrip("/"), "read the table", error) from None


def history(table: DeltaTable) -> list[dict[str, Any]]:
    """The commits that the log remembers, the newest first."""
    with asking(table):
        return list(table.history())


def lineage_of(table: DeltaTable) -> dict[str, Any]:
    """What the vectors of a table were made with; empty for a table that is not ours."""
    text = table.metadata().configuration.get(LINEAGE)
    return dict(json.loads(text)) if text else {}


def fingerprint_of(table: DeltaTable) -> str | None:
    """The fingerprint of a table's vectors; None for a table that is not ours."""
    return table.metadata().configuration.get(FINGERPRINT)


def encoder_of(table: DeltaTable) -> dict[str, Any]:
    """The encoder section of the job that made a table; empty for a table that is not ours."""
    text = table.metadata().configuration.get(_ENCODER)
    return dict(json.loads(text)) if text else {}


def file_sizes(table: DeltaTable) -> dict[str, int]:
    """Path relative to the table to size in bytes, for every file of this version."""
    actions = _actions(table)
    return dict(zip(actions.column("path").to_pylist(), actions.column("size_bytes").to_pylist(), strict=True))


def _actions(table: DeltaTable) -> pa.Table:
    """What the log says of each file of this version. There a path is a URL; here it is the file's name, as `publish`
    must name it to take it out: a removal of another name removes nothing, and says nothing."""
    actions = pa.table(table.get_add_actions(flatten=True))
    paths = [unquote(path) for path in actions.column("path").to_pylist()]
    return actions.set_column(actions.column_names.index("path"), "path", pa.array(paths, pa.string()))


def partition_values(table: DeltaTable) -> dict[str, dict[str, str | None]]:
    """Path relative to the table to partition values in Delta Lake's text form, for every file of this version."""
    actions = _actions(table)
    names = [name for name in actions.column_names if name.startswith("partition.")]
    rows = actions.select(["path", *names]).to_pylist()
    return {row["path"]: {name.removeprefix("partition."): as_text(row[name]) for name in names} for row in rows}


@dataclass(frozen=True, slots=True)
class Publication:
    """One commit.

    Attributes:
        run: Name of the run: a commit that carries it happens once.
        schema: The table's columns.
        encoder: The job's encoder section, from which a search finds the model again.
        add: Files that come in.
        base_run: The run that the current version was made by when this one began; None where there was none.
        remove: Paths, relative to the table, that go out; None for all that are there.
    """

    run: str
    fingerprint: str
    lineage: dict[str, Any]
    schema: pa.Schema
    partition_by: tuple[str, ...]
    encoder: dict[str, Any]
    add: tuple[DataFile, ...]
    base_run: str | None = None
    remove: tuple[str, ...] | None = None


def current_run(table: DeltaTable | None) -> str | None:
    """The run that made the rows of this version; None for an empty table, or where the log has forgotten."""
    if table is None:
        return None
    for entry in history(table):
        if run := entry.get("vectide.run"):
            return str(run)
    return None


def published_version(table: DeltaTable | None, run: str) -> int | None:
    """The version that published a run, or None. The log may have forgotten the number of an old one: then -1."""
    if table is None:
        return None
    with asking(table):
        if table.transaction_version(run) is None:
            return None
    for entry in history(table):
        if entry.get("vectide.run") == run:
            return int(entry["version"])
    return -1


def check_fingerprint(table: DeltaTable, url: str, fingerprint: str, lineage: dict[str, Any]) -> None:
    """Raise TableConflict where a table holds vectors of another making."""
    found = fingerprint_of(table)
    if found is None:
        raise TableConflict(f"{url!r} is a Delta table that vectide did not make; give table.uri an empty place")
    if found != fingerprint:
        raise TableConflict(
            f"{url!r} holds vectors of another making ({_difference(lineage_of(table), lineage)}). Vectors "
            f"of two models or settings are never mixed in one version: give table.uri another place, or put those "
            f"settings back"
        )


def check_columns(table: DeltaTable, url: str, publication: Publication) -> None:
    """Raise TableConflict where a table has other columns or partitions than this publication."""
    existing = pa.schema(table.schema().to_arrow())
    columns = {field.name: str(field.type) for field in existing}
    wanted = {field.name: str(field.type) for field in pa.schema(Schema.from_arrow(publication.schema).to_arrow())}
    partitions = tuple(table.metadata().partition_columns)
    if columns != wanted or partitions != publication.partition_by:
        raise TableConflict(
            f"{url!r} has the columns {list(columns)} partitioned by {list(partitions)}; this job would write "
            f"{list(wanted)} partitioned by {list(publication.partition_by)}. Give table.uri another place, or put "
            f"source.keep and table.partition_by back"
        )


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    changes = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} here"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    return "; ".join(changes) or "its lineage is not recorded"


def publish(url: str, publication: Publication) -> int:
    """Commit a run's files, all or nothing, once.

    A table that is not there yet begins with an empty version 0 that carries the lineage; the rows come in version 1.

    Returns:
        The version that holds the run; that of the earlier commit if it was published before.

    Raises:
        TableConflict: the table holds vectors of another making.
        CommitConflict: another writer was first; running again is safe.
    """
    table = open_table(url) or _create(url, publication)
    if (version := published_version(table, publication.run)) is not None:
        return version
    check_fingerprint(table, url, publication.fingerprint, publication.lineage)
    check_columns(table, url, publication)
    there = file_sizes(table)
    removed = tuple(there) if publication.remove is None else publication.remove
    check_base(table, url, publication.base_run)
    if not there.keys() >= set(removed):
        raise _conflict(url, "files that the run replaces are no longer part of it")
    now_ms = int(time.time() * 1000)
    actions: list[AddAction | RemoveAction] = [_add(file, now_ms) for file in publication.add]
    actions += [RemoveAction(path=path, data_change=True, deletion_timestamp=now_ms) for path in removed]
    properties = CommitProperties(
        custom_metadata={"vectide.run": publication.run, FINGERPRINT: publication.fingerprint},
        app_transactions=[Transaction(publication.run, 1)],
        max_commit_retries=0,  # a commit over another one that we have not seen could mix their rows
    )
    try:
        table.create_write_transaction(
            actions,
            mode="append",
            schema=publication.schema,
            partition_by=list(publication.partition_by),
            commit_properties=properties,
        )
    except CommitFailedError as error:
        # Refused, or landed with its answer lost: the log knows.
        if (version := _landed(url, publication.run)) is not None:
            return version
        raise _conflict(url, plain(error)) from None
    except (DeltaError, OSError) as error:
        if (version := _landed(url, publication.run)) is not None:
            return version
        raise _failure(url, "commit to", error) from None
    version = published_version(open_table(url), publication.run)
    return version if version is not None else int(table.version())


def check_base(table: DeltaTable | None, url: str, base_run: str | None) -> None:
    """Raise CommitConflict unless the rows of this version are those that a run began with."""
    if current_run(table) != base_run:
        raise _conflict(url, "its version is not the one that the run began with")


def _conflict(url: str, reason: str) -> CommitConflict:
    return CommitConflict(
        f"another writer changed {url!r} during this run ({reason}); nothing of the run was published. Run the same "
        f"command again"
    )


def _add(file: DataFile, now_ms: int) -> AddAction:
    return AddAction(
        path=file.path,
        size=file.size_bytes,
        partition_values=file.partition,
        modification_time=now_ms,
        data_change=True,
        stats=file.stats,
    )


def _create(url: str, publication: Publication) -> DeltaTable:
    configuration = {
        LINEAGE: json.dumps(publication.lineage, sort_keys=True),
        FINGERPRINT: publication.fingerprint,
        _ENCODER: json.dumps(publication.encoder, sort_keys=True),
    }
    if storage.is_local(url):
        storage.local_path(url).mkdir(parents=True, exist_ok=True)
    try:
        return DeltaTable.create(
            url,
            Schema.from_arrow(publication.schema),
            mode="error",
            partition_by=list(publication.partition_by),
            configuration=configuration,
            storage_options=storage_options(url),
            raise_if_key_not_exists=False,
        )
    except (DeltaError, OSError) as error:
        # Another driver of the same job may have been faster by a moment.
        table = open_table(url)
        if table is None:
            raise _failure(url, "create the table", error) from None
        return table


def _landed(url: str, run: str) -> int | None:
    """The version that a commit with an error made after all, or None.

    Raises:
        CommitUnknown: the store cannot be asked.
    """
    try:
        return published_version(open_table(url), run)
    except StorageError as error:
        raise CommitUnknown(
            f"the store did not say whether the commit to {url!r} landed. Run the same command again: it finds out, and "
            f"publishes once ({error})"
        ) from None


def missing_files(url: str, run: str, files: Iterable[DataFile]) -> list[str]:
    """The files that are not in the store with the size that their receipt names."""
    there: dict[str, int] = {}
    for shard in storage.walk(storage.join(url, "data", run)):
        _, _, relative = shard.path.partition(f"/data/{run}/")
        there[f"data/{run}/{relative}"] = shard.size_bytes
    return [file.path for file in files if there.get(file.path) != file.size_bytes]
