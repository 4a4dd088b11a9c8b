"""The zygote, and the option to try every point: `python -m pytest tests/integration/crash --every-point`.

Without it the suite tries, for a backfill, the points that leave different stores behind (between two changes a store stays as
it is), and for the other commands one point for each kind of object that they write.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.crash.lab import Lab
from tests.integration.crash.state import Tally

ROOT = Path(__file__).parents[3]
TALLIES: dict[str, Tally] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-point", action="store_true", help="stop a command before and after every call")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, tally in TALLIES.items():
        counts = f"{tally.points} points, {tally.rows} rows checked, {tally.lost} lost, {tally.doubled} doubled"
        terminalreporter.write_line(f"{name}: {counts}")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Counts of a test for the summary at the end."""
    return TALLIES.setdefault(request.node.name, Tally())


@pytest.fixture(scope="session")
def every_point(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("every_point", default=False))


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a process that forks commands."""
    address = str(tmp_path_factory.mktemp("zygote") / "socket")
    with subprocess.Popen(
        [sys.executable, "-c", f"from tests.integration.crash.zygote import serve; serve({address!r})"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield address
        process.kill()


@pytest.fixture(scope="session")
def lab(zygote: str, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Callable[[str], Lab]:
    """A scenario by its name, made once."""
    made: dict[str, Lab] = {}

    def get(name: str) -> Lab:
        if name not in made:
            made[name] = Lab(zygote, tmp_path_factory.mktemp(name), tiny_model, name)
        return made[name]

    return get
