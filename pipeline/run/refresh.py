"""Makes a table equal to a fresh backfill of today's source, at the cost of what changed.

Called by `jobs refresh`. Shards that are as they were when the current version was made are never opened. Changed ones
are read; their texts that the table has a vector of, wherever it is, keep it bit for bit, and only the others go through
the model. Rows of replaced shards go, by new files for what stays beside them. All of it is one commit.

Five things make a shard count as changed although it is not: an earlier version that left no listing, another choice of
text columns, rows that were set aside for an id that another row had (that row may be gone), rows that are to be tried
again, and a type of a kept column elsewhere that the table's does not hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from actors.errors import ConfigError
from actors.schema import HASH, Piece, Shard, Unit
from actors.source.formats import open_format
from actors.source.formats.types import fits
from actors.source.read_unit import SourceSpec, corpus_root, read_unit
from actors.storage import identity
from actors.unit.receipt import DataFile, Receipt
from pipeline.execute.outcome import Executor
from pipeline.execute.progress import NullReporter, Outcome, Reporter
from pipeline.job.config import Job
from pipeline.ledger.duplicates import brings_ids
from pipeline.ledger.ledger import Ledger, table_to_units, units_to_table
from pipeline.plan.corpus import Survey, survey
from pipeline.plan.sample import take_sample
from pipeline.plan.units import Plan, cut_plan
from pipeline.reuse.file_shards import TableFile, scan_files, scan_paths
from pipeline.reuse.spill import TEXT, Buckets, Rows, as_texts, firsts, hash_bytes
from pipeline.reuse.vector_index import Index, build_index
from pipeline.run.backfill import Prepared, Runner
from pipeline.run.context import RunContext, resolve_context
from pipeline.run.foreign_policy import Settled
from pipeline.run.reembed import Generation
from pipeline.table import delta_table
from pipeline.table.delta_table import State
from pipeline.table.kept_rows import ADDED, Kept, look_up, of_kind
from pipeline.table.quarantine import worth_retrying

# What a text is taken to have at most, before it is read.
_TEXT_TOKENS = 256
_HASH_ROWS = 50_000
_HASH_THREADS = 8
_CARRY_ROWS = 1_000


def refresh(job: Job, reporter: Reporter | None = None) -> Outcome:
    """One new version, or none when nothing changed. Where there is no table yet, a backfill; where the job's model or a
    setting of it is another than the table's, a second generation (`pipeline.run.reembed`).

    Raises:
        VectideError: see actors/errors.py; whatever was finished is kept, and the same call goes on from there.
    """
    reporter = reporter or NullReporter()
    return refresh_from(resolve_context(job, reporter), reporter)


def refresh_from(context: RunContext, reporter: Reporter) -> Outcome:
    """As `refresh`, from what is there."""
    if context.table is None or context.state is None:
        return Runner(context, reporter).run()
    if context.foreign is not None and context.job.table.foreign_commits != "refuse":
        reporter.step(context.foreign.words(context.url))
    embedding_spec = delta_table.embedding_spec_of(context.table)
    if embedding_spec is not None and embedding_spec.fingerprint != context.embedding_spec.fingerprint:
        return Generation(context, context.table, reporter).run()
    return _Refresh(context, context.table, context.state, reporter).run()


class _Refresh(Runner):
    """A run over the shards that changed.

    Args:
        beginning: What is there.
        version: The table as it is.
        state: What it holds.
        reporter: Who is told how it goes.
    """

    operation = "refresh"
    what = "vectide refresh"

    def __init__(self, context: RunContext, version: DeltaTable, state: State, reporter: Reporter) -> None:
        super().__init__(context, reporter)
        self._version = version
        self._before = Ledger(self.url, state.run)
        self._settled = Settled(context, chunked=self.chunking is not None)

    def check_foreign(self) -> None:
        """As the job says.

        Raises:
            ForeignCommits: other tools changed the table, and the job refuses that, or it cannot be kept.
        """
        self._settled.check(self.what)

    def check_embedding_spec(self) -> None:
        """As for a backfill; a restore puts back what another tool took out of the schema."""
        if self.table is not None and not (self.restores and delta_table.embedding_spec_of(self.table) is None):
            super().check_embedding_spec()

    @cached_property
    def kept(self) -> pa.Table:
        """With the rows that were changed since."""
        return self._settled.kept()

    @cached_property
    def _others(self) -> Kept | None:
        """Rows that another tool added and that stay; None where there are none."""
        if not of_kind(self.kept, ADDED).num_rows:
            return None
        return look_up(self.kept, unique_ids=self.job.source.unique_ids)

    @cached_property
    def _base(self) -> dict[str, DataFile] | None:
        """Files of the version of ours that come back as they are, with all others of it; None where that of today counts."""
        return self._settled.base

    @cached_property
    def _old_quarantine(self) -> pa.Table:
        return self._before.quarantine(self._before.receipts().values())

    @cached_property
    def _as_they_were(self) -> frozenset[str]:
        """Paths of shards that did not change since the version was made."""
        if self._settled.reads_everything:
            return frozenset()
        listing = self._before.listing()
        made = self._before.description()
        anyhow = {"uri": None, "verify": None}  # what decides nothing about a row
        ours = self.job.source.model_dump(mode="json")
        if listing is None or made is None or {**made["job"]["source"], **anyhow} != {**ours, **anyhow}:
            return frozenset()
        bad = self._old_quarantine
        again = set(bad.filter(pc.equal(bad["reason"], "duplicate_id"))["shard"].to_pylist())
        if self.retries is not None:
            again.update(worth_retrying(bad)["shard"].to_pylist())
            tried = Ledger(self.url, self.retries)  # one that was not published may have quarantined rows of the table
            again.update(worth_retrying(tried.quarantine(tried.receipts().values()))["shard"].to_pylist())
        same = set()
        for shard in self.shards:
            size_bytes, etag = listing.get(shard.path, (-1, ""))
            if size_bytes == shard.size_bytes and identity.unchanged(etag, shard.etag):
                same.add(shard.path)
        return frozenset(same - again)

    def in_doubt(self) -> bool:
        """Whether a shard has no tag: it counts as changed, so the table is not known to hold it."""
        return any(not shard.etag for shard in self.shards)

    @cached_property
    def _looked(self) -> tuple[frozenset[str], Survey | None]:
        """Paths of shards that need not be read, and what the others hold; None where there are no others.

        A table has one type a column. Where the changed shards have a kept column of a type whose values may not fit
        the table's, all shards are read again with the types of today, as a backfill would: nothing of it is encoded.
        """
        same = self._as_they_were
        to_read = tuple(shard for shard in self.shards if shard.path not in same)
        if not to_read:
            return same, None
        if same:
            there = delta_table.schema_of(self._version)
            known = {name: there.field(name).type for name in self.job.source.keep}
            # An error is told below, by a look at all shards: it may be the old ones that do not fit the new.
            with suppress(ConfigError):
                found = survey(self.job, to_read, known, corpus=self.shards)
                if all(fits(found.keep_schema.field(name).type, kind) for name, kind in known.items()):
                    return same, found
        return frozenset(), survey(self.job, self.shards)

    @property
    def _unchanged(self) -> frozenset[str]:
        """Paths of shards that need not be read."""
        return self._looked[0]

    @cached_property
    def _to_read(self) -> tuple[Shard, ...]:
        return tuple(shard for shard in self.shards if shard.path not in self._unchanged)

    @cached_property
    def _files(self) -> list[TableFile]:
        """Every file of the current version, or of the one that comes back, with the shards of its rows."""
        if self._base is not None:
            return scan_paths(self.url, self._base)
        return scan_files(self.url, self._version, self._others)

    @cached_property
    def _partitions(self) -> dict[str, dict[str, str | None]]:
        if self._base is not None:
            return {path: file.partition for path, file in self._base.items()}
        return delta_table.partition_values(self._version)

    @cached_property
    def _affected(self) -> list[TableFile]:
        """Files with rows of shards that changed or are gone."""
        if self._settled.reads_everything:
            return self._files
        return [file for file in self._files if not file.shards.keys() <= self._unchanged]

    def look(self) -> Survey:
        """As the backfill does, but only for what is to be read. Where a shard stays unread, the types of the table
        stay too."""
        return self._survey

    @cached_property
    def _survey(self) -> Survey:
        there = delta_table.schema_of(self._version)
        source = self.job.source
        unchanged, found = self._looked
        kept = [
            (name, found.keep_schema.field(name).type if found and not unchanged else there.field(name).type)
            for name in source.keep
        ]
        types = dict(kept)
        folders = tuple((name, types.get(name, kind)) for name, kind in found.source.folders) if found else ()
        spec = SourceSpec(
            format=found.source.format if found else "parquet",
            root=corpus_root(source.uri, self.shards),
            text=source.text,
            id=source.id,
            keep=tuple(kept),
            task=source.task_column,
            unique_ids=source.unique_ids,
            folders=folders,
        )
        shards, dialects = (found.shards, found.dialects) if found else (self._to_read, ())
        return Survey(shards, spec, pa.schema(kept), dialects)

    def _find_wanted(self, wanted: Buckets) -> None:
        """Put in the content hashes of the rows to read."""
        source = self._survey.source

        def pieces(shard: Shard) -> list[Piece]:
            return open_format(source.format, shard.path).pieces(shard, _HASH_ROWS)

        def hashes(piece: Piece) -> Rows:
            return firsts(as_texts(hash_bytes(read_unit(Unit(0, (piece,)), source).table[HASH])))

        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            parts = [piece for part in pool.map(pieces, self._survey.shards) for piece in part]
            for start in range(0, len(parts), _HASH_THREADS):  # no more of them in memory than threads
                for part in pool.map(hashes, parts[start : start + _HASH_THREADS]):
                    wanted.add(part)

    @cached_property
    def _index(self) -> Index:
        """Where there is a vector of one of these texts: in the table, so that it keeps its bits, or else left behind."""
        with Buckets(TEXT) as wanted:
            self._find_wanted(wanted)
            files = [*self._settled.sources(file.path for file in self._files), *self.find_unpublished_files()]
            index = build_index(self.url, files, wanted, self._settled.doubt(self.model.dim, self._others))
        return self.planning.enter_context(index)

    def prepare(self, found: Survey, executor: Executor) -> Prepared:
        """Cut what changed, find which of its texts have a vector, and plan for rows that move."""
        replaced = sorted({path for file in self._affected for path in file.shards} - self._unchanged)
        pool = executor.pool
        plan = Plan(units_to_table([]), 0, 0, rows_exact=True, unit_rows=_CARRY_ROWS)
        if any(shard.size_bytes for shard in found.shards):
            sample = take_sample(found, self.model, self.chunking)
            plan = cut_plan(self.job, found, self.model, sample, replicas=pool.replicas, cores=pool.cores)
        units = list(table_to_units(plan.table))
        units += self._carried(plan.units, frozenset(replaced), max(plan.unit_rows, _CARRY_ROWS))
        bad = pa.concat_tables([self._old_quarantine, self._settled.quarantine()])
        carried = bad.filter(pc.is_in(bad["shard"], value_set=pa.array(sorted(self._unchanged), pa.string())))
        moved = sum(piece.rows for unit in units if unit.carry for piece in unit.pieces)
        table_rows = sum(file.rows for file in self._files)
        gone = sum(file.rows for file in self._affected)
        return Prepared(
            replace(plan, table=units_to_table(units), units=len(units), rows=plan.rows + moved),
            {
                "reuse": self._index.tables(),
                "replaced": pa.table({"path": pa.array(replaced, pa.string())}),
                **self._settled.moves([file.path for file in self._affected]),
                "carried_quarantine": carried,
            },
            {"reuse": self._index.parts, "rows_kept": table_rows - gone, "texts_to_encode": self._texts()},
        )

    def _texts(self) -> int:
        """How many texts the table has no vector of."""
        description = self.ledger.description()
        if description is not None:
            return int(description["texts_to_encode"])
        return self._index.unknown

    def _carried(self, first: int, replaced: frozenset[str], unit_rows: int) -> Iterable[Unit]:
        """Units of the rows that stay in affected files."""
        number, pieces, rows = first, [], 0
        for file in self._affected:
            staying = file.others + sum(count for path, count in file.shards.items() if path not in replaced)
            if staying == 0:
                continue
            values = json.dumps(self._partitions[file.path])
            pieces.append(Piece(Shard(file.path, 0, values), 0, file.rows, staying))
            rows += staying
            if rows >= unit_rows:
                yield Unit(number, tuple(pieces), carry=True)
                number, pieces, rows = number + 1, [], 0
        if pieces:
            yield Unit(number, tuple(pieces), carry=True)

    def tokens(self) -> float:
        """As for a backfill: the texts without a vector, each as long as most are at most."""
        return self._texts() * min(self.model.max_tokens, _TEXT_TOKENS)

    def removed(self) -> tuple[str, ...]:
        """The files that the plan was made to replace."""
        return tuple(self.ledger.table("removed")["path"].to_pylist())

    def brought_back(self) -> tuple[DataFile, ...]:
        """The files that the plan was made to bring back."""
        try:
            rows = self.ledger.table("brought_back").to_pylist()
        except FileNotFoundError:
            return ()
        return tuple(DataFile(**{**row, "partition": json.loads(row["partition"])}) for row in rows)

    def files_with_possible_duplicate_ids(self, receipts: Iterable[Receipt]) -> list[Receipt]:
        """The files that stay, as receipts of one file each; none where no id is new to the table."""
        new = (file.path for receipt in receipts for file in receipt.files)
        gone = {*self.removed(), *(file.path for file in self._affected)}
        if not brings_ids(self.url, new, gone):
            return []
        kept = []
        for file in self._files:
            if file.path in gone:
                continue
            data = DataFile(file.path, 0, file.rows, self._partitions[file.path], "{}")
            kept.append(
                replace(
                    _NO_RECEIPT,
                    files=(data,),
                    rows_read=file.rows,
                    documents=file.rows,
                    rows=file.rows,
                    replaces=file.path,
                )
            )
        return kept


_NO_RECEIPT = Receipt(0, "", (), 0, 0, 0, 0, 0, 0)
