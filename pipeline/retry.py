"""Tries rows again that an encoder could not take: `--retry-quarantined` of backfill and refresh.

Called by the commands. A fix of the source needs none of this, for a changed shard is read anyway; this is for a fix of
anything else: a library, the memory, the machine. Receipts are never overwritten, so what is tried again is a run of its own,
named after the run whose rows it tries. It finds every other vector by the hash of its text, so only those rows go
through the encoder. The trade-off: the shards that they are in are read again whole.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline import publish
from pipeline.account import count_units
from pipeline.beginning import Beginning, begin
from pipeline.config import Job
from pipeline.ledger import Ledger
from pipeline.quarantine import worth_retrying
from pipeline.refresh import refresh_from
from pipeline.report import Outcome, Reporter
from pipeline.run import Runner


def backfill_again(job: Job, reporter: Reporter) -> Outcome:
    """As `backfill`, and rows that the encoder could not take are tried again.

    Of a published table only the shards that have such rows, or changed, are read: one new version.

    Raises:
        VectideError: see `backfill`.
    """
    beginning = again(begin(job, reporter))
    if beginning.table is None or beginning.state is None or beginning.retries is None:
        return Runner(beginning, reporter).run()
    publish.check_making(beginning.table, beginning.url, beginning.making)
    return refresh_from(beginning, reporter)


def refresh_again(job: Job, reporter: Reporter) -> Outcome:
    """As `refresh`, and rows that the encoder could not take are tried again.

    Raises:
        VectideError: see `refresh`.
    """
    return refresh_from(again(begin(job, reporter)), reporter)


def again(beginning: Beginning) -> Beginning:
    """The same, with the run named whose rows are tried again; as it is where there are none.

    That run is the last of a chain: the one that made the current version, or one that set too many rows aside to be
    published, or the one that tried those in vain. A run that was stopped before its end goes on instead.
    """
    last = None if beginning.state is None else beginning.state.run
    if last is not None and not _to_try(beginning, last):
        last = None
    while True:
        following = replace(beginning, retries=last)
        name = following.run_name()
        if not _to_try(beginning, name):
            return following
        last = name


def _to_try(beginning: Beginning, run: str) -> bool:
    """Whether a run of the same making has come to its end, and set rows aside that may go well now."""
    ledger = Ledger(beginning.url, run)
    description = ledger.description()
    if description is None or description["fingerprint"] != beginning.making.fingerprint:
        return False
    receipts = ledger.receipts()
    is_whole = count_units(receipts) >= description["units"]
    return is_whole and bool(worth_retrying(ledger.quarantine(receipts.values())).num_rows)
