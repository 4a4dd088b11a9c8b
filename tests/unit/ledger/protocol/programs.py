"""What drivers and a vacuum do to the store, step by step, as pipeline/run/backfill.py, ledger.py, hold.py, publish.py and vacuum.py do it.

Each stage is a generator that yields the calls it makes and returns the stage after it. The explorer answers the calls, and may
do anything else between two of them. What is left out: retries, the probe, quarantine (it travels with the receipt), and the
numbers of a hold that were cleared away, which tests/unit/ledger/test_table_lock.py has. A corpus of three rows is cut into two units;
each driver cuts it differently, as two machines of other sizes would.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

Path = tuple[Any, ...]


class Call(NamedTuple):
    """One call of the store, or the question whether a holder lives."""

    what: str
    path: Path
    value: Any = None


class End(NamedTuple):
    """How a program ended."""

    outcome: str


ORPHAN = End("a worker whose driver died has ended")


class Stage(NamedTuple):
    """Where a program goes on."""

    name: str
    args: tuple[Any, ...]


Steps = Generator[Call, Any, "Stage | End"]


class Run(NamedTuple):
    """A run is named by what it would produce, and by the run that its version was made by."""

    content: str
    base: Run | None


class File(NamedTuple):
    """A data file of an attempt."""

    run: Run
    unit: int
    attempt: str
    rows: tuple[int, ...]


class Frozen(NamedTuple):
    """What run.json says: where the tables of the plan are, and how many rows its units have."""

    tables: Path
    units: tuple[int, ...]


class Held(NamedTuple):
    """The hold that counts."""

    number: int
    who: Who
    run: Run | None
    released: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """How the store and the code behave.

    Attributes:
        weak: Which exclusive creates are not: of "plan", "receipt", "log".
        how: What a weak create does: "overwrite", or "look" first and write then.
        hold_first: A driver checks the hold before the files.
        unbroken: A vacuum removes nothing where its hold was not its own all the time.
        keep: A vacuum leaves alone what somebody may still be writing: the default, as such a file is young.
    """

    weak: frozenset[str] = frozenset()
    how: str = "overwrite"
    hold_first: bool = True
    unbroken: bool = True
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Who:
    """One process of a driver: a new one after each crash.

    Attributes:
        cut: How it cuts the corpus: 0 or 1.
    """

    name: str
    life: int
    content: str
    cut: int
    rules: Rules

    @property
    def begins(self) -> str:
        """The stage that it begins with."""
        return "start" if self.content in ROWS else "vacuum"

    @property
    def attempt(self) -> str:
        """A name that no other process has."""
        return f"{self.name}{self.life}"


# Rows of each content, and how each driver cuts them into two units.
ROWS = {"x": (1, 2, 3), "y": (4, 5, 6)}


def cut_of(who: Who) -> tuple[tuple[int, ...], ...]:
    rows = ROWS[who.content]
    return (rows[:1], rows[1:]) if who.cut == 0 else (rows[:2], rows[2:])


def create(who: Who, path: Path, value: Any) -> Generator[Call, Any, bool]:
    """An exclusive create; of a weak store something that looks like one."""
    if path[0] not in who.rules.weak:
        return bool((yield Call("create", path, value)))
    if who.rules.how == "look" and (yield Call("read", path)) is not None:
        return False
    yield Call("put", path, value)
    return True


def last(versions: dict[Path, Any]) -> tuple[int, Run | None]:
    """The newest version, and whose it is; -1 where there is no table."""
    number = max((path[1] for path in versions), default=-1)
    return number, versions["log", number][0] if number >= 0 else None


# The driver ---------------------------------------------------------------------------------------------------------------


def start(who: Who) -> Steps:
    """`begin` and `Runner.run`."""
    _, base = last((yield Call("list", ("log",))))
    if base is not None and base.content == who.content:
        return End("nothing to do")
    run = Run(who.content, base)
    return Stage("take", (who, run, Stage("check_base", (who, run))))


def take(who: Who, run: Run | None, then: Stage) -> Steps:
    """`TableLock.take`; a vacuum is a run of its own."""
    held = yield Call("read", ("lock",))
    if (
        held is not None
        and not held.released
        and (run is None or held.run != run)
        and (yield Call("alive", (), held.who))
    ):
        return End("refused")
    return Stage("swap", (who, run, 0 if held is None else held.number, then))


def swap(who: Who, run: Run | None, number: int, then: Stage) -> Steps:
    """The exclusive create of the number after the highest."""
    if (yield Call("swap", ("lock",), (number, Held(number + 1, who, run, released=False)))):
        return then
    return Stage("take", (who, run, then))


def check_base(who: Who, run: Run) -> Steps:
    """The table was read before it was held."""
    _, current = last((yield Call("list", ("log",))))
    return Stage("plan", (who, run)) if current == run.base else Stage("release", (who, "conflict"))


def plan(who: Who, run: Run) -> Steps:
    """The plan that is there already."""
    place = yield Call("read", ("plan", run))
    return Stage("freeze", (who, run)) if place is None else Stage("resume", (who, run, place))


def freeze(who: Who, run: Run) -> Steps:
    """`Ledger.freeze`. Who had no plan to begin with does not ask for receipts either."""
    mine = ("tables", run, who.attempt)
    yield Call("put", mine, cut_of(who))
    yield from create(who, ("plan", run), Frozen(mine, tuple(map(len, cut_of(who)))))
    place = yield Call("read", ("plan", run))
    cut = yield Call("read", place.tables)
    return write_rest(who, run, cut, frozenset())


def resume(who: Who, run: Run, place: Frozen) -> Steps:
    """A plan that is there, and which of its units are done."""
    done = frozenset(path[2] for path in (yield Call("list", ("receipt", run))))
    cut = yield Call("read", place.tables)
    return write_rest(who, run, cut, done)


def write_rest(who: Who, run: Run, cut: tuple[tuple[int, ...], ...], done: frozenset[int]) -> Stage:
    """The first unit without a receipt, or publish."""
    for number, rows in enumerate(cut):
        if number not in done:
            then = write_rest(who, run, cut, done | {number})
            return Stage("write_unit", (who, File(run, number, who.attempt, rows), then))
    return Stage("account", (who, run, len(cut)))


def write_unit(who: Who, file: File, then: Stage | End) -> Steps:
    """`write_unit` of actors/unit/writer.py: files, then the receipt; a loser removes its own files."""
    yield Call("put", ("data", file), True)
    if not (yield from create(who, ("receipt", file.run, file.unit), file)):
        yield Call("delete", ("data", file))
    return then


def account(who: Who, run: Run, units: int) -> Steps:
    """The receipts that `_publish` reads, and what it checks."""
    receipts = yield Call("list", ("receipt", run))
    if len(receipts) != units:
        return Stage("release", (who, "receipts are gone"))
    files = frozenset(receipts.values())
    commit = Stage("commit", (who, run, files))
    if who.rules.hold_first:
        return Stage("check_hold", (who, run, Stage("check_files", (who, files, commit))))
    return Stage("check_files", (who, files, Stage("check_hold", (who, run, commit))))


def check_files(who: Who, files: frozenset[File], then: Stage) -> Steps:
    """Every file that a receipt names is there."""
    there = {path[1] for path in (yield Call("list", ("data",)))}
    return then if files <= there else Stage("release", (who, "files are missing"))


def check_hold(who: Who, run: Run, then: Stage) -> Steps:
    """`TableLock.check`: a hold that was given back meanwhile is taken again."""
    held = yield Call("read", ("lock",))
    if held.who == who:
        return then
    if held.released or not (yield Call("alive", (), held.who)):
        return Stage("swap", (who, run, held.number, then))
    return then if held.run == run else End("hold was lost")


def commit(who: Who, run: Run, files: frozenset[File]) -> Steps:
    """`publish`."""
    versions = yield Call("list", ("log",))
    number, current = last(versions)
    if run in {made for made, _ in versions.values()}:
        return Stage("release", (who, "published"))
    if number < 0:
        return Stage("begin_log", (who, run, files))
    if current != run.base:
        return Stage("release", (who, "conflict"))
    return Stage("append", (who, run, files, number + 1))


def begin_log(who: Who, run: Run, files: frozenset[File]) -> Steps:
    """An empty version 0, by whoever is first."""
    yield from create(who, ("log", 0), (None, frozenset()))
    return Stage("commit", (who, run, files))


def append(who: Who, run: Run, files: frozenset[File], number: int) -> Steps:
    """The version that was free when the log was read; who is refused asks the log whether it was a sister."""
    if not (yield from create(who, ("log", number), (run, files))):
        versions = yield Call("list", ("log",))
        if run not in {made for made, _ in versions.values()}:
            return Stage("release", (who, "conflict"))
    return Stage("release", (who, "published"))


def release(who: Who, outcome: str) -> Steps:
    """`TableLock.release`."""
    held = yield Call("read", ("lock",))
    if held.who == who:
        yield Call("swap", ("lock",), (held.number, held._replace(released=True)))
    return End(outcome)


# The vacuum ---------------------------------------------------------------------------------------------------------------


def vacuum(who: Who) -> Steps:
    """`vacuum` that keeps nothing for its age, the hardest case. Only what was there when it began can go: whatever is
    younger than that is kept."""
    yield from ()
    return Stage("take", (who, None, Stage("list_files", (who,))))


def list_files(who: Who) -> Steps:
    """What is there, and old."""
    data = frozenset(path[1] for path in (yield Call("list", ("data",))))
    if who.rules.keep:
        writing = yield Call("writing", ())
        data = frozenset(file for file in data if file.attempt not in writing)
    return Stage("look", (who, data))


def look(who: Who, data: frozenset[File]) -> Steps:
    """What stays: the newest version, and what receipts of unfinished runs name."""
    versions = yield Call("list", ("log",))
    number, _ = last(versions)
    stays = set(versions["log", number][1]) if number >= 0 else set()
    published = {made for made, _ in versions.values()}
    receipts = yield Call("list", ("receipt",))
    stays |= {file for path, file in receipts.items() if path[1] not in published}
    return Stage("still_held", (who, tuple(sorted(data - stays, key=str))))


def still_held(who: Who, files: tuple[File, ...]) -> Steps:
    """Nobody came between since it was taken."""
    held = yield Call("read", ("lock",))
    if who.rules.unbroken and held.who != who:
        return End("hold was lost")
    return Stage("remove", (who, files))


def remove(who: Who, files: tuple[File, ...]) -> Steps:
    """One file after the other."""
    if not files:
        return Stage("release", (who, "vacuumed"))
    yield Call("delete", ("data", files[0]))
    return Stage("remove", (who, files[1:]))


STAGES = {
    stage.__name__: stage
    for stage in (
        *(start, take, swap, check_base, plan, freeze, resume, write_unit, account, check_files, check_hold),
        *(commit, begin_log, append, release, vacuum, list_files, look, still_held, remove),
    )
}
