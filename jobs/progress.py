"""Shows how a run goes: a live bar on a terminal, a line now and then in a log.

Used by `jobs backfill`. The library is rich: it knows terminals, and Ray already brings it along.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from actors.errors import VectideError
from actors.unit.receipt import Receipt
from pipeline.execute.progress import Reporter, Started

LOG_EVERY_S = 10.0


@contextlib.contextmanager
def reporter() -> Iterator[Reporter]:
    """A reporter that fits where the output goes."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Log()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("units  {task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress)


class _Meter:
    """Rows and tokens since the run began."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self.rows = 0
        self.tokens = 0
        self.bad = 0

    def add(self, receipt: Receipt) -> None:
        self.rows += receipt.documents
        self.tokens += receipt.tokens
        self.bad += receipt.rows_quarantined

    def text(self) -> str:
        elapsed_s = max(time.monotonic() - self._started_s, 1e-9)
        aside = f", {self.bad:,} set aside" if self.bad else ""
        return f"{self.rows:,} rows, {self.tokens / elapsed_s:,.0f} tokens/s{aside}"


class _Bar:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("starting", total=None, rate="")
        self._where = ""
        self._meter = _Meter()

    def step(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def started(self, started: Started) -> None:
        self._meter = _Meter()
        self._where = f"on {started.replicas} x {started.device}"
        for left in started.left_out:
            self._progress.console.print(f"left out: {left.sentence()}", markup=False, highlight=False)
        for sentence in started.dialects:
            self._progress.console.print(f"read {sentence}", markup=False, highlight=False)
        self._progress.update(
            self._task,
            description=self._where,
            total=started.units,
            completed=started.units_done,
        )

    def finished_unit(self, receipt: Receipt) -> None:
        self._meter.add(receipt)
        self._progress.update(self._task, advance=1, rate=self._meter.text())

    def busy(self, encoders: int) -> None:
        self._progress.update(self._task, description=f"{self._where}, {encoders} busy")

    def failed_unit(self, unit: int, error: VectideError) -> None:
        self._progress.console.print(f"unit {unit}: {error}", markup=False, highlight=False)


class _Log:
    """Lines on stderr; at most one progress line in `LOG_EVERY_S`."""

    def __init__(self) -> None:
        self._units = 0
        self._done = 0
        self._said_s = 0.0
        self._busy = ""
        self._meter = _Meter()

    def step(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def started(self, started: Started) -> None:
        self._units, self._done = started.units, started.units_done
        self._meter = _Meter()
        for sentence in started.dialects:
            self.step(f"read {sentence}")
        about = "" if started.rows_exact else "about "
        for left in started.left_out:
            self.step(f"left out: {left.sentence()}")
        self.step(
            f"run {started.run}: {started.units} units, {about}{started.rows:,} rows; {started.units_done} units "
            f"were done before; on {started.replicas} x {started.device}"
        )

    def finished_unit(self, receipt: Receipt) -> None:
        self._meter.add(receipt)
        self._done += 1
        now_s = time.monotonic()
        if self._done == self._units or now_s - self._said_s >= LOG_EVERY_S:
            self._said_s = now_s
            self.step(f"{self._done}/{self._units} units, {self._meter.text()}{self._busy}")

    def busy(self, encoders: int) -> None:
        self._busy = f", {encoders} encoders busy"

    def failed_unit(self, unit: int, error: VectideError) -> None:
        self.step(f"unit {unit}: {error}")
