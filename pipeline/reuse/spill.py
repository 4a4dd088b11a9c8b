"""Collects rows by content hash, the first of each hash, in memory or, above a limit, in buckets on a local disk.

Used to index known texts (`pipeline.reuse.vector_index`), whose number is not known before they are read. Rows stay in
memory up to `LIMIT_ROWS`; then they are written to buckets by their leading hex digits, and memory is filled again. Buckets
are read back one at a time. The trade-off: the number of buckets is fixed, so beyond a billion hashes (256 times the limit)
each bucket has more than `LIMIT_ROWS`.
"""

from __future__ import annotations

import secrets
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.storage.temp_dirs import SharedTempDir, disk_errors

LIMIT_ROWS = 4_000_000  # of 48 bytes, in three copies while they are sorted: 0.9 GB with the memory that Arrow keeps
BUCKETS = 256
# Boundaries of the buckets. Our hashes are hex; any other bytes, which only other tools write, also have a bucket.
_EDGES = np.array([f"{number:02x}" for number in range(1, BUCKETS)], dtype="S32")

Rows = npt.NDArray[Any]  # structured, with a field `hash`
TEXT = np.dtype([("hash", "S32")])
PLACE = np.dtype([("hash", "S32"), ("row", "<i8"), ("file", "<i4"), ("count", "<i4")])


def hash_bytes(column: pa.ChunkedArray) -> npt.NDArray[np.bytes_]:
    """Return hashes as fixed-width bytes, `S32` [rows], which numpy sorts and compares."""
    try:
        parts = [_fixed(chunk) for chunk in column.chunks]
    except pa.ArrowInvalid:  # hashes of another tool, null or of another length
        texts = [(text or "").encode() for text in column.to_pylist()]
        return np.array(texts, dtype="S32")
    return np.concatenate([np.zeros(0, dtype="S32"), *parts])


def _fixed(chunk: pa.Array) -> npt.NDArray[np.bytes_]:
    if chunk.null_count:
        raise pa.ArrowInvalid
    fixed = chunk.cast(pa.binary()).cast(pa.binary(32))
    return np.frombuffer(fixed.buffers()[1] or b"", dtype="S32")[fixed.offset : fixed.offset + len(fixed)]


def contains(ordered: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which of `values` are in `ordered`, bool [values]; `ordered` is sorted."""
    if len(ordered) == 0:
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values, dtype=bool)


def as_texts(hashes: npt.NDArray[np.bytes_]) -> Rows:
    """Return hashes as rows of dtype `TEXT`."""
    return np.ascontiguousarray(hashes).view(TEXT)


def firsts(rows: Rows) -> Rows:
    """Return the first row of each hash, sorted by hash."""
    ordered = rows[np.argsort(rows["hash"], kind="stable")]
    hashes = ordered["hash"]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = hashes[1:] != hashes[:-1]
    result: Rows = ordered[first]
    return result


class Buckets:
    """Collection of rows that keeps the first row of each hash.

    It is a context manager; its exit removes the files on the disk.

    Args:
        dtype: Dtype of the rows; the field `hash` is `S32`.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._buffered: list[Rows] = []
        self._buffered_rows = 0
        self._ordered = True  # the rows in memory are one array, sorted by hash, each hash once
        self._temp_dir: SharedTempDir | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temp_dir is not None:
            self._temp_dir.leave()

    @property
    def spilled(self) -> bool:
        """True if rows were written to the disk."""
        return self._temp_dir is not None

    def add(self, rows: Rows) -> None:
        """Add rows; of equal hashes the row that was added first stays.

        Raises:
            StorageError: the disk is full or failed.
        """
        self._buffered.append(rows)
        self._buffered_rows += len(rows)
        self._ordered = False
        # If over half of the rows have different hashes, the limit would soon be reached again.
        if self._buffered_rows > LIMIT_ROWS and 2 * len(self.whole()) > LIMIT_ROWS:
            self._spill()

    def whole(self) -> Rows:
        """Return the rows in memory, sorted by hash; if nothing was spilled, these are all rows."""
        if not self._ordered or not self._buffered:
            rows = np.concatenate([np.zeros(0, dtype=self._dtype), *self._buffered])
            self._buffered = []  # frees memory before the sort makes another copy
            self._buffered = [firsts(rows)]
            self._buffered_rows, self._ordered = len(self._buffered[0]), True
        return self._buffered[0]

    def take(self, number: int) -> Rows:
        """Return the rows of one of the `BUCKETS`, sorted by hash, and remove them from the disk.

        Hashes of a bucket are greater than those of all buckets before it.
        """
        temp_dir = self._spill() if self._buffered_rows or self._temp_dir is None else self._temp_dir
        path = temp_dir.path / f"{number:02x}"
        if not path.exists():
            return np.zeros(0, dtype=self._dtype)
        with disk_errors(path):
            rows = np.fromfile(path, dtype=self._dtype)
            path.unlink()  # makes space for the index, which is built from these rows
        return firsts(rows)

    def _spill(self) -> SharedTempDir:
        rows = self.whole()
        self._buffered, self._buffered_rows = [], 0
        self._temp_dir = temp_dir = self._temp_dir or SharedTempDir(f"spill-{secrets.token_hex(8)}")
        for number, part in enumerate(np.split(rows, np.searchsorted(rows["hash"], _EDGES))):
            if len(part):
                path = temp_dir.path / f"{number:02x}"
                with disk_errors(path), open(path, "ab") as file:
                    file.write(part.view(np.uint8).data)
        return temp_dir
