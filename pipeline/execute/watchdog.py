"""Ends this process if a stage makes no progress: a native call that hangs cannot be interrupted in another way.

The encode stage uses it around each row range, the other stages around a unit. It measures progress, not duration: a
unit of many rows may take any time, as long as micro-batches finish or batches are read. Time is counted in ticks of a
thread, so that a suspended machine does not count as a hang. The trade-off: one row ends a process, and the next
process has to load the model again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
from collections.abc import Callable, Iterator

from actors.progress_counter import progress_count
from pipeline.execute.attempts import HANG_EXIT_CODE, STDERR, WHOLE_UNIT, Attempt

_TICKS = 20
_LONGEST_TICK_S = 1.0


@contextlib.contextmanager
def watchdog(limit_s: float, progress: Callable[[], object], *, on_timeout: Callable[[], None]) -> Iterator[None]:
    """End the process if the `with` block makes no progress for `limit_s`.

    Args:
        limit_s: Longest time without a change of `progress`.
        progress: Returns a value that changes with every progress. Called from a thread.
        on_timeout: Called from that thread before the process ends.
    """
    finished = threading.Event()
    tick_s = min(_LONGEST_TICK_S, limit_s / _TICKS)

    def postpone_forced_exit() -> None:
        # A call that never releases the interpreter lock also stops the thread below. Then a thread of faulthandler,
        # which needs no lock, ends the process without `on_timeout`: this counts as an ordinary death.
        faulthandler.dump_traceback_later(2 * limit_s, exit=True, file=STDERR)

    def watch() -> None:
        unchanged_s, last = 0.0, progress()
        while not finished.wait(tick_s):
            postpone_forced_exit()
            current = progress()
            unchanged_s, last = (unchanged_s + tick_s, last) if current == last else (0.0, current)
            if unchanged_s >= limit_s:
                on_timeout()
                faulthandler.dump_traceback(file=STDERR)
                os._exit(HANG_EXIT_CODE)

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    postpone_forced_exit()  # also in this thread: the other one may never get the interpreter lock
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()


def watch_unit(attempt: Attempt, limit_s: float | None) -> contextlib.AbstractContextManager[None]:
    """Watch a stage that reads or writes a unit, by the counter of `actors/progress_counter.py`."""
    if limit_s is None or not attempt.watched:
        return contextlib.nullcontext()
    return watchdog(limit_s, progress_count, on_timeout=lambda: attempt.timed_out(WHOLE_UNIT))
