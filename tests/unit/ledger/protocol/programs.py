"""Models of a driver and of a vacuum: their calls to the store, in the order of the code.

The code is pipeline/run/backfill.py, pipeline/ledger/ledger.py, pipeline/ledger/table_lock.py, and in pipeline/table
transaction.py, commit.py and vacuum.py. Each stage is a generator that yields its calls and returns the next stage. The explorer answers the
calls and may run other programs between two of them. Left out are retries, the probe, the quarantine (it belongs to the
receipt), and deleted numbers of the lock, which tests/unit/ledger/test_table_lock.py tests. A corpus of three rows is cut
into two units; each driver cuts it differently, as two machines of different sizes would.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

Path = tuple[Any, ...]


class Call(NamedTuple):
    """One call to the store, or the question whether the owner of a lock is alive."""

    what: str
    path: Path
    value: Any = None


class End(NamedTuple):
    """End of a program, with its outcome."""

    outcome: str


ORPHAN = End("a worker whose driver crashed has ended")


class Stage(NamedTuple):
    """Stage that a program continues with."""

    name: str
    args: tuple[Any, ...]


Steps = Generator[Call, Any, "Stage | End"]


class Run(NamedTuple):
    """Run, named by the content that it would produce and by the run of the version that it replaces."""

    content: str
    base: Run | None


class File(NamedTuple):
    """Data file of an attempt."""

    run: Run
    unit: int
    attempt: str
    rows: tuple[int, ...]


class Frozen(NamedTuple):
    """Content of run.json: the place of the plan's tables, and the number of rows of each unit."""

    tables: Path
    units: tuple[int, ...]


class LockFile(NamedTuple):
    """Lock file with the highest number."""

    number: int
    process: Process
    run: Run | None
    released: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """Behaviour of the store and of the code.

    Attributes:
        weak: Objects whose create is not exclusive: of "plan", "receipt", "log".
        how: Behaviour of a weak create: "overwrite", or "look" for the object and then write.
        lock_first: Whether a driver checks the lock before the files.
        unbroken: Whether a vacuum removes nothing if another run lock the lock in between.
        keep: Whether a vacuum keeps files that may still be written, which are young; the default.
    """

    weak: frozenset[str] = frozenset()
    how: str = "overwrite"
    lock_first: bool = True
    unbroken: bool = True
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Process:
    """Process of a driver or a vacuum; a new one after each crash.

    Attributes:
        cut: Way to cut the corpus: 0 or 1.
    """

    name: str
    life: int
    content: str
    cut: int
    rules: Rules

    @property
    def begins(self) -> str:
        """Name of the first stage."""
        return "start" if self.content in ROWS else "vacuum"

    @property
    def attempt(self) -> str:
        """Name that no other process has."""
        return f"{self.name}{self.life}"


# Rows of each content.
ROWS = {"x": (1, 2, 3), "y": (4, 5, 6)}


def cut_of(process: Process) -> tuple[tuple[int, ...], ...]:
    rows = ROWS[process.content]
    return (rows[:1], rows[1:]) if process.cut == 0 else (rows[:2], rows[2:])


def create(process: Process, path: Path, value: Any) -> Generator[Call, Any, bool]:
    """Create an object exclusively, or not exclusively in a weak store."""
    if path[0] not in process.rules.weak:
        return bool((yield Call("create", path, value)))
    if process.rules.how == "look" and (yield Call("read", path)) is not None:
        return False
    yield Call("put", path, value)
    return True


def last(versions: dict[Path, Any]) -> tuple[int, Run | None]:
    """Return the newest version and its run; -1 and None if there is no table."""
    number = max((path[1] for path in versions), default=-1)
    return number, versions["log", number][0] if number >= 0 else None


# The driver ---------------------------------------------------------------------------------------------------------------


