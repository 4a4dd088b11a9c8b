"""One scenario: what is there before it, what a run that nothing disturbs makes of it, and attempts at disturbing it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from tests.integration.crash.points import Call, Point
from tests.integration.crash.scenarios import Place, copy
from tests.integration.crash.state import State, Tally, difference, state_of
from tests.integration.crash.zygote import Caller, Command

_FUNCTIONS = "tests.integration.crash.scenarios"
_AT_ONCE = 2  # attempts; a machine with more processors would be faster with more
Attempt = Callable[[Caller, Place, Point], None]


class Lab:
    """See the module.

    Args:
        address: Of the zygote.
        folder: Where tables are made.
        model: A checkpoint.
        name: Of the scenario.
        command: Which function does it.
    """

    def __init__(self, address: str, folder: Path, model: Path, name: str, *, command: str = "command") -> None:
        self.name = name
        self._address = address
        self._folder = folder
        self.before = Place(folder / "source", folder / "before", model)
        with Caller(address) as caller:
            self.must(caller, "prepare", self.before)
            self.calls: list[Call] = list(self.must(caller, command, copy(self.before, folder / "whole")))
        self.old: State | None = state_of(self.before.table) if self.before.table.exists() else None
        self.whole: State = state_of(folder / "whole")

    @cached_property
    def other_job(self) -> State:
        """State of the table after the other job."""
        place = copy(self.before, self._folder / "other_job")
        with Caller(self._address) as caller:
            self.must(caller, "other_job", place)
        return state_of(place.table)

    def do(self, function: str, place: Place, point: Point | None = None) -> Command:
        """A command of the scenario, or the other job."""
        args = (self.name, place) if function in ("prepare", "command", "careless") else (place,)
        return Command(f"{_FUNCTIONS}:{function}", args, place.table, point)

    def must(self, caller: Caller, function: str, place: Place) -> tuple[Call, ...]:
        """Run a command that must end well."""
        ended = caller.run(self.do(function, place))
        assert not ended.error, ended.error
        assert not ended.killed, "it was killed"
        return ended.calls

    def each(self, points: Iterable[Point], attempt: Attempt, *, tally: Tally, same_version: bool = True) -> None:
        """Make an attempt at each point, and compare what it leaves with the run that nothing disturbed."""

        def one(numbered: tuple[int, Point]) -> tuple[Point, State | None, str]:
            number, point = numbered
            place = copy(self.before, self._folder / f"point-{number}")
            try:
                with Caller(self._address) as caller:
                    attempt(caller, place, point)
                return point, state_of(place.table), ""
            except AssertionError as error:
                return point, None, str(error)
            finally:
                shutil.rmtree(place.table, ignore_errors=True)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for point, found, error in pool.map(one, enumerate(points)):
                tally.points += 1
                if found is None:
                    tally.wrong.append(f"{point}: {error}")
                else:
                    tally.add(str(point), found, difference(found, self.whole, same_version=same_version))
