"""A backfill from end to end: plan or find the plan, run what is left of it, publish.

Called by `jobs backfill`; `refresh` changes a few of the steps. Running the same job again is always right: it finds its
own ledger, skips the units that have a receipt, and publishes at most once. What an earlier run of the same making left
unfinished is not paid for twice: its vectors are found by the hash of their text.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors import storage
from actors.errors import TableConflict, TooManyQuarantined
from actors.unit.receipt import DataFile, Receipt
from actors.unit.writer import WriterSpec, table_schema
from pipeline.execute.choose import executor_for, inline_if_small
from pipeline.execute.completion import check_files, collect_outcomes, load_complete_receipts
from pipeline.execute.outcome import Executor
from pipeline.execute.progress import NullReporter, Outcome, Reporter, Started
from pipeline.execute.stages.spec import StageSpec
from pipeline.job.config import Job
from pipeline.ledger import duplicates
from pipeline.ledger.create_probe import probe_create
from pipeline.ledger.ledger import FOLDER, Ledger, listing_table, table_to_units
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
    """Embed a corpus into a table, or go on where an earlier run of the same job stopped.

    Raises:
        VectideError: see actors/errors.py; whatever was finished is kept, and the same call goes on from there.
    """
    reporter = reporter or NullReporter()
    return Runner(resolve_context(job, reporter), reporter).run()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run is about to write down in its ledger.

    Attributes:
        tables: Tables beside the plan, by name; some in parts.
        facts: What else the description says.
    """

    plan: Plan
    tables: dict[str, pa.Table | Iterable[pa.Table]]
    facts: dict[str, Any]


