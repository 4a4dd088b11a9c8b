"""Finds the 64-bit hashes that came more than once: in memory while they are few, else on a local disk by leading bits.

Used by the check for duplicate ids (`uniqueness`), which has one hash a row of the corpus. Beyond the limit, memory holds
as many hashes as the limit allows and one bucket at a time. The trade-off: 8 bytes a row in the folder for temporary files.
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
    """Hashes, of which those are wanted that came twice. Used in a `with`, whose end removes what is on the disk.

    Args:
        limit_bytes: How many bytes of hashes memory holds before they go to the disk.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: list[Hashes] = []
        self._held_bytes = 0
        self._room: SharedTempDir | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._room is not None:
            self._room.leave()

    def add(self, hashes: Hashes) -> None:
        """Takes more hashes, uint64 [n], in any order.

        Raises:
            StorageError: the disk refused them.
        """
        self._held.append(hashes)
        self._held_bytes += hashes.nbytes
        if self._held_bytes > self._limit_bytes:
            self._spill()

    def find(self) -> Hashes:
        """Returns the hashes that came more than once, each once, ascending.

        Raises:
            StorageError: the disk refused them.
        """
        if self._room is not None:
            self._spill()
        return np.concatenate([_twice(part) for part in self._parts()])

    def _parts(self) -> Iterator[Hashes]:
        if self._room is None:
            yield self._sorted()
            return
        for number in range(BUCKETS):
            path = self._room.path / f"{number:02x}"
            if path.exists():
                with shared_temp_dir(path):
                    part = np.fromfile(path, dtype=np.uint64)
                part.sort()
                yield part

    def _sorted(self) -> Hashes:
        everything = np.concatenate([np.zeros(0, dtype=np.uint64), *self._held])
        self._held, self._held_bytes = [], 0
        everything.sort()
        return everything

    def _spill(self) -> None:
        self._room = temp_dir = self._room or SharedTempDir(f"repeats-{secrets.token_hex(8)}")
        ordered = self._sorted()
        for number, part in enumerate(np.split(ordered, np.searchsorted(ordered, _EDGES))):
            if len(part):
                path = temp_dir.path / f"{number:02x}"
                with shared_temp_dir(path), open(path, "ab") as file:
                    file.write(part.data)


def _twice(ordered: Hashes) -> Hashes:
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
