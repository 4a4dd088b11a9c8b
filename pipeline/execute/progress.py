"""What a run says while it goes on, and what it came to.

Made by the pipelines, shown by `jobs`. Plain data and one protocol, so that whoever listens needs nothing of a pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from actors.errors import VectideError
from actors.storage.listed import LeftOut
from actors.unit.receipt import Receipt


@dataclass(frozen=True, slots=True)
class Started:
    """What a run is about to do.

    Attributes:
        rows: Rows of the source by the plan; an estimate unless `rows_exact`.
        left_out: What source.uri matches and the run does not read.
        dialects: How delimited shards are written, where a person should know, a sentence each.
    """

    run: str
    units: int
    units_done: int
    rows: int
    rows_exact: bool
    replicas: int
    device: str
    left_out: tuple[LeftOut, ...] = ()
    dialects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    `rows_read == documents + quarantined`. `encoded` texts went through the model. `published` is False where the version
    was there before, and where a re-embedding was built and not published (`staged`).

    Attributes:
        padding: Places that the model computed for nothing.
        files: Data files that were written.
        size_bytes: Of those files.
        seconds: By stage, of all processes together.
        checks: What a second generation was measured by before it took over, in words.
        left_out: What source.uri matches and the run did not read.
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
    padding: int = 0
    encoded: int = 0
    units: int = 0
    files: int = 0
    size_bytes: int = 0
    deaths: int = 0
    staged: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def plus(self, receipts: Iterable[Receipt]) -> Outcome:
        """With what these units came to."""
        total: dict[str, Any] = {name: getattr(self, name) for name in _SUMS}
        seconds = dict(self.seconds)
        for receipt in receipts:
            total["quarantined"] += receipt.rows_quarantined
            total["files"] += len(receipt.files)
            total["size_bytes"] += sum(file.size_bytes for file in receipt.files)
            if receipt.replaces is not None:
                continue
            total["units"] += 1
            for name in _COUNTED:
                total[name] += getattr(receipt, name)
            for stage, spent_s in receipt.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent_s
        return replace(self, seconds=seconds, **total)


_COUNTED = ("rows_read", "documents", "rows", "truncated", "tokens", "padding", "encoded")
_SUMS = (*_COUNTED, "quarantined", "units", "files", "size_bytes")


class Reporter(Protocol):
    """Who is told how a run goes."""

    def step(self, text: str) -> None:
        """A step begins: planning, starting Ray, publishing."""

    def started(self, started: Started) -> None:
        """Units begin to run."""

    def finished_unit(self, receipt: Receipt) -> None:
        """A unit has its receipt."""

    def busy(self, encoders: int) -> None:
        """So many encoders are at work on a unit."""

    def failed_unit(self, unit: int, error: VectideError) -> None:
        """A unit ended with an error; the others go on."""


class NullReporter:
    """A reporter that shows nothing. The default of `backfill` and `refresh`."""

    def step(self, text: str) -> None:
        """See `Reporter`."""

    def started(self, started: Started) -> None:
        """See `Reporter`."""

    def finished_unit(self, receipt: Receipt) -> None:
        """See `Reporter`."""

    def busy(self, encoders: int) -> None:
        """See `Reporter`."""

    def failed_unit(self, unit: int, error: VectideError) -> None:
        """See `Reporter`."""
