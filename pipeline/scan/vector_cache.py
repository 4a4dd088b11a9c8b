"""Local cache of table files in the form that a scan reads, mapped into memory.

Data files never change, so an entry is valid as long as the object has the same URL, size and tag; all of these and the
columns of the table are hashed into its name. An entry is an Arrow IPC file. It is written under another name, synced and
renamed, so a reader never opens a part of one; two processes that write the same entry write the same bytes. The folder
and its files must belong to the user and must not be writable by others. Entries that were not used for longest are
deleted when the cache is larger than its limit; a deleted file that is mapped stays readable. If the cache cannot be used,
the scan reads the table, and `VectorCache.problem` says why.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from actors.errors import ConfigError
from actors.quantities import format_bytes
from actors.schema import Shard
from actors.vectors import VectorColumn
from pipeline.scan.block import Block

VARIABLE = "VECTIDE_CACHE"
_FORMAT = 1  # of the entries; part of their names
_SUFFIX = ".vectors"
_PART_SUFFIX = ".part"
_PART_AGE_S = 3600.0
# Types of the low parts, smallest first; which one a file needs is known when all of it has been read.
_LOW_TYPES = (None, np.dtype(np.int8), np.dtype(np.int16))

# Reads a file of the table: yields batches with the vectors and all other columns of the scan.
Read = Callable[[], Iterable[pa.RecordBatch]]


def default_folder() -> Path:
    """Return the folder of the cache: $VECTIDE_CACHE, or `vectide` in the user's folder for caches."""
    named = os.environ.get(VARIABLE)
    if named:
        try:
            return Path(named).expanduser()
        except RuntimeError:
            raise ConfigError(f"{VARIABLE} is {named!r}, and there is no such user; name a folder") from None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vectide"
    except RuntimeError:
        raise ConfigError(f"this user has no home folder for the cache; name a folder in {VARIABLE}") from None


