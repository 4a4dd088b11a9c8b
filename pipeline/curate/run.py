"""A curation from end to end: read and measure, decide, write, commit. Called by `jobs curate`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from actors import storage
from actors.errors import TooManyQuarantined
from actors.schema import Unit
from actors.storage.listed import LeftOut
from pipeline.curate.changes import changes_of
from pipeline.curate.context import Context, resolve
from pipeline.curate.decide import Rows
from pipeline.curate.evidence import evidence_of
from pipeline.curate.read import INLINE_BYTES, Measured, finished, measure_units
from pipeline.curate.steps.base import StepCount
from pipeline.curate.table import read_quarantine, write_table
from pipeline.execute.completion import check_files, load_complete_receipts
from pipeline.execute.progress import NullReporter, Outcome, Reporter, Started
from pipeline.job.curation import Curation
from pipeline.job.values import is_inline
from pipeline.ledger.create_probe import probe_create
from pipeline.ledger.ledger import EVIDENCE, FOLDER, UNIT_FILES, Ledger, listing_table, units_to_table
from pipeline.ledger.run_description import RunDescription
from pipeline.report.recorder import Recorder, recorded
from pipeline.report.repeat import command_of
from pipeline.table.commit import Publication
from pipeline.table.transaction import Transaction, table_transaction

OPERATION = "curate"
_COMMAND = "vectide curate"


@dataclass(frozen=True)
class Curated:
    """Result of a curation.

    Attributes:
        published: False if the version existed before.
        rows_read: Rows of the source, with the quarantined ones.
        rows: Rows of the table.
        kept: Those of them that every step kept.
        steps: Rows in and out of each step.
        units_read: Units that this call read; the others were read before.
        evidence: What the steps say, verdicts that changed since the version before (`changes`), and more for the report.
    """

    table: str
    run: str
    version: int
    published: bool
    rows_read: int = 0
    rows: int = 0
    kept: int = 0
    quarantined: int = 0
    units_read: int = 0
    steps: tuple[StepCount, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()


def curate(job: Curation, reporter: Reporter | None = None) -> Curated:
    """Curate pairs or documents into a table with a verdict for each row, or resume an earlier call.

    Raises:
        VectideError: see actors/errors.py; what was read is kept, and the same call resumes.
    """
    reporter = reporter or NullReporter()
    return _Run(resolve(job, reporter), reporter).run()


class _Run:
    """One call of `curate`."""

    def __init__(self, context: Context, reporter: Reporter) -> None:
        self.context = context
        self.reporter = self._outer = reporter
        self.ledger = Ledger(context.url, context.run_name())

    def run(self) -> Curated:
        """Do the remaining work of the run; nothing if the table is up to date."""
        context, state = self.context, self.context.state
        if state is not None and (current := Ledger(context.url, state.run)).holds(context.content):
            return self._outcome(current, state.version, published=False)
        with table_transaction(context.url, self.ledger.run, state, what=_COMMAND) as transaction:
            if transaction.published is not None:
                return self._outcome(self.ledger, transaction.published, published=False)
            command = command_of(OPERATION, context.job.model_dump(mode="json"))
            with recorded(self.ledger, self.reporter, OPERATION, command) as record:
                self.reporter = record
                return self._run(transaction, record)

    @cached_property
    def units(self) -> list[Unit]:
        """The units of the source."""
        return self.context.units()

    def _run(self, transaction: Transaction, record: Recorder) -> Curated:
        """Do the work while the table is locked."""
        if self.ledger.description() is None:
            probe_create(storage.join(self.context.url, FOLDER, "probes"))
            self._freeze()
        units_read = 0
        if not self.ledger.receipts():
            results, units_read = self._measure()
            self._decide(results)
        version = self._publish(transaction)
        outcome = self._outcome(self.ledger, version, published=True, units_read=units_read)
        receipts = self.ledger.receipts().values()
        record.ended(Outcome(self.context.url, self.ledger.run, version, published=True).plus(receipts))
        return outcome

    def _freeze(self) -> None:
        context = self.context
        self.reporter.step("planning")
        units = self.units
        self.ledger.freeze(
            RunDescription(
                operation=OPERATION,
                units=1,
                rows=sum(unit.rows for unit in units),
                rows_exact=all(unit.rows_exact for unit in units),
                content=context.content,
                fingerprint=context.spec.fingerprint,
                lineage=context.spec.lineage,
                job=context.job.model_dump(mode="json"),
                shards=len(context.shards),
            ),
            units_to_table(units),
            listing=listing_table(context.shards),
        )

    def _measure(self) -> tuple[list[Measured], int]:
        """Read what was not read before; return the results of all units in order, and the number of units that were read."""
        context, run = self.context, self.context.job.run
        units = self.units
        done = finished(units, context.read)
        is_small = sum(shard.size_bytes for shard in context.shards) <= INLINE_BYTES
        self.reporter.started(
            Started(
                run=self.ledger.run,
                units=len(units),
                units_done=len(done),
                rows=sum(unit.rows for unit in units),
                rows_exact=all(unit.rows_exact for unit in units),
                replicas=1,
                device="cpu",
                left_out=context.left_out,
                dialects=tuple(use.sentence() for use in context.survey.dialects if use.worth_saying),
            )
        )
        left = [unit for unit in units if unit.number not in done]
        for result in measure_units(left, context.read, run, inline=is_inline(run.address, fits_in_process=is_small)):
            done[result.unit] = result
            self.reporter.finished_unit(result.receipt())
        return [done[unit.number] for unit in units], len(left)

    def _decide(self, results: Sequence[Measured]) -> None:
        """Decide about all rows, and write the evidence, the table's files and, last, the receipt."""
        context = self.context
        with Rows(context, results, self.reporter, self._outer) as rows:
            self.reporter.step("numbering the rows")
            repeated = rows.load()
            self._check_quarantine(results, repeated)
            decided = rows.decide()
            rows.join(decided)
            evidence = {
                "rows": rows.count(),
                "steps": [asdict(each) for each in decided],
                "changes": changes_of(context, rows.connection),
                **evidence_of(context, rows.connection),
            }
            storage.put(storage.join(self.ledger.home(), EVIDENCE), json.dumps(evidence, indent=1).encode())
            names = [url.rpartition("/")[2] for each in results for url in each.files]
            self.ledger.add_table(UNIT_FILES, pa.table({"name": pa.array(names, pa.string())}))
            self.reporter.step("writing the table")
            write_table(context, self.ledger, results, rows.verdicts())

    def _check_quarantine(self, results: Sequence[Measured], repeated: int) -> None:
        """Raise TooManyQuarantined if the share of quarantined rows is above `run.max_quarantined`."""
        quarantined = repeated + sum(result.quarantined for result in results)
        all_rows = sum(result.rows + result.quarantined for result in results)
        allowed = self.context.job.run.max_quarantined
        if quarantined <= allowed * all_rows:
            return
        rows = [row for result in results if result.quarantined for row in read_quarantine(result).to_pylist()]
        reasons = Counter({"duplicate_id": repeated}) + Counter(row["reason"] for row in rows)
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        first = "".join(f" The first: {row['shard']} at {row['position']}: {row['error']}." for row in rows[:1])
        raise TooManyQuarantined(
            f"{quarantined} of {all_rows} rows were quarantined ({counts}), more than run.max_quarantined = {allowed:g} allows; "
            f"nothing was published.{first} Fix the source, or raise run.max_quarantined and run again: what was read is kept"
        )

    def _publish(self, transaction: Transaction) -> int:
        """Commit the files of the receipt, and return the version."""
        self.reporter.step("publishing")
        files = check_files(load_complete_receipts(self.ledger).values(), self.ledger, transaction.lock)
        return transaction.publish(
            Publication(
                commit=self.ledger.run,
                run=self.ledger.run,
                operation=OPERATION,
                embedding_spec=self.context.spec,
                schema=self.context.schema(),
                partition_by=(),
                base=self.context.state,
                add=files,
            )
        )

    def _outcome(self, ledger: Ledger, version: int, *, published: bool, units_read: int = 0) -> Curated:
        """Return the result of a run whose receipt is written."""
        evidence = ledger.evidence() or {}
        counts = Outcome(self.context.url, ledger.run, version, published).plus(ledger.receipts().values())
        steps = tuple(StepCount(each["name"], each["rows"], each["dropped"]) for each in evidence["steps"])
        return Curated(
            self.context.url,
            ledger.run,
            version,
            published,
            rows_read=counts.rows_read,
            rows=counts.rows,
            kept=counts.rows - sum(step.dropped for step in steps),
            quarantined=counts.quarantined,
            units_read=units_read,
            steps=steps,
            evidence=evidence,
            left_out=self.context.left_out,
        )
