"""Policy of a refresh for commits of other tools (`table.foreign_commits`): refuse them, keep them, or undo them.

To keep them, a run stores the keys of the rows that were removed and added (`pipeline.table.kept_rows`), and changes only
rows whose source changed. To undo them, the commit restores the files of the last version of vectide, as a rollback does,
and the refresh starts from those. If some of these files were deleted, or columns changed, every shard is read again, and
only vectors are reused from the remaining files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import ForeignCommits
from actors.schema import QUARANTINE_SCHEMA, QuarantinedRow
from actors.unit.receipt import DataFile
from actors.vectors import VectorColumn
from pipeline.ledger.ledger import Ledger
from pipeline.reuse.vector_index import Untrusted
from pipeline.run.context import RunContext
from pipeline.table import kept_rows
from pipeline.table.foreign import foreign_commits
from pipeline.table.kept_rows import ADDED, KEPT, KEYS, Kept, kept_table, look_up, of_kind
from pipeline.table.version_records import FILE_COLUMNS, files_to_table

_RESTORED = pa.schema([*FILE_COLUMNS, ("stats", pa.string())])


class ForeignPolicy:
    """Policy for the commits of other tools, for one run.

    Args:
        context: Model, corpus and table when the run begins.

    Attributes:
        reads_everything: True if every shard counts as changed and every file is replaced.
        base: Files that the run starts from, by path; None if these are the files of the current version.
    """

    def __init__(self, context: RunContext) -> None:
        self._foreign = context.foreign
        self._mode = context.job.table.foreign_commits
        self._context = context
        run = context.state.kept if context.state is not None else None
        self._kept_before = KEPT.empty_table() if run is None else Ledger(context.url, run).table("kept")
        self.reads_everything = False
        self.base: dict[str, DataFile] | None = None
        if context.restores:
            foreign = self._foreign
            self.reads_everything = self._kept_before.num_rows > 0 or (
                foreign is not None and (bool(foreign.columns) or bool(foreign.lost) or foreign.difference is None)
            )
            if foreign is not None and not self.reads_everything:
                self.base = foreign.base

    def check(self, command: str) -> None:
        """Raise ForeignCommits if the job refuses the changes, or if they cannot be kept."""
        foreign = self._foreign
        if foreign is None or self._mode == "restore":
            return
        if self._mode == "refuse":
            raise foreign_commits(foreign, self._context.url)
        reason = None
        if foreign.difference is None:
            reason = "the changed rows are unknown, because files of that version were deleted"
        elif foreign.columns:
            reason = "the columns are not those of the job"
        elif foreign.difference.partial:
            reason = f"{foreign.difference.partial} documents lost some of their chunks and kept others"
        if reason is not None:
            raise ForeignCommits(
                f"{foreign.words(self._context.url)}. {command} cannot keep that: {reason}. --foreign-commits restore makes the table "
                f"what a backfill would"
            )

    @cached_property
    def kept(self) -> pa.Table:
        """Rows of other tools that this run keeps (`kept_rows.KEPT`)."""
        foreign, before = self._foreign, self._kept_before
        if self._context.restores:
            return KEPT.empty_table()
        if foreign is None or self._mode != "keep" or foreign.difference is None:
            return before
        removed = pa.concat_tables([of_kind(before, kept_rows.REMOVED).select(KEYS.names), foreign.difference.removed])
        added = of_kind(before, ADDED).select(KEYS.names)
        removed_keys = kept_rows.row_keys(foreign.difference.removed)
        added = added.filter(pc.invert(pc.is_in(kept_rows.row_keys(added), value_set=removed_keys)))
        return kept_table(removed, pa.concat_tables([added, foreign.difference.added]))

    def quarantine(self) -> pa.Table:
        """Return the rows that another tool removed and that stay removed, as quarantined rows (`QUARANTINE_SCHEMA`)."""
        foreign = self._foreign
        quarantined: list[QuarantinedRow] = []
        if foreign is not None and self._mode == "keep" and foreign.difference is not None:
            quarantined = kept_rows.bad_rows(foreign.difference.removed)
        return pa.Table.from_pylist([{**asdict(row), "unit": -1} for row in quarantined], schema=QUARANTINE_SCHEMA)

    def vector_files(self, files: Iterable[str]) -> list[str]:
        """Return the files whose vectors may be reused, best first.

        Args:
            files: Files of the version that the run starts from.
        """
        foreign = self._foreign
        if foreign is None or self._mode != "restore":
            return list(files)
        lost = set(foreign.lost)
        remaining = [path for path in foreign.base if path not in lost]
        # A document in files of another tool may lack chunks, and nothing shows it: they are the last resort.
        uses_foreign_files = foreign.since is None or (bool(foreign.lost) and self._context.chunking is None)
        return [*remaining, *foreign.came] if uses_foreign_files else remaining

    def untrusted(self, outputs: tuple[VectorColumn, ...], kept: Kept | None) -> Untrusted | None:
        """Return the stored vectors that must not be reused without a check, given the kept rows of other tools."""
        foreign = self._foreign
        if kept is None and self._mode == "restore" and self._kept_before.num_rows:
            kept = look_up(self._kept_before, unique_ids=self._context.job.source.unique_ids)
        if foreign is None and kept is None:
            return None
        return Untrusted(frozenset(foreign.came if foreign is not None else ()), outputs, kept)

    def file_changes(self, affected: list[str]) -> dict[str, pa.Table]:
        """Return the tables `removed` and `restored` of the plan: paths to remove, and files to restore.

        Args:
            affected: Files whose rows are written to new files.
        """
        removed, restored = affected, _RESTORED.empty_table()
        if self._foreign is not None and self.base is not None:
            added, rewritten = list(self._foreign.came), set(affected)
            unchanged = self.base.keys() - set(self._foreign.went)
            gone = (file for path, file in self.base.items() if path not in unchanged and path not in rewritten)
            restored = files_to_table(gone, _RESTORED)
            removed = added + [path for path in affected if path in unchanged]
        tables = {"removed": pa.table({"path": pa.array(removed, pa.string())})}
        return {**tables, "restored": restored} if restored.num_rows else tables
