"""Micro-batches side by side on the threads of one process. Used by the encoder on a CPU.

Each thread takes a whole micro-batch and computes it alone, which beats all threads sharing one: nothing waits for the slowest
at the end of every operation (docs/log.md). torch and the kernels let go of Python while they compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

Made = TypeVar("Made")


class Threads:
    """A pool whose threads compute alone.

    Args:
        count: Threads, 2 or more.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "encoder")
        ours = torch.get_num_threads()
        ready = Barrier(count)
        for started in [self._pool.submit(_alone, ready) for _ in range(count)]:
            started.result()
        # The number is each thread's own, but what threads begin with is one for all: give it back.
        torch.set_num_threads(ours)

    def in_order(self, calls: Callable[[], Callable[[], Made] | None]) -> Generator[Made, None, None]:
        """What calls return, in the order in which they were asked for.

        Args:
            calls: Asked for the next call while fewer than two for each thread are begun or wait; None where there is none (now).
        """
        waiting: deque[Future[Made]] = deque()
        try:
            while True:
                # Some more than threads: one that is done has a next call, though an older one is still waited for.
                while len(waiting) < 2 * self.count and (call := calls()) is not None:
                    waiting.append(self._pool.submit(call))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            # After an error, or where nobody asks for more: nothing may run on behind the caller's back.
            for future in waiting:
                future.cancel()
            for future in waiting:
                if not future.cancelled():
                    future.exception()


def _alone(ready: Barrier) -> None:
    torch.set_num_threads(1)
    # Asked, so that the thread takes its number now: the first operation would take what threads begin with then.
    torch.get_num_threads()
    ready.wait()
