"""Runs micro-batches side by side on the threads of one process. Used by the encoder on a CPU.

Each thread computes a whole micro-batch alone. That is faster than all threads sharing one, because no thread waits for the
slowest at the end of every operation (docs/log.md). torch and the kernels release the GIL while they compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Threads:
    """A thread pool in which torch uses one thread per task.

    Args:
        count: Number of threads, 2 or more.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "encoder")
        threads_before = torch.get_num_threads()
        ready = Barrier(count)
        for started in [self._pool.submit(_use_one_thread, ready) for _ in range(count)]:
            started.result()
        # The setting is per thread, but the initial value of new threads is shared by the process: restore it.
        torch.set_num_threads(threads_before)

    def in_order(self, calls: Callable[[], Callable[[], Result] | None]) -> Generator[Result, None, None]:
        """Yields the results of calls, in the order of the calls.

        Args:
            calls: Returns the next call, or None if there is none at the moment. Called while fewer than two calls per thread
                are running or waiting.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            while True:
                # More calls than threads, so that a thread that finishes has a next call while an older one still runs.
                while len(waiting) < 2 * self.count and (call := calls()) is not None:
                    waiting.append(self._pool.submit(call))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            # After an error, or if the caller stops early, no call may keep running.
            for future in waiting:
                future.cancel()
            for future in waiting:
                if not future.cancelled():
                    future.exception()


def _use_one_thread(ready: Barrier) -> None:
    torch.set_num_threads(1)
    # A thread reads the initial value on its first use. Read it now, before the pool's constructor restores the old one.
    torch.get_num_threads()
    ready.wait()
