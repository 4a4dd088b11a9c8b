"""Retries rows that failed in the encoder: `--retry-quarantined` of backfill and refresh.

Called by the commands. A fix of the source needs no retry, because a refresh reads a changed shard anyway. A retry is for
any other fix: of a library, the memory or the machine. Receipts are never overwritten, so a retry is a run of its own,
named after the run whose rows it retries. It finds all other vectors by the hash of their text, so only those rows are
encoded. The trade-off: it reads the whole shards that have such rows.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.execute.completion import count_units
from pipeline.execute.progress import NullReporter, Outcome, Reporter
from pipeline.job.config import Job
from pipeline.ledger.ledger import Ledger
from pipeline.run.backfill import Runner
from pipeline.run.context import RunContext, resolve_context
from pipeline.run.refresh import refresh_from
from pipeline.table import commit
from pipeline.table.quarantine import worth_retrying


def backfill_again(job: Job, reporter: Reporter | None = None) -> Outcome:
    """Run a backfill that also retries rows that failed in the encoder.

    If the table is published, only changed shards and shards with such rows are read, and the result is a new version.

    Raises:
        VectideError: see `backfill`.
    """
    reporter = reporter or NullReporter()
    context = resolve_retries(resolve_context(job, reporter))
    if context.table is None or context.state is None or context.retries is None:
        return Runner(context, reporter).run()
    commit.check_embedding_spec(context.table, context.url, context.embedding_spec)
    return refresh_from(context, reporter)


def refresh_again(job: Job, reporter: Reporter | None = None) -> Outcome:
    """Run a refresh that also retries rows that failed in the encoder.

    Raises:
        VectideError: see `refresh`.
    """
    reporter = reporter or NullReporter()
    return refresh_from(resolve_retries(resolve_context(job, reporter)), reporter)


def resolve_retries(context: RunContext) -> RunContext:
    """Return the context with the name of the run whose rows are retried; unchanged if there are no such rows.

    That run is the last of a chain: the run of the current version, then a run that quarantined too many rows to be
    published, then each failed retry. A run that was stopped before its end is resumed instead.
    """
    last = None if context.state is None else context.state.run
    if last is not None and not _has_rows_to_retry(context, last):
        last = None
    while True:
        candidate = replace(context, retries=last)
        name = candidate.run_name()
        if not _has_rows_to_retry(context, name):
            return candidate
        last = name


def _has_rows_to_retry(context: RunContext, run: str) -> bool:
    """Return whether a run with the same embedding spec is complete and quarantined rows that may succeed now."""
    ledger = Ledger(context.url, run)
    description = ledger.description()
    if description is None or description.fingerprint != context.embedding_spec.fingerprint:
        return False
    receipts = ledger.receipts()
    is_complete = count_units(receipts) >= description.units
    return is_complete and bool(worth_retrying(ledger.quarantine(receipts.values())).num_rows)
