"""Writes `report.json` into the ledger of a run: when its units start, and when the call ends, however it ends.

    with recorded(ledger, reporter, "backfill", command) as record:
        ...                                  # `record` is the reporter of the run
        return record.ended(outcome)

Used by everything that runs units. A run may take several calls: after a crash the same command continues it. Each call
adds itself to the list of calls; all other figures are measured from the ledger again (`measure`). A report that cannot be
written is announced and never fails a run. The trade-off: of two drivers of one run that end in the same moment, one may
remove the other's call from the list.
"""

from __future__ import annotations

import json
import secrets
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version

from actors import storage
from actors.errors import GateClosed, StorageError, UnsafeStore, VectideError
from actors.unit.receipt import Receipt
from pipeline.execute.progress import Outcome, Reporter, Started
from pipeline.ledger.ledger import Ledger
from pipeline.report.measure import FORMAT, Call, Report, measure, time_text

NAME = "report.json"
_MOST_FAILED_UNITS = 20


def read_stored(ledger: Ledger) -> Report | None:
    """Return the report that is stored in a ledger; None if there is none."""
    try:
        document: Report = json.loads(storage.read(storage.join(ledger.url, NAME)))
    except FileNotFoundError:
        return None
    return document


@contextmanager
def recorded(
    ledger: Ledger, reporter: Reporter, operation: str, command: str, measured: Callable[[], Report] | None = None
) -> Iterator[Recorder]:
    """Record one call of a run, and write its report at the end.

    Args:
        ledger: The run.
        reporter: Receives what the recorder receives.
        operation: backfill, refresh, generation, compact, or the name of another command.
        command: Command line that repeats the run.
        measured: Returns the other figures of the report; None: they are measured from the ledger.
    """
    recorder = Recorder(ledger, reporter, operation, command, measured)
    try:
        yield recorder
    except UnsafeStore:  # nothing is written to such a store
        raise
    except BaseException as error:
        recorder.stopped(error)
        raise
    recorder.write()


