"""One loop on as many threads as torch would take: pieces of it, in a pool of Python's threads.

The kernels have no threads of their own. Where torch was told of one thread, as in an encoder's workers, nothing is spread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch


def parallel_for(some: Callable[[int, int], None], count: int) -> None:
    """Calls `some(first, last)` so that all of `range(count)` is done once.

    Args:
        some: Must let Python go on while it works.
        count: 1 or more.
    """
    pieces = min(torch.get_num_threads(), count)
    if pieces == 1:
        some(0, count)
        return
    edges = [count * piece // pieces for piece in range(pieces + 1)]
    tasks = [_pool().submit(some, first, last) for first, last in pairwise(edges[1:])]
    some(edges[0], edges[1])
    for task in tasks:
        task.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "kernels")
