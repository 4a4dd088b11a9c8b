"""Every order in which programs can make their calls, with a crash at any step: breadth first, each state once.

A state is the store, where each program stands, and how many crashes and stalls are left. A program stands in a stage with the
answers it has had there, from which its next call follows; so states that differ only in what nobody remembers are one.
Stores and standings are numbered, because hashing a number is cheap: a million states take a few seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

from tests.unit.ledger.protocol.programs import ORPHAN, ROWS, STAGES, Call, End, Path, Stage, Who

Store = frozenset[tuple[Path, Any]]


class Standing(NamedTuple):
    """A program: its stage, and what it was answered there."""

    stage: Stage
    answers: tuple[Any, ...] = ()

    @property
    def who(self) -> Who:
        who: Who = self.stage.args[0]
        return who

    @property
    def is_orphan(self) -> bool:
        """A worker whose driver died."""
        return bool(self.stage.args[-1] == ORPHAN)


class State(NamedTuple):
    """See the module. The store and the programs are numbers of `Space`."""

    store: int
    programs: tuple[int, ...]
    crashes: int
    stalls: int


@dataclass(frozen=True, slots=True)
class Found:
    """What an exploration came to.

    Attributes:
        violation: What was broken, or empty.
        trail: The steps that lead there.
        outcomes: How programs ended, in any of the states.
        stores: Every store that was met.
    """

    states: int
    violation: str
    trail: tuple[str, ...]
    outcomes: frozenset[str]
    stores: tuple[Store, ...]


class Listing(dict[Path, Any]):
    """What a listing answered; hashable, because answers are part of a state."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def following(standing: Standing) -> Call | Stage | End:
    """What a program does next: it is begun anew and given the answers that it has had."""
    steps = STAGES[standing.stage.name](*standing.stage.args)
    try:
        call = next(steps)
        for answer in standing.answers:
            call = steps.send(answer)
    except StopIteration as stop:
        done: Stage | End = stop.value
        return done
    return call


def arrived(standing: Standing) -> Standing | End:
    """Where a program makes its next call."""
    while True:
        after = following(standing)
        if isinstance(after, Call):
            return standing
        if isinstance(after, End):
            return after
        standing = Standing(after)


def answer(store: Store, call: Call) -> tuple[Any, Store]:
    """What the store says, and how it is afterwards."""
    there = dict(store)
    match call.what:
        case "read":
            return there.get(call.path), store
        case "list":
            size = len(call.path)
            return Listing({path: value for path, value in store if path[:size] == call.path}), store
        case "create" if call.path in there:
            return False, store
        case "swap":
            number, value = call.value
            held = there.get(call.path)
            if (held.number if held else 0) != number:
                return False, store
            there[call.path] = value
        case "create" | "put":
            there[call.path] = call.value
        case "delete":
            there.pop(call.path, None)
    return True, frozenset(there.items())


class Space:
    """The numbers of stores and standings, and what follows from what."""

    def __init__(self) -> None:
        self.stores: list[Store] = []
        self.standings: list[Standing | End] = []
        self._store_numbers: dict[Store, int] = {}
        self._standing_numbers: dict[Standing | End, int] = {}
        self.call = cache(self._call)
        self.move = cache(self._move)
        self.wrong = cache(self._wrong)

    def store(self, store: Store) -> int:
        number = self._store_numbers.setdefault(store, len(self.stores))
        if number == len(self.stores):
            self.stores.append(store)
        return number

    def standing(self, standing: Standing) -> int:
        here = arrived(standing)
        number = self._standing_numbers.setdefault(here, len(self.standings))
        if number == len(self.standings):
            self.standings.append(here)
        return number

    def _call(self, program: int) -> Call | None:
        """The next call of a program; None for one that has ended."""
        here = self.standings[program]
        after = None if isinstance(here, End) else following(here)
        assert not isinstance(after, (Stage, End))
        return after

    def _move(self, program: int, store: int) -> tuple[int, int]:
        """The program and the store after the program's next call."""
        call = self.call(program)
        assert call is not None
        said, after = answer(self.stores[store], call)
        return self.told(program, said), self.store(after)

    def told(self, program: int, said: Any) -> int:
        """The program after an answer."""
        here = self.standings[program]
        assert isinstance(here, Standing)
        return self.standing(Standing(here.stage, (*here.answers, said)))

    def _wrong(self, before: int, after: int) -> str:
        """What must never be, of a store and the one that it became."""
        there = dict(self.stores[after])
        for path, value in self.stores[before]:
            if path[0] == "log" and there.get(path) != value:
                return f"version {path[1]} is another one than it was"
        versions = {path[1]: value for path, value in there.items() if path[0] == "log"}
        for number, (run, files) in versions.items():
            rows = sorted(row for file in files for row in file.rows)
            if run is not None and rows != sorted(ROWS[run.content]):
                return f"version {number} has the rows {rows}, and its source {ROWS[run.content]}"
        if versions and any(("data", file) not in there for file in versions[max(versions)][1]):
            return f"version {max(versions)} names a file that is not there"
        return ""


