"""The versions of a table, and going back to one of them.

Called by `jobs versions` and `jobs rollback`. Going back is one commit that adds the old version's files again and takes
away the others: nothing is copied, nothing is encoded. It can be done as long as a vacuum has left those files.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from deltalake import DeltaTable

from actors import storage
from actors.errors import ForeignCommits, TableConflict
from pipeline.job.fingerprint import digest
from pipeline.ledger.table_lock import lock_table
from pipeline.table import commit, delta_table
from pipeline.table.features import check_features
from pipeline.table.foreign import look


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a table, as the log remembers it.

    Attributes:
        time: When it was committed, ISO 8601 in UTC.
        operation: backfill, refresh, generation, compact or rollback; of another tool's commit what it says itself.
        run: The run whose ledger says what the rows were made from.
        rows: None where the log does not say, and so for `files`, `model` and `fingerprint`.
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
    """What a rollback did. `restored` is the version whose rows are current again, in `version`."""

    table: str
    version: int
    restored: int
    rows: int
    files_added: int
    files_removed: int


def versions(table: str) -> list[Version]:
    """Every version that the log remembers, newest first.

    Raises:
        ConfigError: there is no table.
        TableConflict: the table is not ours.
    """
    return versions_of(delta_table.need_table(storage.absolute(table)))


def versions_of(table: DeltaTable) -> list[Version]:
    """As `versions`, of a table that is open."""
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
    """Make the rows of an old version the current ones, at once, in a new version.

    Args:
        table: URI of the table.
        to: The version to go back to.

    Raises:
        ConfigError: there is no table.
        TableConflict: there is no such version, it holds no rows, or some of its files are gone; or a run holds the table.
    """
    url = storage.absolute(table)
    current = delta_table.open_table(url) or delta_table.need_table(
        url
    )  # another tool may have taken the model out of the schema
    old = delta_table.need_table(url, to)
    check_features(current, url)
    state, restored = delta_table.state_of(current), delta_table.state_of(old)
    embedding_spec = delta_table.embedding_spec_of(old)
    if (foreign := look(old, url, restored)) is not None:
        raise ForeignCommits(
            f"version {to} of {url!r} has rows that no run of vectide made: {foreign.words(url)}. Roll back to a version "
            f"of ours, which `vectide versions` names with its run"
        )
    if state is None or restored is None or embedding_spec is None:
        raise TableConflict(f"version {to} of {url!r} holds no rows that vectide published; see `vectide versions`")
    there, back = delta_table.file_sizes(current), commit.files_of(old)
    if there.keys() == back.keys() and embedding_spec == delta_table.embedding_spec_of(current):
        return RolledBack(url, state.version, to, sum(file.rows for file in back.values()), 0, 0)
    name = digest(["rollback", str(state), to], length=8)
    with lock_table(url, name, what="vectide rollback") as lock:
        commit.check_base(delta_table.open_table(url), url, state)
        lock.check()  # before the files: a vacuum that took the table meanwhile has ended, or this rollback does
        delta_table.need_files(url, old, list(back))
        other = embedding_spec.fingerprint != getattr(delta_table.embedding_spec_of(current), "fingerprint", None)
        other = other or not commit.same_columns(current, delta_table.schema_of(old))
        # A file may not be both added and removed by one commit; where the schema changes all of them are replaced.
        add = [file for path, file in back.items() if other or path not in there]
        remove = [path for path in there if other or path not in back]
        version = commit.publish(
            url,
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
    rows = sum(file.rows for file in back.values())
    return RolledBack(url, version, to, rows, len(add), len(remove))
