"""One object of a store as a file whose every read is a ranged read of its own.

Used by storage, below Arrow's readers. Each range is asked for with storage's own retries, and nothing is read ahead:
who reads in small steps puts a buffer on top.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class RangedFile(io.RawIOBase):
    """A file of `size_bytes` bytes, of which `read_range(start, stop)` gives any part."""

    def __init__(self, read_range: Callable[[int, int], bytes], size_bytes: int) -> None:
        super().__init__()
        self.read_range = read_range
        self.size_bytes = size_bytes
        self.position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Offset of the next byte."""
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset; no I/O."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size_bytes}[whence]
        self.position = max(0, base + offset)
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes: fewer at the end of the object only."""
        left = max(0, self.size_bytes - self.position)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted == 0:
            return b""
        data = self.read_range(self.position, self.position + wanted)
        self.position += len(data)
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Up to as many bytes as `buffer` holds, into it; how many. What Python's own buffered reader calls."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """The rest of the object."""
        return self.read()