class VectorCache:
    """Entries of one folder.

    Args:
        folder: Created at the first entry.
        limit_bytes: Size of all entries together.

    Attributes:
        problem: Why entries cannot be written or read; None if they can.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        try:
            problem = "is not a folder" if folder.exists() and not folder.is_dir() else None
        except OSError as error:
            problem = f"cannot be used: {error.strerror}"
        if problem is not None:
            raise ConfigError(f"the cache {str(folder)!r} {problem}; name another folder in {VARIABLE}")
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._used: dict[str, int] = {}  # entries of this process by name, with their sizes: they are not deleted
        self._total: int | None = None  # bytes of all entries when they were listed, and of those written since
        self.problem: str | None = None

    def blocks(
        self,
        shard: Shard,
        schema: pa.Schema,
        column: VectorColumn,
        first: int,
        read: Read,
        *,
        size_bytes: int | None = None,
    ) -> Iterable[Block]:
        """Return the blocks of a table file: from its entry, which is written if there is none.

        Args:
            shard: The file.
            schema: Columns of the scan.
            column: The dense column of vectors.
            first: Position of the file's first row in the order of the scan.
            read: Reads the file.
            size_bytes: Estimated size of the entry; None: that of the file.
        """
        columns = [f"{field.name}: {field.type}" for field in schema]
        name = _name_of(shard, columns, column.name, column.dim)
        write = partial(_write_entry, column=column, read=read)
        expected = shard.size_bytes if size_bytes is None else size_bytes
        batches = self._batches(name, expected, lambda path: any(write(path, low=low) for low in _LOW_TYPES))
        return decoded(read, column, first) if batches is None else _mapped(batches, column, first)

    def row_group(
        self, shard: Shard, number: int, column: VectorColumn, read: Callable[[], pa.Array]
    ) -> tuple[pa.Array, bool]:
        """Return the stored vectors of a row group of a table file: from its entry, which is written if there is none.

        The second value is true if they are mapped, so that they take no memory of their own.

        Args:
            shard: The file.
            number: Number of the row group in the file.
            column: The column of vectors, of type `VectorColumn.type`.
            read: Reads the vectors.
        """
        vectors: list[pa.Array] = []  # read once

        def write(path: Path) -> bool:
            vectors.append(read())
            if not self._has_room(vectors[0].nbytes):
                return False
            with _new_file(path) as file, pa.ipc.new_file(file, pa.schema([(column.name, column.type)])) as writer:
                writer.write_batch(pa.record_batch(vectors, [column.name]))
            return True

        name = _name_of(shard, [str(column.type)], column.name, number)
        batches = self._batches(name, 0, write)
        if batches is not None:
            return batches[0].column(0), True
        return vectors[0] if vectors else read(), False

    def _batches(self, name: str, size_bytes: int, write: Callable[[Path], bool]) -> list[pa.RecordBatch] | None:
        """Return the mapped batches of an entry, which is written if there is none; None if that is not possible."""
        try:
            batches = self._open(name)
            if batches is None and self._has_room(size_bytes) and self._write(name, write):
                batches = self._open(name)
        except OSError as error:
            self.problem = (
                f"the cache {str(self._folder)!r} is not used: {error.strerror or error}; "
                f"name another folder in {VARIABLE}"
            )
            return None
        return batches

    def _has_room(self, size_bytes: int) -> bool:
        """Return False if the entries of this process and one more file exceed the limit.

        A scan that is larger than the cache would delete each entry before the next scan reads it.
        """
        if sum(self._used.values()) + size_bytes <= self._limit_bytes:
            return True
        self.problem = (
            f"the table is larger than the cache ({format_bytes(self._limit_bytes)}): files beyond it are read from the "
            f"table for each search; --cache-size enlarges it"
        )
        return False

    def _open(self, name: str) -> list[pa.RecordBatch] | None:
        """Return the mapped batches of an entry, or None if there is none that is complete and our own."""
        path = self._folder / name
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if not _is_private(status) or not _is_private(os.stat(self._folder)):
                    self.problem = f"{str(path)!r} is not used: it belongs to another user or others may write to it"
                    return None
                with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
                    batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except (FileNotFoundError, pa.ArrowInvalid):  # none, or one that a full disk or a crash cut off
            return None
        self._used[name] = status.st_size
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of the last use
        return batches

    def _write(self, name: str, write: Callable[[Path], bool]) -> bool:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(os.stat(self._folder)):
            self.problem = (
                f"the cache {str(self._folder)!r} is not used: it belongs to another user or others may write to it; "
                f"name another folder in {VARIABLE}"
            )
            return False
        part = self._folder / f"{name}.{os.getpid()}-{secrets.token_hex(4)}{_PART_SUFFIX}"
        try:
            if not write(part):
                return False
            size_bytes = part.stat().st_size
            if not self._has_room(size_bytes):
                return False
            self._used[name] = size_bytes
            # Row groups are small and many, so they are not listed for each that is written.
            if self._total is None or self._total + size_bytes > self._limit_bytes:
                self._total = self._delete_oldest()
            else:
                self._total += size_bytes
            os.replace(part, self._folder / name)
        finally:
            part.unlink(missing_ok=True)
        return True

    def _delete_oldest(self) -> int:
        """Delete entries that this process does not use until all fit, and what killed processes left; return the bytes left."""
        entries = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == _SUFFIX and path.name not in self._used:
                    entries.append((status.st_mtime, status.st_size, path))
                elif path.suffix == _PART_SUFFIX and status.st_mtime < time.time() - _PART_AGE_S:
                    path.unlink()
        total = sum(self._used.values()) + sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total


def decoded(read: Read, column: VectorColumn, first: int) -> Iterator[Block]:
    """Yield the blocks of a file that is read from the table."""
    for batch in read():
        yield Block.of(batch, column, first)
        first += batch.num_rows


def _mapped(batches: Iterable[pa.RecordBatch], column: VectorColumn, first: int) -> list[Block]:
    blocks = []
    for batch in batches:
        blocks.append(Block.from_stored(batch, column, first))
        first += batch.num_rows
    return blocks


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file of our own, which is on the disk at the end."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _write_entry(
    path: Path, column: VectorColumn, read: Read, low: np.dtype[np.int8] | np.dtype[np.int16] | None
) -> bool:
    """Write an entry with low parts of this type; return False if the type does not hold them."""
    with _new_file(path) as file, contextlib.ExitStack() as stack:
        writer = None
        for batch in read():
            stored = Block.of(batch, column, 0).stored(low)
            if stored is None:
                return False
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_file(file, stored.schema))
            writer.write_batch(stored)
        if writer is None:
            writer = stack.enter_context(pa.ipc.new_file(file, pa.schema([])))
    return True


def _name_of(shard: Shard, columns: list[str], vectors: str, number: int) -> str:
    key = json.dumps([_FORMAT, shard.path, shard.size_bytes, shard.etag, columns, vectors, number])
    return hashlib.sha256(key.encode()).hexdigest() + _SUFFIX


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