def explore(programs: tuple[Stage, ...], *, crashes: int = 0, stalls: int = 0, store: Store = frozenset()) -> Found:
    """Every state that can be reached, until one is wrong.

    Args:
        programs: What runs at once.
        crashes: How many crashes there may be; the program begins anew, or, as it need not be its turn, never.
        stalls: How often a holder that lives may be taken for dead.
        store: What is there at the beginning.
    """
    space = Space()
    first = State(space.store(store), tuple(space.standing(Standing(stage)) for stage in programs), crashes, stalls)
    came: dict[State, tuple[State, str] | None] = {first: None}
    todo = deque([first])
    violation, last = "", first
    while todo and not violation:
        state = todo.popleft()
        for step, after in _steps(space, state):
            if after not in came:
                came[after] = (state, step)
                todo.append(after)
                if state.store != after.store and (violation := space.wrong(state.store, after.store)):
                    last = after
                    break
    outcomes = frozenset(here.outcome for here in space.standings if isinstance(here, End))
    return Found(len(came), violation, _trail(came, last), outcomes, tuple(space.stores))


def _trail(came: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    steps: list[str] = []
    while (origin := came[state]) is not None:
        state, step = origin
        steps.append(step)
    return tuple(reversed(steps))


def _steps(space: Space, state: State) -> Iterator[tuple[str, State]]:
    for index, program in enumerate(state.programs):
        call = space.call(program)
        if call is None:
            continue
        here = space.standings[program]
        assert isinstance(here, Standing)

        def after(number: int, *more: int, index: int = index) -> tuple[int, ...]:
            return (*state.programs[:index], number, *state.programs[index + 1 :], *more)

        words = f"{here.who.attempt}: {call.what} {call.path}"
        if call.what == "alive":
            lives = any(_is(space.standings[other], call.value) for other in state.programs)
            yield words, state._replace(programs=after(space.told(program, lives)))
            if lives and state.stalls:
                yield words, state._replace(programs=after(space.told(program, False)), stalls=state.stalls - 1)
        elif call.what == "writing":
            others = (space.standings[other] for other in state.programs)
            attempts = frozenset(other.who.attempt for other in others if isinstance(other, Standing))
            yield words, state._replace(programs=after(space.told(program, attempts)))
        else:
            number, store = space.move(program, state.store)
            yield words, state._replace(store=store, programs=after(number))
        if state.crashes and not here.is_orphan:
            again = space.standing(Standing(Stage(here.who.begins, (replace(here.who, life=here.who.life + 1),))))
            died = state._replace(programs=after(again), crashes=state.crashes - 1)
            yield f"{here.who.attempt}: dies", died
            if here.stage.name == "write_unit":
                # Its worker, on another machine, has not heard of it yet.
                orphan = space.standing(
                    Standing(here.stage._replace(args=(*here.stage.args[:-1], ORPHAN)), here.answers)
                )
                yield f"{here.who.attempt}: dies, its worker does not", died._replace(programs=after(again, orphan))


def _is(program: Standing | End, who: Who) -> bool:
    """Whether this is that driver, alive."""
    return isinstance(program, Standing) and program.who == who and not program.is_orphan


def alone(stage: Stage, store: Store) -> tuple[str, Store]:
    """How a program ends that nothing disturbs, and what it leaves."""
    program = arrived(Standing(stage))
    while isinstance(program, Standing):
        call = following(program)
        assert isinstance(call, Call)
        said, store = (False, store) if call.what == "alive" else answer(store, call)
        program = arrived(Standing(program.stage, (*program.answers, said)))
    return program.outcome, store
