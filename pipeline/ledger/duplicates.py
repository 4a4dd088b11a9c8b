"""Finds ids that more than one unit holds, and sets all but the first aside.

Called by publish when ids are declared unique; readers have done the same within each unit. Ids are compared as 64-bit
hashes, 8 bytes a row, in memory up to `LIMIT_BYTES` and beyond on a local disk; only rows whose hashes collide are compared
as texts. The first in the order of the plan stays. Losing rows leave by new files for their units and one amendment of
the ledger, created if absent, so that two drivers cannot decide differently.
"""

from __future__ import annotations

import os
import secrets
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
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
from actors.unit.receipt import DataFile, Receipt
from actors.unit.table_files import read_stored
from actors.unit.writer import parquet_bytes, quarantine_bytes
from pipeline.ledger.repeated_hashes import Repeats

LIMIT_BYTES = 16 << 20  # of hashes: two million rows; twice as much while they are sorted
_LIMIT_ID_BYTES = 4 << 30
_THREADS = 16
# Hashing takes some 40 bytes for each byte of text that it is at: so much text at once, in each thread.
_TEXT_BYTES = 128 << 10
_BASE = np.uint64(0x9E3779B97F4A7C15)
_Loaded = TypeVar("_Loaded")


def hash_strings(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each text, without a Python object a row.

    A polynomial in the bytes of each text (mod 2**64, an odd base), mixed at the end. Not safe against an adversary:
    equal hashes only nominate, texts decide.
    """
    hashes = [_hash_chunk(chunk.cast(pa.large_string())) for chunk in column.chunks if len(chunk)]
    return np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)


def _hash_chunk(chunk: pa.Array) -> npt.NDArray[np.uint64]:
    _, offsets_buffer, data = chunk.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    raw = np.frombuffer(data or b"", dtype=np.uint8)
    hashes = np.empty(len(chunk), dtype=np.uint64)
    start = 0
    while start < len(chunk):
        end = int(np.searchsorted(offsets, offsets[start] + _TEXT_BYTES, side="right")) - 1
        stop = min(max(end, start + 1), len(chunk))
        hashes[start:stop] = _hash_texts(raw, offsets[start : stop + 1])
        start = stop
    return hashes


def _hash_texts(raw: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    raw = raw[offsets[0] : offsets[-1]]
    starts = offsets[:-1] - offsets[0]
    lengths = np.diff(offsets)
    longest = int(lengths.max(initial=0))
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(longest, _BASE)]), dtype=np.uint64)
        within = np.arange(len(raw), dtype=np.int64) - np.repeat(starts, lengths)
        terms = (raw.astype(np.uint64) + np.uint64(1)) * powers[within]
        running = np.concatenate([[np.uint64(0)], np.cumsum(terms, dtype=np.uint64)])
        hashes: npt.NDArray[np.uint64] = running[starts + lengths] - running[starts]
        hashes ^= hashes >> np.uint64(33)
        hashes *= np.uint64(0xFF51AFD7ED558CCD)
        hashes ^= hashes >> np.uint64(33)
    return hashes


def find_duplicates(
    table: str, receipts: Iterable[Receipt], *, but: Collection[str] = (), limit_bytes: int = LIMIT_BYTES
) -> dict[int, set[str]]:
    """The ids that each unit must give up: those that an earlier row of the corpus has too.

    Earlier is: in a shard whose path sorts before, or in the same shard in a unit before.

    Args:
        table: URL of the table's folder.
        receipts: Of every unit; files of the table that stay may be passed as receipts too.
        but: Ids that may repeat: another tool added rows of them.
        limit_bytes: How many bytes of hashes memory holds; more rows than fit go to a local disk.

    Returns:
        Unit number to the ids that it must lose.

    Raises:
        StorageError: the local disk refused the hashes that memory does not hold.
    """
    ordered = sorted(receipts, key=lambda receipt: receipt.unit)
    with Repeats(limit_bytes) as repeats:
        for hashes in _read_ahead(table, lambda receipt: _hashes_of(table, receipt), ordered):
            repeats.add(hashes)
        twice = repeats.find()
    if len(twice) == 0:
        return {}
    holders: dict[str, list[tuple[str, int]]] = defaultdict(list)
    found = _read_ahead(table, lambda receipt: _documents(table, receipt, twice), ordered)
    for receipt, documents in zip(ordered, found, strict=True):
        for row in documents.to_pylist():
            holders[row[ID]].append((row[SHARD], receipt.unit))
    losers: dict[int, set[str]] = defaultdict(set)
    for name, places in holders.items():
        if name in but:
            continue
        winner = min(places)
        for place in places:
            if place != winner:
                losers[place[1]].add(name)
    return dict(losers)


def brings_ids(table: str, new: Iterable[str], gone: Iterable[str], *, limit_bytes: int = _LIMIT_ID_BYTES) -> bool:
    """Whether files hold an id that is in none of the files whose place they take.

    Where they do not, no file that stays can hold one of theirs, for the ids of a version are unique: it need not be read.

    Args:
        table: URL of the table's folder.
        new: Paths of the files that come.
        gone: Paths of the files that go.
        limit_bytes: Ids of more bytes than this are not compared; then the answer is yes.
    """
    there = _ids(table, gone, limit_bytes)
    found = None if there is None else _ids(table, new, limit_bytes)
    if there is None or found is None:
        return True
    return not pc.all(pc.is_in(found, value_set=there), min_count=0).as_py()


def _ids(table: str, paths: Iterable[str], limit_bytes: int) -> pa.Array | None:
    """The ids in files; None where they are too many."""
    rest, parts, size_bytes = list(paths), [pa.chunked_array([], pa.string())], 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(rest), 4 * _THREADS):
            parts += pool.map(lambda path: read_stored(table, path, [ID])[ID], rest[start : start + 4 * _THREADS])
            size_bytes += sum(part.nbytes for part in parts[-4 * _THREADS :])
            if size_bytes > limit_bytes:
                return None
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string()).unique()


def _read_ahead(table: str, load: Callable[[Receipt], _Loaded], receipts: list[Receipt]) -> Iterator[_Loaded]:
    """What `load` makes of each receipt, in order. As many are held as there are threads: more of them where most of the
    time is a wait for a store."""
    threads = min(_THREADS, os.cpu_count() or 1) if storage.is_local(table) else _THREADS
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[_Loaded]] = deque()
        for receipt in receipts:
            begun.append(pool.submit(load, receipt))
            if len(begun) > threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def _hashes_of(table: str, receipt: Receipt) -> npt.NDArray[np.uint64]:
    """The hashes of a unit's ids. With chunking an id stands once a chunk; a unit's own repeats are its reader's business,
    so each hash counts once here."""
    # An id is null where another tool wrote the row.
    parts = [hash_strings(read_stored(table, file.path, [ID])[ID].drop_null()) for file in receipt.files]
    return np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *parts]))


def _documents(table: str, receipt: Receipt, hashes: npt.NDArray[np.uint64]) -> pa.Table:
    """The documents of a unit (id and shard) whose hash is one of `hashes`, each once."""
    parts = [pa.table({ID: pa.array([], pa.string()), SHARD: pa.array([], pa.string())})]
    for file in receipt.files:
        rows = read_stored(table, file.path, [ID, SHARD])
        rows = rows.filter(pc.and_(pc.is_valid(rows[ID]), pc.is_valid(rows[SHARD])))
        parts.append(rows.filter(pa.array(np.isin(hash_strings(rows[ID]), hashes))))
    rows = pa.concat_tables(parts)
    return rows.group_by(ID, use_threads=False).aggregate([(SHARD, "min")]).rename_columns([ID, SHARD])


def set_aside(table: str, ledger: str, receipt: Receipt, ids: set[str], *, run: str) -> Receipt:
    """The unit without the rows of `ids`: new files, those rows in a quarantine file, and the receipt that says so.

    The old files stay until vacuum: another driver may be publishing them this moment.

    Args:
        table: URL of the table's folder.
        ledger: URL of the run's folder.
        receipt: Of the unit; its files may be another run's.
        ids: The ids that it loses.
        run: In whose data folder the new files go.
    """
    attempt = secrets.token_hex(6)
    files: list[DataFile] = []
    lost: dict[str, QuarantinedRow] = {}  # one a document, however many chunks it has
    unwanted = pa.array(sorted(ids))
    for number, file in enumerate(receipt.files):
        data = storage.read(storage.join(table, file.path))
        rows = pq.read_table(pa.BufferReader(data))
        mask = pc.is_in(rows[ID].cast(pa.string()), value_set=unwanted)
        for row in rows.filter(mask).select([ID, SHARD]).to_pylist():
            error = "this id stands in an earlier row of the corpus; set source.unique_ids: false to keep both"
            lost[row[ID]] = QuarantinedRow(row[SHARD], -1, row[ID], "duplicate_id", error)
        kept = rows.filter(pc.invert(mask))
        if kept.num_rows == 0:
            continue
        lineage = (pq.read_metadata(pa.BufferReader(data)).metadata or {}).get(b"vectide", b"{}").decode()
        payload, stats = parquet_bytes(kept, lineage)
        folders = file.path.split("/")[:-1]  # data/<run>/<partitions>; another tool's file has partitions alone
        partitions = folders[2:] if folders[:1] == ["data"] else folders
        folder = "/".join(["data", run, *partitions])
        path = f"{folder}/{receipt.unit:09d}-{attempt}-{number}.parquet"
        storage.put(storage.join(table, path), payload)
        files.append(DataFile(path, len(payload), kept.num_rows, file.partition, stats))
    bad = list(lost.values())
    quarantine = f"quarantine/{receipt.unit:09d}-{attempt}.parquet"
    storage.put(storage.join(ledger, quarantine), quarantine_bytes(bad, receipt.unit))
    both = ",".join(filter(None, [receipt.quarantine, quarantine]))
    overridden = replace(
        receipt,
        attempt=attempt,
        files=tuple(files),
        rows=sum(file.rows for file in files),
        documents=receipt.documents - len(bad),
        rows_quarantined=receipt.rows_quarantined + len(bad),
        quarantine=both,
    )
    overridden.check()
    return overridden
