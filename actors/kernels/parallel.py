"""Runs a loop on as many threads as torch uses, in a pool of Python threads.

The kernels start no threads themselves. If torch is set to one thread, as in the workers of an encoder, the loop runs
in the calling thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch


def parallel_for(body: Callable[[int, int], None], count: int) -> None:
    """Call `body(first, last)` on ranges that together cover `range(count)` exactly once.

    Args:
        body: Must release the interpreter lock while it works.
        count: 1 or more.
    """
    pieces = min(torch.get_num_threads(), count)
    if pieces == 1:
        body(0, count)
        return
    edges = [count * piece // pieces for piece in range(pieces + 1)]
    tasks = [_pool().submit(body, first, last) for first, last in pairwise(edges[1:])]
    body(edges[0], edges[1])
    for task in tasks:
        task.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "kernels")
