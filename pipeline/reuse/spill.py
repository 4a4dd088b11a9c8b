"""Rows by content hash, the first of each hash: in memory while they are few, else on a local disk by leading hex digits.

Used to index known texts (`pipeline.reuse.vector_index`): how many there will be is not known before they were read, so this begins in
memory and moves to the disk once it holds `LIMIT_ROWS`. From then on memory holds as many again before they go to their
buckets, and one bucket at a time comes back. The trade-off: a fixed number of buckets, so beyond a billion hashes (256 times
the limit) a bucket grows with them.
"""

from __future__ import annotations

import secrets
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.storage.temp_dirs import SharedTempDir, shared_temp_dir

LIMIT_ROWS = 4_000_000  # of 48 bytes, three times over while they are sorted: 0.9 GB with what Arrow keeps
BUCKETS = 256
# Where the buckets meet. Hashes are hex; others, which only another tool could have written, fall between these too.
_EDGES = np.array([f"{number:02x}" for number in range(1, BUCKETS)], dtype="S32")

Rows = npt.NDArray[Any]  # structured, with a field `hash`
TEXT = np.dtype([("hash", "S32")])
PLACE = np.dtype([("hash", "S32"), ("row", "<i8"), ("file", "<i4"), ("count", "<i4")])


def hash_bytes(column: pa.ChunkedArray) -> npt.NDArray[np.bytes_]:
    """Hashes as fixed-width bytes, which sort and compare without Python."""
    try:
        parts = [_fixed(chunk) for chunk in column.chunks]
    except pa.ArrowInvalid:  # not our hashes: another tool's rows
        texts = [(text or "").encode() for text in column.to_pylist()]
        return np.array(texts, dtype="S32")
    return np.concatenate([np.zeros(0, dtype="S32"), *parts])


def _fixed(chunk: pa.Array) -> npt.NDArray[np.bytes_]:
    if chunk.null_count:
        raise pa.ArrowInvalid
    fixed = chunk.cast(pa.binary()).cast(pa.binary(32))
    return np.frombuffer(fixed.buffers()[1] or b"", dtype="S32")[fixed.offset : fixed.offset + len(fixed)]


def contains(ordered: npt.NDArray[np.bytes_], values: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
    """Which of `values` are in `ordered`."""
    if len(ordered) == 0:
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values, dtype=bool)


def as_texts(hashes: npt.NDArray[np.bytes_]) -> Rows:
    """Hashes as rows of `TEXT`."""
    return np.ascontiguousarray(hashes).view(TEXT)


def firsts(rows: Rows) -> Rows:
    """The first row of each hash, by hash."""
    ordered = rows[np.argsort(rows["hash"], kind="stable")]
    hashes = ordered["hash"]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = hashes[1:] != hashes[:-1]
    kept: Rows = ordered[first]
    return kept


class Buckets:
    """Rows, of which the first of each hash counts. Used in a `with`, whose end removes what is on the disk.

    Args:
        dtype: Of the rows; the field `hash` is `S32`.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._held: list[Rows] = []
        self._held_rows = 0
        self._ordered = True  # what is held is one array, by hash, each hash once
        self._room: SharedTempDir | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._room is not None:
            self._room.leave()

    @property
    def spilled(self) -> bool:
        """Whether they were too many for memory."""
        return self._room is not None

    def add(self, rows: Rows) -> None:
        """More rows; those that came before go first.

        Raises:
            StorageError: the disk refused them.
        """
        self._held.append(rows)
        self._held_rows += len(rows)
        self._ordered = False
        # Half full of different ones, it would soon be here again.
        if self._held_rows > LIMIT_ROWS and 2 * len(self.whole()) > LIMIT_ROWS:
            self._spill()

    def whole(self) -> Rows:
        """What memory holds: where nothing was spilled, everything. By hash."""
        if not self._ordered or not self._held:
            everything = np.concatenate([np.zeros(0, dtype=self._dtype), *self._held])
            self._held = []  # before the sort makes another copy
            self._held = [firsts(everything)]
            self._held_rows, self._ordered = len(self._held[0]), True
        return self._held[0]

    def take(self, number: int) -> Rows:
        """The rows of one of the `BUCKETS`, by hash, once; every hash of it is greater than all of those before."""
        temp_dir = self._spill() if self._held_rows or self._room is None else self._room
        path = temp_dir.path / f"{number:02x}"
        if not path.exists():
            return np.zeros(0, dtype=self._dtype)
        with shared_temp_dir(path):
            rows = np.fromfile(path, dtype=self._dtype)
            path.unlink()  # what becomes of it takes its place
        return firsts(rows)

    def _spill(self) -> SharedTempDir:
        rows = self.whole()
        self._held, self._held_rows = [], 0
        self._room = temp_dir = self._room or SharedTempDir(f"spill-{secrets.token_hex(8)}")
        for number, part in enumerate(np.split(rows, np.searchsorted(rows["hash"], _EDGES))):
            if len(part):
                path = temp_dir.path / f"{number:02x}"
                with shared_temp_dir(path), open(path, "ab") as file:
                    file.write(part.view(np.uint8).data)
        return temp_dir
