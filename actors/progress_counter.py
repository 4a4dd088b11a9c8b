"""Signs that this process goes forward: a count that changes with each of them.

Readers, the tokenizer and every call to a store give signs; the watchdog around a stage (`pipeline/execute/watchdog.py`) looks at
the count. One for the process, for what hangs may be any call below a stage, in any thread. The trade-off: a call to a
store gives its sign at its end, so an object that is read or written in one call has to be done within the limit.
"""

from __future__ import annotations


class _Count:
    """Two threads may make one sign of two: it is a change all the same."""

    progress_count = 0


_COUNT = _Count()


def count_progress() -> None:
    """Give a sign."""
    _COUNT.progress_count += 1


def progress_count() -> int:
    """How many there were so far."""
    return _COUNT.progress_count
