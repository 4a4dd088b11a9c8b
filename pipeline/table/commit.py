"""The commit that publishes a run: atomic, once, and only on top of the version that the run started from.

Called by everything that changes a table: backfill, refresh, compaction, rollback. A commit has its name as an application
transaction, so a repeat changes nothing. If the columns or the embedding spec change, the files of the new version replace
all others in the same commit as the schema.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, TableFeatures, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from actors import storage
from actors.errors import CommitConflict, CommitUnknown, InvariantBroken, StorageError, TableConflict
from actors.source.calendar import has_naive_times
from actors.storage.errors import redact
from actors.unit.delta_statistics import statistics_json
from actors.unit.receipt import DataFile
from actors.unit.table_files import run_of
from actors.unit.writer import as_text
from pipeline.table import delta_table, version_records
from pipeline.table.delta_table import EmbeddingSpec, State
from pipeline.table.row_diff import digest_of_file

# Names of a file's statistics in deltalake, and in the log.
_STATISTICS = {"min": "minValues", "max": "maxValues", "null_count": "nullCount"}


@dataclass(frozen=True, slots=True)
class Publication:
    """One commit.

    Attributes:
        commit: Its name; a name is committed once.
        run: The run whose ledger has the sources of the rows.
        operation: backfill, refresh, compact or rollback.
        schema: The table's columns.
        base: State of the table when the work began; None if there was no table.
        add: Files to add.
        remove: Paths of the files to remove, relative to the table; None for all.
        data_change: False if the rows stay the same, as after a compaction; readers of changes may skip the commit.
        facts: More keys and values for the log.
        kept: The run whose ledger has the rows of other tools that are kept; None if there are none.
        overrules: Whether the commit may replace columns and embedding spec that another tool changed.
    """

    commit: str
    run: str
    operation: str
    embedding_spec: EmbeddingSpec
    schema: pa.Schema
    partition_by: tuple[str, ...]
    base: State | None
    add: tuple[DataFile, ...] = ()
    remove: tuple[str, ...] | None = None
    data_change: bool = True
    facts: tuple[tuple[str, str], ...] = ()
    kept: str | None = None
    overrules: bool = False


def check_embedding_spec(table: DeltaTable, url: str, embedding_spec: EmbeddingSpec) -> None:
    """Raise TableConflict if the vectors of a table have another embedding spec."""
    stored_spec = delta_table.embedding_spec_of(table)
    if stored_spec is None:
        raise TableConflict(f"{url!r} is a Delta table that vectide did not make; set table.uri to an empty folder")
    if stored_spec.fingerprint != embedding_spec.fingerprint:
        raise TableConflict(
            f"{url!r} holds vectors with another embedding spec ({difference(stored_spec.lineage, embedding_spec.lineage)}). Vectors of two "
            f"models or settings are never mixed in one version: `vectide refresh` re-embeds "
            f"beside the current version and then switches to the new one; or restore those settings, or set another table.uri"
        )


def check_partitions(table: DeltaTable, url: str, partition_by: tuple[str, ...]) -> None:
    """Raise TableConflict if a table has other partition columns, which no commit can change."""
    columns = tuple(table.metadata().partition_columns)
    if columns != partition_by:
        raise TableConflict(
            f"{url!r} is partitioned by {list(columns)}, and this job by {list(partition_by)}. Put table.partition_by "
            f"back, or set another table.uri"
        )


def check_base(table: DeltaTable | None, url: str, base: State | None) -> None:
    """Raise CommitConflict if a table is not in the state that a run started from."""
    if delta_table.state_of(table) != base:
        raise _conflict(url, "its version is not the one that the run began with")


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the differences of two lineages, for messages."""
    changes = [
        f"{key}: {old.get(key)!r} in the table, {new.get(key)!r} in the job"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    return "; ".join(changes) or "its lineage is not recorded"


def publish(url: str, publication: Publication) -> int:
    """Commit a run's files, atomically and once.

    A new table gets an empty version 0 first; its rows are in version 1.

    Returns:
        The version that the commit made, now or before.

    Raises:
        TableConflict: the table is not ours, or has other partition columns.
        CommitConflict: another writer was first; it is safe to run again.
        CommitUnknown: it is unknown whether the commit succeeded.
    """
    schema = delta_table.with_embedding_spec(publication.schema, publication.embedding_spec)
    table = delta_table.open_table(url) or _create(url, schema, publication)
    if (version := delta_table.published_version(table, publication.commit)) is not None:
        return version
    if delta_table.embedding_spec_of(table) is None and not publication.overrules:
        check_embedding_spec(table, url, publication.embedding_spec)
    check_partitions(table, url, publication.partition_by)
    check_base(table, url, publication.base)
    if same_columns(table, schema):  # deltalake ignores another order
        schema = pa.schema([schema.field(name) for name in delta_table.schema_of(table).names])
    before = sized_files(table)
    row_counts = {path: file.rows for path, file in before.items()}
    removed = set(row_counts) if publication.remove is None else set(publication.remove)
    if not row_counts.keys() >= removed:
        raise _conflict(url, "files that the run replaces are no longer part of it")
    replaces_all = _replaces_all(table, schema, publication, all_go=removed == row_counts.keys())
    if not replaces_all:
        schema = delta_table.schema_of(table)
    if replaces_all and removed != row_counts.keys():
        raise InvariantBroken(f"{len(row_counts) - len(removed)} files without the new columns would stay in {url!r}.")
    rows = sum(count for path, count in row_counts.items() if path not in removed)
    rows += sum(file.rows for file in publication.add)
    files = len(row_counts) - len(removed) + len(publication.add)
    if replaces_all:
        _allow_naive_times(table, url, publication)
    now_ms = int(time.time() * 1000)
    actions: list[AddAction | RemoveAction] = [_add(file, now_ms, publication) for file in publication.add]
    if not replaces_all:
        change = publication.data_change
        actions += [RemoveAction(path=path, data_change=change, deletion_timestamp=now_ms) for path in sorted(removed)]
    staying = {path: file for path, file in before.items() if path not in removed}
    version_records.write(
        url,
        version_records.Anchor(
            version=int(table.version()) + 1,
            commit=publication.commit,
            run=publication.run,
            kept=publication.kept,
            table=version_records.table_id(table),
            columns=_column_names(schema),
            files=_with_digests(url, table, (*staying.values(), *publication.add)),
        ),
    )
    lineage = publication.embedding_spec.lineage
    properties = CommitProperties(
        custom_metadata={
            delta_table.COMMIT: publication.commit,
            delta_table.RUN: publication.run,
            delta_table.OPERATION: publication.operation,
            delta_table.FINGERPRINT: publication.embedding_spec.fingerprint,
            **({delta_table.MODEL: str(lineage.get("model"))} if not publication.embedding_spec.is_curation else {}),
            delta_table.ROWS: str(rows),
            delta_table.FILES: str(files),
            **({delta_table.KEPT: publication.kept} if publication.kept is not None else {}),
            **dict(publication.facts),
        },
        app_transactions=[Transaction(publication.commit, 1)],
        max_commit_retries=0,  # a retry on top of an unseen commit could mix their rows
    )
    try:
        table.create_write_transaction(
            actions,
            mode="overwrite" if replaces_all else "append",
            schema=schema,
            partition_by=list(publication.partition_by),
            commit_properties=properties,
        )
    except CommitFailedError as error:
        # The commit was refused, or it succeeded and the response was lost. The log tells which.
        if (version := _landed(url, publication.commit)) is not None:
            return version
        raise _conflict(url, redact(error)) from None
    except (DeltaError, OSError) as error:
        if (version := _landed(url, publication.commit)) is not None:
            return version
        raise delta_table.failure(url, "commit to", error) from None
    version = delta_table.published_version(delta_table.open_table(url), publication.commit)
    return version if version is not None else int(table.version())


def _with_digests(url: str, table: DeltaTable, files: Iterable[DataFile]) -> dict[str, DataFile]:
    """Return files by path, with the digests of their rows.

    A file that another tool wrote (an OPTIMIZE, or kept rows) is read once, in Vectide's first commit after it. A file
    that Vectide wrote and whose digest is unknown is one of an earlier release: it gets no digest.
    """
    by_path = version_records.with_digests(url, table, files)
    for path, file in by_path.items():
        if file.digest is None and run_of(path) is None:
            by_path[path] = replace(file, digest=digest_of_file(url, table, file))
    return by_path


def _replaces_all(table: DeltaTable, schema: pa.Schema, publication: Publication, *, all_go: bool) -> bool:
    """Return whether the schema changes with the files. A model that only moved is recorded if all files go anyway."""
    embedding_spec = delta_table.embedding_spec_of(table)
    if embedding_spec is None or embedding_spec.fingerprint != publication.embedding_spec.fingerprint:
        return True
    return not same_columns(table, schema) or (all_go and embedding_spec != publication.embedding_spec)


def _column_names(schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns of a schema in the form of `delta_table.column_names`."""
    return tuple(f"{field.name}: {field.type}" for field in pa.schema(Schema.from_arrow(schema).to_arrow()))


def same_columns(table: DeltaTable, schema: pa.Schema) -> bool:
    """Return whether a table has these columns, with these types, in any order."""
    return sorted(delta_table.column_names(table)) == sorted(_column_names(schema))


def _conflict(url: str, reason: str) -> CommitConflict:
    return CommitConflict(
        f"another writer changed {url!r} during this run ({reason}); nothing of the run was published. Run the same "
        f"command again"
    )


def _add(file: DataFile, now_ms: int, publication: Publication) -> AddAction:
    return AddAction(
        path=file.path,
        size=file.size_bytes,
        partition_values=file.partition,
        modification_time=now_ms,
        data_change=publication.data_change,
        stats=file.stats,
    )


def _create(url: str, schema: pa.Schema, publication: Publication) -> DeltaTable:
    if storage.is_local(url):
        storage.local_path(url).mkdir(parents=True, exist_ok=True)
    try:
        return DeltaTable.create(
            url,
            Schema.from_arrow(_first_columns(schema)),
            mode="error",
            partition_by=list(publication.partition_by),
            storage_options=delta_table.storage_options(url),
            # With retries the loser of a race would create the table again, as a version after the winner's.
            commit_properties=CommitProperties(max_commit_retries=0),
        )
    except (DeltaError, OSError) as error:
        # A concurrent driver of the same run may have created it.
        table = delta_table.open_table(url)
        if table is None:
            raise delta_table.failure(url, "create the table", error) from None
        return table


def _first_columns(schema: pa.Schema) -> pa.Schema:
    """Return the columns of an empty version 0: without timestamps without a time zone inside a map.

    Deltalake (1.6) cannot open the table that it creates with them. The first commit with rows adds these columns, and the
    table feature that they need.
    """
    return pa.schema([field for field in schema if not (_has_map(field.type) and has_naive_times(field.type))])


def _has_map(kind: pa.DataType) -> bool:
    if pa.types.is_map(kind):
        return True
    return pa.types.is_nested(kind) and any(_has_map(kind.field(index).type) for index in range(kind.num_fields))


def _allow_naive_times(table: DeltaTable, url: str, publication: Publication) -> None:
    """Add the table feature that timestamps without a time zone need, in a version of its own without a change of rows.

    Without the feature deltalake would commit a schema that no reader accepts.
    """
    feature = TableFeatures.TimestampWithoutTimezone
    has = table.protocol().reader_features or []
    if "timestampNtz" in has or not any(has_naive_times(kind) for kind in publication.schema.types):
        return
    # The rows stay those of the previous run.
    run = {delta_table.RUN: publication.base.run} if publication.base else {}
    properties = CommitProperties(custom_metadata={**run, delta_table.OPERATION: "upgrade"}, max_commit_retries=0)
    try:
        table.alter.add_feature(feature, allow_protocol_versions_increase=True, commit_properties=properties)
    except CommitFailedError as error:
        raise _conflict(url, redact(error)) from None
    except (DeltaError, OSError) as error:
        raise delta_table.failure(url, "commit to", error) from None


def _landed(url: str, commit: str) -> int | None:
    """Return the version that a commit made in spite of an error, or None.

    Raises:
        CommitUnknown: the log cannot be read.
    """
    try:
        return delta_table.published_version(delta_table.open_table(url), commit)
    except StorageError as error:
        raise CommitUnknown(
            f"it is unknown whether the commit to {url!r} succeeded. Run the same command again: it checks the log and "
            f"publishes once ({error})"
        ) from None


def missing_files(url: str, files: Iterable[DataFile]) -> list[str]:
    """Return the paths of files that are not in the store with their recorded size."""
    wanted = list(files)
    sizes = delta_table.stored_sizes(url, (file.path for file in wanted))
    return [file.path for file in wanted if sizes.get(file.path) != file.size_bytes]


def sized_files(table: DeltaTable) -> dict[str, DataFile]:
    """Return every file of a version by path, with size, rows (0 if another tool did not count them) and partition."""
    actions = delta_table.actions_of(table)
    names = [name for name in actions.column_names if name.startswith("partition.")]
    return {
        row["path"]: DataFile(
            row["path"],
            row["size_bytes"],
            row["num_records"] or 0,
            {name.removeprefix("partition."): as_text(row[name]) for name in names},
            "{}",
        )
        for row in actions.select(["path", "size_bytes", "num_records", *names]).to_pylist()
    }


def files_of(table: DeltaTable) -> dict[str, DataFile]:
    """Return every file of a version by path, with statistics, as a commit would add it again."""
    files = sized_files(table)
    for row in delta_table.actions_of(table, flatten=False).to_pylist():
        known = {name: {k: v for k, v in (row.get(name) or {}).items() if v is not None} for name in _STATISTICS}
        stats = {"numRecords": row["num_records"], **{_STATISTICS[name]: values for name, values in known.items()}}
        files[row["path"]] = replace(files[row["path"]], stats=statistics_json(**stats))
    return files
