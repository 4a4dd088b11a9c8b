"""A backfill from end to end: freeze a plan or find the frozen one, run the units without a receipt, publish.

Called by `jobs backfill`; `refresh` and a re-embedding override a few of the steps. The same job can be run again at any
time: it finds its own ledger, skips the units that have a receipt, and publishes at most once. Vectors of an unpublished
run with the same embedding spec are reused, by the hash of their text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from actors import storage
from actors.errors import StorageError, TableConflict, TooManyQuarantined
from actors.unit.receipt import DataFile, Receipt, override_of
from pipeline.execute.choose import executor_for, inline_if_small
from pipeline.execute.completion import check_files, collect_outcomes, load_complete_receipts, need_files
from pipeline.execute.outcome import Executor
from pipeline.execute.progress import NullReporter, Outcome, Reporter, Started
from pipeline.execute.stages.spec import StageSpec
from pipeline.job.config import Job
from pipeline.ledger import duplicates
from pipeline.ledger.create_probe import probe_create
from pipeline.ledger.ledger import FOLDER, Ledger, listing_table, table_to_units
from pipeline.ledger.run_description import RunDescription
from pipeline.plan.corpus import Survey, survey
from pipeline.plan.identify import retagged
from pipeline.plan.resources import Pool
from pipeline.plan.sample import fits_in_process, take_sample
from pipeline.plan.units import Plan, cut_plan
from pipeline.report.recorder import recorded
from pipeline.report.repeat import command_of
from pipeline.reuse import unpublished
from pipeline.reuse.vector_index import build_index
from pipeline.run import small_files
from pipeline.run.context import RunContext, resolve_context
from pipeline.run.foreign_policy import ForeignPolicy
from pipeline.run.packs import writer_spec
from pipeline.table import commit, delta_table
from pipeline.table.foreign import foreign_commits
from pipeline.table.kept_rows import ADDED, REASON, of_kind
from pipeline.table.transaction import Transaction, table_transaction


def backfill(job: Job, reporter: Reporter | None = None) -> Outcome:
    """Embed a corpus into a table, or resume an earlier run of the same job.

    Raises:
        VectideError: see actors/errors.py; finished units are kept, and the same call resumes the run.
    """
    reporter = reporter or NullReporter()
    return Runner(resolve_context(job, reporter), reporter).run()


class Runner:
    """One call of `backfill`. `refresh` and a re-embedding override some of its steps."""

    operation = "backfill"
    command = "vectide backfill"
    reuses_published = False  # whether vectors of published runs are looked up in their files

    def __init__(self, context: RunContext, reporter: Reporter) -> None:
        self.context = context
        self.reporter = reporter
        self.ledger = Ledger(context.url, context.run_name())
        self.policy = ForeignPolicy(context)
        self.planning = contextlib.ExitStack()  # closes files on a local disk once the plan is frozen

    def check_foreign(self) -> None:
        """Check the commits of other tools.

        Raises:
            ForeignCommits: other tools changed the table.
            TableConflict: this run would drop rows of other tools that a refresh kept.
        """
        if self.context.foreign is not None:
            raise foreign_commits(self.context.foreign, self.context.url)
        self.check_added()

    def check_added(self) -> None:
        """Raise TableConflict if this run would drop rows that another tool added and a refresh kept."""
        if added := of_kind(self.policy.kept, ADDED).num_rows:
            raise TableConflict(
                f"{self.context.url!r} has {added} rows that another tool added and a refresh kept; {self.command} computes every "
                f"vector again and has no text for those rows. `vectide refresh` with the table's own model keeps them; "
                f"--foreign-commits restore drops them"
            )

    # Steps that other runs override ---------------------------------------------------------------------------------

    def check_embedding_spec(self) -> None:
        """Raise TableConflict if the table has another embedding spec."""
        context = self.context
        if context.table is None or context.state is None:
            return
        if context.restores and delta_table.embedding_spec_of(context.table) is None:
            return  # a restore writes it again
        commit.check_embedding_spec(context.table, context.url, context.embedding_spec)

    @cached_property
    def surveyed(self) -> Survey:
        """The source, checked, with the types of its columns."""
        model = self.context.model
        return survey(self.context.job, self.context.shards, modality=model.modality, settings=model.pictures)

    def plan(self, executor: Executor) -> None:
        """Cut the corpus into units, index the vectors of unpublished files, and freeze both."""
        plan = self.cut(executor.pool)
        index = self.planning.enter_context(build_index(self.context.url, self.find_unpublished_files(), None))
        self.freeze(plan, {"reuse": index.tables()}, reuse=index.parts)

    def cut(self, pool: Pool) -> Plan:
        """Return the units of the shards to read."""
        job, model = self.context.job, self.context.model
        sample = take_sample(self.surveyed, model, self.context.chunking)
        return cut_plan(job, self.surveyed, model, sample, replicas=pool.replicas, cores=pool.cores)

    def find_unpublished_files(self) -> list[str]:
        """Return the files of earlier runs with the same embedding spec, whose vectors may be reused."""
        return unpublished.find_unpublished_files(
            self.context.url,
            self.context.embedding_spec.fingerprint,
            self.context.table,
            exclude_run=self.ledger.run,
            published=self.reuses_published,
        )

    def tokens(self) -> float:
        """Return an upper estimate of the tokens to encode: one for each byte of the source as it is stored."""
        return sum(shard.size_bytes for shard in self.context.shards)

    def executor(self) -> Executor:
        """Choose the executor: this process if the job is small and asks for nothing else, Ray otherwise.

        A retry and a resumed run always use Ray: their rows may crash or hang the process, and only workers isolate them.
        """
        run = self.context.job.run
        default_gpus = "auto" if self.context.job.encoder.dtype != "int8" else 0  # the value if the job file has none
        is_default = (run.replicas, run.gpus_per_replica, run.labels) == ("auto", default_gpus, None)
        is_first_try = self.context.retries is None and self.ledger.description() is None
        return inline_if_small(
            run,
            fits_in_process=is_default and is_first_try and fits_in_process(self.tokens(), self.context.model),
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
        context, state = self.context, self.context.state
        must_run = context.retries is not None or context.foreign is not None or context.restores
        current = None if must_run or self.may_have_changed() else state
        if current is not None and Ledger(context.url, current.run).holds(context.content):
            return self._outcome(current.run, current.version)
        self.check_foreign()
        self.check_embedding_spec()
        with table_transaction(context.url, self.ledger.run, state, what=self.command) as transaction:
            if transaction.published is not None:
                return self._outcome(self.ledger.run, transaction.published)
            job = context.job.model_dump(mode="json")
            command = command_of(self.operation, job, retries=context.retries is not None)
            with recorded(self.ledger, self.reporter, self.operation, command) as record:
                self.reporter = record
                return record.ended(self._run(transaction))

    def _outcome(self, run: str, version: int) -> Outcome:
        return Outcome(self.context.url, run, version, published=False, left_out=self.context.left_out)

    def _run(self, transaction: Transaction) -> Outcome:
        """Do the work while the table is locked."""
        if self.context.table is not None:
            commit.check_partitions(self.context.table, self.context.url, self.context.job.table.partition_by)
        self.reporter.step("reading the columns of its files")
        publication = commit.Publication(
            commit=self.ledger.run,
            run=self.ledger.run,
            operation=self.operation,
            embedding_spec=self.context.embedding_spec,
            schema=self.context.columns(self.surveyed.keep_schema),
            partition_by=self.context.job.table.partition_by,
            base=self.context.state,
            overrules=self.context.restores,
        )
        description = self.ledger.description()
        done = self.ledger.done() if description is not None else set()
        crashes = 0
        if description is None or len(done) < description.units:
            self.reporter.step("starting")
            with self.planning:
                executor = self.executor()
                if description is None:
                    probe_create(storage.join(self.context.url, FOLDER, "probes"))
                    self.reporter.step("planning")
                    self.plan(executor)
            crashes = self._encode(publication, done, executor)
        try:
            return replace(self._publish(publication, transaction), deaths=crashes)
        except StorageError:
            # Another driver of this run may have published meanwhile, and removed the small files that it merged.
            version = delta_table.published_version(delta_table.open_table(self.context.url), self.ledger.run)
            if version is None:
                raise
            return self._outcome(self.ledger.run, version)

    def freeze(
        self,
        plan: Plan,
        tables: dict[str, pa.Table | Iterable[pa.Table]],
        *,
        reuse: int,
        rows_kept: int = 0,
        texts_to_encode: int = 0,
        duplicates: int = 0,
    ) -> None:
        """Freeze the plan and the tables beside it. If a concurrent driver was first, its plan is used."""
        self.ledger.freeze(
            RunDescription(
                operation=self.operation,
                units=plan.units,
                rows=plan.rows,
                rows_exact=plan.rows_exact,
                content=self.context.content,
                fingerprint=self.context.embedding_spec.fingerprint,
                lineage=self.context.embedding_spec.lineage,
                job=self.context.job.model_dump(mode="json"),
                shards=len(self.context.shards),
                kept=self.policy.kept.num_rows,
                reuse=reuse,
                rows_kept=rows_kept,
                texts_to_encode=texts_to_encode,
                duplicates=duplicates,
            ),
            plan.table,
            listing=listing_table(self.context.shards),
            **({"kept": self.policy.kept} if self.policy.kept.num_rows else {}),
            **tables,
        )

    def _encode(self, publication: commit.Publication, done: set[int], executor: Executor) -> int:
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
                left_out=self.context.left_out,
                dialects=tuple(use.sentence() for use in self.surveyed.dialects if use.worth_saying),
            )
        )
        units = retagged(table_to_units(self.ledger.plan(), done), self.context.shards)
        stages = StageSpec(
            self.surveyed.source,
            self.context.model,
            writer_spec(publication, self.ledger),
            self.context.chunking,
            reuse=description.reuse,
            duplicates=bool(description.duplicates),
            kept=bool(description.kept),
            row_timeout_s=self.context.job.run.row_timeout_s,
        )
        collect_outcomes(executor.run(units, stages), self.ledger, self.reporter)
        return executor.attempt_log.stats()[0]

    def _publish(self, publication: commit.Publication, transaction: Transaction) -> Outcome:
        """Check that every row is accounted for, then commit."""
        self.reporter.step("checking that every row is accounted for")
        # Before the receipts are read: a concurrent driver may override them at any time, and those that were read before
        # would still have the duplicates.
        is_overridden = self.ledger.receipt_override() is not None
        receipts, description = load_complete_receipts(self.ledger), self.ledger.frozen()
        files = check_files(receipts.values(), self.ledger, transaction.lock)
        source = self.context.job.source
        if source.id is not None and source.unique_ids and not is_overridden:
            unique = self._unique(receipts, description.units)
            if unique is not receipts:
                receipts, files = unique, check_files(unique.values(), self.ledger, transaction.lock)
        outcome = replace(self._outcome(self.ledger.run, -1), rows_kept=description.rows_kept).plus(receipts.values())
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
            None if self.context.restores else self.context.table,
            removed,
            writer=writer_spec(publication, self.ledger),
            lock=transaction.lock,
            reporter=self.reporter,
            job=self.context.job,
        )
        removed = None if removed is None else removed + merged.removed
        outcome = merged.count(outcome)
        transaction.lock.check()
        need_files(self.ledger, delta_table.absent_files(self.context.url, restored), len(restored))
        kept = self.ledger.run if description.kept else None
        publication = replace(publication, add=(*merged.files, *restored.values()), remove=removed, kept=kept)
        outcome = self.approve(publication, outcome)
        if outcome.staged:
            return outcome
        self.reporter.step("publishing")
        version = transaction.publish(publication)
        small_files.delete_discarded(self.context.url, merged.discarded)
        return replace(outcome, version=version, published=True)

    def _unique(self, receipts: dict[int, Receipt], units: int) -> dict[int, Receipt]:
        """Quarantine duplicate ids in all units but the first that has them; return the receipts after that."""
        remaining = self.files_with_possible_duplicate_ids(receipts.values())
        paths = [file.path for receipt in receipts.values() for file in receipt.files]
        paths += [file.path for file in remaining]
        foreign_ids = set(of_kind(self.policy.kept, ADDED)["id"].to_pylist())
        duplicate_ids = duplicates.find_duplicates(self.context.url, paths, allowed=foreign_ids)
        if not duplicate_ids:
            return receipts
        overridden = []
        overrides = (override_of(units + number, file) for number, file in enumerate(remaining))
        for receipt in (*receipts.values(), *overrides):
            if ids := {name for file in receipt.files for name in duplicate_ids.get(file.path, ())}:
                home = self.ledger.home()
                overridden.append(
                    duplicates.quarantine_duplicates(
                        self.context.url, home, receipt, ids, run=self.ledger.run, outputs=self.context.model.outputs
                    )
                )
        if self.ledger.override_receipts(overridden):
            return {**receipts, **{receipt.unit: receipt for receipt in overridden}}
        return self.ledger.receipts()

    def _check_quarantine(self, outcome: Outcome, receipts: Iterable[Receipt], rows_kept: int) -> None:
        """Raise TooManyQuarantined if the share of quarantined rows, over all shards, is above `run.max_quarantined`."""
        allowed = self.context.job.run.max_quarantined
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
            f"{first['position']}: {first['error']}. `vectide quarantine {self.context.url} --run {self.ledger.run}` lists all. "
            f"Fix the source; or fix the cause of an encoder error and run again with --retry-quarantined; or raise "
            f"run.max_quarantined and run again: the embedded rows are kept"
        )