def start(process: Process) -> Steps:
    """Model `begin` and `Runner.run`."""
    _, base = last((yield Call("list", ("log",))))
    if base is not None and base.content == process.content:
        return End("nothing to do")
    run = Run(process.content, base)
    return Stage("take", (process, run, Stage("check_base", (process, run))))


def take(process: Process, run: Run | None, then: Stage) -> Steps:
    """Model `TableLock.take`; a vacuum is a run of its own."""
    lock = yield Call("read", ("lock",))
    if (
        lock is not None
        and not lock.released
        and (run is None or lock.run != run)
        and (yield Call("alive", (), lock.process))
    ):
        return End("refused")
    return Stage("swap", (process, run, 0 if lock is None else lock.number, then))


def swap(process: Process, run: Run | None, number: int, then: Stage) -> Steps:
    """Model the exclusive create of the number after the highest."""
    if (yield Call("swap", ("lock",), (number, LockFile(number + 1, process, run, released=False)))):
        return then
    return Stage("take", (process, run, then))


def check_base(process: Process, run: Run) -> Steps:
    """Compare the version with the one read before the lock was taken."""
    _, current = last((yield Call("list", ("log",))))
    return Stage("plan", (process, run)) if current == run.base else Stage("release", (process, "conflict"))


def plan(process: Process, run: Run) -> Steps:
    """Look for a plan that exists already."""
    place = yield Call("read", ("plan", run))
    return Stage("freeze", (process, run)) if place is None else Stage("resume", (process, run, place))


def freeze(process: Process, run: Run) -> Steps:
    """Model `Ledger.freeze`. A driver that found no plan does not list receipts either."""
    mine = ("tables", run, process.attempt)
    yield Call("put", mine, cut_of(process))
    yield from create(process, ("plan", run), Frozen(mine, tuple(map(len, cut_of(process)))))
    place = yield Call("read", ("plan", run))
    cut = yield Call("read", place.tables)
    return write_rest(process, run, cut, frozenset())


def resume(process: Process, run: Run, place: Frozen) -> Steps:
    """Read the existing plan and list its finished units."""
    done = frozenset(path[2] for path in (yield Call("list", ("receipt", run))))
    cut = yield Call("read", place.tables)
    return write_rest(process, run, cut, done)


def write_rest(process: Process, run: Run, cut: tuple[tuple[int, ...], ...], done: frozenset[int]) -> Stage:
    """Return the stage that writes the first unit without a receipt, or that publishes."""
    for number, rows in enumerate(cut):
        if number not in done:
            then = write_rest(process, run, cut, done | {number})
            return Stage("write_unit", (process, File(run, number, process.attempt, rows), then))
    return Stage("account", (process, run, len(cut)))


def write_unit(process: Process, file: File, then: Stage | End) -> Steps:
    """Model `write_unit` of actors/unit/writer.py: files, then the receipt; an attempt that loses removes its files."""
    yield Call("put", ("data", file), True)
    if not (yield from create(process, ("receipt", file.run, file.unit), file)):
        yield Call("delete", ("data", file))
    return then


def account(process: Process, run: Run, units: int) -> Steps:
    """Model `_publish`, which reads and checks the receipts."""
    receipts = yield Call("list", ("receipt", run))
    if len(receipts) != units:
        return Stage("release", (process, "receipts are gone"))
    files = frozenset(receipts.values())
    commit = Stage("commit", (process, run, files))
    if process.rules.lock_first:
        return Stage("check_lock", (process, run, Stage("check_files", (process, files, commit))))
    return Stage("check_files", (process, files, Stage("check_lock", (process, run, commit))))


def check_files(process: Process, files: frozenset[File], then: Stage) -> Steps:
    """Check that every file that a receipt names exists."""
    existing = {path[1] for path in (yield Call("list", ("data",)))}
    return then if files <= existing else Stage("release", (process, "files are missing"))


def check_lock(process: Process, run: Run, then: Stage) -> Steps:
    """Model `TableLock.check`: a lock that was released meanwhile is taken again."""
    lock = yield Call("read", ("lock",))
    if lock.process == process:
        return then
    if lock.released or not (yield Call("alive", (), lock.process)):
        return Stage("swap", (process, run, lock.number, then))
    return then if lock.run == run else End("lock was lost")


