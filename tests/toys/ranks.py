"""Two ranks of one training, as two processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LONGEST_S = 200


def on_two_ranks(function: Callable[[int, Path], None], folder: Path) -> None:
    """Call a function of a module with the number of the rank and the folder, in two processes.

    They are forks of a new process, because this one may have threads (of torch, of Ray) whose locks a fork never gets.
    """
    script = f"from tests.toys.ranks import fork; fork({function.__module__!r}, {function.__name__!r}, {str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=_LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def fork(module: str, name: str, folder: str) -> None:
    """Call the function in two forks of this process, and end it with an error if one fails."""
    function = getattr(import_module(module), name)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=function, args=(number, Path(folder))) for number in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    sys.exit(any(each.exitcode for each in ranks))
