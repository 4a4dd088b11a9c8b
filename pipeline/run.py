"""A backfill from end to end: plan or find the plan, run what is left of it, publish.

Called by `jobs backfill`. Running the same job again is always right: it finds its own ledger, skips the units that
have a receipt, and publishes at most once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from actors import storage
from actors.encoders.spec import ModelSpec, describe
from actors.errors import InvariantBroken, StorageError, TooManyQuarantined, VectideError
from actors.receipt import Receipt
from actors.writer import WriterSpec, table_schema
from pipeline import delta, fingerprint, uniqueness
from pipeline.config import Job
from pipeline.executor import Executor, executor_for
from pipeline.hold import Hold, hold
from pipeline.ledger import DIGEST_UNITS, FOLDER, Ledger, listing_table, table_to_units
from pipeline.plan import Plan, Survey, cut_plan, list_corpus, survey, take_sample
from pipeline.probe import probe_create
from pipeline.stages import StageSpec
from pipeline.tasks import check_task_column


@dataclass(frozen=True, slots=True)
class Started:
    """What a run is about to do.

    Attributes:
        rows: Rows of the source by the plan; an estimate unless `rows_exact`.
    """

    run: str
    units: int
    units_done: int
    rows: int
    rows_exact: bool
    replicas: int
    device: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    `rows_read == documents + quarantined`. `encoded` texts went through the model. `published` is False where the version was there before.
    """

    table: str
    run: str
    version: int
    published: bool
    rows_read: int = 0
    documents: int = 0
    rows: int = 0
    quarantined: int = 0
    truncated: int = 0
    tokens: int = 0
    encoded: int = 0
    units: int = 0
    deaths: int = 0


class Reporter(Protocol):
    """Who is told how a run goes."""

    def step(self, text: str) -> None:
        """A step begins: planning, starting Ray, publishing."""

    def started(self, started: Started) -> None:
        """Units begin to run."""

    def finished_unit(self, receipt: Receipt) -> None:
        """A unit has its receipt."""

    def failed_unit(self, unit: int, error: VectideError) -> None:
        """A unit ended with an error; the others go on."""


def describe_model(job: Job) -> ModelSpec:
    """The model of a job, checked, without loading it."""
    encoder = job.encoder
    return describe(
        encoder.model,
        revision=encoder.revision,
        task=encoder.task,
        dim=encoder.dim,
        max_tokens=encoder.max_tokens,
        dtype=encoder.dtype,
        allow_untrained_dim=encoder.allow_untrained_dim,
    )


