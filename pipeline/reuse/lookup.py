"""The stored vectors of known texts: asked by the readers of a run, by the index that its driver froze (`pipeline.reuse.vector_index`).

The index is frozen in the ledger, so every worker and every later attempt sees the same one. A small one, a single table,
each process keeps in memory. The tables of a large one become files on the local disk, once for all processes of a
machine, which map them: 48 bytes of disk a row, and the memory is the system's to take back. Vectors come back bit for
bit as they were stored.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.errors import StorageError
from actors.schema import CHUNK, EMBEDDING, END, HASH, START, TOKENS
from actors.storage.temp_dirs import SharedTempDir, shared_temp_dir
from actors.unit.table_files import read_stored
from pipeline.reuse.spill import Rows, contains, hash_bytes

# What a vector brings along from the table; everything else of a row comes from the source as it is now.
STORED = (EMBEDDING, TOKENS, CHUNK, START, END)
CACHE_BYTES = 1 << 30
# The square of a stored vector's length may be this far from 1; rounding to bfloat16 moves it by 0.008 at most.
_SQUARE_SLACK = 0.02
PLACED = np.dtype([("row", "<i8"), ("file", "<i4"), ("count", "<i4")])
_HASHES, _PLACES, _FILES = "hashes", "places", "files.json"


@dataclass(frozen=True, slots=True)
class Places:
    """An index as a process holds it: in memory, or mapped.

    Attributes:
        hashes: In order, each once.
        rows: Of `PLACED`, in the order of `hashes`.
        files: What `file` counts.
        room: Where the mapped files are, which go when nobody is there any more.
    """

    hashes: npt.NDArray[np.bytes_]
    rows: Rows
    files: list[str]
    temp_dir: SharedTempDir | None = None


class Reuse:
    """The index of one run, in one process."""

    def __init__(self, table: str, places: Places) -> None:
        self._table = table
        self._places = places
        self._cache: OrderedDict[str, pa.Table] = OrderedDict()
        self._cached_bytes = 0

    def split(
        self, rows: pa.Table, names: Iterable[str], *, dim: int | None = None
    ) -> tuple[pa.Table, pa.Table | None]:
        """The rows that need the encoder, and the others with what the table has of them.

        Args:
            rows: A unit as read, with `_hash`.
            names: Columns of the table; those in `STORED` are taken from it.
            dim: Width of the vectors. Texts of which a stored vector is not a unit vector of this width need the encoder:
                another tool, or a version before this check, may have written it. None takes stored vectors as they are.
        """
        hashes = hash_bytes(rows[HASH])
        known = contains(self._places.hashes, hashes)
        if not known.any():
            return rows, None
        places = self._places.rows[np.searchsorted(self._places.hashes, hashes[known])]
        stored = [name for name in STORED if name in set(names)]
        old = self._fetch(places, stored)
        if dim is not None and EMBEDDING in stored:
            fit = unit_vectors_of(old[EMBEDDING], dim)
            if not fit.all():
                owner = np.repeat(np.arange(len(places)), places["count"])
                whole = np.bincount(owner, weights=~fit, minlength=len(places)) == 0
                known[np.flatnonzero(known)[~whole]] = False
                places, old = places[whole], old.filter(pa.array(whole[owner]))
                if not known.any():
                    return rows, None
        repeats = np.repeat(np.flatnonzero(known), places["count"])
        ready = rows.take(pa.array(repeats))
        for name in stored:
            ready = ready.append_column(name, old[name])
        return rows.filter(pa.array(~known)), ready

    def _fetch(self, places: Rows, stored: list[str]) -> pa.Table:
        """The stored rows of places, in their order."""
        order: dict[str, list[int]] = {}
        for number, file in enumerate(places["file"]):
            order.setdefault(self._places.files[file], []).append(number)
        parts, ends = [], np.cumsum(places["count"])
        target = np.empty(int(ends[-1]), dtype=np.int64)
        filled = 0
        for path, numbers in order.items():
            here = places[numbers]
            counts = here["count"]
            within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
            parts.append(self._file(path, stored).take(pa.array(np.repeat(here["row"], counts) + within)))
            begins = np.repeat(ends[numbers] - counts, counts) + within
            target[begins] = np.arange(filled, filled + len(within))
            filled += len(within)
        return pa.concat_tables(parts).combine_chunks().take(pa.array(target))

    def _file(self, path: str, stored: list[str]) -> pa.Table:
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        table = read_stored(self._table, path, stored)
        self._cache[path] = table
        self._cached_bytes += table.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, gone = self._cache.popitem(last=False)
            self._cached_bytes -= gone.nbytes
        return table


def unit_vectors_of(column: pa.ChunkedArray, dim: int) -> npt.NDArray[np.bool_]:
    """Which stored vectors can be reused, bool [rows]: finite, `dim` wide and of unit length, as far as storage rounds.

    The first unit vector itself is none of ours: earlier versions wrote it for a text without a vector.
    """
    vectors = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(vectors), -1).to_numpy(zero_copy_only=False)
    fit: npt.NDArray[np.bool_] = lengths == dim
    values = (vectors if fit.all() else vectors.filter(pa.array(fit))).flatten()
    flat = values.to_numpy(zero_copy_only=False).reshape(-1, dim)  # a null becomes NaN
    squares = np.einsum("ij,ij->i", flat, flat)
    made_up = (flat[:, 0] == 1.0) & (squares == 1.0) if dim > 1 else False
    # A NaN compares as false.
    fit[fit] = (np.abs(squares - 1.0) < _SQUARE_SLACK) & ~made_up
    return fit


@lru_cache(maxsize=1)
def reuse_of(table: str, plan: str, parts: int) -> Reuse:
    """The index among a run's frozen tables; loaded once a process.

    Args:
        table: URL of the table's folder.
        plan: URL of the plan's folder.
        parts: How many tables the index is.
    """
    if parts == 1:
        files: dict[str, int] = {}
        hashes, rows = _read(storage.join(plan, "reuse.parquet"), files)
        return Reuse(table, Places(hashes, rows, list(files)))
    # The plan's folder has a name that no other has, so what is there under it is of this plan.
    temp_dir = SharedTempDir(f"known-{hashlib.blake2b(plan.encode(), digest_size=16).hexdigest()}")
    folder = temp_dir.path / "index"
    with shared_temp_dir(folder), temp_dir.alone():
        if not folder.exists():
            _unfold(plan, parts, temp_dir)
    with shared_temp_dir(folder):
        hashes = np.memmap(folder / _HASHES, dtype="S32", mode="r").view(np.ndarray)
        rows = np.memmap(folder / _PLACES, dtype=PLACED, mode="r").view(np.ndarray)
        return Reuse(table, Places(hashes, rows, json.loads((folder / _FILES).read_text()), temp_dir))


def _unfold(plan: str, parts: int, temp_dir: SharedTempDir) -> None:
    """Put the tables of an index into files that can be mapped: whole, or not at all."""
    unfinished = temp_dir.path / "unfinished"
    unfinished.mkdir(exist_ok=True)  # that of a process that was killed is written over
    files: dict[str, int] = {}
    with open(unfinished / _HASHES, "wb") as all_hashes, open(unfinished / _PLACES, "wb") as all_rows:
        for part in range(parts):
            hashes, rows = _read(storage.join(plan, "reuse", f"{part:03d}.parquet"), files)
            all_hashes.write(hashes.view(np.uint8).data)
            all_rows.write(rows.view(np.uint8).data)
    (unfinished / _FILES).write_text(json.dumps(list(files)))
    unfinished.rename(temp_dir.path / "index")


def _read(url: str, files: dict[str, int]) -> tuple[npt.NDArray[np.bytes_], Rows]:
    """One table of an index; `files` gets what it names."""
    try:
        table = pq.read_table(pa.BufferReader(storage.read(url)), read_dictionary=["file"]).unify_dictionaries()
    except FileNotFoundError:
        raise StorageError(
            f"{url!r} is gone: something removed a part of the plan. Remove that run's folder and run "
            f"the same command again"
        ) from None
    rows = np.empty(table.num_rows, dtype=PLACED)
    column = table["file"]
    if column.num_chunks:
        codes = [files.setdefault(path, len(files)) for path in column.chunk(0).dictionary.to_pylist()]
        rows["file"] = np.array(codes)[np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks])]
    rows["row"], rows["count"] = table["row"].to_numpy(), table["count"].to_numpy()
    return hash_bytes(table["hash"]), rows
