"""Builds the index of known texts: the place, among files with vectors, of the vector of each wanted text.

Called by the driver of a run before it freezes its plan; `pipeline.reuse.lookup` reads the index. It takes one pass over
the hashes of the files. Up to `spill.LIMIT_ROWS` places and texts, all is in memory and the index is one table. Above that,
places and texts are matched bucket by bucket: memory is bounded by the largest bucket, the rest is on a local disk (48
bytes a row of the files, 32 bytes a wanted text), and the index is several tables that follow each other by hash.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.schema import CHUNK, HASH, ID, SHARD
from actors.storage.temp_dirs import SharedTempDir, disk_errors
from actors.unit.table_files import read_stored
from actors.vectors import VectorColumn, reusable
from pipeline.reuse import spill
from pipeline.reuse.spill import BUCKETS, PLACE, Buckets, Rows, contains, hash_bytes
from pipeline.table.kept_rows import Kept

SCHEMA = pa.schema(
    [
        ("hash", pa.string()),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int64()),
        ("count", pa.int32()),
    ]
)
_THREADS = 16


class Index:
    """First place of each wanted text.

    It is a context manager; its exit removes the files on the disk.

    Args:
        paths: Paths of the files, which places name by number.

    Attributes:
        rows: Number of places.
        unknown: Number of wanted texts without a place.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.rows = 0
        self.unknown = 0
        self._paths = pa.array(paths, pa.string())
        self._buffered: list[Rows] = []
        self._buffered_rows = 0
        self._temp_dir: SharedTempDir | None = None
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temp_dir is not None:
            self._temp_dir.leave()

    @property
    def parts(self) -> int:
        """Number of tables; 0 if there is no place."""
        return self._written + (1 if self._buffered_rows else 0)

    def tables(self) -> pa.Table | Iterator[pa.Table]:
        """Return the index (`SCHEMA`) sorted by hash, as one table or as several that follow each other."""
        if self._written == 0:
            return self._table(self._whole())
        return (self._table(self._part(number)) for number in range(self.parts))

    def has(self, hashes: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        """Return whether each text has a place, by its hash, bool [hashes]; False for null."""
        tables = self.tables()
        found = np.zeros(len(hashes), dtype=bool)
        for table in [tables] if isinstance(tables, pa.Table) else tables:
            found |= pc.is_in(hashes, value_set=table["hash"]).to_numpy()
        return found

    def add(self, rows: Rows) -> None:
        """Add places, whose hashes are greater than those of all places before."""
        if self._buffered_rows and self._buffered_rows + len(rows) > spill.LIMIT_ROWS:
            self._temp_dir = self._temp_dir or SharedTempDir(f"index-{secrets.token_hex(8)}")
            path = self._temp_dir.path / str(self._written)
            with disk_errors(path), open(path, "wb") as file:
                file.write(self._whole().view(np.uint8).data)
            self._buffered, self._buffered_rows, self._written = [], 0, self._written + 1
        self._buffered.append(rows)
        self._buffered_rows += len(rows)
        self.rows += len(rows)

    def _whole(self) -> Rows:
        return np.concatenate([np.zeros(0, dtype=PLACE), *self._buffered])

    def _part(self, number: int) -> Rows:
        if self._temp_dir is None or number == self._written:
            return self._whole()
        path = self._temp_dir.path / str(number)
        with disk_errors(path):
            return np.fromfile(path, dtype=PLACE)

    def _table(self, rows: Rows) -> pa.Table:
        used, codes = np.unique(rows["file"], return_inverse=True)
        files = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), self._paths.take(pa.array(used)))
        hashes = pa.array(np.ascontiguousarray(rows["hash"])).cast(pa.string())
        columns = [hashes, files, *(np.ascontiguousarray(rows[name]) for name in ("row", "count"))]
        return pa.table(columns, schema=SCHEMA)


