"""A backfill from end to end: freeze a plan or find the frozen one, run the units without a receipt, publish.

Called by `jobs backfill`; `refresh` and a re-embedding override a few of the steps. The same job can be run again at any
time: it finds its own ledger, skips the units that have a receipt, and publishes at most once. Vectors of an unpublished
run with the same embedding spec are reused, by the hash of their text.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from actors import storage
from actors.errors import TableConflict, TooManyQuarantined
from actors.unit.receipt import DataFile, Receipt, override_of
from actors.unit.writer import WriterSpec
from pipeline.execute.choose import executor_for, inline_if_small
from pipeline.execute.completion import check_files, collect_outcomes, load_complete_receipts
from pipeline.execute.outcome import Executor
from pipeline.execute.progress import NullReporter, Outcome, Reporter, Started
from pipeline.execute.stages.spec import StageSpec
from pipeline.job.config import Job
from pipeline.ledger import duplicates
from pipeline.ledger.create_probe import probe_create
from pipeline.ledger.ledger import FOLDER, Ledger, listing_table, table_to_units
from pipeline.ledger.run_description import RunDescription
from pipeline.ledger.table_lock import TableLock, lock_table
from pipeline.plan.corpus import Survey, survey
from pipeline.plan.identify import retagged
from pipeline.plan.sample import fits_in_process, take_sample
from pipeline.plan.units import Plan, cut_plan
from pipeline.reuse import unpublished
from pipeline.reuse.vector_index import build_index
from pipeline.run import small_files
from pipeline.run.context import RunContext, resolve_context
from pipeline.table import commit, delta_table
from pipeline.table.foreign import foreign_commits
from pipeline.table.kept_rows import ADDED, KEPT, REASON, of_kind


def backfill(job: Job, reporter: Reporter | None = None) -> Outcome:
    """Embed a corpus into a table, or resume an earlier run of the same job.

    Raises:
        VectideError: see actors/errors.py; finished units are kept, and the same call resumes the run.
    """
    reporter = reporter or NullReporter()
    return Runner(resolve_context(job, reporter), reporter).run()


@dataclass(frozen=True, slots=True)
class Prepared:
    """Contents of a ledger that is not frozen yet.

    Attributes:
        tables: Tables beside the plan, by name; some in parts.
        reuse: See `RunDescription`, also for the others.
    """

    plan: Plan
    tables: dict[str, pa.Table | Iterable[pa.Table]]
    reuse: int
    rows_kept: int = 0
    texts_to_encode: int = 0


class Runner:
    """One call of `backfill`. `refresh` and a re-embedding override some of its steps."""

    operation = "backfill"
    command = "vectide backfill"

    def __init__(self, context: RunContext, reporter: Reporter) -> None:
        self.reporter = reporter
        self.job = context.job
        self.url = context.url
        self.model = context.model
        self.shards = context.shards
        self.chunking = context.chunking
        self.embedding_spec = context.embedding_spec
        self.content = context.content
        self.table = context.table
        self.state = context.state
        self.retries = context.retries
        self.left_out = context.left_out
        self.foreign = context.foreign
        self.restores = context.restores
        self.columns = context.columns
        self.ledger = Ledger(self.url, context.run_name())
        self.planning = contextlib.ExitStack()  # closes files on a local disk once the plan is frozen

    @cached_property
    def kept(self) -> pa.Table:
        """Rows of other tools that an earlier run kept (`kept_rows.KEPT`)."""
        if self.state is None or self.state.kept is None or self.restores:
            return KEPT.empty_table()
        return Ledger(self.url, self.state.kept).table("kept")

    def check_foreign(self) -> None:
        """Check the commits of other tools.

        Raises:
            ForeignCommits: other tools changed the table.
            TableConflict: this run would drop rows of other tools that a refresh kept.
        """
        if self.foreign is not None:
            raise foreign_commits(self.foreign, self.url)
        if added := of_kind(self.kept, ADDED).num_rows:
            raise TableConflict(
                f"{self.url!r} has {added} rows that another tool added and a refresh kept; {self.command} computes every "
                f"vector again and has no text for those rows. `vectide refresh` with the table's own model keeps them; "
                f"--foreign-commits restore drops them"
            )

    # Steps that other runs override ---------------------------------------------------------------------------------

    def check_embedding_spec(self) -> None:
        """Raise TableConflict if the table has another embedding spec."""
        if self.table is not None and self.state is not None:
            commit.check_embedding_spec(self.table, self.url, self.embedding_spec)

    def survey_source(self) -> Survey:
        """Check the source and detect the types of its columns."""
        return survey(self.job, self.shards)

    def prepare(self, surveyed: Survey, executor: Executor) -> Prepared:
        """Cut the corpus into units, and index the vectors of unpublished files."""
        sample = take_sample(surveyed, self.model, self.chunking)
        pool = executor.pool
        plan = cut_plan(self.job, surveyed, self.model, sample, replicas=pool.replicas, cores=pool.cores)
        index = self.planning.enter_context(build_index(self.url, self.find_unpublished_files(), None))
        return Prepared(plan, {"reuse": index.tables()}, reuse=index.parts)

    def find_unpublished_files(self) -> list[str]:
        """Return the unpublished files of earlier runs with the same embedding spec."""
        return unpublished.find_unpublished_files(
            self.url, self.embedding_spec.fingerprint, self.table, exclude_run=self.ledger.run
        )

    def tokens(self) -> float:
        """Return an upper estimate of the tokens to encode: one for each byte of the source as it is stored."""
        return sum(shard.size_bytes for shard in self.shards)

    def executor(self) -> Executor:
        """Choose the executor: this process if the job is small and asks for nothing else, Ray otherwise.

        A retry and a resumed run always use Ray: their rows may crash or hang the process, and only workers isolate them.
        """
        run = self.job.run
        default_gpus = "auto" if self.job.encoder.dtype != "int8" else 0  # the value if the job file has none
        is_default = (run.replicas, run.gpus_per_replica, run.labels) == ("auto", default_gpus, None)
        is_first_try = self.retries is None and self.ledger.description() is None
        return inline_if_small(
            run, fits_in_process=is_default and is_first_try and fits_in_process(self.tokens(), self.model)
        ) or executor_for(run)

    def may_have_changed(self) -> bool:
        """Return whether the source may have changed although its listing is the same."""
        return False

    def removed(self) -> tuple[str, ...] | None:
        """Return the paths of the files that the commit removes; None for all."""
        return None

    def restored_files(self) -> tuple[DataFile, ...]:
        """Return the files of an earlier version that another tool removed and that the commit adds again."""
        return ()

    def files_with_possible_duplicate_ids(self, receipts: Iterable[Receipt]) -> list[DataFile]:  # noqa: ARG002
        """Return the remaining files of the table that may have an id of these units."""
        return []

    def approve(self, publication: commit.Publication, outcome: Outcome) -> Outcome:  # noqa: ARG002
        """Do the final check before the commit. Return a `staged` outcome to keep the files without publishing."""
        return outcome

    # The steps ---------------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Do the remaining work of the run; nothing if the table is up to date."""
        current = self.state if self.table is not None and self.retries is None else None
        if self.foreign is not None or self.restores:
            current = None
        if current is not None and Ledger(self.url, current.run).holds(self.content) and not self.may_have_changed():
            return Outcome(self.url, current.run, current.version, published=False, left_out=self.left_out)
        self.check_foreign()
        self.check_embedding_spec()
        with lock_table(self.url, self.ledger.run, what=self.command) as lock:
            opened = delta_table.open_table(self.url)  # again, because it was read before it was locked
            # A concurrent driver of this run may have published meanwhile.
            if (version := delta_table.published_version(opened, self.ledger.run)) is not None:
                return Outcome(self.url, self.ledger.run, version, published=False, left_out=self.left_out)
            commit.check_base(opened, self.url, self.state)
            return self._run(lock)

    def _run(self, lock: TableLock) -> Outcome:
        """Do the work while the table is locked."""
        if self.table is not None:
            commit.check_partitions(self.table, self.url, self.job.table.partition_by)
        self.reporter.step("reading the columns of its files")
        surveyed = self.survey_source()
        publication = commit.Publication(
            commit=self.ledger.run,
            run=self.ledger.run,
            operation=self.operation,
            embedding_spec=self.embedding_spec,
            schema=self.columns(surveyed.keep_schema),
            partition_by=self.job.table.partition_by,
            base=self.state,
            overrules=self.restores,
        )
        description = self.ledger.description()
        done = self.ledger.done() if description is not None else set()
        crashes = 0
        if description is None or len(done) < description.units:
            self.reporter.step("starting")
            with self.planning:
                executor = self.executor()
                if description is None:
                    self._freeze(surveyed, executor)
            crashes = self._encode(publication, surveyed, done, executor)
        return replace(self._publish(publication, lock), deaths=crashes)

    def _freeze(self, surveyed: Survey, executor: Executor) -> None:
        """Plan the run and freeze the plan. If a concurrent driver was first, its plan is used."""
        probe_create(storage.join(self.url, FOLDER, "probes"))
        self.reporter.step("planning")
        prepared = self.prepare(surveyed, executor)
        plan = prepared.plan
        self.ledger.freeze(
            RunDescription(
                operation=self.operation,
                units=plan.units,
                rows=plan.rows,
                rows_exact=plan.rows_exact,
                content=self.content,
                fingerprint=self.embedding_spec.fingerprint,
                lineage=self.embedding_spec.lineage,
                job=self.job.model_dump(mode="json"),
                shards=len(self.shards),
                kept=self.kept.num_rows,
                reuse=prepared.reuse,
                rows_kept=prepared.rows_kept,
                texts_to_encode=prepared.texts_to_encode,
            ),
            plan.table,
            listing=listing_table(self.shards),
            **({"kept": self.kept} if self.kept.num_rows else {}),
            **prepared.tables,
        )

    def _encode(
        self,
        publication: commit.Publication,
        surveyed: Survey,
        done: set[int],
        executor: Executor,
    ) -> int:
        """Run the units without a receipt; return the number of workers that crashed."""
        description = self.ledger.frozen()
        self.reporter.started(
            Started(
                run=self.ledger.run,
                units=description.units,
                units_done=len(done),
                rows=description.rows,
                rows_exact=description.rows_exact,
                replicas=executor.pool.replicas,
                device=executor.pool.device,
                left_out=self.left_out,
                dialects=tuple(use.sentence() for use in surveyed.dialects if use.worth_saying),
            )
        )
        units = retagged(table_to_units(self.ledger.plan(), done), self.shards)
        stages = StageSpec(
            surveyed.source,
            self.model,
            self._writer(publication),
            self.chunking,
            reuse=description.reuse,
            kept=bool(description.kept),
            row_timeout_s=self.job.run.row_timeout_s,
        )
        collect_outcomes(executor.run(units, stages), self.ledger, self.reporter)
        return executor.attempt_log.stats()[0]

    def _writer(self, publication: commit.Publication) -> WriterSpec:
        """Return the settings of the writer."""
        return WriterSpec(
            table=self.url,
            ledger=self.ledger.home(),
            run=self.ledger.run,
            schema=publication.schema,
            partition_by=publication.partition_by,
            precision=self.job.table.precision,
            lineage=json.dumps(self.embedding_spec.lineage, sort_keys=True),
            outputs=self.model.outputs,
        )

    def _publish(self, publication: commit.Publication, lock: TableLock) -> Outcome:
        """Check that every row is accounted for, then commit."""
        self.reporter.step("checking that every row is accounted for")
        receipts, description = load_complete_receipts(self.ledger), self.ledger.frozen()
        files = self._check_files(receipts, lock)
        source = self.job.source
        if source.id is not None and source.unique_ids and self.ledger.receipt_override() is None:
            unique = self._unique(receipts, description.units)
            if unique is not receipts:
                receipts, files = unique, self._check_files(unique, lock)
        outcome = Outcome(self.url, self.ledger.run, version=-1, published=False, left_out=self.left_out)
        outcome = outcome.plus(receipts.values())
        self._check_quarantine(outcome, receipts.values(), description.rows_kept)
        removed = self.removed()
        restored = {file.path: file for file in self.restored_files()}
        if removed is not None:
            replaced = {receipt.replaces for receipt in receipts.values() if receipt.replaces is not None}
            removed += tuple(sorted(replaced - restored.keys()))
            restored = {path: file for path, file in restored.items() if path not in replaced}
        merged = small_files.merge_small_files(
            self.ledger,
            files,
            None if self.restores else self.table,
            removed,
            writer=self._writer(publication),
            lock=lock,
            reporter=self.reporter,
            file_size=self.job.table.file_size,
            address=self.job.run.address,
        )
        removed = None if removed is None else removed + merged.removed
        outcome = merged.count(outcome)
        lock.check()
        missing = delta_table.absent_files(self.url, restored)
        check_files(self.ledger, self.url, missing, len(restored))
        kept = self.ledger.run if description.kept else None
        publication = replace(publication, add=(*merged.files, *restored.values()), remove=removed, kept=kept)
        outcome = self.approve(publication, outcome)
        if outcome.staged:
            return outcome
        self.reporter.step("publishing")
        lock.check()
        version = commit.publish(self.url, publication)
        small_files.delete_discarded(self.url, merged.discarded)
        return replace(outcome, version=version, published=True)

    def _check_files(self, receipts: dict[int, Receipt], lock: TableLock) -> tuple[DataFile, ...]:
        """Return the files that receipts name, after a check that all exist.

        The lock is checked first: a vacuum that took the lock meanwhile may still be deleting files.
        """
        lock.check()
        files = tuple(file for receipt in receipts.values() for file in receipt.files)
        check_files(self.ledger, self.url, commit.missing_files(self.url, files), len(files))
        return files

    def _unique(self, receipts: dict[int, Receipt], units: int) -> dict[int, Receipt]:
        """Quarantine duplicate ids in all units but the first that has them; return the receipts after that."""
        remaining = self.files_with_possible_duplicate_ids(receipts.values())
        paths = [file.path for receipt in receipts.values() for file in receipt.files]
        paths += [file.path for file in remaining]
        foreign_ids = set(of_kind(self.kept, ADDED)["id"].to_pylist())
        duplicate_ids = duplicates.find_duplicates(self.url, paths, allowed=foreign_ids)
        if not duplicate_ids:
            return receipts
        overridden = []
        overrides = (override_of(units + number, file) for number, file in enumerate(remaining))
        for receipt in (*receipts.values(), *overrides):
            if ids := {name for file in receipt.files for name in duplicate_ids.get(file.path, ())}:
                home = self.ledger.home()
                overridden.append(
                    duplicates.quarantine_duplicates(
                        self.url, home, receipt, ids, run=self.ledger.run, outputs=self.model.outputs
                    )
                )
        if self.ledger.override_receipts(overridden):
            return {**receipts, **{receipt.unit: receipt for receipt in overridden}}
        return self.ledger.receipts()

    def _check_quarantine(self, outcome: Outcome, receipts: Iterable[Receipt], rows_kept: int) -> None:
        """Raise TooManyQuarantined if the share of quarantined rows, over all shards, is above `run.max_quarantined`."""
        allowed = self.job.run.max_quarantined
        previous = self.ledger.previous_quarantine().num_rows
        quarantined, all_rows = outcome.quarantined + previous, outcome.rows_read + previous + rows_kept
        if quarantined <= allowed * all_rows:
            return
        rows = self.ledger.quarantine(receipts)
        rows = rows.filter(pc.not_equal(rows["reason"], REASON))  # rows that the user excludes do not count
        quarantined = rows.num_rows
        if quarantined <= allowed * all_rows:
            return
        reasons = rows.group_by("reason").aggregate([("reason", "count")]).to_pylist()
        counts = ", ".join(f"{row['reason_count']} {row['reason']}" for row in reasons)
        first = rows.slice(0, 1).to_pylist()[0]
        raise TooManyQuarantined(
            f"{quarantined} of {all_rows} rows were quarantined ({counts}), more than "
            f"run.max_quarantined = {allowed:g} allows; nothing was published. The first: {first['shard']} at "
            f"{first['position']}: {first['error']}. `vectide quarantine {self.url} --run {self.ledger.run}` lists all. "
            f"Fix the source; or fix the cause of an encoder error and run again with --retry-quarantined; or raise "
            f"run.max_quarantined and run again: the embedded rows are kept"
        )
