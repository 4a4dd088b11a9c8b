"""Lock of a table: one run at a time writes it, and the lock file names the owner.

Everything that writes a table holds the lock for the whole run. Two different runs of one table at once would each publish
the state that they listed, and the slower run would undo the faster one. So the second run is refused with the name of
the first.

    <table>/_vectide/lock/00000007.json    owner of the lock, or its last owner; the highest number is valid

A run takes the lock by an exclusive create of the next number. It may do so only if the highest number is free: it was
released, it was not renewed for longer than its `ttl_s`, or its process on this machine has ended. The highest number is
never deleted, so a run with an old listing finds the higher number and gives up its own. Only the owner rewrites its file.
Concurrent drivers of one run may all take the lock: they share its ledger and do no harm. A lock that is `alone` is refused
also to a second process of the run, if both are on one machine, where it is certain that the first one lives. On another
machine it may have died, and a resume there must not wait until its lock expires.

The trade-off: an owner that stalls for longer than `ttl_s` may continue beside a new owner. The lock avoids wasted runs; it
does not guarantee the content of the table. The checks of publish do.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from actors import storage
from actors.errors import StorageError, TableConflict
from pipeline.ledger.ledger import FOLDER

TTL_S = 600.0  # far more than the difference between clocks, and than an outage of a store
RENEWALS = 10  # renewals in that time
_NAME = re.compile(r"(\d{8})\.json$")
_TRIES = 20


@dataclass(frozen=True, slots=True)
class LockOwner:
    """Owner of a table lock, as its file has it.

    Attributes:
        run: Name of the run.
        what: The command, for messages.
        host: Name of its machine, for messages.
        pid: Number of its process, for messages and for checks from the same `place`.
        place: Boot id and process namespace of the machine, within which `pid` is unique.
        process: Start of the process in ticks since the boot, which tells it from a later one with the same number.
        since: Time when the lock was first taken, in seconds since the epoch.
        renewed: Time of the last renewal, in seconds since the epoch.
        ttl_s: Seconds without a renewal after which the lock has expired.
        released: Whether the lock was released.
        token: Random text, different for each owner.
    """

    run: str
    what: str
    host: str
    pid: int
    place: str
    process: str
    since: float
    renewed: float
    ttl_s: float
    released: bool
    token: str

    def is_alive(self, now: float) -> bool:
        """Return whether the owner still holds the lock at `now`, in seconds since the epoch."""
        ended = bool(self.place) and self.place == _place() and _start_of(self.pid) != self.process
        return not self.released and not ended and now - self.renewed <= self.ttl_s

    def describe(self, now: float) -> str:
        """Return the owner in words, for messages."""
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return (
            f"{self.what} (run {self.run}, host {self.host}, process {self.pid}, since {since}, last renewed "
            f"{max(0.0, now - self.renewed):.0f} s ago)"
        )


class TableLock:
    """Table lock of one process. Most callers use `lock_table`, which also renews it.

    Args:
        table: URL of the table.
        run: Name of the run.
        what: The command, for messages.
        alone: Whether another live process of the same run on this machine is refused, too.
        ttl_s: Seconds without a renewal after which other runs may take the lock.
        clock: Returns seconds since the epoch.
    """

    def __init__(
        self,
        table: str,
        run: str,
        *,
        what: str,
        alone: bool = False,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.table = table
        self.alone = alone
        self.clock = clock
        self.number = 0
        self._first = 0  # the number of the first `take`; another one means that the lock was lost in between
        self.lost: LockOwner | None = None
        self._folder = storage.join(table, FOLDER, "lock")
        now = clock()
        pid = os.getpid()
        place, token = _place(), secrets.token_hex(8)
        self.me = LockOwner(
            run, what, socket.gethostname(), pid, place, _start_of(pid), now, now, ttl_s, released=False, token=token
        )

    def take(self) -> None:
        """Take the lock.

        Raises:
            TableConflict: another run holds it, or with `alone` another process; the message names that run.
        """
        for _ in range(_TRIES):
            newest, owner = self._newest()
            if owner is not None and owner.is_alive(self.clock()) and self._is_refused_by(owner):
                raise TableConflict(self._refusal(owner))
            # With the token no two files are equal, so a retry in `create` can tell our own file from another's.
            self.me = replace(self.me, renewed=self.clock(), token=secrets.token_hex(8))
            if not storage.create(self._url(newest + 1), _json(self.me)):
                continue
            numbers = self._numbers()
            # Either our listing was old and that number had been used and deleted, or a concurrent driver of this run
            # took the next number and deleted ours while a local folder was listed.
            if not numbers or numbers[-1] != newest + 1:
                storage.delete(self._url(newest + 1))
                continue
            self.number, self.lost = newest + 1, None
            self._first = self._first or self.number
            for number in numbers[:-1]:
                storage.delete(self._url(number))
            return
        raise TableConflict(
            f"the lock of {self.table!r} changes owners faster than this run can take it; run the same command again"
        )

    def renew(self) -> None:
        """Renew the lock.

        Take it again if a concurrent driver of this run released it; set `lost` if another run holds it.
        """
        newest, owner = self._newest()
        if newest == self.number:
            self.me = replace(self.me, renewed=self.clock())
            storage.put(self._url(self.number), _json(self.me))
        elif owner is None or not owner.is_alive(self.clock()):
            with contextlib.suppress(TableConflict):  # another run was faster; the next renewal finds it
                self.take()
        elif self._is_refused_by(owner):
            self.lost = owner

    def check(self) -> None:
        """Check that no other run holds the lock now. Called right before publishing.

        Raises:
            TableConflict: another run does, because this process did not renew the lock in time.
        """
        self.renew()
        if self.lost is not None:
            raise TableConflict(
                f"this run did not renew its lock for more than {self.me.ttl_s:.0f} s, and {self.table!r} was taken by "
                f"{self.lost.describe(self.clock())}. Nothing was published, and finished units are kept: run the same "
                f"command again when that run has ended"
            )

    def check_unbroken(self) -> None:
        """Check that no other run held the lock since it was first taken. Called before files are removed.

        Raises:
            TableConflict: another run did.
        """
        self.check()
        if self.number != self._first:
            raise TableConflict(
                f"{self.table!r} was held by another run meanwhile, because this one did not renew its lock for more than "
                f"{self.me.ttl_s:.0f} s. Nothing was removed; run the same command again"
            )

    def release(self) -> None:
        """Release the lock; do nothing if it has another owner by now."""
        newest, _ = self._newest()
        if self.number and newest == self.number:
            self.me = replace(self.me, renewed=self.clock(), released=True)
            storage.put(self._url(self.number), _json(self.me))
        self.number = 0

    def live_owner(self) -> LockOwner | None:
        """Return the owner of the lock; None if the lock is free."""
        _, owner = self._newest()
        return owner if owner is not None and owner.is_alive(self.clock()) else None

    def _is_refused_by(self, owner: LockOwner) -> bool:
        """Return whether this process must not hold the lock beside a live owner."""
        me = self.me
        here = bool(me.place) and owner.place == me.place
        return owner.run != me.run or (self.alone and here and (owner.pid, owner.process) != (me.pid, me.process))

    def _url(self, number: int) -> str:
        return storage.join(self._folder, f"{number:08d}.json")

    def _numbers(self) -> list[int]:
        names = (_NAME.search(shard.path) for shard in storage.walk(self._folder))
        return sorted(int(name.group(1)) for name in names if name)

    def _newest(self) -> tuple[int, LockOwner | None]:
        """Return the highest number and its owner; 0 and None if the table was never locked."""
        for _ in range(_TRIES):
            numbers = self._numbers()
            if not numbers:
                return 0, None
            url = self._url(numbers[-1])
            try:
                return numbers[-1], LockOwner(**json.loads(storage.read(url)))
            except FileNotFoundError:  # another run took a higher number and deleted this one
                continue
            except (ValueError, TypeError):
                raise TableConflict(
                    f"{url!r} does not name an owner of the table lock. If nothing runs on the table, remove that file"
                ) from None
        raise TableConflict(f"the lock of {self.table!r} changes owners all the time; run the same command again")

    def _refusal(self, owner: LockOwner) -> str:
        if owner.run == self.me.run:
            return (
                f"{self.table!r} is held by {owner.describe(self.clock())}, which is the same run in another process. Two "
                f"at once would remove each other's files: wait for that process, or end it"
            )
        return (
            f"{self.table!r} is held by {owner.describe(self.clock())}. Two runs of one table at once would undo each "
            f"other: wait for that run, or end it. If it crashed, its lock expires {owner.ttl_s:.0f} s after the last "
            f"renewal"
        )


@contextlib.contextmanager
def lock_table(table: str, run: str, *, what: str, alone: bool = False, ttl_s: float = TTL_S) -> Iterator[TableLock]:
    """Hold the lock of a table during a run, and renew it from a thread.

    Args:
        table: URL of the table.
        run: Name of the run. A concurrent driver of the same run is not refused, unless `alone` is set.
        what: The command, for messages.
        alone: Whether another live process of the same run on this machine is refused, too.
        ttl_s: Seconds without a renewal after which other runs may take the lock.

    Yields:
        The lock; call its `check` right before publishing.

    Raises:
        TableConflict: another run holds the lock, or with `alone` another process.
    """
    lock = TableLock(table, run, what=what, alone=alone, ttl_s=ttl_s)
    lock.take()
    stopped = threading.Event()

    def renew_until_stopped() -> None:
        while not stopped.wait(ttl_s / RENEWALS):
            with contextlib.suppress(
                StorageError, TableConflict
            ):  # a store that stays unreachable fails the run anyway
                lock.renew()

    thread = threading.Thread(target=renew_until_stopped, name="vectide-lock", daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        stopped.set()
        thread.join()
        # A lock that is not released expires; an error here must not replace the run's own.
        with contextlib.suppress(StorageError, TableConflict):
            lock.release()


def _json(owner: LockOwner) -> bytes:
    return json.dumps(asdict(owner), indent=1).encode()


def _place() -> str:
    """Return the boot id and the process namespace, within which a process number is unique; empty if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """Return the start of a process in ticks since the boot; empty if there is no such process, or it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name, in brackets, may contain any character; the state is the first field after it, the start the 20th.
            fields = file.read().rpartition(")")[2].split()
            # A process that was killed stays, in state Z, until its parent asks for it.
            return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""
