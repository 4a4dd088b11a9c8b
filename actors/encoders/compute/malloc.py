"""How much freed memory this process keeps for the next micro-batch. Called once for an encoder on a CPU.

glibc gives large blocks back to the kernel as they are freed, and each micro-batch then faults all its pages in again: up to a
third of the time, depending on how the heap happens to lie (docs/log.md). A process with an encoder on a CPU keeps up to
128 MiB instead. With another libc nothing is changed.
"""

from __future__ import annotations

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 128 << 20
_LARGEST_BYTES = 32 << 20  # glibc takes no more


@cache
def tune_malloc() -> bool:
    """Sets it for the whole process, once; whether that could be done."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
