"""Runs a job repeatedly on one machine, each round in its own process.

Called by `vectide watch`. A round that crashes, is killed, or runs out of memory does not end the watch. Rounds of one
watch never overlap; the table lock protects against other machines. A process for each round costs seconds of start-up,
and keeps the memory of the watch constant.
"""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType

JITTER = 0.1  # of the interval, so that many watches of one store do not start at once
FIRST_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class Round:
    """Result of a round.

    Attributes:
        code: Exit code: 0 done, 2 the job file is wrong, -n killed by signal n.
        last_line: Last line of its output, or of its errors if it failed.
    """

    code: int
    last_line: str


class Stop:
    """Signal handler that stops the watch and the running round."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.child: subprocess.Popen[str] | None = None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Send SIGINT to the round at the first signal, and SIGKILL at the next."""
        again = self.requested.is_set()
        self.requested.set()
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGKILL if again else signal.SIGINT)

    @contextmanager
    def on_signals(self) -> Iterator[Stop]:
        """Handle SIGINT and SIGTERM until the end of the block."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(number, self) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)


def run_round(command: Sequence[str], stop: Stop) -> Round:
    """Run one round as a process in its own session, so that a Ctrl-C reaches it once, through `stop`."""
    stop.child = subprocess.Popen(  # noqa: S603  (our own command line, no shell)
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if stop.requested.is_set():  # the signal came before the process started
        stop.child.send_signal(signal.SIGINT)
    out, err = stop.child.communicate()
    code = stop.child.returncode
    lines = (out if code == 0 else err).strip().splitlines()
    return Round(code, lines[-1] if lines else "")


def watch(
    one_round: Callable[[], Round],
    every_s: float,
    print_line: Callable[[str], None],
    *,
    stop: threading.Event,
    now: Callable[[], float] = time.time,
    jitter: Callable[[], float] = random.random,
) -> int:
    """Run rounds until `stop` is set, and print one line for each.

    Rounds start `every_s` apart, or without a pause if a round takes longer. After a failure the next round starts after
    `FIRST_RETRY_S`; the wait doubles with each further failure, up to `every_s`.

    Args:
        one_round: Runs one round.
        every_s: Seconds from the start of a round to the start of the next.
        print_line: Prints a line.
        stop: Ends the watch when it is set.
        now: Returns the seconds since the epoch.
        jitter: Returns a random number from 0 to 1.

    Returns:
        The exit code: 0 after a stop, 2 if the first round ends with exit code 2.
    """
    failures, number = 0, 0
    while not stop.is_set():
        number += 1
        started_s = now()
        result = one_round()
        took_s = now() - started_s
        failures = 0 if result.code == 0 else failures + 1
        if stop.is_set():
            print_line(_line(now(), number, result, took_s, "stopped"))
            return 0
        if result.code == 2 and number == 1:
            print_line(_line(now(), number, result, took_s, "the job file or the arguments are wrong; watch ends"))
            return 2
        wait_s = max(0.0, every_s - took_s)
        if failures:
            wait_s = min(every_s, FIRST_RETRY_S * 2.0 ** min(failures - 1, 30))
        wait_s += jitter() * JITTER * wait_s
        print_line(_line(now(), number, result, took_s, f"next in {wait_s:.0f} s"))
        stop.wait(wait_s)
    return 0


def _line(epoch_s: float, number: int, result: Round, took_s: float, next_step: str) -> str:
    time_utc = datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    outcome = "done" if result.code == 0 else f"failed ({_cause(result.code)})"
    last_line = f": {result.last_line}" if result.last_line else ""
    return f"{time_utc} round {number} {outcome} in {took_s:.0f} s; {next_step}{last_line}"


def _cause(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