def backfill(job: Job, reporter: Reporter) -> Outcome:
    """Embed a corpus into a table, or go on where an earlier run of the same job stopped.

    Raises:
        VectideError: see actors/errors.py; whatever was finished is kept, and the same call goes on from there.
    """
    return Runner(job, reporter).run()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run is about to write down in its ledger.

    Attributes:
        tables: Tables beside the plan, by name.
        facts: What else the description says.
    """

    plan: Plan
    tables: dict[str, pa.Table]
    facts: dict[str, Any]


class Runner:
    """One call of `backfill`: what it found out so far, and the steps. `refresh` changes a few of them."""

    def __init__(self, job: Job, reporter: Reporter) -> None:
        self.job = job
        self.reporter = reporter
        self.url = storage.absolute(job.table.uri)
        self.model = describe_model(job)
        check_task_column(job.source.task_column, self.model)
        reporter.step("listing the corpus")
        self.shards = list_corpus(job)
        self.chunking = fingerprint.chunking_of(self.model, job)
        self.lineage = fingerprint.lineage(self.model, job)
        self.fingerprint = fingerprint.fingerprint(self.lineage)
        self.content = fingerprint.content_name(job, self.fingerprint, self.shards)
        self.table = delta.open_table(self.url)
        self.current = delta.current_run(self.table)
        self.ledger = Ledger(self.url, fingerprint.run_name(self.content, self.base()))

    what = "vectide backfill"

    # What a refresh does differently ---------------------------------------------------------------------------------

    def base(self) -> str | None:
        """What the run begins with, as far as its plan depends on it."""
        return self.current

    def look(self) -> Survey:
        """Check the source and find the types of its columns."""
        return survey(self.job, self.shards)

    def prepare(self, found: Survey, executor: Executor) -> Prepared:
        """Cut the plan."""
        sample = take_sample(found, self.model, self.chunking)
        pool = executor.pool
        plan = cut_plan(self.job, found, self.model, sample, replicas=pool.replicas, gpus=pool.gpus > 0)
        return Prepared(plan, {}, {})

    def executor(self) -> Executor:
        """Where units run."""
        return executor_for(self.job.run)

    def removed(self) -> tuple[str, ...] | None:
        """The files of the table that the run's files take the place of; None for all."""
        return None

    def kept(self) -> list[Receipt]:
        """Files of the table that stay, each as a receipt: their ids count too."""
        return []

    # The steps ---------------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Whatever is left to do."""
        if self.table is not None and self.current is not None:
            made = Ledger(self.url, self.current).description() or {}
            if made.get("content") == self.content:
                return Outcome(self.url, self.current, int(self.table.version()), published=False)
        if self.table is not None:
            delta.check_fingerprint(self.table, self.url, self.fingerprint, self.lineage)
        with hold(self.url, self.ledger.run, what=self.what) as held:
            delta.check_base(delta.open_table(self.url), self.url, self.current)  # it was read before it was held
            return self._run(held)

    def _run(self, held: Hold) -> Outcome:
        """The work, while the table is held."""
        self.reporter.step("looking at the columns of its files")
        found = self.look()
        publication = delta.Publication(
            run=self.ledger.run,
            fingerprint=self.fingerprint,
            lineage=self.lineage,
            schema=table_schema(found.keep_schema, chunked=self.chunking is not None),
            partition_by=self.job.table.partition_by,
            encoder=self.job.encoder.model_dump(mode="json"),
            base_run=self.current,
            add=(),
        )
        if self.table is not None:
            delta.check_columns(self.table, self.url, publication)
        description = self.ledger.description()
        done = self.ledger.done() if description is not None else set()
        deaths = 0
        if description is None or len(done) < description["units"]:
            self.reporter.step("starting")
            executor = self.executor()
            description = description or self._freeze(found, executor)
            deaths = self._encode(publication, found, description, done, executor)
        return replace(self._publish(publication, description, held), deaths=deaths)

    def _freeze(self, found: Survey, executor: Executor) -> dict[str, Any]:
        """Cut the plan and write it down; if another driver of the same run was faster, its plan is the plan."""
        probe_create(storage.join(self.url, FOLDER, "probes"))
        self.reporter.step("planning")
        prepared = self.prepare(found, executor)
        self.ledger.freeze(
            {
                "run": self.ledger.run,
                "content": self.content,
                "fingerprint": self.fingerprint,
                "lineage": self.lineage,
                "job": self.job.model_dump(mode="json"),
                "shards": len(self.shards),
                "units": prepared.plan.units,
                "rows": prepared.plan.rows,
                "rows_exact": prepared.plan.rows_exact,
                **prepared.facts,
            },
            prepared.plan.table,
            listing=listing_table(self.shards),
            **prepared.tables,
        )
        description = self.ledger.description()
        if description is None:
            raise StorageError(
                f"{self.ledger.url!r} was written but cannot be read back; check the store and run again"
            )
        return description

    def _encode(
        self,
        publication: delta.Publication,
        found: Survey,
        description: dict[str, Any],
        done: set[int],
        executor: Executor,
    ) -> int:
        """Run the units without a receipt; how many workers died on the way."""
        writer = WriterSpec(
            table=self.url,
            ledger=self.ledger.url,
            run=self.ledger.run,
            schema=publication.schema,
            partition_by=publication.partition_by,
            precision=self.job.table.precision,
            lineage=json.dumps(self.lineage, sort_keys=True),
        )
        started = Started(
            run=self.ledger.run,
            units=description["units"],
            units_done=len(done),
            rows=description["rows"],
            rows_exact=description["rows_exact"],
            replicas=executor.pool.replicas,
            device=executor.pool.device,
        )
        self.reporter.started(started)
        errors: list[tuple[int, VectideError]] = []
        rest = table_to_units(self.ledger.plan(), done)
        stages = StageSpec(found.source, self.model, writer, self.chunking, reuse=bool(description.get("reuse")))
        finished: list[Receipt] = []
        for outcome in executor.run(rest, stages):
            if outcome.receipt is not None:
                self.reporter.finished_unit(outcome.receipt)
                finished.append(outcome.receipt)
                if len(finished) == DIGEST_UNITS:
                    self.ledger.digest(finished)
                    finished.clear()
            elif outcome.error is not None:
                errors.append((outcome.unit, outcome.error))
                self.reporter.failed_unit(outcome.unit, outcome.error)
        if errors:
            raise _failed(errors, description["units"])
        return executor.book.total_deaths()

    def _publish(self, publication: delta.Publication, description: dict[str, Any], held: Hold) -> Outcome:
        """Check that every row is accounted for, then commit."""
        self.reporter.step("checking that every row is accounted for")
        receipts = self.ledger.receipts()
        if len([receipt for receipt in receipts.values() if receipt.replaces is None]) != description["units"]:
            raise InvariantBroken(f"{len(receipts)} receipts are there for a plan of {description['units']} units.")
        for receipt in receipts.values():
            receipt.check()
        source = self.job.source
        if source.id is not None and source.unique_ids and self.ledger.amendment() is None:
            receipts = self._unique(receipts, description["units"])
        outcome = _sum(self.url, self.ledger.run, receipts.values())
        self._check_quarantine(outcome, receipts.values(), int(description.get("rows_kept", 0)))
        files = tuple(file for receipt in receipts.values() for file in receipt.files)
        if missing := delta.missing_files(self.url, self.ledger.run, files):
            raise StorageError(
                f"{len(missing)} of {len(files)} files that receipts name are not in {self.url!r} as they were written "
                f"({missing[0]!r} first); nothing was published. Something else removed them: remove "
                f"{self.ledger.url!r} and run the same command again to embed them anew"
            )
        self.reporter.step("publishing")
        removed = self.removed()
        if removed is not None:
            removed += tuple(receipt.replaces for receipt in receipts.values() if receipt.replaces is not None)
        held.check()
        version = delta.publish(self.url, replace(publication, add=files, remove=removed))
        return replace(outcome, version=version, published=True)

    def _unique(self, receipts: dict[int, Receipt], units: int) -> dict[int, Receipt]:
        """The receipts after ids that several rows have were set aside in all but the first."""
        kept = {units + number: replace(receipt, unit=units + number) for number, receipt in enumerate(self.kept())}
        everything = {**receipts, **kept}
        losers = uniqueness.find_duplicates(self.url, everything.values())
        if not losers:
            return receipts
        amended = [
            uniqueness.set_aside(self.url, self.ledger.url, everything[unit], ids, run=self.ledger.run)
            for unit, ids in sorted(losers.items())
        ]
        if self.ledger.amend(amended):
            return {**receipts, **{receipt.unit: receipt for receipt in amended}}
        return self.ledger.receipts()

    def _check_quarantine(self, outcome: Outcome, receipts: Iterable[Receipt], rows_kept: int) -> None:
        """Raise TooManyQuarantined where the table would be hollow: bad rows of all shards against rows of all."""
        allowed = self.job.run.max_quarantined
        carried = self.ledger.carried_quarantine().num_rows
        bad_rows, all_rows = outcome.quarantined + carried, outcome.rows_read + carried + rows_kept
        if bad_rows <= allowed * all_rows:
            return
        bad = self.ledger.quarantine(receipts)
        reasons = bad.group_by("reason").aggregate([("reason", "count")]).to_pylist()
        counts = ", ".join(f"{row['reason_count']} {row['reason']}" for row in reasons)
        first = bad.slice(0, 1).to_pylist()[0]
        raise TooManyQuarantined(
            f"{bad_rows} of {all_rows} rows were set aside ({counts}), more than "
            f"run.max_quarantined = {allowed:g} allows; nothing was published. The first: {first['shard']} at "
            f"{first['position']}: {first['error']}. All are in {self.ledger.url}/quarantine. Mend the source, or raise "
            f"run.max_quarantined and run again: the embedded rows are kept"
        )


def _failed(errors: list[tuple[int, VectideError]], units: int) -> VectideError:
    """The first error, with how many others there were; it keeps its class and so its exit code."""
    number, error = errors[0]
    others = f" {len(errors) - 1} more units failed." if len(errors) > 1 else ""
    message = f"unit {number} of {units} failed: {error}.{others} The other units are kept; nothing was published"
    return type(error)(message)


def _sum(url: str, run: str, receipts: Iterable[Receipt]) -> Outcome:
    outcome = Outcome(url, run, version=-1, published=False)
    for receipt in receipts:
        if receipt.replaces is not None:
            outcome = replace(outcome, quarantined=outcome.quarantined + receipt.rows_bad)
            continue
        outcome = replace(
            outcome,
            rows_read=outcome.rows_read + receipt.rows_read,
            documents=outcome.documents + receipt.documents,
            rows=outcome.rows + receipt.rows,
            quarantined=outcome.quarantined + receipt.rows_bad,
            truncated=outcome.truncated + receipt.truncated,
            tokens=outcome.tokens + receipt.tokens,
            encoded=outcome.encoded + receipt.encoded,
            units=outcome.units + 1,
        )
    return outcome
