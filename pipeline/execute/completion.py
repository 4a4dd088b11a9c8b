"""Collects the outcomes of a run's units, and checks at its end that none is missing.

Used by all runs with a ledger: backfill, refresh, compaction.
"""

from __future__ import annotations

from collections.abc import Iterable

from actors.errors import InvariantBroken, StorageError, VectideError
from actors.unit.receipt import DataFile, Receipt
from pipeline.execute.outcome import UnitOutcome
from pipeline.execute.progress import Reporter
from pipeline.ledger.ledger import RECEIPT_BATCH_UNITS, Ledger
from pipeline.ledger.table_lock import TableLock
from pipeline.table.commit import missing_files


def collect_outcomes(outcomes: Iterable[UnitOutcome], ledger: Ledger, reporter: Reporter) -> None:
    """Pass each outcome to the reporter, and write receipt batches. Waits for all units, even if some fail.

    Raises:
        VectideError: a unit failed; has the class of the first error.
    """
    errors: list[tuple[int, VectideError]] = []
    finished: list[Receipt] = []
    for outcome in outcomes:
        if outcome.busy is not None:
            reporter.busy(outcome.busy)
        if outcome.receipt is not None:
            reporter.finished_unit(outcome.receipt)
            finished.append(outcome.receipt)
            if len(finished) == RECEIPT_BATCH_UNITS:
                ledger.write_receipt_batch(finished)
                finished.clear()
        elif outcome.error is not None:
            errors.append((outcome.unit, outcome.error))
            reporter.failed_unit(outcome.unit, outcome.error)
    if errors:
        raise _first_error(errors, ledger.frozen().units)


def _first_error(errors: list[tuple[int, VectideError]], units: int) -> VectideError:
    """Return the first error with the number of further ones; it keeps its class and so its exit code."""
    number, error = errors[0]
    more = len(errors) - 1
    others = f" {more} more unit{'s' * (more > 1)} failed." if more else ""
    reason = str(error).rstrip(".")
    message = f"unit {number} of {units} failed: {reason}.{others} The other units are kept; nothing was published"
    return type(error)(message)


def count_units(receipts: dict[int, Receipt]) -> int:
    """Return the number of units with a receipt, without receipt overrides that replace files of the table."""
    return len([receipt for receipt in receipts.values() if receipt.replaces is None])


def load_complete_receipts(ledger: Ledger) -> dict[int, Receipt]:
    """Return the receipts of a finished run by unit, after checking them.

    Raises:
        InvariantBroken: a receipt is missing, or its counts are inconsistent.
    """
    receipts, units = ledger.receipts(), ledger.frozen().units
    if count_units(receipts) != units:
        raise InvariantBroken(f"there are {len(receipts)} receipts for a plan of {units} units.")
    for receipt in receipts.values():
        receipt.check()
    return receipts


def check_files(receipts: Iterable[Receipt], ledger: Ledger, lock: TableLock) -> tuple[DataFile, ...]:
    """Return the files of receipts, after a check that all exist.

    The lock is checked first: a vacuum that took the lock meanwhile may still be deleting files.

    Raises:
        StorageError: some do not exist.
        TableConflict: another run has the lock.
    """
    lock.check()
    files = tuple(file for receipt in receipts for file in receipt.files)
    need_files(ledger, missing_files(ledger.table_url, files), len(files))
    return files


def need_files(ledger: Ledger, missing: list[str], files: int) -> None:
    """Raise StorageError if some of a run's files are missing."""
    if missing:
        raise StorageError(
            f"{len(missing)} of {files} files of the receipts are missing or changed in {ledger.table_url!r} "
            f"(first: {missing[0]!r}); nothing was published. Another program removed or changed them: remove "
            f"{ledger.url!r} and run the same command again to write them again"
        )
