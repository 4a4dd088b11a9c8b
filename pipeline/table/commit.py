"""The one commit that publishes a run: all or nothing, once, and only over the version that the run began with.

Called by everything that changes a table: backfill, refresh, compaction, rollback. A commit carries its name as an
application transaction, so a repeat changes nothing. Where the columns or the making of the vectors change, the files of
the new version replace all others in the same commit as the schema.
"""

from __future__ import annotations

import json
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
from actors.unit.receipt import DataFile
from pipeline.table import delta_table, version_records
from pipeline.table.delta_table import EmbeddingSpec, State
from pipeline.table.row_diff import digest_of_file

# What deltalake calls a file's statistics, and what they are called in the log.
_STATISTICS = {"min": "minValues", "max": "maxValues", "null_count": "nullCount"}


@dataclass(frozen=True, slots=True)
class Publication:
    """One commit.

    Attributes:
        commit: Its name: a commit of that name happens once.
        run: The run whose ledger says what the rows were made from.
        operation: What made it: backfill, refresh, compact or rollback.
        schema: The table's columns.
        base: What the table held when the work began; None where there was nothing.
        add: Files that come in.
        remove: Paths, relative to the table, that go out; None for all that are there.
        data_change: False where the rows stay the same, as after a compaction: readers of changes may skip it.
        facts: What else the log is to say of it.
        kept: The run whose ledger says which rows of other tools are kept; None where there are none.
        overrules: Whether columns and making of the table may be another tool's, which this commit replaces.
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
    """Raise TableConflict where a table holds vectors of another making."""
    found = delta_table.embedding_spec_of(table)
    if found is None:
        raise TableConflict(f"{url!r} is a Delta table that vectide did not make; give table.uri an empty place")
    if found.fingerprint != embedding_spec.fingerprint:
        raise TableConflict(
            f"{url!r} holds vectors of another making ({difference(found.lineage, embedding_spec.lineage)}). Vectors of two "
            f"models or settings are never mixed in one version: `vectide refresh` builds a second generation beside "
            f"the first and then changes over; or put those settings back, or give table.uri another place"
        )


def check_partitions(table: DeltaTable, url: str, partition_by: tuple[str, ...]) -> None:
    """Raise TableConflict where a table is partitioned otherwise, which no commit can change."""
    there = tuple(table.metadata().partition_columns)
    if there != partition_by:
        raise TableConflict(
            f"{url!r} is partitioned by {list(there)}, and this job by {list(partition_by)}. Put table.partition_by "
            f"back, or give table.uri another place"
        )


def check_base(table: DeltaTable | None, url: str, base: State | None) -> None:
    """Raise CommitConflict unless a table is as it was when a run began."""
    if delta_table.state_of(table) != base:
        raise _conflict(url, "its version is not the one that the run began with")


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What two lineages differ in, for people."""
    changes = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} here"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    return "; ".join(changes) or "its lineage is not recorded"


def publish(url: str, publication: Publication) -> int:
    """Commit a run's files, all or nothing, once.

    A table that is not there yet begins with an empty version 0; the rows come in version 1.

    Returns:
        The version that the commit made; that of the earlier one if it happened before.

    Raises:
        TableConflict: the table is not ours, or partitioned otherwise.
        CommitConflict: another writer was first; running again is safe.
        CommitUnknown: the store did not say whether the commit landed.
    """
    schema = delta_table.with_embedding_spec(publication.schema, publication.embedding_spec)
    table = delta_table.open_table(url) or _create(url, schema, publication)
    if (version := delta_table.published_version(table, publication.commit)) is not None:
        return version
    if delta_table.embedding_spec_of(table) is None and not publication.overrules:
        check_embedding_spec(table, url, publication.embedding_spec)
    check_partitions(table, url, publication.partition_by)
    check_base(table, url, publication.base)
    before = sized_files(table)
    there = {path: file.rows for path, file in before.items()}
    removed = set(there) if publication.remove is None else set(publication.remove)
    if not there.keys() >= removed:
        raise _conflict(url, "files that the run replaces are no longer part of it")
    replaces_all = _replaces_all(table, schema, publication, all_go=removed == there.keys())
    if not replaces_all:
        schema = delta_table.schema_of(table)
    if replaces_all and removed != there.keys():
        raise InvariantBroken(
            f"{len(there) - len(removed)} files would stay in {url!r} that do not fit its new columns."
        )
    rows = sum(count for path, count in there.items() if path not in removed)
    rows += sum(file.rows for file in publication.add)
    files = len(there) - len(removed) + len(publication.add)
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
    properties = CommitProperties(
        custom_metadata={
            delta_table.COMMIT: publication.commit,
            delta_table.RUN: publication.run,
            delta_table.OPERATION: publication.operation,
            delta_table.FINGERPRINT: publication.embedding_spec.fingerprint,
            delta_table.MODEL: str(publication.embedding_spec.lineage.get("model")),
            delta_table.ROWS: str(rows),
            delta_table.FILES: str(files),
            **({delta_table.KEPT: publication.kept} if publication.kept is not None else {}),
            **dict(publication.facts),
        },
        app_transactions=[Transaction(publication.commit, 1)],
        max_commit_retries=0,  # a commit over another one that we have not seen could mix their rows
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
        # Refused, or landed with its answer lost: the log knows.
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

    A file that another tool wrote (an OPTIMIZE, or kept rows) is read once, in the first commit of ours after it. A file
    of ours without a known digest is one of an earlier release: it stays without.
    """
    by_path = version_records.with_digests(url, table, files)
    for path, file in by_path.items():
        if file.digest is None and not path.startswith("data/"):
            by_path[path] = replace(file, digest=digest_of_file(url, table, file))
    return by_path


def _replaces_all(table: DeltaTable, schema: pa.Schema, publication: Publication, *, all_go: bool) -> bool:
    """Whether the schema changes with the files. A model that only moved is written down when all files go anyway."""
    embedding_spec = delta_table.embedding_spec_of(table)
    if embedding_spec is None or embedding_spec.fingerprint != publication.embedding_spec.fingerprint:
        return True
    return not same_columns(table, schema) or (all_go and embedding_spec != publication.embedding_spec)


def _column_names(schema: pa.Schema) -> tuple[str, ...]:
    """The columns of a schema as `delta.column_names` gives them once it is the table's."""
    return tuple(f"{field.name}: {field.type}" for field in pa.schema(Schema.from_arrow(schema).to_arrow()))


def same_columns(table: DeltaTable, schema: pa.Schema) -> bool:
    """Whether a table has these columns, of these types, in this order."""
    wanted = pa.schema(Schema.from_arrow(schema).to_arrow())
    there = delta_table.schema_of(table)
    return [(field.name, field.type) for field in there] == [(field.name, field.type) for field in wanted]


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
            # With retries the loser of a race begins the table again, as the next version, over what the winner did.
            commit_properties=CommitProperties(max_commit_retries=0),
        )
    except (DeltaError, OSError) as error:
        # Another driver of the same job may have been faster by a moment.
        table = delta_table.open_table(url)
        if table is None:
            raise delta_table.failure(url, "create the table", error) from None
        return table


