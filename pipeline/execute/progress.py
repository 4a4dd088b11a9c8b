"""Progress reports and the outcome of a run.

The pipelines create them, `jobs` shows them. Plain data and one protocol, so that a reporter does not depend on a
pipeline.
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
    """Work of a run, reported when its units begin.

    Attributes:
        rows: Source rows by the plan; an estimate unless `rows_exact`.
        left_out: Objects that source.uri matches and the run does not read.
        dialects: Unusual dialects of delimited shards, one sentence each.
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
    """Result of a run.

    `rows_read == documents + quarantined`. `encoded` counts the texts and pages that went through the model. `published` is False
    if the version existed before, or if a re-embedding was built and not published (`staged`).

    Attributes:
        rows_kept: Number of rows in files that the run left as they were; the other counts are without them.
        padding: Padding tokens that the model computed.
        animated: Pictures of several frames, of which the first is embedded.
        unconverted: Pictures with a colour profile that cannot be used; their colours are as stored.
        files: Number of written data files.
        size_bytes: Total size of these files.
        seconds: Time by stage, summed over all processes.
        checks: Results of the quality checks of a re-embedding, one sentence each.
        figures: Their numbers, by name.
        left_out: Objects that source.uri matches and the run did not read.
    """

    table: str
    run: str
    version: int
    published: bool
    rows_read: int = 0
    documents: int = 0
    rows: int = 0
    rows_kept: int = 0
    quarantined: int = 0
    truncated: int = 0
    tokens: int = 0
    padding: int = 0
    encoded: int = 0
    animated: int = 0
    unconverted: int = 0
    units: int = 0
    files: int = 0
    size_bytes: int = 0
    deaths: int = 0
    staged: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()

    def plus(self, receipts: Iterable[Receipt]) -> Outcome:
        """Return the outcome with the totals of these receipts added."""
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


_COUNTED = ("rows_read", "documents", "rows", "truncated", "tokens", "padding", "encoded", "animated", "unconverted")
_SUMS = (*_COUNTED, "quarantined", "units", "files", "size_bytes")


class Reporter(Protocol):
    """Receives the progress of a run."""

    def step(self, text: str) -> None:
        """Report that a step begins: planning, starting Ray, publishing."""

    def started(self, started: Started) -> None:
        """Report that the units begin to run."""

    def finished_unit(self, receipt: Receipt) -> None:
        """Report a unit that has its receipt."""

    def busy(self, encoders: int) -> None:
        """Report the number of encoders at work."""

    def failed_unit(self, unit: int, error: VectideError) -> None:
        """Report a unit that ended with an error; the other units continue."""


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