def commit(process: Process, run: Run, files: frozenset[File]) -> Steps:
    """Model the commit of a version."""
    versions = yield Call("list", ("log",))
    number, current = last(versions)
    if run in {made for made, _ in versions.values()}:
        return Stage("release", (process, "published"))
    if number < 0:
        return Stage("begin_log", (process, run, files))
    if current != run.base:
        return Stage("release", (process, "conflict"))
    return Stage("append", (process, run, files, number + 1))


def begin_log(process: Process, run: Run, files: frozenset[File]) -> Steps:
    """Create an empty version 0, unless it exists."""
    yield from create(process, ("log", 0), (None, frozenset()))
    return Stage("commit", (process, run, files))


def append(process: Process, run: Run, files: frozenset[File], number: int) -> Steps:
    """Create the next version; if it exists, look whether a concurrent driver of this run created it."""
    if not (yield from create(process, ("log", number), (run, files))):
        versions = yield Call("list", ("log",))
        if run not in {made for made, _ in versions.values()}:
            return Stage("release", (process, "conflict"))
    return Stage("release", (process, "published"))


def release(process: Process, outcome: str) -> Steps:
    """Model `TableLock.release`."""
    lock = yield Call("read", ("lock",))
    if lock.process == process:
        yield Call("swap", ("lock",), (lock.number, lock._replace(released=True)))
    return End(outcome)


# The vacuum ---------------------------------------------------------------------------------------------------------------


def vacuum(process: Process) -> Steps:
    """Model a `vacuum` that keeps no file for its age, the hardest case.

    It removes only files that existed when it began; younger files are kept.
    """
    yield from ()
    return Stage("take", (process, None, Stage("read_version", (process,))))


def read_version(process: Process) -> Steps:
    """Read the newest version."""
    versions = yield Call("list", ("log",))
    number, _ = last(versions)
    needed = versions["log", number][1] if number >= 0 else frozenset()
    return Stage("list_files", (process, needed, frozenset(made for made, _ in versions.values())))


def list_files(process: Process, needed: frozenset[File], published: frozenset[Run | None]) -> Steps:
    """Read the store's clock, which tells the old files from those that are written from now on."""
    data = frozenset(path[1] for path in (yield Call("list", ("data",))))
    if process.rules.keep:
        writing = yield Call("writing", ())
        data = frozenset(file for file in data if file.attempt not in writing)
    return Stage("find_unneeded", (process, needed, published, data))


def find_unneeded(
    process: Process, needed: frozenset[File], published: frozenset[Run | None], data: frozenset[File]
) -> Steps:
    """Find the files that neither the version nor a receipt of an unfinished run names."""
    receipts = yield Call("list", ("receipt",))
    needed |= {file for path, file in receipts.items() if path[1] not in published}
    return Stage("check_unbroken", (process, tuple(sorted(data - needed, key=str))))


def check_unbroken(process: Process, files: tuple[File, ...]) -> Steps:
    """Model `TableLock.check_unbroken`: no other run lock the lock in between."""
    lock = yield Call("read", ("lock",))
    if process.rules.unbroken and lock.process != process:
        return End("lock was lost")
    return Stage("remove", (process, files))


def remove(process: Process, files: tuple[File, ...]) -> Steps:
    """Remove one file after the other."""
    if not files:
        return Stage("release", (process, "vacuumed"))
    yield Call("delete", ("data", files[0]))
    return Stage("remove", (process, files[1:]))


STAGES = {
    stage.__name__: stage
    for stage in (
        *(start, take, swap, check_base, plan, freeze, resume, write_unit, account, check_files, check_lock),
        *(commit, begin_log, append, release, vacuum, read_version, list_files, find_unneeded, check_unbroken, remove),
    )
}
