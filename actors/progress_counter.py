"""Progress counter of this process; the watchdog checks that it keeps changing.

Readers, the tokenizer and every call to a store increment it. The watchdog around a stage
(`pipeline/execute/watchdog.py`) reads it. One counter for the process, because any call below a stage may hang, in any
thread. The trade-off: a call to a store counts when it ends, so each read or write of an object must finish within the
limit.
"""

from __future__ import annotations


class _Count:
    """Counter without a lock: an increment may be lost between two threads, but the count still changes."""

    progress_count = 0


_COUNT = _Count()


def count_progress() -> None:
    """Increment the counter."""
    _COUNT.progress_count += 1


def progress_count() -> int:
    """Return the current count."""
    return _COUNT.progress_count
