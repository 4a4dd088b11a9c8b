"""Makes glibc keep freed memory for the next micro-batch. Called once for an encoder on a CPU.

By default glibc returns large freed blocks to the kernel, and every micro-batch faults its pages in again. That takes up to
a third of the time, depending on the layout of the heap (docs/log.md). With this setting the process keeps up to 128 MiB.
With another libc nothing is changed.
"""

from __future__ import annotations

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 128 << 20
_LARGEST_BYTES = 32 << 20  # glibc takes no more


@cache
def tune_malloc() -> bool:
    """Sets malloc's thresholds for the whole process, once. Returns True if that succeeded."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
