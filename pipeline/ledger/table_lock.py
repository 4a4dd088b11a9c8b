"""One run at a time on a table: a hold that names its holder.

Called around a whole run by everything that writes a table. Two different runs of one table at once would each publish
what it listed, and the slower one would undo the faster; so the second is refused with the name of the first.

    <table>/_vectide/lock/00000007.json    who holds the table, or held it last; the highest number is the one that counts

A number is taken by an exclusive create of the next one, and only where the highest is free: given back, silent for
longer than its `ttl_s`, or left by a process of this machine that is gone. The highest is never deleted, so whoever comes
late, with an old listing, finds that a higher one is there and steps back. Its file is rewritten by its holder alone.
The same run may always come in: two drivers of one run share its ledger and do no harm.

The trade-off: a holder that stalls for longer than `ttl_s` may wake up beside another. A hold spares people that surprise;
it is not what keeps a table whole. The checks of publish are.
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

TTL_S = 600.0  # far more than clocks of machines differ, and than a store is away
RENEWALS = 10  # signs of life in that time
_NAME = re.compile(r"(\d{8})\.json$")
_TRIES = 20


@dataclass(frozen=True, slots=True)
class LockOwner:
    """Who holds a table.

    Attributes:
        run: Name of the run.
        what: The command, for people.
        host: Name of its machine, for people.
        pid: Its process, for people, and for who looks from the same place.
        place: The boot of its machine and its process namespace: where `pid` means something.
        process: When the process was started, so that another one with the same number is not taken for it.
        since: Seconds since the epoch.
        beat: The last sign of life, in the same.
        ttl_s: After how many seconds without one the hold is void.
        released: Whether it was given back.
        token: Random: no two holders are the same.
    """

    run: str
    what: str
    host: str
    pid: int
    place: str
    process: str
    since: float
    renew: float
    ttl_s: float
    released: bool
    token: str

    def is_alive(self, now: float) -> bool:
        """Whether somebody is behind it."""
        gone = bool(self.place) and self.place == _place() and _start_of(self.pid) != self.process
        return not self.released and not gone and now - self.renew <= self.ttl_s

    def describe(self, now: float) -> str:
        """In words."""
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return (
            f"{self.what} (run {self.run}, host {self.host}, process {self.pid}, since {since}, last sign of life "
            f"{max(0.0, now - self.renew):.0f} s ago)"
        )


class TableLock:
    """One process's hold of a table: see the module, and `lock_table` for what most callers want.

    Args:
        table: URL of the table.
        run: Name of the run.
        what: The command, for people.
        ttl_s: After how many seconds without a sign of life others may take the table.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, table: str, run: str, *, what: str, ttl_s: float = TTL_S, clock: Callable[[], float] = time.time
    ) -> None:
        self.table = table
        self.clock = clock
        self.number = 0
        self._first = 0  # the number that it was taken with, before anybody could come between
        self.lost: LockOwner | None = None
        self._folder = storage.join(table, FOLDER, "lock")
        now = clock()
        pid = os.getpid()
        place, token = _place(), secrets.token_hex(8)
        self.me = LockOwner(
            run, what, socket.gethostname(), pid, place, _start_of(pid), now, now, ttl_s, released=False, token=token
        )

    def take(self) -> None:
        """Take the table.

        Raises:
            TableConflict: another run holds it; the message says who.
        """
        for _ in range(_TRIES):
            newest, holder = self._newest()
            if holder is not None and holder.run != self.me.run and holder.is_alive(self.clock()):
                raise TableConflict(self._refusal(holder))
            # The token makes the two bodies differ: `create` tells our own lost answer from somebody else's file.
            self.me = replace(self.me, renew=self.clock(), token=secrets.token_hex(8))
            if not storage.create(self._url(newest + 1), _json(self.me)):
                continue
            numbers = self._numbers()
            # Our listing was old and that number had come and gone; or a sister came after us and cleared ours away,
            # between the listing of a local folder and the look at what it named.
            if not numbers or numbers[-1] != newest + 1:
                storage.delete(self._url(newest + 1))
                continue
            self.number, self.lost = newest + 1, None
            self._first = self._first or self.number
            for number in numbers[:-1]:
                storage.delete(self._url(number))
            return
        raise TableConflict(
            f"{self.table!r} changes hands faster than this run can take it; run the same command again"
        )

    def renew(self) -> None:
        """Give a sign of life; take the table again where a sister of this run gave it back; see whether it was lost."""
        newest, holder = self._newest()
        if newest == self.number:
            self.me = replace(self.me, renew=self.clock())
            storage.put(self._url(self.number), _json(self.me))
        elif holder is None or not holder.is_alive(self.clock()):
            with contextlib.suppress(TableConflict):  # somebody was faster: the next look finds who
                self.take()
        elif holder.run != self.me.run:
            self.lost = holder

    def check(self) -> None:
        """Make sure, right before publishing, that no other run holds the table now.

        Raises:
            TableConflict: one does, because this process gave no sign of life for too long.
        """
        self.renew()
        if self.lost is not None:
            raise TableConflict(
                f"this run gave no sign of life for more than {self.me.ttl_s:.0f} s, and {self.table!r} was taken by "
                f"{self.lost.describe(self.clock())}. Nothing was published; what is finished is kept: run the same "
                f"command again when that one has ended"
            )

    def check_unbroken(self) -> None:
        """Make sure that no other run held the table since it was taken, for who has looked and is about to remove.

        Raises:
            TableConflict: one did.
        """
        self.check()
        if self.number != self._first:
            raise TableConflict(
                f"{self.table!r} was held by another run meanwhile, because this one gave no sign of life for more than "
                f"{self.me.ttl_s:.0f} s. Nothing was removed; run the same command again"
            )

    def release(self) -> None:
        """Give the table back; a hold that is not the current one any more is left alone."""
        newest, _ = self._newest()
        if self.number and newest == self.number:
            self.me = replace(self.me, renew=self.clock(), released=True)
            storage.put(self._url(self.number), _json(self.me))
        self.number = 0

    def _url(self, number: int) -> str:
        return storage.join(self._folder, f"{number:08d}.json")

    def _numbers(self) -> list[int]:
        names = (_NAME.search(shard.path) for shard in storage.walk(self._folder))
        return sorted(int(name.group(1)) for name in names if name)

    def _newest(self) -> tuple[int, LockOwner | None]:
        """The number that counts, and who is behind it; 0 and None where there never was one."""
        for _ in range(_TRIES):
            numbers = self._numbers()
            if not numbers:
                return 0, None
            url = self._url(numbers[-1])
            try:
                return numbers[-1], LockOwner(**json.loads(storage.read(url)))
            except FileNotFoundError:  # a higher one came meanwhile, and this one was cleared away
                continue
            except (ValueError, TypeError):
                raise TableConflict(
                    f"{url!r} does not say who holds the table. If nothing runs on it, remove that file"
                ) from None
        raise TableConflict(f"{self.table!r} changes hands all the time; run the same command again")

    def _refusal(self, holder: LockOwner) -> str:
        return (
            f"{self.table!r} is held by {holder.describe(self.clock())}. Two runs of one table at once would undo each "
            f"other: wait for that one, or end it. Where it died without a word, its hold ends {holder.ttl_s:.0f} s after "
            f"its last sign of life"
        )


@contextlib.contextmanager
def lock_table(table: str, run: str, *, what: str, ttl_s: float = TTL_S) -> Iterator[TableLock]:
    """Hold a table while a run goes on, with signs of life from a thread.

    Args:
        table: URL of the table.
        run: Name of the run. The same run is never refused.
        what: The command, for people.
        ttl_s: After how many seconds without a sign of life others may take the table.

    Yields:
        The hold, whose `check` belongs right before publishing.

    Raises:
        TableConflict: another run holds the table.
    """
    lock = TableLock(table, run, what=what, ttl_s=ttl_s)
    lock.take()
    over = threading.Event()

    def live() -> None:
        while not over.wait(ttl_s / RENEWALS):
            with contextlib.suppress(StorageError, TableConflict):  # a store that is away ends the run by itself
                lock.renew()

    thread = threading.Thread(target=live, name="vectide-lock", daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(
            StorageError, TableConflict
        ):  # else it ends by its time; the run's own error matters more
            lock.release()


def _json(holder: LockOwner) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


def _place() -> str:
    """Where a process number means something: this boot and this process namespace; empty where nobody says."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process was started, in ticks since the boot; empty where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name, in brackets, may hold anything; the start is the 20th field behind it.
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
