"""A job again and again on one machine, each round in a process of its own.

Called by `jobs watch`. A round that crashes, is killed, or runs out of memory ends itself and not the watch. Rounds never
overlap here; against other machines stands the table's own hold. The trade-off of a process a round: its start-up,
seconds, for a memory that is the same after a month.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType

from actors.errors import ConfigError

JITTER = 0.1  # of the interval: many watches of one store do not come at once
FIRST_RETRY_S = 30.0
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str, *, option: str = "--every") -> float:
    """An interval as a person writes it: 90s, 15m, 1h, 7d.

    Args:
        text: What was written.
        option: Where, for the message.

    Raises:
        ConfigError: it is not one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip().lower())
    if match is None or float(match.group(1)) == 0:
        raise ConfigError(f"{option} {text!r} must be a number above 0 with s, m, h or d, as in 90s, 15m, 1h or 7d")
    return float(match.group(1)) * _UNITS_S[match.group(2)]


@dataclass(frozen=True, slots=True)
class Round:
    """How a round ended: the exit code (0 done, 2 the job file is wrong), and its last word."""

    code: int
    said: str


class Stop:
    """A wish to end, and the round that is to be told."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.child: subprocess.Popen[str] | None = None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """A signal came: pass it on. A second one does not wait."""
        again = self.asked.is_set()
        self.asked.set()
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGKILL if again else signal.SIGINT)

    @contextmanager
    def on_signals(self) -> Iterator[Stop]:
        """Listen to SIGINT and SIGTERM."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def run_round(command: Sequence[str], stop: Stop) -> Round:
    """One round as a process, in a session of its own: a Ctrl-C reaches it through us, once."""
    stop.child = subprocess.Popen(  # noqa: S603  (our own words, no shell)
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if stop.asked.is_set():  # a signal between the last look and the start
        stop.child.send_signal(signal.SIGINT)
    out, err = stop.child.communicate()
    code = stop.child.returncode
    lines = (out if code == 0 else err).strip().splitlines()
    return Round(code, lines[-1] if lines else "")


def watch(
    one_round: Callable[[], Round],
    every_s: float,
    say: Callable[[str], None],
    *,
    stop: threading.Event,
    now: Callable[[], float] = time.time,
    jitter: Callable[[], float] = random.random,
) -> int:
    """Run rounds until asked to stop; one line a round.

    Rounds start `every_s` apart, or right after one another where one takes longer. After a failure the next one comes
    sooner, at first after `FIRST_RETRY_S`, then after twice as long, until `every_s` is reached.

    Args:
        one_round: Runs one.
        every_s: From the start of a round to the start of the next.
        say: Is told one line a round.
        stop: Set when it is enough.
        now: Seconds since the epoch.
        jitter: A random number from 0 to 1.

    Returns:
        The exit code: 0 after a stop, 2 where already the first round says that the job file is wrong.
    """
    failures, number = 0, 0
    while not stop.is_set():
        number += 1
        began = now()
        ended = one_round()
        took_s = now() - began
        failures = 0 if ended.code == 0 else failures + 1
        if stop.is_set():
            say(_line(now(), number, ended, took_s, "stopped"))
            return 0
        if ended.code == 2 and number == 1:
            say(_line(now(), number, ended, took_s, "the job file or the arguments are wrong: not tried again"))
            return 2
        rest_s = max(0.0, every_s - took_s)
        if failures:
            rest_s = min(every_s, FIRST_RETRY_S * 2.0 ** min(failures - 1, 30))
        rest_s += jitter() * JITTER * rest_s
        say(_line(now(), number, ended, took_s, f"next in {rest_s:.0f} s"))
        stop.wait(rest_s)
    return 0


def _line(moment: float, number: int, ended: Round, took_s: float, then: str) -> str:
    when = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    how = "done" if ended.code == 0 else f"failed ({_cause(ended.code)})"
    return f"{when} round {number} {how} in {took_s:.0f} s; {then}" + (f": {ended.said}" if ended.said else "")


def _cause(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
