"""Object of a store as a file in which every read is one range request.

Used by storage, below Arrow's readers. Each request has storage's own retries. Nothing is read ahead: a caller with small
reads adds a buffer.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class RangedFile(io.RawIOBase):
    """File of `size_bytes` bytes; `read_range(start, stop)` returns any part of it."""

    def __init__(self, read_range: Callable[[int, int], bytes], size_bytes: int) -> None:
        super().__init__()
        self.read_range = read_range
        self.size_bytes = size_bytes
        self.position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset; no I/O."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size_bytes}[whence]
        self.position = max(0, base + offset)
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes: fewer only at the end of the object."""
        rest = max(0, self.size_bytes - self.position)
        wanted = rest if size is None or size < 0 else min(size, rest)
        if wanted == 0:
            return b""
        data = self.read_range(self.position, self.position + wanted)
        self.position += len(data)
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill `buffer` and return the number of bytes read. Called by Python's own buffered reader."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Return the rest of the object."""
        return self.read()
