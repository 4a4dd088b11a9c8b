"""Finds the 64-bit hashes that occur more than once, in memory or, above a limit, in buckets on a local disk.

Used by the check for duplicate ids (`pipeline.ledger.duplicates`), which has one hash a row of the corpus. Buckets are
divided by leading bits; memory holds hashes up to the limit and one bucket at a time. The trade-off: 8 bytes a row of
local disk.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Self

import numpy as np
import numpy.typing as npt

from actors.storage.temp_dirs import SharedTempDir, shared_temp_dir

BUCKETS = 256
_SHIFT = np.uint64(56)
_EDGES = np.arange(1, BUCKETS, dtype=np.uint64) << _SHIFT

Hashes = npt.NDArray[np.uint64]


class Repeats:
    """Collection of hashes that finds those added more than once.

    It is a context manager; its exit removes the files on the disk.

    Args:
        limit_bytes: Bytes of hashes to keep in memory before they are written to the disk.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._buffered: list[Hashes] = []
        self._buffered_bytes = 0
        self._temp_dir: SharedTempDir | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temp_dir is not None:
            self._temp_dir.leave()

    def add(self, hashes: Hashes) -> None:
        """Add hashes, uint64 [n], in any order.

        Raises:
            StorageError: the disk is full or failed.
        """
        self._buffered.append(hashes)
        self._buffered_bytes += hashes.nbytes
        if self._buffered_bytes > self._limit_bytes:
            self._spill()

    def find(self) -> Hashes:
        """Return the hashes that were added more than once, each once, ascending.

        Raises:
            StorageError: the disk is full or failed.
        """
        if self._temp_dir is not None:
            self._spill()
        return np.concatenate([_repeated(part) for part in self._parts()])

    def _parts(self) -> Iterator[Hashes]:
        if self._temp_dir is None:
            yield self._sorted()
            return
        for number in range(BUCKETS):
            path = self._temp_dir.path / f"{number:02x}"
            if path.exists():
                with shared_temp_dir(path):
                    part = np.fromfile(path, dtype=np.uint64)
                part.sort()
                yield part

    def _sorted(self) -> Hashes:
        hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *self._buffered])
        self._buffered, self._buffered_bytes = [], 0
        hashes.sort()
        return hashes

    def _spill(self) -> None:
        self._temp_dir = temp_dir = self._temp_dir or SharedTempDir(f"repeats-{secrets.token_hex(8)}")
        ordered = self._sorted()
        for number, part in enumerate(np.split(ordered, np.searchsorted(ordered, _EDGES))):
            if len(part):
                path = temp_dir.path / f"{number:02x}"
                with shared_temp_dir(path), open(path, "ab") as file:
                    file.write(part.data)


def _repeated(ordered: Hashes) -> Hashes:
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
