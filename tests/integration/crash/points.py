"""The crash points of a command: every call that touches the store, and where in it the process is to stop.

Used in a process that was forked for one command (`zygote.py`). Three narrow places see every call: `storage.retried`,
through which all of actors/storage.py goes; `os.link` and `os.replace`, which put a finished temporary file in its place,
so that the moments between the two steps of a write on a local disk are points too; and the methods of deltalake that write
a log. Reads inside of deltalake are not seen: they change nothing, so a death there is one after the call before them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deltalake import DeltaTable

from actors import storage

BEFORE, AFTER = "before", "after"
Side = Literal["before", "after"]
# What `storage.retried` is told that it does, where that changes the store.
_CHANGES = ("write", "create", "delete", "link", "replace", "begin the log", "commit")
_LOG = {"create": "begin the log", "create_write_transaction": "commit"}


@dataclass(frozen=True, slots=True)
class Call:
    """One call that touches the store.

    Attributes:
        what: As `storage.retried` names it; or a step of it on a local disk; or a write of the log.
        place: The folder of the table's that it goes to, or the corpus.
    """

    number: int
    what: str
    place: str

    @property
    def changes(self) -> bool:
        """Whether it may change the store."""
        return self.what in _CHANGES


@dataclass(frozen=True, slots=True)
class Point:
    """Where a process is to stop, and how: dead, or standing still until somebody wakes it."""

    call: Call
    side: Side
    how: signal.Signals = signal.SIGKILL

    def __str__(self) -> str:
        return f"{self.side} call {self.call.number} ({self.call.what} in {self.call.place})"


def all_points(calls: list[Call]) -> list[Point]:
    """Both sides of every call."""
    return [Point(call, side) for call in calls for side in (BEFORE, AFTER)]  # type: ignore[arg-type]


def distinct_points(calls: list[Call]) -> list[Point]:
    """The points that leave another store than the one before them does: between two changes it stays as it is.

    The probe's objects are the same 64 times over, and nothing reads them later: its first and its last change stand for all.
    """
    changes = [call for call in calls if call.changes and not (call.what in ("write", "create"))]
    probes = [call for call in changes if call.place == "probes"]
    return [
        point
        for call in changes
        if call not in probes[1:-1]
        for point in ([Point(call, AFTER)] if call.what == "delete" else [Point(call, BEFORE), Point(call, AFTER)])
    ]


class Fuse:
    """Counts the calls of this process, and stops it at one of them."""

    def __init__(self, table: Path, point: Point | None) -> None:
        self.calls: list[Call] = []
        self._table = str(table)
        self._point = point
        self._lock = threading.Lock()

    def __call__(self, what: str, url: str, call: Callable[[], Any]) -> Any:
        """`call()`, unless this is where it ends."""
        with self._lock:
            number = len(self.calls)
            self.calls.append(Call(number, what, self._place(url)))
        self._stop(number, BEFORE)
        try:
            return call()
        finally:
            self._stop(number, AFTER)

    def _stop(self, number: int, side: str) -> None:
        if self._point is not None and (number, side) == (self._point.call.number, self._point.side):
            os.kill(os.getpid(), self._point.how)

    def _place(self, url: str) -> str:
        _, inside, below = url.partition(self._table)
        match below.strip("/").split("/"):
            case _ if not inside:
                return "the corpus"
            case ["_vectide", "runs", _, name, *_]:
                return f"the run's {name}"
            case ["_vectide", name, *_]:
                return name
            case [name, *_]:
                return name or "the table"
        raise AssertionError(url)

    def install(self) -> None:
        """Put it into the narrow places of this process, for good."""
        retried, link, replace = storage.retried, os.link, os.replace

        def retried_(url: str, what: str, call: Callable[[], Any]) -> Any:
            return self(what, url, lambda: retried(url, what, call))

        def link_(source: Any, target: Any, **more: Any) -> None:
            self("link", str(target), lambda: link(source, target, **more))

        def replace_(source: Any, target: Any, **more: Any) -> None:
            self("replace", str(target), lambda: replace(source, target, **more))

        storage.retried = retried_
        os.link, os.replace = link_, replace_  # type: ignore[assignment]
        for name, what in _LOG.items():
            setattr(DeltaTable, name, self._logged(what, getattr(DeltaTable, name)))

    def _logged(self, what: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            return self(what, f"{self._table}/_delta_log", lambda: method(*args, **more))

        return call
