"""The crash points of a command: every call that touches the store, and where in it the process is to stop.

Used in a process that was forked for one command (`zygote.py`). Three narrow places see every call: `storage.retried`,
through which all of actors/storage/__init__.py goes; `os.link` and `os.replace`, which put a finished temporary file in its place,
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

Side = Literal["before", "after"]
SIDES: tuple[Side, Side] = ("before", "after")
# The operations of `storage.retried` that change the store.
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
    return [Point(call, side) for call in calls for side in SIDES]


def distinct_points(calls: list[Call]) -> list[Point]:
    """The points that each leave another store: between two changes it stays as it is. An outer write or create is left
    out for the steps that it is made of."""
    steps = [call for call in calls if call.changes and call.what not in ("write", "create")]
    return [Point(call, side) for call in steps for side in SIDES if not (call.what == "delete" and side == "before")]


def one_of_a_kind(calls: list[Call]) -> list[Point]:
    """Of each kind of object the first one that is written or removed, right after it."""
    kinds = {
        (point.call.what, point.call.place): point
        for point in reversed(distinct_points(calls))
        if point.side == "after"
    }
    return list(reversed(kinds.values()))


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
        self._stop(number, "before")
        try:
            return call()
        finally:
            self._stop(number, "after")

    def _stop(self, number: int, side: Side) -> None:
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
