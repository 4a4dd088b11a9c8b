"""Runs a loop on as many threads as torch uses, in a pool of Python threads.

The kernels start no threads themselves. If torch is set to one thread, as in the workers of an encoder, the loop runs
in the calling thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def parallel_for(body: Callable[[int, int], None], count: int, step: int | None = None) -> None:
    """Call `body(first, last)` on ranges that together cover `range(count)` exactly once.

    Args:
        body: Must release the interpreter lock while it works.
        count: 1 or more.
        step: Size of a range; a thread that is free takes the next one. None: one range for each thread.
    """
    threads = min(torch.get_num_threads(), count)
    step = step or -(-count // threads)
    firsts = iter(range(0, count, step))

    def work() -> None:
        for first in firsts:
            body(first, min(first + step, count))

    tasks = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for task in tasks:
        task.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "kernels")
