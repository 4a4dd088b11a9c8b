"""Explores every order of the calls of several programs, with a crash at any step: breadth first, each state once.

A state is the store, the position of each program, and how many crashes and stalls are left. A position is a stage and the
answers to its calls so far, which determine the next call. States that differ only in earlier answers are the same state.
Stores and positions are numbered, because hashing a number is cheap: a million states take a few seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

from tests.unit.ledger.protocol.programs import ORPHAN, ROWS, STAGES, Call, End, Path, Process, Stage

Store = frozenset[tuple[Path, Any]]


class Position(NamedTuple):
    """Position of a program: its stage, and the answers to its calls in that stage."""

    stage: Stage
    answers: tuple[Any, ...] = ()

    @property
    def process(self) -> Process:
        process: Process = self.stage.args[0]
        return process

    @property
    def is_orphan(self) -> bool:
        """Whether this is a worker whose driver crashed."""
        return bool(self.stage.args[-1] == ORPHAN)


class State(NamedTuple):
    """State as in the module docstring. The store and the programs are numbers of `Space`."""

    store: int
    programs: tuple[int, ...]
    crashes: int
    stalls: int


# A step to another state: the program that makes it, and how the program crashes if it does.
Step = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Exploration:
    """Result of an exploration.

    Attributes:
        states: Number of states reached.
        violation: Invariant that was broken, or empty.
        trail: Steps that lead to the violation.
        outcomes: Outcomes of programs in any of the states.
        stores: Every store of the states.
    """

    states: int
    violation: str
    trail: tuple[str, ...]
    outcomes: frozenset[str]
    stores: tuple[Store, ...]


class Listing(dict[Path, Any]):
    """Answer to a listing; hashable, because answers are part of a state."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def following(position: Position) -> Call | Stage | End:
    """Return the next call of a program, found by running its stage again with the answers so far."""
    steps = STAGES[position.stage.name](*position.stage.args)
    try:
        call = next(steps)
        for answer in position.answers:
            call = steps.send(answer)
    except StopIteration as stop:
        done: Stage | End = stop.value
        return done
    return call


def arrived(position: Position) -> Position | End:
    """Return the position in which a program makes its next call, or its end."""
    while True:
        after = following(position)
        if isinstance(after, Call):
            return position
        if isinstance(after, End):
            return after
        position = Position(after)


def answer(store: Store, call: Call) -> tuple[Any, Store]:
    """Return the store's answer to a call, and the store after it."""
    objects = dict(store)
    match call.what:
        case "read":
            return objects.get(call.path), store
        case "list":
            size = len(call.path)
            return Listing({path: value for path, value in store if path[:size] == call.path}), store
        case "create" if call.path in objects:
            return False, store
        case "swap":
            number, value = call.value
            lock = objects.get(call.path)
            if (lock.number if lock else 0) != number:
                return False, store
            objects[call.path] = value
        case "create" | "put":
            objects[call.path] = call.value
        case "delete":
            objects.pop(call.path, None)
    return True, frozenset(objects.items())


class Space:
    """Numbers of stores and positions, and the transitions between them."""

    def __init__(self) -> None:
        self.stores: list[Store] = []
        self.positions: list[Position | End] = []
        self._store_numbers: dict[Store, int] = {}
        self._position_numbers: dict[Position | End, int] = {}
        self.answered = cache(self._answered)
        self.call = cache(self._call)
        self.crashed = cache(self._crashed)
        self.move = cache(self._move)
        self.wrong = cache(self._wrong)

    def store(self, store: Store) -> int:
        number = self._store_numbers.setdefault(store, len(self.stores))
        if number == len(self.stores):
            self.stores.append(store)
        return number

    def position_number(self, reached: Position) -> int:
        position = arrived(reached)
        number = self._position_numbers.setdefault(position, len(self.positions))
        if number == len(self.positions):
            self.positions.append(position)
        return number

    def _call(self, program: int) -> Call | None:
        """Return the next call of a program; None if it has ended."""
        position = self.positions[program]
        after = None if isinstance(position, End) else following(position)
        assert not isinstance(after, (Stage, End))
        return after

    def _move(self, program: int, store: int) -> tuple[int, int]:
        """Return the program and the store after the program's next call."""
        call = self.call(program)
        assert call is not None
        reply, after = answer(self.stores[store], call)
        return self._answered(program, reply), self.store(after)

    def _answered(self, program: int, reply: Any) -> int:
        """Return the program after an answer."""
        position = self.positions[program]
        assert isinstance(position, Position)
        return self.position_number(Position(position.stage, (*position.answers, reply)))

    def _crashed(self, program: int) -> list[tuple[str, tuple[int, ...]]]:
        """Return in which ways a program may crash, and the programs that are there after it; an orphan cannot crash."""
        position = self.positions[program]
        assert isinstance(position, Position)
        if position.is_orphan:
            return []
        process = replace(position.process, life=position.process.life + 1)
        again = self.position_number(Position(Stage(process.begins, (process,))))
        if position.stage.name != "write_unit":
            return [("crashes", (again,))]
        # Its worker, on another machine, may still run.
        stage = position.stage._replace(args=(*position.stage.args[:-1], ORPHAN))
        orphan = self.position_number(Position(stage, position.answers))
        return [("crashes", (again,)), ("crashes, its worker does not", (again, orphan))]

    def _wrong(self, before: int, after: int) -> str:
        """Return the invariant that a step between two stores breaks, or an empty text."""
        objects = dict(self.stores[after])
        for path, value in self.stores[before]:
            if path[0] == "log" and objects.get(path) != value:
                return f"version {path[1]} is another one than it was"
        versions = {path[1]: value for path, value in objects.items() if path[0] == "log"}
        for number, (run, files) in versions.items():
            rows = sorted(row for file in files for row in file.rows)
            if run is not None and rows != sorted(ROWS[run.content]):
                return f"version {number} has the rows {rows}, and its source {ROWS[run.content]}"
        if versions and any(("data", file) not in objects for file in versions[max(versions)][1]):
            return f"version {max(versions)} names a file that is not there"
        return ""


