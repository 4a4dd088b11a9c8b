"""Tries rows again that an encoder could not take: `--retry-quarantined` of backfill and refresh.

Called by the commands. A fix of the source needs none of this, for a changed shard is read anyway; this is for a fix of
anything else: a library, the memory, the machine. Receipts are never overwritten, so what is tried again is a run of its own,
named after the run whose rows it tries. It finds every other vector by the hash of its text, so only those rows go
through the encoder. The trade-off: the shards that they are in are read again whole.
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
    """As `backfill`, and rows that the encoder could not take are tried again.

    Of a published table only the shards that have such rows, or changed, are read: one new version.

    Raises:
        VectideError: see `backfill`.
    """
    reporter = reporter or NullReporter()
    context = again(resolve_context(job, reporter))
    if context.table is None or context.state is None or context.retries is None:
        return Runner(context, reporter).run()
    commit.check_embedding_spec(context.table, context.url, context.embedding_spec)
    return refresh_from(context, reporter)


def refresh_again(job: Job, reporter: Reporter | None = None) -> Outcome:
    """As `refresh`, and rows that the encoder could not take are tried again.

    Raises:
        VectideError: see `refresh`.
    """
    reporter = reporter or NullReporter()
    return refresh_from(again(resolve_context(job, reporter)), reporter)


def again(context: RunContext) -> RunContext:
    """The same, with the run named whose rows are tried again; as it is where there are none.

    That run is the last of a chain: the one that made the current version, or one that set too many rows aside to be
    published, or the one that tried those in vain. A run that was stopped before its end goes on instead.
    """
    last = None if context.state is None else context.state.run
    if last is not None and not _to_try(context, last):
        last = None
    while True:
        following = replace(context, retries=last)
        name = following.run_name()
        if not _to_try(context, name):
            return following
        last = name


def _to_try(context: RunContext, run: str) -> bool:
    """Whether a run of the same making has come to its end, and set rows aside that may go well now."""
    ledger = Ledger(context.url, run)
    description = ledger.description()
    if description is None or description["fingerprint"] != context.embedding_spec.fingerprint:
        return False
    receipts = ledger.receipts()
    is_whole = count_units(receipts) >= description["units"]
    return is_whole and bool(worth_retrying(ledger.quarantine(receipts.values())).num_rows)
