"""A backfill from end to end: plan or find the plan, run what is left of it, publish.

Called by `jobs backfill`. Running the same job again is always right: it finds its own ledger, skips the units that
have a receipt, and publishes at most once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from actors import storage
from actors.encoders.spec import ModelSpec, describe
from actors.errors import InvariantBroken, StorageError, TooManyQuarantined, VectideError
from actors.receipt import Receipt
from actors.writer import WriterSpec, table_schema
from pipeline import delta, fingerprint, uniqueness
from pipeline.config import Job
from pipeline.executor import Executor, Pool, executor_for
from pipeline.ledger import FOLDER, Ledger, table_to_units
from pipeline.plan import Survey, cut_plan, list_corpus, survey, take_sample
from pipeline.probe import probe_create
from pipeline.stages import StageSpec


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

    `rows_read == documents + quarantined`. `published` is False where the version was there before.
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
    return _Backfill(job, reporter).run()


class _Backfill:
    """One call of `backfill`: what it found out so far, and the steps."""

    def __init__(self, job: Job, reporter: Reporter) -> None:
        self.job = job
        self.reporter = reporter
        self.url = storage.absolute(job.table.uri)
        self.model = describe_model(job)
        reporter.step("listing the corpus")
        self.shards = list_corpus(job)
        self.chunking = fingerprint.chunking_of(self.model, job)
        made_of = fingerprint.lineage(self.model, job)
        self.fingerprint = fingerprint.fingerprint(made_of)
        self.lineage = made_of
        self.ledger = Ledger(self.url, fingerprint.run_name(job, self.fingerprint, self.shards))

    def run(self) -> Outcome:
        """Whatever is left to do."""
        table = delta.open_table(self.url)
        if table is not None:
            if (version := delta.published_version(table, self.ledger.run)) is not None:
                return Outcome(self.url, self.ledger.run, version, published=False)
            delta.check_fingerprint(table, self.url, self.fingerprint, self.lineage)
        self.reporter.step("looking at the columns of its files")
        found = survey(self.job, self.shards)
        publication = delta.Publication(
            run=self.ledger.run,
            fingerprint=self.fingerprint,
            lineage=self.lineage,
            schema=table_schema(found.keep_schema, chunked=self.chunking is not None),
            partition_by=self.job.table.partition_by,
            encoder=self.job.encoder.model_dump(mode="json"),
            add=(),
        )
        if table is not None:
            delta.check_columns(table, self.url, publication)
        description = self.ledger.description()
        done = self.ledger.done() if description is not None else set()
        deaths = 0
        if description is None or len(done) < description["units"]:
            self.reporter.step("starting")
            executor = executor_for(self.job.run)
            description = description or self._freeze(found, executor.pool)
            deaths = self._encode(publication, found, description, done, executor)
        return replace(self._publish(publication, description), deaths=deaths)

    def _freeze(self, found: Survey, pool: Pool) -> dict[str, Any]:
        """Cut the plan and write it down; if another driver of the same run was faster, its plan is the plan."""
        probe_create(storage.join(self.url, FOLDER, "probes"))
        self.reporter.step("planning")
        sample = take_sample(found, self.model, self.chunking)
        plan = cut_plan(self.job, found, self.model, sample, replicas=pool.replicas, gpus=pool.gpus > 0)
        self.ledger.freeze(
            {
                "run": self.ledger.run,
                "fingerprint": self.fingerprint,
                "lineage": self.lineage,
                "job": self.job.model_dump(mode="json"),
                "shards": len(found.shards),
                "units": plan.units,
                "rows": plan.rows,
                "rows_exact": plan.rows_exact,
            },
            plan.table,
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
        for outcome in executor.run(rest, StageSpec(found.source, self.model, writer, self.chunking)):
            if outcome.receipt is not None:
                self.reporter.finished_unit(outcome.receipt)
            elif outcome.error is not None:
                errors.append((outcome.unit, outcome.error))
                self.reporter.failed_unit(outcome.unit, outcome.error)
        if errors:
            raise _failed(errors, description["units"])
        return executor.book.total_deaths()

    def _publish(self, publication: delta.Publication, description: dict[str, Any]) -> Outcome:
        """Check that every row is accounted for, then commit."""
        self.reporter.step("checking that every row is accounted for")
        receipts = self.ledger.receipts()
        if len(receipts) != description["units"]:
            raise InvariantBroken(f"{len(receipts)} receipts are there for a plan of {description['units']} units.")
        for receipt in receipts.values():
            receipt.check()
        source = self.job.source
        if source.id is not None and source.unique_ids and self.ledger.amendment() is None:
            receipts = self._unique(receipts)
        outcome = _sum(self.url, self.ledger.run, receipts.values())
        self._check_quarantine(outcome, receipts.values())
        files = tuple(file for receipt in receipts.values() for file in receipt.files)
        if missing := delta.missing_files(self.url, self.ledger.run, files):
            raise StorageError(
                f"{len(missing)} of {len(files)} files that receipts name are not in {self.url!r} as they were written "
                f"({missing[0]!r} first); nothing was published. Something else removed them: remove "
                f"{self.ledger.url!r} and run the same command again to embed them anew"
            )
        self.reporter.step("publishing")
        removed = delta.removed_by(delta.open_table(self.url))
        version = delta.publish(self.url, replace(publication, add=files, remove=removed))
        return replace(outcome, version=version, published=True)

    def _unique(self, receipts: dict[int, Receipt]) -> dict[int, Receipt]:
        """The receipts after ids that several units hold were set aside in all but the first."""
        losers = uniqueness.find_duplicates(self.url, receipts.values())
        if not losers:
            return receipts
        amended = [
            uniqueness.set_aside(self.url, self.ledger.url, receipts[unit], ids) for unit, ids in sorted(losers.items())
        ]
        if self.ledger.amend(amended):
            return {**receipts, **{receipt.unit: receipt for receipt in amended}}
        return self.ledger.receipts()

    def _check_quarantine(self, outcome: Outcome, receipts: Iterable[Receipt]) -> None:
        allowed = self.job.run.max_quarantined
        if outcome.quarantined <= allowed * outcome.rows_read:
            return
        bad = self.ledger.quarantine(receipts)
        reasons = bad.group_by("reason").aggregate([("reason", "count")]).to_pylist()
        counts = ", ".join(f"{row['reason_count']} {row['reason']}" for row in reasons)
        first = bad.slice(0, 1).to_pylist()[0]
        raise TooManyQuarantined(
            f"{outcome.quarantined} of {outcome.rows_read} rows were set aside ({counts}), more than "
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
        outcome = replace(
            outcome,
            rows_read=outcome.rows_read + receipt.rows_read,
            documents=outcome.documents + receipt.documents,
            rows=outcome.rows + receipt.rows,
            quarantined=outcome.quarantined + receipt.rows_bad,
            truncated=outcome.truncated + receipt.truncated,
            tokens=outcome.tokens + receipt.tokens,
            units=outcome.units + 1,
        )
    return outcome
