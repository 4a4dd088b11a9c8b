"""A process that has everything loaded and forks one child for each command, so that killing one costs a tenth of a second.

Started by the fixture in conftest.py. It must never have used deltalake, whose threads do not survive a fork, and
it keeps torch to one thread for the same reason. Each connection gets a process of its own, which forks the commands.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import pickle
import signal
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Self

from pipeline.ledger.create_probe import probe_create
from tests.integration.crash.points import Call, Fuse, Point

_LONGEST_ANSWER = 1 << 20
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Command:
    """What a child is to do.

    Attributes:
        function: `module:name` of what it calls.
        args: With what.
        table: The folder whose calls are counted.
        point: Where it stops.
    """

    function: str
    args: tuple[Any, ...]
    table: Path
    point: Point | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended, or that it stands still.

    Attributes:
        killed: By our signal.
        stopped: It stands still.
        error: The traceback, where one ended it.
        kind: Name of the exception's class.
        calls: What it called; known only of one that ended by itself.
    """

    killed: bool = False
    stopped: bool = False
    error: str = ""
    kind: str = ""
    calls: tuple[Call, ...] = ()


def serve(address: str) -> None:
    """Load what commands need, then serve whoever connects."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # not to outlive the test
    _warm()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with Listener(address) as listener:
        print("ready", flush=True)
        while True:
            connection = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _serve(connection)
                os._exit(0)
            connection.close()


def _warm() -> None:
    import torch

    torch.set_num_threads(1)
    os.cpu_count = lambda: 1
    os.fsync = lambda fd: None  # the process is killed, the machine is not
    # Its races are tested elsewhere; here it is one create that wins and one that does not.
    probe_create.__kwdefaults__ = {"racers": 2, "rounds": 1}
    for name in (
        "pyarrow.dataset",
        "actors.encoders.encoder",
        "pipeline.reuse.lookup",
        "tests.integration.crash.scenarios",
    ):
        importlib.import_module(name)


def _serve(connection: Connection) -> None:
    """Start commands, and wait for them, for one caller."""
    answers: dict[int, int] = {}
    while True:
        try:
            request = connection.recv()
        except EOFError:
            for pid in answers:  # of a test that failed: they stand still
                os.kill(pid, signal.SIGKILL)
            return
        if isinstance(request, Command):
            pid, answers[pid] = _start(request)
            connection.send(pid)
            continue
        _, status = os.waitpid(request, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            connection.send(Ended(stopped=True))
        elif os.WIFSIGNALED(status):
            os.close(answers.pop(request))
            connection.send(Ended(killed=True))
        else:
            with open(answers.pop(request), "rb") as answer:
                connection.send(pickle.load(answer))


def _start(command: Command) -> tuple[int, int]:
    """Fork a child; its number, and where its answer can be read once it has ended."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _LONGEST_ANSWER)  # nobody reads before the child has ended
    if pid := os.fork():
        os.close(writing)
        return pid, reading
    try:
        with open(writing, "wb") as answer:
            pickle.dump(_do(command), answer)
    finally:
        os._exit(0)


def _do(command: Command) -> Ended:
    fuse = Fuse(command.table, command.point)
    fuse.install()
    module, _, name = command.function.partition(":")
    try:
        getattr(importlib.import_module(module), name)(*command.args)
    except Exception as error:  # noqa: BLE001  (sent to the test)
        return Ended(error=traceback.format_exc(), kind=type(error).__name__)
    return Ended(calls=tuple(fuse.calls))


class Caller:
    """One connection to the zygote: at most one command of it runs at a time, beside those that stand still."""

    def __init__(self, address: str) -> None:
        self._connection = Client(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def start(self, command: Command) -> int:
        """Start a command; the number of its process."""
        self._connection.send(command)
        return int(self._connection.recv())

    def wait(self, pid: int) -> Ended:
        """How it ended, or that it stands still."""
        self._connection.send(pid)
        ended: Ended = self._connection.recv()
        return ended

    def wake(self, pid: int) -> Ended:
        """How one ends that stood still."""
        os.kill(pid, signal.SIGCONT)
        return self.wait(pid)

    def run(self, command: Command) -> Ended:
        """Start a command and wait for it."""
        return self.wait(self.start(command))