class Runner:
    """One call of `backfill`: the steps. `refresh` and a second generation change a few of them."""

    operation = "backfill"
    what = "vectide backfill"

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
        self.ledger = Ledger(self.url, context.run_name())
        self.planning = contextlib.ExitStack()  # what is on a local disk until the plan is frozen

    @cached_property
    def kept(self) -> pa.Table:
        """Rows of other tools that are kept (`others.KEPT`): those that an earlier run was told to keep."""
        if self.state is None or self.state.kept is None or self.restores:
            return KEPT.empty_table()
        return Ledger(self.url, self.state.kept).table("kept")

    def check_foreign(self) -> None:
        """Raise ForeignCommits where other tools changed the table, and TableConflict where this run would drop rows of
        theirs that a refresh was told to keep."""
        if self.foreign is not None:
            raise foreign_commits(self.foreign, self.url)
        if added := of_kind(self.kept, ADDED).num_rows:
            raise TableConflict(
                f"{self.url!r} has {added} rows that another tool added and a refresh was told to keep; {self.what} makes "
                f"every vector anew and has no text of theirs. `vectide refresh` with the table's own model keeps them; "
                f"--foreign-commits restore drops them"
            )

    # What other runs do differently ----------------------------------------------------------------------------------

    def check_embedding_spec(self) -> None:
        """Raise TableConflict where the table's vectors are of another making."""
        if self.table is not None and self.state is not None:
            commit.check_embedding_spec(self.table, self.url, self.embedding_spec)

    def look(self) -> Survey:
        """Check the source and find the types of its columns."""
        return survey(self.job, self.shards)

    def prepare(self, found: Survey, executor: Executor) -> Prepared:
        """Cut the plan, and find what an earlier run has left."""
        sample = take_sample(found, self.model, self.chunking)
        pool = executor.pool
        plan = cut_plan(self.job, found, self.model, sample, replicas=pool.replicas, cores=pool.cores)
        index = self.planning.enter_context(build_index(self.url, self.find_unpublished_files(), None))
        return Prepared(plan, {"reuse": index.tables()}, {"reuse": index.parts})

    def find_unpublished_files(self) -> list[str]:
        """Files of earlier runs of the same making that never came into a version."""
        return unpublished.find_unpublished_files(
            self.url, self.embedding_spec.fingerprint, self.table, but=self.ledger.run
        )

    def tokens(self) -> float:
        """About how many there are to encode, rather too many: one for each byte of the source as it is stored."""
        return sum(shard.size_bytes for shard in self.shards)

    def executor(self) -> Executor:
        """Where units run: this process where there is little to encode, unless the job asks for more.

        Not for rows that may kill or hang it: those that did so before, or those of a run that did not come to its end.
        """
        run = self.job.run
        no_card = "auto" if self.job.encoder.dtype != "int8" else 0  # what a job file that says nothing comes to
        free = (run.replicas, run.gpus_per_replica, run.labels) == ("auto", no_card, None)
        sound = self.retries is None and self.ledger.description() is None
        return inline_if_small(
            run.address, fits_in_process=free and sound and fits_in_process(self.tokens(), self.model)
        ) or executor_for(run)

    def in_doubt(self) -> bool:
        """Whether the source may have changed although each object is as it was listed."""
        return False

    def removed(self) -> tuple[str, ...] | None:
        """The files of the table that the run's files take the place of; None for all."""
        return None

    def brought_back(self) -> tuple[DataFile, ...]:
        """Files of an earlier version that another tool took out and that come back as they are."""
        return ()

    def files_with_possible_duplicate_ids(self, receipts: Iterable[Receipt]) -> list[Receipt]:  # noqa: ARG002
        """Files of the table that stay and may have an id of these units, each as a receipt."""
        return []

    def approve(self, publication: commit.Publication, outcome: Outcome) -> Outcome:  # noqa: ARG002
        """A last look at the whole before it is published. An outcome that is `staged` is not."""
        return outcome

    # The steps ---------------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Whatever is left to do."""
        there = self.state if self.table is not None and self.retries is None else None
        if self.foreign is not None or self.restores:
            there = None
        if there is not None and Ledger(self.url, there.run).holds(self.content) and not self.in_doubt():
            return Outcome(self.url, there.run, there.version, published=False, left_out=self.left_out)
        self.check_foreign()
        self.check_embedding_spec()
        with lock_table(self.url, self.ledger.run, what=self.what) as lock:
            opened = delta_table.open_table(self.url)  # it was read before it was held
            if (version := delta_table.published_version(opened, self.ledger.run)) is not None:  # by a sister, just now
                return Outcome(self.url, self.ledger.run, version, published=False, left_out=self.left_out)
            commit.check_base(opened, self.url, self.state)
            return self._run(lock)

    def _run(self, lock: TableLock) -> Outcome:
        """The work, while the table is held."""
        if self.table is not None:
            commit.check_partitions(self.table, self.url, self.job.table.partition_by)
        self.reporter.step("looking at the columns of its files")
        found = self.look()
        publication = commit.Publication(
            commit=self.ledger.run,
            run=self.ledger.run,
            operation=self.operation,
            embedding_spec=self.embedding_spec,
            schema=table_schema(found.keep_schema, chunked=self.chunking is not None),
            partition_by=self.job.table.partition_by,
            base=self.state,
            overrules=self.restores,
        )
        description = self.ledger.description()
        done = self.ledger.done() if description is not None else set()
        deaths = 0
        if description is None or len(done) < description["units"]:
            self.reporter.step("starting")
            with self.planning:
                executor = self.executor()
                description = description or self._freeze(found, executor)
            deaths = self._encode(publication, found, description, done, executor)
        return replace(self._publish(publication, description, lock), deaths=deaths)

    def _freeze(self, found: Survey, executor: Executor) -> dict[str, Any]:
        """Cut the plan and write it down; if another driver of the same run was faster, its plan is the plan."""
        probe_create(storage.join(self.url, FOLDER, "probes"))
        self.reporter.step("planning")
        prepared = self.prepare(found, executor)
        return self.ledger.freeze(
            {
                "run": self.ledger.run,
                "operation": self.operation,
                "content": self.content,
                "fingerprint": self.embedding_spec.fingerprint,
                "lineage": self.embedding_spec.lineage,
                "job": self.job.model_dump(mode="json"),
                "shards": len(self.shards),
                "units": prepared.plan.units,
                "rows": prepared.plan.rows,
                "rows_exact": prepared.plan.rows_exact,
                "kept": self.kept.num_rows,
                **prepared.facts,
            },
            prepared.plan.table,
            listing=listing_table(self.shards),
            **({"kept": self.kept} if self.kept.num_rows else {}),
            **prepared.tables,
        )

    def _encode(
        self,
        publication: commit.Publication,
        found: Survey,
        description: dict[str, Any],
        done: set[int],
        executor: Executor,
    ) -> int:
        """Run the units without a receipt; how many workers died on the way."""
        self.reporter.started(
            Started(
                run=self.ledger.run,
                units=description["units"],
                units_done=len(done),
                rows=description["rows"],
                rows_exact=description["rows_exact"],
                replicas=executor.pool.replicas,
                device=executor.pool.device,
                left_out=self.left_out,
                dialects=tuple(use.sentence() for use in found.dialects if use.worth_saying),
            )
        )
        rest = retagged(table_to_units(self.ledger.plan(), done), self.shards)
        stages = StageSpec(
            found.source,
            self.model,
            self._writer(publication),
            self.chunking,
            reuse=int(description.get("reuse", 0)),
            kept=bool(description.get("kept", 0)),
            row_timeout_s=self.job.run.row_timeout_s,
        )
        collect_outcomes(executor.run(rest, stages), self.ledger, self.reporter)
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
        )

    def _publish(self, publication: commit.Publication, description: dict[str, Any], lock: TableLock) -> Outcome:
        """Check that every row is accounted for, then commit."""
        self.reporter.step("checking that every row is accounted for")
        receipts = load_complete_receipts(self.ledger, description)
        files = self._check_files(receipts, lock)
        source = self.job.source
        if source.id is not None and source.unique_ids and self.ledger.receipt_override() is None:
            unique = self._unique(receipts, description["units"])
            if unique is not receipts:
                receipts, files = unique, self._check_files(unique, lock)
        outcome = Outcome(self.url, self.ledger.run, version=-1, published=False, left_out=self.left_out)
        outcome = outcome.plus(receipts.values())
        self._check_quarantine(outcome, receipts.values(), int(description.get("rows_kept", 0)))
        removed = self.removed()
        back = {file.path: file for file in self.brought_back()}
        if removed is not None:
            replaced = {receipt.replaces for receipt in receipts.values() if receipt.replaces is not None}
            removed += tuple(sorted(replaced - back.keys()))
            back = {path: file for path, file in back.items() if path not in replaced}
        merged = small_files.merge_small_files(
            self.ledger,
            files,
            small_files.staying(self.table, removed) if not self.restores else (),
            writer=self._writer(publication),
            lock=lock,
            reporter=self.reporter,
            file_size=self.job.table.file_size,
            address=self.job.run.address,
        )
        removed = None if removed is None else removed + merged.removed
        outcome = merged.count(outcome)
        lock.check()
        gone = delta_table.absent_files(self.url, back)
        check_files(self.ledger, self.url, gone, len(back))
        kept = self.ledger.run if description.get("kept") else None
        publication = replace(publication, add=(*merged.files, *back.values()), remove=removed, kept=kept)
        outcome = self.approve(publication, outcome)
        if outcome.staged:
            return outcome
        self.reporter.step("publishing")
        lock.check()
        version = commit.publish(self.url, publication)
        small_files.delete_discarded(self.url, merged.discarded)
        return replace(outcome, version=version, published=True)

    def _check_files(self, receipts: dict[int, Receipt], lock: TableLock) -> tuple[DataFile, ...]:
        """The files that receipts name, all of which are there.

        The hold comes first: a vacuum that took the table meanwhile has ended, or this run does.
        """
        lock.check()
        files = tuple(file for receipt in receipts.values() for file in receipt.files)
        check_files(self.ledger, self.url, commit.missing_files(self.url, files), len(files))
        return files

    def _unique(self, receipts: dict[int, Receipt], units: int) -> dict[int, Receipt]:
        """The receipts after ids that several rows have were set aside in all but the first."""
        kept = {
            units + number: replace(receipt, unit=units + number)
            for number, receipt in enumerate(self.files_with_possible_duplicate_ids(receipts.values()))
        }
        everything = {**receipts, **kept}
        theirs = set(of_kind(self.kept, ADDED)["id"].to_pylist())
        losers = duplicates.find_duplicates(self.url, everything.values(), but=theirs)
        if not losers:
            return receipts
        overridden = [
            duplicates.set_aside(self.url, self.ledger.home(), everything[unit], ids, run=self.ledger.run)
            for unit, ids in sorted(losers.items())
        ]
        if self.ledger.override_receipts(overridden):
            return {**receipts, **{receipt.unit: receipt for receipt in overridden}}
        return self.ledger.receipts()

    def _check_quarantine(self, outcome: Outcome, receipts: Iterable[Receipt], rows_kept: int) -> None:
        """Raise TooManyQuarantined where the table would be hollow: bad rows of all shards against rows of all."""
        allowed = self.job.run.max_quarantined
        carried = self.ledger.carried_quarantine().num_rows
        bad_rows, all_rows = outcome.quarantined + carried, outcome.rows_read + carried + rows_kept
        if bad_rows <= allowed * all_rows:
            return
        bad = self.ledger.quarantine(receipts)
        bad = bad.filter(pc.not_equal(bad["reason"], REASON))  # not bad: somebody decided that they stay away
        bad_rows = bad.num_rows
        if bad_rows <= allowed * all_rows:
            return
        reasons = bad.group_by("reason").aggregate([("reason", "count")]).to_pylist()
        counts = ", ".join(f"{row['reason_count']} {row['reason']}" for row in reasons)
        first = bad.slice(0, 1).to_pylist()[0]
        raise TooManyQuarantined(
            f"{bad_rows} of {all_rows} rows were set aside ({counts}), more than "
            f"run.max_quarantined = {allowed:g} allows; nothing was published. The first: {first['shard']} at "
            f"{first['position']}: {first['error']}. `vectide quarantine {self.url} --run {self.ledger.run}` lists all. "
            f"Mend the source, or mend what the encoder could not do and run again with --retry-quarantined, or raise "
            f"run.max_quarantined and run again: the embedded rows are kept"
        )
