"""Versions of a table, and rollback to one of them.

Called by `jobs versions` and `jobs rollback`. A rollback is one commit that adds the files of the old version again and
removes the others. Nothing is copied or encoded. It is possible until a vacuum deletes those files.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from deltalake import DeltaTable

from actors import storage
from actors.errors import ForeignCommits, TableConflict
from pipeline.job.fingerprint import digest
from pipeline.table import commit, delta_table
from pipeline.table.features import check_features
from pipeline.table.foreign import look
from pipeline.table.transaction import table_transaction


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a table in the log.

    Attributes:
        time: Time of the commit, ISO 8601 in UTC.
        operation: backfill, refresh, generation, compact or rollback; for another tool's commit, its own name for it.
        run: The run whose ledger has the sources of the rows.
        rows: None if it is not in the log; the same for `files`, `model` and `fingerprint`.
    """

    number: int
    time: str
    operation: str
    run: str | None
    rows: int | None
    files: int | None
    model: str | None
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Result of a rollback: `version` has the rows of version `restored` again."""

    table: str
    version: int
    restored: int
    rows: int
    files_added: int
    files_removed: int


def versions(table: str) -> list[Version]:
    """Return every version in the log, newest first.

    Raises:
        ConfigError: there is no table.
        TableConflict: the table is not ours.
    """
    return versions_of(delta_table.need_table(storage.absolute(table), curated=True))


def versions_of(table: DeltaTable) -> list[Version]:
    """Return every version in the log of an open table, newest first."""
    return [
        Version(
            number=int(entry["version"]),
            time=dt.datetime.fromtimestamp(entry["timestamp"] / 1000, dt.UTC).isoformat(timespec="seconds"),
            operation=str(entry.get(delta_table.OPERATION) or entry.get("operation", "")),
            run=entry.get(delta_table.RUN),
            rows=_count(entry.get(delta_table.ROWS)),
            files=_count(entry.get(delta_table.FILES)),
            model=entry.get(delta_table.MODEL),
            fingerprint=entry.get(delta_table.FINGERPRINT),
        )
        for entry in delta_table.commits(table)
    ]


def _count(text: str | None) -> int | None:
    return None if text is None else int(text)


def rollback(table: str, to: int) -> RolledBack:
    """Make the rows of an old version current again, in one new version.

    Args:
        table: URI of the table.
        to: The version to go back to.

    Raises:
        ConfigError: there is no table.
        TableConflict: there is no such version, it has no rows, some of its files are deleted, or a run has the table lock.
    """
    url = storage.absolute(table)
    current = delta_table.open_table(url) or delta_table.need_table(
        url, curated=True
    )  # another tool may have taken the model out of the schema
    old = delta_table.need_table(url, to, curated=True)
    check_features(current, url)
    state, restored = delta_table.state_of(current), delta_table.state_of(old)
    embedding_spec = delta_table.embedding_spec_of(old)
    if (foreign := look(old, url, restored)) is not None:
        raise ForeignCommits(
            f"version {to} of {url!r} has rows that no run of vectide made: {foreign.words(url)}. Roll back to a version "
            f"for which `vectide versions` lists a run"
        )
    if state is None or restored is None or embedding_spec is None:
        raise TableConflict(f"version {to} of {url!r} holds no rows that vectide published; see `vectide versions`")
    current_files, old_files = delta_table.file_sizes(current), commit.files_of(old)
    rows = sum(file.rows for file in old_files.values())
    if current_files.keys() == old_files.keys() and embedding_spec == delta_table.embedding_spec_of(current):
        return RolledBack(url, state.version, to, rows, 0, 0)
    name = digest(["rollback", str(state), to], length=8)
    with table_transaction(url, name, state, what="vectide rollback") as transaction:
        if transaction.published is not None:
            return RolledBack(url, transaction.published, to, rows, 0, 0)
        transaction.lock.check()  # before the files are checked: no vacuum may run from here on
        delta_table.need_files(url, old, list(old_files))
        other = embedding_spec.fingerprint != getattr(delta_table.embedding_spec_of(current), "fingerprint", None)
        other = other or not commit.same_columns(current, delta_table.schema_of(old))
        # One commit must not both add and remove a file. If the schema changes, all files are replaced.
        add = [file for path, file in old_files.items() if other or path not in current_files]
        remove = [path for path in current_files if other or path not in old_files]
        version = transaction.publish(
            commit.Publication(
                commit=name,
                run=restored.run,
                operation="rollback",
                embedding_spec=embedding_spec,
                schema=delta_table.plain_schema(old),
                partition_by=tuple(old.metadata().partition_columns),
                base=state,
                kept=restored.kept,
                overrules=True,
                add=tuple(add),
                remove=tuple(remove),
                facts=(("vectide.restores", str(to)),),
            ),
        )
    return RolledBack(url, version, to, rows, len(add), len(remove))
