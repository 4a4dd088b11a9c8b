"""Signs that this process goes forward: a count that changes with each of them.

Readers, the tokenizer and every call to a store give signs; the watchdog around a stage (`pipeline/watchdog.py`) looks at
the count. One for the process, for what hangs may be any call below a stage, in any thread. The trade-off: a call to a
store gives its sign at its end, so an object that is read or written in one call has to be done within the limit.
"""

from __future__ import annotations


class _Count:
    """Two threads may make one sign of two: it is a change all the same."""

    signs = 0


_COUNT = _Count()


def forward() -> None:
    """Give a sign."""
    _COUNT.signs += 1


def signs() -> int:
    """How many there were so far."""
    return _COUNT.signs
