"""Follows the units of a run, and checks at its end that nothing is missing.

Shared by every run that has a ledger: backfill, refresh, compaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from actors.errors import InvariantBroken, StorageError, VectideError
from actors.unit.receipt import Receipt
from pipeline.execute.outcome import UnitOutcome
from pipeline.execute.progress import Reporter
from pipeline.ledger.ledger import RECEIPT_BATCH_UNITS, Ledger


def collect_outcomes(outcomes: Iterable[UnitOutcome], ledger: Ledger, reporter: Reporter) -> None:
    """Tell the reporter how each unit ends, and leave copies of receipts. All units are let end, whatever becomes of the
    others.

    Raises:
        VectideError: some failed; of the class of the first.
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
        raise _failed(errors, int((ledger.description() or {}).get("units", 0)))


def _failed(errors: list[tuple[int, VectideError]], units: int) -> VectideError:
    """The first error, with how many others there were; it keeps its class and so its exit code."""
    number, error = errors[0]
    more = len(errors) - 1
    others = f" {more} more unit{'s' * (more > 1)} failed." if more else ""
    told = str(error).rstrip(".")
    message = f"unit {number} of {units} failed: {told}.{others} The other units are kept; nothing was published"
    return type(error)(message)


def count_units(receipts: dict[int, Receipt]) -> int:
    """How many units these receipts are of: those of an amendment may stand in for files of the table instead."""
    return len([receipt for receipt in receipts.values() if receipt.replaces is None])


def load_complete_receipts(ledger: Ledger, description: dict[str, Any]) -> dict[int, Receipt]:
    """The receipts of a run that is done, by unit; each adds up, and none is missing.

    Raises:
        InvariantBroken: otherwise.
    """
    receipts = ledger.receipts()
    if count_units(receipts) != description["units"]:
        raise InvariantBroken(f"{len(receipts)} receipts are there for a plan of {description['units']} units.")
    for receipt in receipts.values():
        receipt.check()
    return receipts


def check_files(ledger: Ledger, table: str, missing: list[str], files: int) -> None:
    """Raise StorageError where files that receipts name are not there."""
    if missing:
        raise StorageError(
            f"{len(missing)} of {files} files that receipts name are not in {table!r} as they were written "
            f"({missing[0]!r} first); nothing was published. Something else removed them: remove {ledger.url!r} and "
            f"run the same command again to make them anew"
        )