def explore(
    programs: tuple[Stage, ...], *, crashes: int = 0, stalls: int = 0, store: Store = frozenset()
) -> Exploration:
    """Visit every state that can be reached, until one breaks an invariant.

    Args:
        programs: Programs that run concurrently.
        crashes: Largest number of crashes; a crashed program starts again, or never gets another turn.
        stalls: How often a lock owner that is alive may be taken for dead.
        store: Objects at the beginning.
    """
    space = Space()
    first = State(
        space.store(store), tuple(space.position_number(Position(stage)) for stage in programs), crashes, stalls
    )
    origins: dict[State, tuple[State, Step] | None] = {first: None}
    todo = deque([first])
    violation, last = "", first
    while todo and not violation:
        state = todo.popleft()
        for step, after in _steps(space, state):
            if after not in origins:
                origins[after] = (state, step)
                todo.append(after)
                if state.store != after.store and (violation := space.wrong(state.store, after.store)):
                    last = after
                    break
    outcomes = frozenset(position.outcome for position in space.positions if isinstance(position, End))
    return Exploration(len(origins), violation, _trail(space, origins, last), outcomes, tuple(space.stores))


def _trail(space: Space, origins: dict[State, tuple[State, Step] | None], state: State) -> tuple[str, ...]:
    steps: list[str] = []
    while (origin := origins[state]) is not None:
        state, (program, crash) = origin
        position, call = space.positions[program], space.call(program)
        assert isinstance(position, Position)
        assert call is not None
        steps.append(f"{position.process.attempt}: {crash or f'{call.what} {call.path}'}")
    return tuple(reversed(steps))


def _steps(space: Space, state: State) -> Iterator[tuple[Step, State]]:
    programs, (store, _, crashes, stalls) = state.programs, state
    for index, program in enumerate(programs):
        call = space.call(program)
        if call is None:
            continue
        before, behind = programs[:index], programs[index + 1 :]
        if call.what == "alive":
            lives = any(_is(space.positions[other], call.value) for other in programs)
            number = space.answered(program, lives)
            yield (program, ""), State(store, (*before, number, *behind), crashes, stalls)
            if lives and stalls:
                number = space.answered(program, False)
                yield (program, ""), State(store, (*before, number, *behind), crashes, stalls - 1)
        elif call.what == "writing":
            others = (space.positions[other] for other in programs)
            attempts = frozenset(other.process.attempt for other in others if isinstance(other, Position))
            number = space.answered(program, attempts)
            yield (program, ""), State(store, (*before, number, *behind), crashes, stalls)
        else:
            number, after = space.move(program, store)
            yield (program, ""), State(after, (*before, number, *behind), crashes, stalls)
        if crashes:
            for crash, (again, *orphan) in space.crashed(program):
                yield (program, crash), State(store, (*before, again, *behind, *orphan), crashes - 1, stalls)


def _is(program: Position | End, process: Process) -> bool:
    """Return whether a program is this process, alive."""
    return isinstance(program, Position) and program.process == process and not program.is_orphan


def alone(stage: Stage, store: Store) -> tuple[str, Store]:
    """Return the outcome of a program that runs alone, and the store after it."""
    outcome, store, _ = calls_alone(stage, store)
    return outcome, store


def calls_alone(stage: Stage, store: Store) -> tuple[str, Store, list[Call]]:
    """Return the outcome of a program that runs alone, the store after it, and its calls to the store in order."""
    calls = []
    program = arrived(Position(stage))
    while isinstance(program, Position):
        call = following(program)
        assert isinstance(call, Call)
        match call.what:
            case "alive":
                reply: Any = False
            case "writing":
                reply = frozenset[str]()
            case _:
                calls.append(call)
                reply, store = answer(store, call)
        program = arrived(Position(program.stage, (*program.answers, reply)))
    return program.outcome, store, calls
