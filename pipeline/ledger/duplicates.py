"""Finds ids that more than one unit has, and quarantines all rows of such an id but the first.

Called by publish when ids are declared unique; readers do the same within each unit. Ids are compared as 64-bit hashes,
8 bytes a row, in memory up to `LIMIT_BYTES` and above that on a local disk; only rows with equal hashes are compared as
texts. The first row in the order of the plan stays. The other rows are removed by new files for their units and one
receipt override in the ledger, created if absent, so that two drivers cannot decide differently.
"""

from __future__ import annotations

import os
import secrets
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.schema import ID, SHARD, QuarantinedRow
from actors.unit.figures import Figures
from actors.unit.receipt import DataFile, Receipt
from actors.unit.row_hashes import digest_of, hash_strings
from actors.unit.table_files import data_path, partition_folders, read_stored, run_of
from actors.unit.writer import parquet_bytes, quarantine_bytes
from actors.vectors import VectorColumn
from pipeline.ledger.repeated_hashes import Repeats

ERROR = "an earlier row of the corpus has this id; set source.unique_ids: false to keep both"
LIMIT_BYTES = 16 << 20  # hashes of two million rows; sorting them takes twice as much
_LIMIT_ID_BYTES = 4 << 30
_THREADS = 16
_Loaded = TypeVar("_Loaded")


def find_duplicates(
    table: str, paths: Sequence[str], *, allowed: Collection[str] = (), limit_bytes: int = LIMIT_BYTES
) -> dict[str, set[str]]:
    """Return the ids of each file that an earlier row of the corpus has too.

    A row is earlier if the path of its shard sorts first, or if it is in the same shard and in an earlier file.

    Args:
        table: URL of the table's folder.
        paths: Files in the order of the plan, relative to `table`. No two rows of one file are documents with one id.
        allowed: Ids that may repeat, because another tool added rows with them.
        limit_bytes: Bytes of hashes to keep in memory; further hashes go to a local disk.

    Returns:
        Path of a file to the ids whose rows must be quarantined.

    Raises:
        StorageError: the local disk is full or failed.
    """
    with Repeats(limit_bytes) as repeats:
        for hashes in _read_ahead(table, lambda path: _hashes_of(table, path), paths):
            repeats.add(hashes)
        repeated = repeats.find()
    if len(repeated) == 0:
        return {}
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for number, documents in enumerate(_read_ahead(table, lambda path: _documents(table, path, repeated), paths)):
        for row in documents.to_pylist():
            places[row[ID]].append((row[SHARD], number))
    duplicates: dict[str, set[str]] = defaultdict(set)
    for name in places.keys() - set(allowed):
        for _, number in sorted(places[name])[1:]:
            duplicates[paths[number]].add(name)
    return dict(duplicates)


def brings_ids(table: str, added: Iterable[str], removed: Iterable[str], *, limit_bytes: int = _LIMIT_ID_BYTES) -> bool:
    """Return whether new files contain an id that none of the files that they replace has.

    If they do not, no file that stays can contain one of their ids, because the ids of a version are unique; those files
    need not be read then.

    Args:
        table: URL of the table's folder.
        added: Paths of the files to add.
        removed: Paths of the files to remove.
        limit_bytes: Ids of more bytes than this are not compared; the result is True then.
    """
    removed_ids = _ids(table, removed, limit_bytes)
    added_ids = None if removed_ids is None else _ids(table, added, limit_bytes)
    if removed_ids is None or added_ids is None:
        return True
    return not pc.all(pc.is_in(added_ids, value_set=removed_ids), min_count=0).as_py()


def _ids(table: str, paths: Iterable[str], limit_bytes: int) -> pa.Array | None:
    """Return the ids in files, each once; None if they have more than `limit_bytes`."""
    parts, size_bytes = [pa.chunked_array([], pa.string())], 0
    for part in _read_ahead(table, lambda path: read_stored(table, path, [ID])[ID], paths):
        parts.append(part)
        size_bytes += part.nbytes
        if size_bytes > limit_bytes:
            return None
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string()).unique()


