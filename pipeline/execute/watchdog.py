"""Ends this process when its encoder does not go forward: a hung native call cannot be interrupted otherwise.

Used by the encode stage around the rows that it is at, and by the others around a unit. What counts is progress and not
time: a unit of many rows may take as long as it needs, as long as micro-batches get done, or batches read. The clock is made of ticks, so that a machine that slept
has not been slow. The trade-off: a process ends for one row, and the next one loads the model again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
from collections.abc import Callable, Iterator

from actors.progress_counter import progress_count
from pipeline.execute.attempts import HUNG, STDERR, WHOLE, Attempt

_TICKS = 20
_LONGEST_TICK_S = 1.0


@contextlib.contextmanager
def watchdog(limit_s: float, progress: Callable[[], object], *, last_words: Callable[[], None]) -> Iterator[None]:
    """Watch what is done inside the `with`.

    Args:
        limit_s: How long `progress` may stay what it is.
        progress: Something that changes whenever the work goes forward. Called from a thread.
        last_words: Called from that thread before the process ends.
    """
    over = threading.Event()
    tick_s = min(_LONGEST_TICK_S, limit_s / _TICKS)

    def put_off() -> None:
        # A call that never gives the interpreter's lock back stops the thread below too. Then a thread of faulthandler's,
        # which needs no lock, ends the process, without last words: one more death of these rows.
        faulthandler.dump_traceback_later(2 * limit_s, exit=True, file=STDERR)

    def watch() -> None:
        still_s, seen = 0.0, progress()
        while not over.wait(tick_s):
            put_off()
            now = progress()
            still_s, seen = (still_s + tick_s, seen) if now == seen else (0.0, now)
            if still_s >= limit_s:
                last_words()
                faulthandler.dump_traceback(file=STDERR)
                os._exit(HUNG)

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    put_off()  # here, for the thread may never get the lock
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()


def guarded(attempt: Attempt, limit_s: float | None) -> contextlib.AbstractContextManager[None]:
    """Watch what is done to a unit by a stage that reads or writes, whose signs of going forward `actors/progress_counter.py` counts."""
    if limit_s is None or not attempt.watched:
        return contextlib.nullcontext()
    return watchdog(limit_s, progress_count, last_words=lambda: attempt.timed_out(WHOLE))