class Recorder:
    """A reporter that remembers one call for the report and passes everything on."""

    def __init__(
        self,
        ledger: Ledger,
        reporter: Reporter,
        operation: str,
        command: str,
        measured: Callable[[], Report] | None = None,
    ) -> None:
        self._ledger = ledger
        self._measured = measured or (lambda: measure(ledger, self._calls()))
        self._reporter = reporter
        self._step: tuple[str, float] | None = None
        self._earlier: Report = {}
        self._call: Call = {
            "id": secrets.token_hex(6),
            "host": socket.gethostname(),
            "started": time_text(time.time()),
            "units_started": None,
            "units_ended": None,
            "ended": None,
            "end": "running",
            "error": None,
            "units_before": None,
            "replicas": None,
            "device": None,
            "crashes": None,
            "failed_units": [],
            "steps": [],
        }
        self._report: Report = {
            "format": FORMAT,
            "vectide": _release(),
            "table": ledger.table_url,
            "run": ledger.run,
            "operation": operation,
            "command": command,
            "version": None,
            "state": "running",
            "checks": [],
        }

    # A reporter ---------------------------------------------------------------------------------------------------------

    def step(self, text: str) -> None:
        """See `Reporter`."""
        self._next_step(text)
        self._reporter.step(text)

    def started(self, started: Started) -> None:
        """See `Reporter`. Writes the report, so that a call whose process is killed is in it."""
        self._call |= {
            "units_before": started.units_done,
            "replicas": started.replicas,
            "device": started.device,
        }
        self._report |= {
            "left_out": [left_out.sentence() for left_out in started.left_out],
            "dialects": list(started.dialects),
        }
        self.works("running the units")
        self._reporter.started(started)

    def works(self, step: str) -> None:
        """Report that the work begins that a later call would go on with, and write the report."""
        self._next_step(step)
        self._call["units_started"] = time_text(time.time())
        self._read()
        self._store({})

    def finished_unit(self, receipt: Receipt) -> None:
        """See `Reporter`."""
        self._reporter.finished_unit(receipt)

    def busy(self, encoders: int) -> None:
        """See `Reporter`."""
        self._reporter.busy(encoders)

    def failed_unit(self, unit: int, error: VectideError) -> None:
        """See `Reporter`."""
        if len(self._call["failed_units"]) < _MOST_FAILED_UNITS:
            self._call["failed_units"].append({"unit": unit, "error": str(error)})
        self._reporter.failed_unit(unit, error)

    def _next_step(self, name: str | None) -> None:
        now_s = time.time()
        if self._step is not None:
            self._call["steps"].append({"name": self._step[0], "seconds": round(now_s - self._step[1], 3)})
        if self._call["units_started"] is not None and self._call["units_ended"] is None:
            self._call["units_ended"] = time_text(now_s)
        self._step = None if name is None else (name, now_s)

    # The end --------------------------------------------------------------------------------------------------------------

    def ended(self, outcome: Outcome) -> Outcome:
        """Take over how the call ended, and return the outcome."""
        self._call |= {"end": "staged" if outcome.staged else "published", "crashes": outcome.deaths}
        self._report |= {"version": None if outcome.staged else outcome.version, "checks": list(outcome.checks)}
        self._report["figures"] = dict(outcome.figures)
        return outcome

    def stopped(self, error: BaseException) -> None:
        """Write the report of a call that an error or a signal ended."""
        if isinstance(error, Exception):
            text = str(error) if isinstance(error, VectideError) else f"{type(error).__name__}: {error}".rstrip(": ")
            self._call |= {"end": "failed", "error": text}
            if isinstance(error, GateClosed):
                self._report["figures"] = error.figures
        else:
            self._call["end"] = "interrupted"
            self._reporter.step("stopping: writing the report of the run")
        # Each request to a store that has just failed may take half a minute.
        self.write(reads=not isinstance(error, StorageError))
        if self._call["units_started"] is not None:
            options = ["--run", self._ledger.run, "--out", "report.html"]
            shown = shlex.join(["vectide", "report", self._ledger.table_url, *options])
            self._reporter.step(f"to see how far the run came: {shown}")

    def write(self, *, reads: bool = True) -> None:
        """Write the report of a call that has ended. A failure is announced only: the run itself is what counts.

        Args:
            reads: Whether to measure the run. If not, `vectide report` does it later.
        """
        self._next_step(None)
        if self._call["end"] == "running":
            self._call["end"] = "finished"
        self._call["ended"] = time_text(time.time())
        self._report["state"] = self._call["end"]
        measured: Report = {}
        if reads:
            self._read()
            try:
                measured = self._measured()
            except Exception as error:  # noqa: BLE001  (the run has its result, or an error of its own)
                self._reporter.step(f"the run could not be measured for its report: {error}")
            self._read()  # measuring took a while, and a concurrent driver may have ended
        self._store(measured)

    def _read(self) -> None:
        """Read what earlier calls have stored. A report that cannot be read is replaced."""
        with suppress(VectideError, ValueError):
            self._earlier = read_stored(self._ledger) or {}

    def _calls(self) -> list[Call]:
        """Return the calls that are stored, and this one."""
        others = [call for call in self._earlier.get("calls", ()) if call["id"] != self._call["id"]]
        return sorted([*others, self._call], key=lambda call: str(call["started"]))

    def _store(self, measured: Report) -> None:
        """Write the report. What was found at the start of the units stays that of an earlier call, if this one ran none."""
        found = {name: self._earlier.get(name, []) for name in ("left_out", "dialects")}
        report = {**found, **self._report, **measured, "calls": self._calls()}
        try:
            storage.put(storage.join(self._ledger.url, NAME), json.dumps(report, indent=1).encode())
        except VectideError as error:
            self._reporter.step(f"the report of the run could not be written: {error}")


def _release() -> str | None:
    """Return the version of the installed package; None if it is not installed."""
    try:
        return version("vectide")
    except PackageNotFoundError:
        return None
