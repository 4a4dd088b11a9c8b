"""Looks up stored vectors of known texts in the index that the driver built (`pipeline.reuse.vector_index`).

Used by the readers of a run. The index is frozen in the ledger, so every worker and every later attempt uses the same one.
A small index is a single table, which each process keeps in memory. The tables of a large index become files on the local
disk, once for all processes of a machine, which map them into memory: 48 bytes of disk a row, and the system may reclaim
the memory. Vectors are returned bit for bit as they were stored.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.errors import StorageError
from actors.schema import CHUNK, END, GRID_H, GRID_W, HASH, START, TOKENS
from actors.storage.temp_dirs import SharedTempDir, disk_errors
from actors.unit.table_files import read_stored
from actors.vectors import VectorColumn, has_many, reusable
from pipeline.reuse.spill import Rows, contains, hash_bytes

# Columns that are read from the table with the vectors; the other columns of a row come from the current source.
STORED = (TOKENS, CHUNK, START, END, GRID_H, GRID_W)
CACHE_BYTES = 1 << 30
PLACED = np.dtype([("row", "<i8"), ("file", "<i4"), ("count", "<i4")])
_HASHES, _PLACES, _FILES = "hashes", "places", "files.json"


@dataclass(frozen=True, slots=True)
class Places:
    """Index of a process, in memory or mapped from files.

    Attributes:
        hashes: Content hashes in order, each once, `S32` [texts].
        rows: Places of dtype `PLACED`, in the order of `hashes`.
        files: Paths that the field `file` of `rows` numbers.
        temp_dir: Shared temporary directory of the mapped files, removed when the last process exits; None in memory.
    """

    hashes: npt.NDArray[np.bytes_]
    rows: Rows
    files: list[str]
    temp_dir: SharedTempDir | None = None


class Reuse:
    """Index of one run in one process, and a cache of the table files that it points to."""

    def __init__(self, table: str, places: Places) -> None:
        self._table = table
        self._places = places
        self._cache: OrderedDict[str, pa.Table] = OrderedDict()
        self._cached_bytes = 0

    def split(
        self, rows: pa.Table, names: Iterable[str], outputs: Sequence[VectorColumn]
    ) -> tuple[pa.Table, pa.Table | None]:
        """Return the rows that need the encoder, and the other rows with their stored columns (None if there are none).

        Args:
            rows: Rows of a unit as read, with `_hash`.
            names: Columns of the table; those in `STORED` are read from it.
            outputs: Its columns of vectors. A text with a stored vector that is not a unit vector needs the encoder, because
                another tool or an older version may have written it.
        """
        hashes = hash_bytes(rows[HASH])
        known = contains(self._places.hashes, hashes)
        if not known.any():
            return rows, None
        places = self._places.rows[np.searchsorted(self._places.hashes, hashes[known])]
        # In a table without many vectors, a kept column may have the name of a grid.
        own = STORED if has_many(outputs) else tuple(name for name in STORED if name not in (GRID_H, GRID_W))
        stored = [name for name in own if name in set(names)]
        old = self._fetch(places, stored, outputs)
        usable = reusable(old, outputs)
        if not usable.all():
            text_of = np.repeat(np.arange(len(places)), places["count"])
            complete = np.bincount(text_of, weights=~usable, minlength=len(places)) == 0
            known[np.flatnonzero(known)[~complete]] = False
            places, old = places[complete], old.filter(pa.array(complete[text_of]))
            if not known.any():
                return rows, None
        repeats = np.repeat(np.flatnonzero(known), places["count"])
        ready = rows.take(pa.array(repeats))
        for name in old.column_names:
            ready = ready.append_column(name, old[name])
        return rows.filter(pa.array(~known)), ready

    def _fetch(self, places: Rows, stored: list[str], outputs: Sequence[VectorColumn]) -> pa.Table:
        """Return the stored rows of places, in the order of the places."""
        order: dict[str, list[int]] = {}
        for number, file in enumerate(places["file"]):
            order.setdefault(self._places.files[file], []).append(number)
        parts, ends = [], np.cumsum(places["count"])
        target = np.empty(int(ends[-1]), dtype=np.int64)
        filled = 0
        for path, numbers in order.items():
            places_in_file = places[numbers]
            counts = places_in_file["count"]
            within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
            rows = pa.array(np.repeat(places_in_file["row"], counts) + within)
            parts.append(self._file(path, stored, outputs).take(rows))
            begins = np.repeat(ends[numbers] - counts, counts) + within
            target[begins] = np.arange(filled, filled + len(within))
            filled += len(within)
        return pa.concat_tables(parts).combine_chunks().take(pa.array(target))

    def _file(self, path: str, stored: list[str], outputs: Sequence[VectorColumn]) -> pa.Table:
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        table = read_stored(self._table, path, stored, outputs)
        self._cache[path] = table
        self._cached_bytes += table.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.nbytes
        return table


@lru_cache(maxsize=1)
def reuse_of(table: str, plan: str, parts: int) -> Reuse:
    """Return the index among the frozen tables of a run; it is loaded once a process.

    Args:
        table: URL of the table's folder.
        plan: URL of the plan's folder.
        parts: Number of tables of the index.

    Raises:
        StorageError: a table of the index was removed, or the disk is full or failed.
    """
    if parts == 1:
        files: dict[str, int] = {}
        hashes, rows = _read(storage.join(plan, "reuse.parquet"), files)
        return Reuse(table, Places(hashes, rows, list(files)))
    # The name of a plan's folder is unique, so files below a name made from it belong to this plan.
    temp_dir = SharedTempDir(f"known-{hashlib.blake2b(plan.encode(), digest_size=16).hexdigest()}")
    folder = temp_dir.path / "index"
    with disk_errors(folder), temp_dir.alone():
        if not folder.exists():
            _unfold(plan, parts, temp_dir)
    with disk_errors(folder):
        hashes = np.memmap(folder / _HASHES, dtype="S32", mode="r").view(np.ndarray)
        rows = np.memmap(folder / _PLACES, dtype=PLACED, mode="r").view(np.ndarray)
        return Reuse(table, Places(hashes, rows, json.loads((folder / _FILES).read_text()), temp_dir))


def _unfold(plan: str, parts: int, temp_dir: SharedTempDir) -> None:
    """Write the tables of an index to files that can be mapped, and rename their folder once all are complete."""
    unfinished = temp_dir.path / "unfinished"
    unfinished.mkdir(exist_ok=True)  # overwrites that of a process that was killed
    files: dict[str, int] = {}
    with open(unfinished / _HASHES, "wb") as all_hashes, open(unfinished / _PLACES, "wb") as all_rows:
        for part in range(parts):
            hashes, rows = _read(storage.join(plan, "reuse", f"{part:03d}.parquet"), files)
            all_hashes.write(hashes.view(np.uint8).data)
            all_rows.write(rows.view(np.uint8).data)
    (unfinished / _FILES).write_text(json.dumps(list(files)))
    unfinished.rename(temp_dir.path / "index")


def _read(url: str, files: dict[str, int]) -> tuple[npt.NDArray[np.bytes_], Rows]:
    """Read one table of an index; paths that are not in `files` yet are added to it."""
    try:
        table = pq.read_table(pa.BufferReader(storage.read(url)), read_dictionary=["file"]).unify_dictionaries()
    except FileNotFoundError:
        raise StorageError(
            f"{url!r} does not exist any more: another program removed a part of the plan. Remove that run's folder "
            f"and run the same command again"
        ) from None
    rows = np.empty(table.num_rows, dtype=PLACED)
    column = table["file"]
    if column.num_chunks:
        codes = [files.setdefault(path, len(files)) for path in column.chunk(0).dictionary.to_pylist()]
        rows["file"] = np.array(codes)[np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks])]
    rows["row"], rows["count"] = table["row"].to_numpy(), table["count"].to_numpy()
    return hash_bytes(table["hash"]), rows
