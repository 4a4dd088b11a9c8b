"""Threads for work that may hang, such as the decoding of a page."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def unawaited_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Context of a pool of threads: an error or interrupt ends it at once, while `with ThreadPoolExecutor` waits for work."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