def _read_ahead(table: str, load: Callable[[str], _Loaded], paths: Iterable[str]) -> Iterator[_Loaded]:
    """Yield `load(path)` for each file, in order, with as many results in memory as there are threads.

    A remote store gets more threads, because they mostly wait.
    """
    threads = min(_THREADS, os.cpu_count() or 1) if storage.is_local(table) else _THREADS
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[_Loaded]] = deque()
        for path in paths:
            pending.append(pool.submit(load, path))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _hashes_of(table: str, path: str) -> npt.NDArray[np.uint64]:
    """Return the hashes of a file's ids, each once: with chunking an id is there once a chunk, and readers have already
    quarantined duplicates within the unit."""
    return np.unique(hash_strings(read_stored(table, path, [ID])[ID].drop_null()))  # another tool may write no id


def _documents(table: str, path: str, hashes: npt.NDArray[np.uint64]) -> pa.Table:
    """Return the documents (id and shard) of a file whose hash is one of `hashes`, each once."""
    rows = read_stored(table, path, [ID, SHARD])
    rows = rows.filter(pc.and_(pc.is_valid(rows[ID]), pc.is_valid(rows[SHARD])))
    rows = rows.filter(pa.array(np.isin(hash_strings(rows[ID]), hashes)))
    return rows.group_by(ID, use_threads=False).aggregate([(SHARD, "min")]).rename_columns([ID, SHARD])


def quarantine_duplicates(
    table: str, ledger: str, receipt: Receipt, ids: set[str], *, run: str, outputs: Sequence[VectorColumn]
) -> Receipt:
    """Write new files for a unit without the rows of `ids` and a quarantine file with them; return the new receipt.

    The old files stay until vacuum, because another driver may be publishing them at the same time.

    Args:
        table: URL of the table's folder.
        ledger: URL of the folder of the run's plan.
        receipt: Receipt of the unit; its files may be another run's.
        ids: Ids whose rows are quarantined.
        run: Name of the run whose data folder gets the new files.
        outputs: Columns of vectors.
    """
    attempt = secrets.token_hex(6)
    files: list[DataFile] = []
    quarantined: dict[str, QuarantinedRow] = {}  # one a document, for any number of chunks
    duplicate_ids = pa.array(sorted(ids))
    for number, file in enumerate(receipt.files):
        data = storage.read(storage.join(table, file.path))
        rows = pq.read_table(pa.BufferReader(data))
        mask = pc.is_in(rows[ID].cast(pa.string()), value_set=duplicate_ids)
        for row in rows.filter(mask).select([ID, SHARD]).to_pylist():
            quarantined[row[ID]] = QuarantinedRow(row[SHARD], -1, row[ID], "duplicate_id", ERROR)
        unique = rows.filter(pc.invert(mask))
        if unique.num_rows == 0:
            continue
        lineage = (pq.read_metadata(pa.BufferReader(data)).metadata or {}).get(b"vectide", b"{}").decode()
        payload, stats = parquet_bytes(unique, lineage, outputs)
        path = data_path(run, partition_folders(file.path), f"{receipt.unit:09d}-{attempt}-{number}")
        storage.put(storage.join(table, path), payload)
        digest = None if run_of(file.path) is None else digest_of(unique, file.partition)
        files.append(DataFile(path, len(payload), unique.num_rows, file.partition, stats, digest))
    bad_rows = list(quarantined.values())
    quarantine_path = f"quarantine/{receipt.unit:09d}-{attempt}.parquet"
    storage.put(storage.join(ledger, quarantine_path), quarantine_bytes(bad_rows, receipt.unit))
    figures = Figures.from_json(receipt.figures)
    figures.add(Figures(reasons={"duplicate_id": len(bad_rows)}))
    overridden = replace(
        receipt,
        attempt=attempt,
        files=tuple(files),
        rows=sum(file.rows for file in files),
        documents=receipt.documents - len(bad_rows),
        rows_quarantined=receipt.rows_quarantined + len(bad_rows),
        quarantine=(*receipt.quarantine, quarantine_path),
        figures=figures.to_json(),
    )
    overridden.check()
    return overridden
