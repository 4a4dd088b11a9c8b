"""Progress of a run on stderr: a live bar on a terminal, a line every few seconds in a log.

Used by the commands that write a table. The bar is drawn by rich, which Ray already depends on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

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
from jobs.terminal import visible
from pipeline.execute.progress import Reporter, Started

LOG_EVERY_S = 10.0


@contextlib.contextmanager
def reporter() -> Iterator[Reporter]:
    """Yield a reporter for a terminal, or for a log if stderr is not one."""
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


@contextlib.contextmanager
def rows_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that draws a bar of rows that are done, of all rows; it draws nothing if stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextlib.contextmanager
def steps_bar() -> Iterator[StepsBar | StepsLog]:
    """Yield the progress of a training for a terminal, or for a log if stderr is not one."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield StepsLog()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps  {task.fields[loss]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield StepsBar(progress)


class StepsBar:
    """Live bar of the steps of a training."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("starting", total=None, loss="")

    def step(self, text: str) -> None:
        """Show a part of the work, and keep the line of each."""
        self._progress.console.print(text, markup=False, highlight=False)
        self._progress.update(self._task, description="training")

    def trained(self, step: int, steps: int, loss: float, source: str) -> None:
        """Show the last step."""
        self._progress.update(self._task, total=steps, completed=step, loss=_loss(loss, source))


class StepsLog:
    """Lines on stderr, with at most one about the steps every `LOG_EVERY_S` seconds."""

    def __init__(self) -> None:
        self._logged_s = 0.0

    def step(self, text: str) -> None:
        """Print a part of the work."""
        print(text, file=sys.stderr, flush=True)

    def trained(self, step: int, steps: int, loss: float, source: str) -> None:
        """Print the last step."""
        now_s = time.monotonic()
        if step == steps or now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            self.step(f"step {step:,} of {steps:,}, {_loss(loss, source)}")


def _loss(loss: float, source: str) -> str:
    """Return a loss as words, with the source if it has a name: losses of different sources are not of one size."""
    return f"{visible(source)}: loss {loss:.4f}" if source else f"loss {loss:.4f}"


class _Throughput:
    """Counts of rows and tokens since the run began."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self.rows = 0
        self.tokens = 0
        self.rows_quarantined = 0

    def add(self, receipt: Receipt) -> None:
        self.rows += receipt.documents
        self.tokens += receipt.tokens
        self.rows_quarantined += receipt.rows_quarantined

    def text(self) -> str:
        elapsed_s = max(time.monotonic() - self._started_s, 1e-9)
        quarantined = f", {self.rows_quarantined:,} quarantined" if self.rows_quarantined else ""
        rate = f"{self.tokens / elapsed_s:,.0f} tokens/s" if self.tokens else f"{self.rows / elapsed_s:,.0f} rows/s"
        return f"{self.rows:,} rows, {rate}{quarantined}"


class _Bar:
    """Live progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("starting", total=None, rate="")
        self._placement = ""
        self._throughput = _Throughput()

    def step(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def started(self, started: Started) -> None:
        self._throughput = _Throughput()
        self._placement = f"on {started.replicas} x {started.device}"
        for left_out in started.left_out:
            self._progress.console.print(f"left out: {left_out.sentence()}", markup=False, highlight=False)
        for sentence in started.dialects:
            self._progress.console.print(f"read {sentence}", markup=False, highlight=False)
        self._progress.update(
            self._task,
            description=self._placement,
            total=started.units,
            completed=started.units_done,
        )

    def finished_unit(self, receipt: Receipt) -> None:
        self._throughput.add(receipt)
        self._progress.update(self._task, advance=1, rate=self._throughput.text())

    def busy(self, encoders: int) -> None:
        self._progress.update(self._task, description=f"{self._placement}, {encoders} busy")

    def failed_unit(self, unit: int, error: VectideError) -> None:
        self._progress.console.print(f"unit {unit}: {error}", markup=False, highlight=False)


class _Log:
    """Lines on stderr, with at most one progress line every `LOG_EVERY_S` seconds."""

    def __init__(self) -> None:
        self._units = 0
        self._done = 0
        self._logged_s = 0.0
        self._busy = ""
        self._throughput = _Throughput()

    def step(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def started(self, started: Started) -> None:
        self._units, self._done = started.units, started.units_done
        self._throughput = _Throughput()
        for sentence in started.dialects:
            self.step(f"read {sentence}")
        about = "" if started.rows_exact else "about "
        for left_out in started.left_out:
            self.step(f"left out: {left_out.sentence()}")
        self.step(
            f"run {started.run}: {started.units} units, {about}{started.rows:,} rows; {started.units_done} units "
            f"are already done; on {started.replicas} x {started.device}"
        )

    def finished_unit(self, receipt: Receipt) -> None:
        self._throughput.add(receipt)
        self._done += 1
        now_s = time.monotonic()
        if self._done == self._units or now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            self.step(f"{self._done}/{self._units} units, {self._throughput.text()}{self._busy}")

    def busy(self, encoders: int) -> None:
        self._busy = f", {encoders} encoders busy"

    def failed_unit(self, unit: int, error: VectideError) -> None:
        self.step(f"unit {unit}: {error}")
