"""The zygote, and the option to try every point: `python -m pytest tests/integration/crash --every-point`.

Without it the suite tries the points that leave different stores behind; those between two changes leave the same one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.crash.points import Call, Point, all_points, distinct_points
from tests.integration.crash.scenarios import Place, copy
from tests.integration.crash.state import State, Tally, state_of
from tests.integration.crash.zygote import Caller, Command

ROOT = Path(__file__).parents[3]
SCENARIOS = "tests.integration.crash.scenarios"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-point", action="store_true", help="kill before and after every call, reads too")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, tally in TALLIES.items():
        terminalreporter.write_line(
            f"{name}: {tally.points} crash points, {tally.rows} rows checked, {tally.lost} lost, {tally.doubled} doubled"
        )


TALLIES: dict[str, Tally] = {}


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a process that forks commands."""
    address = str(tmp_path_factory.mktemp("zygote") / "socket")
    process = subprocess.Popen(
        [sys.executable, "-c", f"from tests.integration.crash.zygote import serve; serve({address!r})"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield address
    process.kill()
    process.wait()


class Lab:
    """One scenario: what is there before it, what a run that nothing disturbs makes of it, and which calls that makes."""

    def __init__(self, address: str, folder: Path, model: Path, name: str, *, every_point: bool) -> None:
        self.name = name
        self.address = address
        self.folder = folder
        self.every_point = every_point
        self.tally = TALLIES.setdefault(name, Tally())
        self.caller = Caller(address)
        self.before = Place(folder / "source", folder / "before", model)
        self.must(self.caller, self.command("prepare", self.before))
        whole = copy(self.before, folder / "whole")
        self.calls: list[Call] = list(self.must(self.caller, self.command("command", whole)))
        self.whole: State = state_of(whole.table)

    def command(self, function: str, place: Place, point: Point | None = None, *, name: str = "") -> Command:
        return Command(f"{SCENARIOS}:{function}", (name or self.name, place), place.table, point)

    def must(self, caller: Caller, command: Command) -> tuple[Call, ...]:
        """Run a command that must end well."""
        ended = caller.run(command)
        assert not ended.error, ended.error
        assert not ended.killed
        return ended.calls

    def points(self) -> list[Point]:
        return (all_points if self.every_point else distinct_points)(self.calls)

    def each(self, points: list[Point], attempt: Callable[[Caller, Place, Point], None]) -> None:
        """Make an attempt at each point, two at a time, and compare what it leaves with the run that nothing disturbed."""

        def one(numbered: tuple[int, Point]) -> tuple[str, State | None]:
            number, point = numbered
            place = copy(self.before, self.folder / f"point-{number}")
            try:
                attempt(Caller(self.address), place, point)
                return str(point), state_of(place.table)
            except AssertionError as error:
                return f"{point}: {error}", None
            finally:
                shutil.rmtree(place.table, ignore_errors=True)

        with ThreadPoolExecutor(2) as pool:
            for where, found in pool.map(one, enumerate(points)):
                if found is None:
                    self.tally.points += 1
                    self.tally.other.append(where)
                else:
                    self.tally.compare(where, found, self.whole)
        assert self.tally.other == []


@pytest.fixture
def lab(zygote: str, tmp_path: Path, tiny_model: Path, request: pytest.FixtureRequest) -> Callable[[str], Lab]:
    every_point = bool(request.config.getoption("every_point", default=False))
    return lambda name: Lab(zygote, tmp_path / name, tiny_model, name, every_point=every_point)