@dataclass(frozen=True, slots=True)
class Untrusted:
    """Rules that exclude vectors of a table that other tools write to.

    Attributes:
        paths: Files of other tools; their vectors must be unit vectors.
        outputs: Columns of vectors.
        excluded: Rows that another tool added or changed, whose vectors are not used; None if there are none.
    """

    paths: frozenset[str]
    outputs: tuple[VectorColumn, ...]
    excluded: Kept | None

    def sound(self, table: str, path: str) -> npt.NDArray[np.bool_]:
        """Return whether the vector of each row of a file may be used, bool [rows]."""
        with storage.open_read(storage.join(table, path)) as file:
            names = pq.ParquetFile(file).schema_arrow.names
        keys = [ID, SHARD, HASH, *([CHUNK] if CHUNK in names else [])]
        outputs = self.outputs if path in self.paths else ()
        rows = read_stored(table, path, keys, outputs)
        sound = reusable(rows, outputs)
        if self.excluded is not None:
            sound &= ~self.excluded.is_added(rows).to_numpy()
        return sound


def build_index(table: str, paths: Sequence[str], wanted: Buckets | None, untrusted: Untrusted | None = None) -> Index:
    """Find the first place of each wanted text.

    Args:
        table: URL of the table's folder.
        paths: Files with vectors of the run's embedding spec, the preferred files first.
        wanted: Rows of dtype `spill.TEXT`; None for every text of the files.
        untrusted: Rules for files of other tools among them.

    Raises:
        StorageError: the local disk is full or failed.
    """
    index = Index(paths)
    try:
        with Buckets(PLACE) as stored:
            for places in _places(table, paths, None if wanted is None or wanted.spilled else wanted, untrusted):
                stored.add(places)
            _match(wanted, stored, index)
    except BaseException:
        index.__exit__()
        raise
    return index


def _match(wanted: Buckets | None, stored: Buckets, index: Index) -> None:
    if wanted is not None and not wanted.spilled:
        index.unknown = len(wanted.whole())
    if not stored.spilled and (wanted is None or not wanted.spilled):
        index.add(stored.whole())
    else:
        for number in range(BUCKETS):
            places = stored.take(number)
            if wanted is not None and wanted.spilled:
                texts = wanted.take(number)["hash"]
                index.unknown += len(texts)
                places = places[contains(texts, places["hash"])]
            index.add(places)
    if wanted is not None:
        index.unknown -= index.rows


def _places(
    table: str, paths: Sequence[str], wanted: Buckets | None, untrusted: Untrusted | None = None
) -> Iterator[Rows]:
    """Yield the documents of each file (dtype `spill.PLACE`) in order; if `wanted` is given, only those in it."""

    def find(number: int) -> Rows:
        rows = read_stored(table, paths[number], [ID, HASH])
        hashes = hash_bytes(rows[HASH])
        # Chunks of a document are neighbours; a document begins where the id or the hash changes.
        ids = pc.fill_null(rows[ID].combine_chunks(), "")
        first = np.ones(len(hashes), dtype=bool)
        if len(hashes) > 1:
            same_id = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(zero_copy_only=False)
            first[1:] = ~same_id | (hashes[1:] != hashes[:-1])
        starts = np.flatnonzero(first)
        counts = np.diff(np.append(starts, len(hashes)))
        if (
            untrusted is not None
            and len(starts)
            and (untrusted.excluded is not None or paths[number] in untrusted.paths)
        ):
            sound = np.logical_and.reduceat(untrusted.sound(table, paths[number]), starts)
            starts, counts = starts[sound], counts[sound]
        if wanted is not None:
            mask = contains(wanted.whole()["hash"], hashes[starts])
            starts, counts = starts[mask], counts[mask]
        places = np.empty(len(starts), dtype=PLACE)
        places["hash"], places["row"], places["file"], places["count"] = hashes[starts], starts, number, counts
        return places

    if wanted is not None:
        wanted.whole()  # sorts once, before the threads begin
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), _THREADS):  # as many files in memory as threads
            yield from pool.map(find, range(start, min(start + _THREADS, len(paths))))
