"""What a run says while it goes on, and what it came to.

Made by the pipelines, shown by `jobs`. Plain data and one protocol, so that whoever listens needs nothing of a pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from actors.errors import VectideError
from actors.receipt import Receipt


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

    `rows_read == documents + quarantined`. `encoded` texts went through the model. `published` is False where the version
    was there before, and where a second generation was built and held back (`held`).

    Attributes:
        checks: What a second generation was measured by before it took over, in words.
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
    held: bool = False
    checks: tuple[str, ...] = ()

    def plus(self, receipts: Iterable[Receipt]) -> Outcome:
        """With what these units came to."""
        total = self
        for receipt in receipts:
            if receipt.replaces is not None:
                total = replace(total, quarantined=total.quarantined + receipt.rows_bad)
                continue
            total = replace(
                total,
                rows_read=total.rows_read + receipt.rows_read,
                documents=total.documents + receipt.documents,
                rows=total.rows + receipt.rows,
                quarantined=total.quarantined + receipt.rows_bad,
                truncated=total.truncated + receipt.truncated,
                tokens=total.tokens + receipt.tokens,
                encoded=total.encoded + receipt.encoded,
                units=total.units + 1,
            )
        return total


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
