"""What a refresh does about changes of other tools, as the job says: refuse them, keep them, or undo them.

Kept are rows that went and rows that came, by their keys (`pipeline.table.kept_rows`); the table stays as it is but for what the source
changed. To undo them, the files of our last version come back as they are, as in a rollback, and the refresh goes on from
those. Where some of these files are gone, or columns are others, every shard is read again and only vectors are taken
from what is left.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import ForeignCommits
from actors.schema import QUARANTINE_SCHEMA, QuarantinedRow
from actors.unit.receipt import DataFile
from pipeline.ledger.ledger import Ledger
from pipeline.reuse.vector_index import Doubt
from pipeline.run.context import RunContext
from pipeline.table import kept_rows
from pipeline.table.foreign import Foreign, foreign_commits
from pipeline.table.kept_rows import ADDED, KEPT, KEYS, Kept, kept_table, look_up, of_kind

_BROUGHT_BACK = pa.schema(
    [
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("rows", pa.int64()),
        ("partition", pa.string()),
        ("stats", pa.string()),
    ]
)


class Settled:
    """The decision for one run.

    Args:
        beginning: What is there.
        chunked: Whether a row of the table is a chunk.

    Attributes:
        undoes: Whether it is a restore that has something to undo.
        reads_everything: Whether no shard counts as unchanged and every file is replaced.
        base: The files that the run goes on from, by path, where these are not the table's; else None.
    """

    def __init__(self, context: RunContext, *, chunked: bool) -> None:
        self._foreign = context.foreign
        self._mode = context.job.table.foreign_commits
        self._url = context.url
        self._unique_ids = context.job.source.unique_ids
        self._chunked = chunked
        run = context.state.kept if context.state is not None else None
        self._kept_before = KEPT.empty_table() if run is None else Ledger(context.url, run).table("kept")
        self.undoes = context.restores
        self.reads_everything = False
        self.base: dict[str, DataFile] | None = None
        if context.restores:
            found = self._foreign
            self.reads_everything = self._kept_before.num_rows > 0 or (
                found is not None and (bool(found.columns) or bool(found.lost) or found.difference is None)
            )
            if found is not None and not self.reads_everything:
                self.base = found.base

    def check(self, what: str) -> None:
        """Raise ForeignCommits where the job does not say what is to become of the changes, or cannot have it so."""
        found = self._foreign
        if found is None or self._mode == "restore":
            return
        if self._mode == "refuse":
            raise foreign_commits(found, self._url)
        reason = None
        if found.difference is None:
            reason = "which rows these are cannot be told, because files of that version are gone"
        elif found.columns:
            reason = "the columns are not those of the job"
        elif found.difference.partial:
            reason = f"{found.difference.partial} documents lost some of their chunks and kept others"
        if reason is not None:
            raise ForeignCommits(
                f"{found.words(self._url)}. {what} cannot keep that: {reason}. --foreign-commits restore makes the table "
                f"what a backfill would"
            )

    def kept(self) -> pa.Table:
        """Rows of other tools that are kept from now on (`others.KEPT`)."""
        found, before = self._foreign, self._kept_before
        if self.undoes:
            return KEPT.empty_table()
        if found is None or self._mode != "keep" or found.difference is None:
            return before
        removed = pa.concat_tables([of_kind(before, kept_rows.REMOVED).select(KEYS.names), found.difference.removed])
        added = of_kind(before, ADDED).select(KEYS.names)
        went = kept_rows.row_keys(found.difference.removed)
        added = added.filter(pc.invert(pc.is_in(kept_rows.row_keys(added), value_set=went)))
        return kept_table(removed, pa.concat_tables([added, found.difference.added]))

    def quarantine(self) -> pa.Table:
        """The rows that went, as rows set aside: `QUARANTINE_SCHEMA`."""
        found = self._foreign
        bad: list[QuarantinedRow] = []
        if found is not None and self._mode == "keep" and found.difference is not None:
            bad = kept_rows.bad_rows(found.difference.removed)
        return pa.Table.from_pylist([{**asdict(row), "unit": -1} for row in bad], schema=QUARANTINE_SCHEMA)

    def sources(self, files: Iterable[str]) -> list[str]:
        """Files whose vectors are taken, the best first: those of the run, or those that another tool took out."""
        found = self._foreign
        if found is None or self._mode != "restore":
            return list(files)
        lost = set(found.lost)
        ours = [path for path in found.base if path not in lost]
        # A document there may lack chunks, which nothing tells; so only where nothing else is left.
        return [*ours, *found.came] if self._takes_theirs(found) else ours

    def _takes_theirs(self, found: Foreign) -> bool:
        return found.since is None or (bool(found.lost) and not self._chunked)

    def doubt(self, dim: int, kept: Kept | None) -> Doubt | None:
        """Which of these vectors are not taken, given the rows of other tools that stay."""
        found = self._foreign
        if kept is None and self._mode == "restore" and self._kept_before.num_rows:
            kept = look_up(self._kept_before, unique_ids=self._unique_ids)
        if found is None and kept is None:
            return None
        return Doubt(frozenset(found.came if found is not None else ()), dim, kept)

    def moves(self, affected: list[str]) -> dict[str, pa.Table]:
        """Paths that go and files that come back, as tables of the plan, given the files whose rows are written anew."""
        removed, back = affected, pa.Table.from_pylist([], schema=_BROUGHT_BACK)
        if self._foreign is not None and self.base is not None:
            came, anew = list(self._foreign.came), set(affected)
            there = self.base.keys() - set(self._foreign.went)
            back = pa.Table.from_pylist(
                [
                    {
                        "path": file.path,
                        "size_bytes": file.size_bytes,
                        "rows": file.rows,
                        "partition": json.dumps(file.partition),
                        "stats": file.stats,
                    }
                    for file in self.base.values()
                    if file.path not in there and file.path not in anew
                ],
                schema=_BROUGHT_BACK,
            )
            removed = came + [path for path in affected if path in there]
        tables = {"removed": pa.table({"path": pa.array(removed, pa.string())})}
        return {**tables, "brought_back": back} if back.num_rows else tables
