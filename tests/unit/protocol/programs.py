"""What drivers and a vacuum do to the store, step by step, as pipeline/run.py, ledger.py, hold.py, publish.py and vacuum.py do it.

Each stage is a generator that yields the calls it makes and returns the stage after it. The explorer answers the calls, and may
do anything else between two of them. What is left out: retries, the probe, quarantine (it travels with the receipt), and the
numbers of a hold that were cleared away, which tests/unit/test_hold.py has. A corpus of three rows is cut into two units;
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


@dataclass(frozen=True, slots=True)
class Rules:
    """How the store and the code behave.

    Attributes:
        weak: Which exclusive creates are not: of "plan", "receipt", "log".
        how: What a weak create does: "overwrite", or "look" first and write then.
        token: Each driver's plan is in a place of its own that run.json names.
        hold_first: The hold is checked before the files are.
    """

    weak: frozenset[str] = frozenset()
    how: str = "overwrite"
    token: bool = True
    hold_first: bool = True


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
    """`Runner.__init__` and `run`."""
    _, base = last((yield Call("list", ("log",))))
    if base is not None and base.content == who.content:
        return End("nothing to do")
    return Stage("take", (who, Run(who.content, base), Stage("check_base", (who, Run(who.content, base)))))


def take(who: Who, run: Run | None, then: Stage) -> Steps:
    """`Hold.take`; a vacuum is a run of its own."""
    holds = yield Call("list", ("hold",))
    number = max((path[1] for path in holds), default=0)
    if number:
        holder, its_run, released = holds["hold", number]
        if not released and (its_run != run or run is None) and (yield Call("alive", (), holder)):
            return End("refused")
    if not (yield Call("create", ("hold", number + 1), (who, run, False))):
        return Stage("take", (who, run, then))
    if max(path[1] for path in (yield Call("list", ("hold",)))) != number + 1:
        yield Call("delete", ("hold", number + 1))
        return Stage("take", (who, run, then))
    if number:
        yield Call("delete", ("hold", number))
    return then


def check_base(who: Who, run: Run) -> Steps:
    """The table was read before it was held."""
    _, current = last((yield Call("list", ("log",))))
    return Stage("freeze", (who, run)) if current == run.base else End("conflict")


def freeze(who: Who, run: Run) -> Steps:
    """`Ledger.freeze`, or the plan that is there already."""
    place = ("tables", run, who.attempt if who.rules.token else "shared")
    found = yield Call("read", ("plan", run))
    if found is None:
        if who.rules.token:
            yield Call("put", place, cut_of(who))
        else:
            yield from create(who, place, cut_of(who))
        yield from create(who, ("plan", run), (place, len(cut_of(who))))
        found = yield Call("read", ("plan", run))
    if found is None:
        return End("ledger is gone")
    where, units = found
    done = frozenset(path[2] for path in (yield Call("list", ("receipt", run))))
    cut = yield Call("read", where)
    if cut is None:
        return End("ledger is gone")
    return write_rest(who, run, cut, done, units)


def write_rest(who: Who, run: Run, cut: tuple[tuple[int, ...], ...], done: frozenset[int], units: int) -> Stage:
    """The first unit without a receipt, or publish."""
    for number, rows in enumerate(cut):
        if number not in done:
            then = write_rest(who, run, cut, done | {number}, units)
            return Stage("write_unit", (who, File(run, number, who.attempt, rows), then))
    return Stage("account", (who, run, units))


def write_unit(who: Who, file: File, then: Stage | End) -> Steps:
    """`write_unit` of actors/writer.py: files, then the receipt; a loser removes its own files."""
    yield Call("put", ("data", file), file.rows)
    if not (yield from create(who, ("receipt", file.run, file.unit), file)):
        yield Call("delete", ("data", file))
    return then


def account(who: Who, run: Run, units: int) -> Steps:
    """What `_publish` reads: the receipts."""
    receipts = yield Call("list", ("receipt", run))
    if len(receipts) != units:
        return End("ledger is gone")
    files = frozenset(receipts.values())
    commit = Stage("commit", (who, run, files))
    if who.rules.hold_first:
        return Stage("check_hold", (who, run, Stage("check_files", (who, files, commit))))
    return Stage("check_files", (who, files, Stage("check_hold", (who, run, commit))))


def check_files(who: Who, files: frozenset[File], then: Stage) -> Steps:
    """Every file that a receipt names is there."""
    there = {path[1] for path in (yield Call("list", ("data",)))}
    return then if files <= there else End("files are missing")


def check_hold(who: Who, run: Run, then: Stage) -> Steps:
    """`Hold.check`: a hold that was given back meanwhile is taken again."""
    holds = yield Call("list", ("hold",))
    number = max((path[1] for path in holds), default=0)
    holder, its_run, released = holds["hold", number]
    if holder == who:
        return then
    if released or not (yield Call("alive", (), holder)):
        return Stage("take", (who, run, then))
    return then if its_run == run else End("hold was lost")


def commit(who: Who, run: Run, files: frozenset[File]) -> Steps:
    """`publish`."""
    versions = yield Call("list", ("log",))
    if not versions:
        yield from create(who, ("log", 0), (None, frozenset()))
        versions = yield Call("list", ("log",))
    if run in {made for made, _ in versions.values()}:
        return Stage("release", (who, "published"))
    number, current = last(versions)
    if current != run.base:
        return Stage("release", (who, "conflict"))
    if not (yield from create(who, ("log", number + 1), (run, files))):
        versions = yield Call("list", ("log",))
        if run not in {made for made, _ in versions.values()}:
            return Stage("release", (who, "conflict"))
    return Stage("release", (who, "published"))


def release(who: Who, outcome: str) -> Steps:
    """`Hold.release`."""
    holds = yield Call("list", ("hold",))
    number = max((path[1] for path in holds), default=0)
    if number and holds["hold", number][0] == who:
        yield Call("put", ("hold", number), (who, holds["hold", number][1], True))
    return End(outcome)


# The vacuum ---------------------------------------------------------------------------------------------------------------


def vacuum(who: Who) -> Steps:
    """`vacuum` with nothing kept for its age: the hardest case."""
    yield from ()
    return Stage("take", (who, None, Stage("look", (who,))))


def look(who: Who) -> Steps:
    """What stays: the newest version, and what receipts of unfinished runs name."""
    versions = yield Call("list", ("log",))
    number, _ = last(versions)
    stays = set(versions["log", number][1]) if number >= 0 else set()
    published = {made for made, _ in versions.values()}
    runs = {path[1] for path in (yield Call("list", ("plan",)))}
    for run in sorted(runs - published):
        stays |= set((yield Call("list", ("receipt", run))).values())
    data = {path[1] for path in (yield Call("list", ("data",)))}
    return Stage("remove", (who, tuple(sorted(data - stays))))


def remove(who: Who, files: tuple[File, ...]) -> Steps:
    """One file after the other."""
    if not files:
        return Stage("release", (who, "vacuumed"))
    yield Call("delete", ("data", files[0]))
    return Stage("remove", (who, files[1:]))


STAGES = {
    stage.__name__: stage
    for stage in (
        start,
        take,
        check_base,
        freeze,
        write_unit,
        account,
        check_files,
        check_hold,
        commit,
        release,
        vacuum,
        look,
        remove,
    )
}