def _first_columns(schema: pa.Schema) -> pa.Schema:
    """The columns of an empty version 0. Deltalake (1.6) makes a table that it cannot open of a timestamp without a time
    zone inside a map; such columns come with the rows, as the table's feature for them does."""
    return pa.schema([field for field in schema if not (_has_map(field.type) and has_naive_times(field.type))])


def _has_map(kind: pa.DataType) -> bool:
    if pa.types.is_map(kind):
        return True
    return pa.types.is_nested(kind) and any(_has_map(kind.field(index).type) for index in range(kind.num_fields))


def _allow_naive_times(table: DeltaTable, url: str, publication: Publication) -> None:
    """Give a table the feature that timestamps without a time zone need, in a version of its own without a change of
    rows. Deltalake would commit a schema that nobody can read without it."""
    feature = TableFeatures.TimestampWithoutTimezone
    has = table.protocol().reader_features or []
    if "timestampNtz" in has or not any(has_naive_times(kind) for kind in publication.schema.types):
        return
    # The rows are those of the run before.
    run = {delta_table.RUN: publication.base.run} if publication.base else {}
    properties = CommitProperties(custom_metadata={**run, delta_table.OPERATION: "upgrade"}, max_commit_retries=0)
    try:
        table.alter.add_feature(feature, allow_protocol_versions_increase=True, commit_properties=properties)
    except CommitFailedError as error:
        raise _conflict(url, redact(error)) from None
    except (DeltaError, OSError) as error:
        raise delta_table.failure(url, "commit to", error) from None


def _landed(url: str, commit: str) -> int | None:
    """The version that a commit with an error made after all, or None.

    Raises:
        CommitUnknown: the store cannot be asked.
    """
    try:
        return delta_table.published_version(delta_table.open_table(url), commit)
    except StorageError as error:
        raise CommitUnknown(
            f"the store did not say whether the commit to {url!r} landed. Run the same command again: it finds out, and "
            f"publishes once ({error})"
        ) from None


def missing_files(url: str, files: Iterable[DataFile]) -> list[str]:
    """The files that are not in the store with the size that is known of them."""
    wanted = list(files)
    there = delta_table.stored_sizes(url, (file.path for file in wanted))
    return [file.path for file in wanted if there.get(file.path) != file.size_bytes]


def sized_files(table: DeltaTable) -> dict[str, DataFile]:
    """Every file of a version by its path, with size, rows (0 where another tool did not count them) and partition."""
    actions = delta_table.actions_of(table)
    partitions = delta_table.partition_values(table)
    columns = (actions[name].to_pylist() for name in ("path", "size_bytes", "num_records"))
    return {
        path: DataFile(path, size_bytes, rows or 0, partitions[path], "{}")
        for path, size_bytes, rows in zip(*columns, strict=True)
    }


def files_of(table: DeltaTable) -> dict[str, DataFile]:
    """Every file of a version by its path, as a commit would add it again, statistics and all."""
    partitions = delta_table.partition_values(table)
    actions = delta_table.actions_of(table, flatten=False)
    files = {}
    for row in actions.to_pylist():
        known = {name: {k: v for k, v in (row.get(name) or {}).items() if v is not None} for name in _STATISTICS}
        stats = {"numRecords": row["num_records"], **{_STATISTICS[name]: values for name, values in known.items()}}
        files[row["path"]] = DataFile(
            row["path"],
            row["size_bytes"],
            row["num_records"] or 0,
            partitions[row["path"]],
            json.dumps(stats, separators=(",", ":"), default=str),
        )
    return files
