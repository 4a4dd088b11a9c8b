"""Changes that other tools made to a table since our last commit: their commits, and the rows that they removed and added.

Checked when a run begins. If the last commit is ours, only that commit is read. A commit without a data change (an
OPTIMIZE), a checkpoint and a property are no changes. Everything else is compared row by row: only the files that one of
the two versions has, as long as they exist. If those of our version were deleted, digests of their rows are compared. If
the log was cleaned up, our record of the version (`pipeline.table.version_records`) names its files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from deltalake import DeltaTable

from actors.errors import ForeignCommits, NoSuchVersion, TableConflict
from actors.schema import ID
from actors.unit.receipt import DataFile
from pipeline.table import commit, delta_table, version_records
from pipeline.table.delta_table import State
from pipeline.table.row_diff import RowDifference, compare_rows, same_rows

_SHOWN_COMMITS = 5


@dataclass(frozen=True, slots=True)
class ForeignCommit:
    """One commit of another tool."""

    version: int
    operation: str
    tool: str

    def __str__(self) -> str:
        return f"version {self.version} by {self.operation or 'an unnamed operation'} ({self.tool or 'unknown tool'})"


@dataclass(frozen=True, slots=True)
class Foreign:
    """Changes that other tools made since our last commit.

    Attributes:
        since: Our last version; None if it is unknown.
        commits: Commits that the log still has, newest last.
        is_whole: Whether the log has all commits since then.
        columns: Changes of columns, for messages; empty if there are none.
        base: Expected files, by path; those of another tool's OPTIMIZE count as ours.
        went: Paths of expected files that the table does not have; `came`: paths of files that it has instead.
        lost: Paths of `base` that are no longer in the store.
        difference: Rows that changed; None if they are unknown because files are lost.
        rows: Number of expected rows, and of rows in the table, for messages.
        has_digests: Whether the digests of all files of `went` are known.
    """

    since: int | None
    commits: tuple[ForeignCommit, ...]
    is_whole: bool
    columns: str
    base: dict[str, DataFile]
    went: tuple[str, ...]
    came: tuple[str, ...]
    lost: tuple[str, ...]
    difference: RowDifference | None
    rows: tuple[int, int]
    has_digests: bool = False

    def words(self, url: str) -> str:
        """Return a description of the changes: a sentence without a full stop."""
        if self.since is None:
            return (
                f"neither the log nor a record of vectide names the run that made the {self.rows[1]} rows of {url!r}, "
                f"because the log was cleaned up or the table was copied without its _vectide folder"
            )
        commits = "; ".join(map(str, self.commits[:_SHOWN_COMMITS]))
        more = len(self.commits) - _SHOWN_COMMITS
        commits += f"; and {more} more" if more > 0 else ""
        if not self.is_whole:
            commits += ("; " if commits else "") + "the log no longer has all of their commits"
        changes = ", ".join(filter(None, [self._changes(), commits]))
        return f"other tools changed {url!r} since version {self.since}: {changes}"

    def _changes(self) -> str:
        parts = [self.columns] if self.columns else []
        difference = self.difference
        if difference is None:
            parts.append(f"it had {self.rows[0]} rows and has {self.rows[1]}" + self._why_not_equal())
        else:
            for verb, rows, count in (
                ("removed", difference.removed, difference.removed_rows),
                ("added", difference.added, difference.added_rows),
            ):
                if count:
                    first = rows[ID][0].as_py() if rows.num_rows else None
                    parts.append(f"{count} {'row' if count == 1 else 'rows'} {verb} (first id {first!r})")
            if difference.removed_rows and difference.added_rows:
                parts.append("a changed row counts as both")
        return ", ".join(parts)

    def _why_not_equal(self) -> str:
        if self.rows[0] != self.rows[1] or self.columns:
            return ""
        if self.has_digests:
            return ", but not the same ones"
        return (
            ", and nothing tells whether they are the same: an earlier release recorded no digests of them, and the "
            "files of that version are gone"
        )


def look(table: DeltaTable | None, url: str, state: State | None) -> Foreign | None:
    """Return the changes of other tools; None if rows and columns are those of our last commit.

    Raises:
        TableConflict: a file is outside the table's folder, or our last version is unknown.
    """
    if table is None or state is None:
        return None
    since, entries, is_whole = _entries(table)
    if since == state.version:
        return None
    current = commit.files_of(table)
    _check_inside(url, current)
    if state.run == delta_table.FORGOTTEN:
        if delta_table.embedding_spec_of(table) is None:
            return None  # another tool made the table; the check of the embedding spec reports it
        count = sum(file.rows for file in current.values())
        return Foreign(None, _named(entries), False, "", {}, (), tuple(current), (), None, (0, count))
    anchor = _anchor(table, url, since, entries)
    if anchor is None:
        raise TableConflict(
            f"{url!r} has commits of other tools since version {since}, and the files of that version are no longer known. "
            f"`vectide versions` lists the versions; roll back to one"
        )
    base, moved_only = (_follow(anchor.files, entries, current)) if is_whole else (dict(anchor.files), False)
    columns = _columns(anchor.columns, delta_table.column_names(table)) or (
        "" if delta_table.embedding_spec_of(table) else "the model is no longer named in the schema"
    )
    went = [path for path in base if path not in current]
    came = [path for path in current if path not in base]
    if not columns and (moved_only or not (went or came)):
        return None
    lost = delta_table.absent_files(url, went)
    rows = (sum(base[path].rows for path in base), sum(file.rows for file in current.values()))
    difference = None
    if not lost:
        difference = compare_rows(url, table, [base[path] for path in went], [current[path] for path in came])
        if not columns and not difference.removed_rows and not difference.added_rows:
            return None
    elif (
        not columns
        and rows[0] == rows[1]
        and same_rows(url, table, [base[p] for p in went], [current[p] for p in came])
    ):
        return None  # an OPTIMIZE rewrote the files, and a vacuum deleted the old ones
    return Foreign(
        since=anchor.version,
        commits=_named(entries),
        is_whole=is_whole,
        columns=columns,
        base=base,
        went=tuple(went),
        came=tuple(came),
        lost=tuple(lost),
        difference=difference,
        rows=rows,
        has_digests=all(base[path].digest is not None for path in went),
    )


def foreign_commits(foreign: Foreign, url: str) -> ForeignCommits:
    """Return the error for changes of other tools that no option allows."""
    rollback = "" if foreign.since is None else f"; or `vectide rollback {url} --to {foreign.since}`"
    keep = "" if foreign.difference is None or foreign.columns else "keep leaves these rows as they are, "
    return ForeignCommits(
        f"{foreign.words(url)}. Choose what to do with these changes: vectide refresh --foreign-commits "
        f"{'keep or restore' if keep else 'restore'} ({keep}restore makes the table equal to a backfill and reuses "
        f"stored vectors){rollback}"
    )


_Entries = list[tuple[int, list[dict[str, Any]]]]


def _entries(table: DeltaTable) -> tuple[int | None, _Entries, bool]:
    """Return our last version, the commits from it on, oldest first, and whether the log has all of them.

    The version is None if the log does not have it.
    """
    found: _Entries = []
    for version, actions in delta_table.log_entries(table):
        found.append((version, actions))
        if delta_table.info_of(actions).get(delta_table.RUN):
            return version, found[::-1], True
    return None, found[::-1], False


def _anchor(table: DeltaTable, url: str, since: int | None, entries: _Entries) -> version_records.Anchor | None:
    """Return the record of our last version, or what the log has of it."""
    if since is None:
        return version_records.newest(url, table)
    info = delta_table.info_of(entries[0][1])
    commit_name, run = str(info.get(delta_table.COMMIT)), str(info[delta_table.RUN])
    known = version_records.read(url, since, commit_name)
    if known is not None:
        return known
    try:
        then = delta_table.open_table(url, since)
    except NoSuchVersion:
        return None
    if then is None:
        return None
    kept = info.get(delta_table.KEPT)
    names = delta_table.column_names(then)
    return version_records.Anchor(
        since, commit_name, run, kept, version_records.table_id(then), names, commit.files_of(then)
    )


def _follow(
    files: dict[str, DataFile], entries: _Entries, current: dict[str, DataFile]
) -> tuple[dict[str, DataFile], bool]:
    """Return the files of our version after commits that only rewrote files, and whether all commits did only that."""
    base = dict(files)
    moved_only = True
    for _, actions in entries[1:]:
        adds = [action["add"] for action in actions if action.get("add")]
        removes = [action["remove"] for action in actions if action.get("remove")]
        if any(entry.get("dataChange", True) for entry in (*adds, *removes)):
            moved_only = False
            continue
        removed = {unquote(entry["path"]) for entry in removes}
        if removed <= base.keys():
            base = {path: file for path, file in base.items() if path not in removed}
            for entry in adds:
                base[unquote(entry["path"])] = current.get(unquote(entry["path"])) or _file(entry)
        else:
            moved_only = False
    return base, moved_only


def _file(entry: dict[str, Any]) -> DataFile:
    """Return the file of an add action."""
    stats = str(entry.get("stats") or "{}")
    return DataFile(
        unquote(entry["path"]), entry["size"], _records(stats), dict(entry.get("partitionValues") or {}), stats
    )


def _records(stats: str) -> int:
    return int(json.loads(stats).get("numRecords") or 0)


def _columns(before: Iterable[str], now: Iterable[str]) -> str:
    """Return a description of the changes of columns; empty if there are none."""
    before, now = list(before), list(now)
    if before == now:
        return ""
    removed, added = [name for name in before if name not in now], [name for name in now if name not in before]
    parts = [f"columns {verb}: {', '.join(names)}" for verb, names in (("removed", removed), ("added", added)) if names]
    return ", ".join(parts) or "columns in another order"


def _named(entries: _Entries) -> tuple[ForeignCommit, ...]:
    commits = []
    for version, actions in entries:
        info = delta_table.info_of(actions)
        if not info.get(delta_table.RUN):
            tool = str(info.get("engineInfo") or info.get("clientVersion") or "")
            commits.append(ForeignCommit(version, str(info.get("operation") or ""), tool))
    return tuple(commits)


def _check_inside(url: str, files: Iterable[str]) -> None:
    """Raise TableConflict if the log names a file outside the table's folder, as in a shallow clone."""
    outside = next((path for path in files if "://" in path or path.startswith("/")), None)
    if outside is not None:
        raise TableConflict(
            f"{url!r} names files outside its folder ({outside!r}), as a shallow clone does. Make a deep copy of it, "
            f"with its _vectide folder, and set table.uri to the copy"
        )
