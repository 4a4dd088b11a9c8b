"""Refresh: makes a table equal to a backfill of today's source, at the cost of the changes.

Called by `jobs refresh`. Shards that did not change since the current version are never opened. Changed shards are read.
A text that has a vector anywhere in the table keeps it bit for bit; only the other texts are encoded. Files that hold rows
of changed and of unchanged shards are rewritten. One commit adds and removes the files.

An unchanged shard counts as changed in six cases: the previous version stored no listing; the job has other text columns;
the table has other columns than the job wants; one of its rows was quarantined for an id that another row had, since that row
may have been deleted; rows of it are to be retried; or a kept column of another shard has a type whose values do not fit the
type in the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from actors.errors import ConfigError
from actors.images.workers import decode_pool
from actors.schema import HASH, ID, SHARD, Piece, RewriteUnit, RewrittenFile, Shard, Unit
from actors.source.formats import open_format
from actors.source.formats.types import fits
from actors.source.read_unit import SourceSpec, corpus_root, read_unit
from actors.storage import identity
from actors.threads import unawaited_threads
from actors.unit.receipt import DataFile, Receipt
from actors.unit.table_files import read_stored
from pipeline.execute.inline import InlineExecutor
from pipeline.execute.outcome import Executor
from pipeline.execute.progress import NullReporter, Outcome, Reporter
from pipeline.job.config import Job
from pipeline.ledger.duplicates import brings_ids
from pipeline.ledger.ledger import Ledger, units_to_table
from pipeline.plan.corpus import Survey, kept_columns, source_format, survey
from pipeline.plan.units import Plan
from pipeline.reuse.file_shards import TableFile, scan_files, scan_paths
from pipeline.reuse.repeated_ids import RepeatedIds
from pipeline.reuse.spill import TEXT, Buckets, Rows, as_texts, firsts, hash_bytes
from pipeline.reuse.vector_index import Index, build_index
from pipeline.run.backfill import Runner
from pipeline.run.context import RunContext, resolve_context
from pipeline.run.reembed import Reembedding
from pipeline.table import delta_table
from pipeline.table.commit import same_columns, sized_files
from pipeline.table.delta_table import State
from pipeline.table.kept_rows import ADDED, Kept, look_up, of_kind
from pipeline.table.quarantine import worth_retrying
from pipeline.table.version_records import table_to_files

_TEXT_TOKENS = 256  # estimated tokens of a text before it is read
_HASH_ROWS = 50_000
_HASH_PICTURES = 8
_HASH_THREADS = 8
_REWRITE_ROWS = 1_000


def refresh(job: Job, reporter: Reporter | None = None) -> Outcome:
    """Publish one new version, or none if nothing changed.

    If the table does not exist, this is a backfill. If its embedding spec is not that of the job, it is a re-embedding
    (`pipeline.run.reembed`).

    Raises:
        VectideError: see actors/errors.py; finished units are kept, and the same call resumes the run.
    """
    reporter = reporter or NullReporter()
    return refresh_from(resolve_context(job, reporter), reporter)


def refresh_from(context: RunContext, reporter: Reporter) -> Outcome:
    """Refresh a table whose run context is resolved."""
    if context.table is None or context.state is None:
        return Runner(context, reporter).run()
    if context.foreign is not None and context.job.table.foreign_commits != "refuse":
        reporter.step(context.foreign.words(context.url))
    embedding_spec = delta_table.embedding_spec_of(context.table)
    if embedding_spec is not None and embedding_spec.fingerprint != context.embedding_spec.fingerprint:
        return Reembedding(context, context.table, reporter).run()
    return _Refresh(context, context.table, context.state, reporter).run()


class _Refresh(Runner):
    """One call of `refresh` over the shards that changed.

    Args:
        context: Model, corpus and table when the run begins.
        version: The current version.
        state: Run and number of the current version.
        reporter: Receives the events of the run.
    """

    operation = "refresh"
    command = "vectide refresh"

    def __init__(self, context: RunContext, version: DeltaTable, state: State, reporter: Reporter) -> None:
        super().__init__(context, reporter)
        self._version = version
        self._before = Ledger(self.context.url, state.run)

    def check_foreign(self) -> None:
        """Apply `table.foreign_commits`.

        Raises:
            ForeignCommits: the job refuses the changes of other tools, or they cannot be kept.
        """
        self.policy.check(self.command)

    @cached_property
    def _foreign_rows(self) -> Kept | None:
        """Kept rows that another tool added; None if there are none."""
        if not of_kind(self.policy.kept, ADDED).num_rows:
            return None
        return look_up(self.policy.kept, unique_ids=self.context.job.source.unique_ids)

    @cached_property
    def _old_quarantine(self) -> pa.Table:
        return self._before.quarantine(self._before.receipts().values())

    @cached_property
    def _untouched(self) -> frozenset[str]:
        """Paths of shards that did not change since the current version was published."""
        if self.policy.reads_everything:
            return frozenset()
        listing = self._before.listing()
        description = self._before.description()
        without_effect = {"uri": None, "verify": None}  # these keys do not change a row
        source = self.context.job.source.model_dump(mode="json")
        if (
            listing is None
            or description is None
            or {**description.job["source"], **without_effect} != {**source, **without_effect}
        ):
            return frozenset()
        kept = pa.schema([(name, pa.null()) for name in self._kept.values()])
        if {*self.context.columns(kept).names} != {*delta_table.schema_of(self._version).names}:
            return frozenset()
        quarantined = self._old_quarantine
        to_retry = set(quarantined.filter(pc.equal(quarantined["reason"], "duplicate_id"))["shard"].to_pylist())
        if self.context.retries is not None:
            to_retry.update(worth_retrying(quarantined)["shard"].to_pylist())
            # An unpublished run may have quarantined rows of the table.
            ledger = Ledger(self.context.url, self.context.retries)
            to_retry.update(worth_retrying(ledger.quarantine(ledger.receipts().values()))["shard"].to_pylist())
        same = set()
        for shard in self.context.shards:
            size_bytes, etag = listing.get(shard.path, (-1, ""))
            if size_bytes == shard.size_bytes and identity.unchanged(etag, shard.etag):
                same.add(shard.path)
        return frozenset(same - to_retry)

    def may_have_changed(self) -> bool:
        """Return whether a shard has no tag: such a shard counts as changed."""
        return any(not shard.etag for shard in self.context.shards)

    @cached_property
    def _unchanged_and_survey(self) -> tuple[frozenset[str], Survey | None]:
        """Paths of shards that need not be read, and the survey of the others; None if there are no others.

        A column has one type in the whole table. If a kept column of a changed shard has a type whose values may not
        fit the table's type, all shards are read again with today's types, as in a backfill. Known texts are not encoded
        again.
        """
        same = self._untouched
        to_read = tuple(shard for shard in self.context.shards if shard.path not in same)
        if not to_read:
            return same, None
        if same:
            schema = delta_table.schema_of(self._version)
            known = {name: schema.field(stored).type for name, stored in self._kept.items()}
            # The survey of all shards below reports an error: an old shard may be the one that does not fit.
            with suppress(ConfigError):
                surveyed = self._survey(to_read, known)
                if all(fits(kind, known[name]) for name, kind in surveyed.source.keep):
                    return same, surveyed
        return frozenset(), self._survey(self.context.shards)

    def _survey(self, shards: tuple[Shard, ...], known: Mapping[str, pa.DataType] | None = None) -> Survey:
        model, corpus = self.context.model, self.context.shards
        return survey(self.context.job, shards, known, modality=model.modality, settings=model.pictures, corpus=corpus)

    @cached_property
    def _kept(self) -> dict[str, str]:
        """Name in the table of each kept column."""
        return kept_columns(self.context.job, source_format(self.context.job, self.context.shards))

    @property
    def _unchanged(self) -> frozenset[str]:
        """Paths of shards that need not be read."""
        return self._unchanged_and_survey[0]

    @cached_property
    def _files(self) -> list[TableFile]:
        """Files of the version that the refresh starts from, with the shards of their rows."""
        if self.policy.base is not None:
            return scan_paths(self.context.url, self.policy.base)
        return scan_files(self.context.url, self._version, self._foreign_rows)

    @cached_property
    def _data_files(self) -> dict[str, DataFile]:
        """The same files by path, as the log has them."""
        return sized_files(self._version) if self.policy.base is None else self.policy.base

    @cached_property
    def _affected(self) -> list[TableFile]:
        """Files with rows of shards that changed or were deleted; all files if the table gets other columns."""
        columns = self.context.columns(self.surveyed.keep_schema)
        if self.policy.reads_everything or not same_columns(self._version, columns):
            return self._files
        return [file for file in self._files if not file.shards.keys() <= self._unchanged]

    @cached_property
    def surveyed(self) -> Survey:
        """The survey of the shards to read. If a shard stays unread, the table's types are kept."""
        schema = delta_table.schema_of(self._version)
        source = self.context.job.source
        unchanged, surveyed = self._unchanged_and_survey
        today = dict(surveyed.source.keep) if surveyed and not unchanged else {}
        types = {
            name: today[name] if name in today else schema.field(stored).type for name, stored in self._kept.items()
        }
        folders = tuple((name, types.get(name, kind)) for name, kind in surveyed.source.folders) if surveyed else ()
        spec = SourceSpec(
            format=surveyed.source.format if surveyed else "parquet",
            root=corpus_root(source.uri, self.context.shards),
            text=surveyed.source.text if surveyed else source.text,
            id=source.id,
            keep=tuple(types.items()),
            task=source.task_column,
            unique_ids=source.unique_ids,
            folders=folders,
            modality=self.context.model.modality,
            renamed=tuple(self._kept.items()),
            pictures=surveyed.source.pictures if surveyed else None,
        )
        shards, dialects = (surveyed.shards, surveyed.dialects) if surveyed else ((), ())
        return Survey(shards, spec, spec.kept_schema(), dialects)

    def _find_wanted(self, wanted: Buckets) -> None:
        """Add the content hashes of the rows to read to `wanted`, and those with repeated ids to `self._repeated_ids`."""
        source, repeated_ids = self.surveyed.source, self._repeated_ids
        kept = look_up(self.policy.kept, unique_ids=source.unique_ids) if self.policy.kept.num_rows else None

        rows = _HASH_ROWS if source.pictures is None else _HASH_PICTURES

        def pieces(shard: Shard) -> list[Piece]:
            return open_format(source.format, shard.path).pieces(shard, rows)

        def hashes(piece: Piece) -> Rows:
            read = read_unit(Unit(0, (piece,)), source)
            rows, _ = (read.table, []) if kept is None else kept.split(read.table)
            if not repeated_ids.are_none:
                repeated_ids.add(rows, read.bad)
            return firsts(as_texts(hash_bytes(rows[HASH])))

        def add_staying(file: TableFile) -> None:
            rows = read_stored(self.context.url, file.path, [ID, SHARD])
            repeated_ids.add(rows.filter(pc.is_in(rows[SHARD], value_set=unchanged)))

        unchanged = pa.array(sorted(self._unchanged), pa.string())
        keeping = (
            nullcontext() if source.pictures is None else decode_pool().keeping()
        )  # units in this process use them
        with keeping, unawaited_threads(_HASH_THREADS) as pool:
            parts = [piece for part in pool.map(pieces, self.surveyed.shards) for piece in part]
            for start in range(0, len(parts), _HASH_THREADS):  # at most one piece a thread in memory
                for part in pool.map(hashes, parts[start : start + _HASH_THREADS]):
                    wanted.add(part)
            if not repeated_ids.are_none:
                staying = (file for file in self._files if file.shards.keys() & self._unchanged)
                list(pool.map(add_staying, staying))

    @cached_property
    def _repeated_ids(self) -> RepeatedIds:
        """Rows with the ids of quarantined rows; filled while the index is built."""
        return RepeatedIds(self._old_quarantine)

    @cached_property
    def _index(self) -> Index:
        """Index of stored vectors for the texts to read: those of the table first, then those of unpublished files."""
        with Buckets(TEXT) as wanted:
            self._find_wanted(wanted)
            files = [*self.policy.vector_files(file.path for file in self._files), *self.find_unpublished_files()]
            untrusted = self.policy.untrusted(self.context.model.outputs, self._foreign_rows)
            index = build_index(self.context.url, files, wanted, untrusted)
        return self.planning.enter_context(index)

    def plan(self, executor: Executor) -> None:
        """Cut the changed shards into units, index their known texts, add the rewrite units, and freeze all."""
        replaced = sorted({path for file in self._affected for path in file.shards} - self._unchanged)
        plan = Plan(units_to_table([]), 0, 0, rows_exact=True, unit_rows=_REWRITE_ROWS)
        if any(shard.size_bytes for shard in self.surveyed.shards):
            plan = self.cut(executor.pool)
        rewrites = list(self._rewrite_units(plan.units, frozenset(replaced), max(plan.unit_rows, _REWRITE_ROWS)))
        quarantined = pa.concat_tables([self._old_quarantine, self.policy.quarantine()])
        unread = pc.is_in(quarantined["shard"], value_set=pa.array(sorted(self._unchanged), pa.string()))
        table_rows = sum(file.rows for file in self._files)
        affected_rows = sum(file.rows for file in self._affected)
        index, duplicates = self._index, pa.table({})
        if self.surveyed.source.pictures is not None and not isinstance(executor, InlineExecutor):
            decode_pool().forget()  # other processes decode again: pixels are too large to be sent to all of them
        if not self._repeated_ids.are_none:
            duplicates = self._repeated_ids.to_leave_out(index)
        self.freeze(
            replace(
                plan,
                table=pa.concat_tables([plan.table, units_to_table(rewrites)]),
                units=plan.units + len(rewrites),
                rows=plan.rows + sum(unit.rows for unit in rewrites),
            ),
            {
                "reuse": index.tables(),
                **({"duplicates": duplicates} if duplicates.num_rows else {}),
                "replaced": pa.table({"path": pa.array(replaced, pa.string())}),
                **self.policy.file_changes([file.path for file in self._affected]),
                "previous_quarantine": quarantined.filter(unread),
            },
            reuse=index.parts,
            rows_kept=table_rows - affected_rows,
            texts_to_encode=self._texts(),
            duplicates=duplicates.num_rows,
        )

    def _texts(self) -> int:
        """Return the number of texts without a stored vector."""
        description = self.ledger.description()
        if description is not None:
            return description.texts_to_encode
        return self._index.unknown

    def _rewrite_units(self, first: int, replaced: frozenset[str], unit_rows: int) -> Iterator[RewriteUnit]:
        """Yield the rewrite units: unchanged rows of affected files."""
        number, files, rows = first, [], 0
        for file in self._affected:
            unchanged_rows = file.others + sum(count for path, count in file.shards.items() if path not in replaced)
            if unchanged_rows == 0:
                continue
            files.append(RewrittenFile(file.path, self._data_files[file.path].partition, unchanged_rows))
            rows += unchanged_rows
            if rows >= unit_rows:
                yield RewriteUnit(number, tuple(files))
                number, files, rows = number + 1, [], 0
        if files:
            yield RewriteUnit(number, tuple(files))

    def tokens(self) -> float:
        """Return an upper estimate of the tokens to encode, from the number of texts without a vector."""
        return self._texts() * min(self.context.model.max_tokens, _TEXT_TOKENS)

    def removed(self) -> tuple[str, ...]:
        """Return the paths of the files that the frozen plan removes."""
        return tuple(self.ledger.table("removed")["path"].to_pylist())

    def restored_files(self) -> tuple[DataFile, ...]:
        """Return the files that the frozen plan restores."""
        try:
            rows = self.ledger.table("restored")
        except FileNotFoundError:
            return ()
        return tuple(table_to_files(rows))

    def files_with_possible_duplicate_ids(self, receipts: Iterable[Receipt]) -> list[DataFile]:
        """Return the remaining files; none if no id is new to the table."""
        added = (file.path for receipt in receipts for file in receipt.files)
        removed = {*self.removed(), *(file.path for file in self._affected)}
        if not brings_ids(self.context.url, added, removed):
            return []
        return [
            replace(self._data_files[file.path], rows=file.rows)  # another tool may not count them in the log
            for file in self._files
            if file.path not in removed
        ]
