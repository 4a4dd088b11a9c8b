"""Export of the upserts and deletes that bring a vector index from one version of a table to another, as Parquet.

    <out>/upserts/part-00000.parquet ...   whole rows, as the table has them, vectors and partition columns included
    <out>/deletes/part-00000.parquet ...   the keys of removed rows: id, and in a table of chunks also chunk
    <out>/changes.json                     versions, fingerprint and counts; written last

Called by `jobs changes`. An upsert is an added or changed row. If a changed document has fewer chunks than before,
its last chunks are among the deletes. Both may be applied in any order, and repeatedly: no key is in both.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.errors import ConfigError
from actors.schema import CHUNK, ID
from actors.unit.row_hashes import hash_strings
from actors.unit.writer import parquet_bytes
from pipeline.table import delta_table
from pipeline.table.diff import Comparison, compare

_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Changes:
    """Result of an export."""

    table: str
    since: int
    version: int
    out: str
    upserts: int
    deletes: int
    embedding_spec_changed: bool
    fingerprint: str | None


def changes(table: str, since: int, out: str) -> Changes:
    """Export the changes from version `since` to the current one.

    Args:
        table: URI of the table.
        since: Version of the index.
        out: URI of a folder that is empty or does not exist.

    Raises:
        ConfigError: there is no table, or `out` holds something.
        TableConflict: there is no such version, or a vacuum took some of its files.
    """
    url, folder = storage.absolute(table), storage.absolute(out)
    if next(iter(storage.walk(folder)), None) is not None:
        raise ConfigError(f"--out {out!r} holds something already; name a folder that is empty or not there")
    current = delta_table.need_table(url)
    version = int(current.version())
    comparison = compare(url, since, version)
    upserts: list[npt.NDArray[np.uint64]] = [np.zeros(0, dtype=np.uint64)]
    deletes = 0
    for number, rows in enumerate(comparison.rows()):
        removed = pc.equal(rows["change"], "removed")
        keys = rows.filter(removed).select(comparison.keys)
        if keys.num_rows:
            sink = pa.BufferOutputStream()
            pq.write_table(keys, sink, compression="zstd", store_schema=False)
            storage.put(storage.join(folder, "deletes", f"part-{number:05d}.parquet"), bytes(sink.getvalue()))
            deletes += keys.num_rows
        upserts.append(_key_hashes(rows.filter(pc.invert(removed)), comparison))
    written = _write_upserts(comparison, np.unique(np.concatenate(upserts)), folder)
    embedding_spec = delta_table.embedding_spec_of(current)
    done = Changes(
        table=url,
        since=since,
        version=version,
        out=folder,
        upserts=written,
        deletes=deletes,
        embedding_spec_changed=comparison.embedding_spec_changed,
        fingerprint=embedding_spec.fingerprint if embedding_spec else None,
    )
    storage.put(storage.join(folder, "changes.json"), json.dumps(asdict(done), indent=1).encode())
    return done


def _write_upserts(comparison: Comparison, wanted: npt.NDArray[np.uint64], folder: str) -> int:
    """Write the rows with wanted keys, one output file for each new file; return the number of rows.

    If two keys have the same hash, an unchanged row is upserted too, which is harmless.
    """
    written = 0
    for number, path in enumerate(comparison.came):
        keys = comparison.read(path)
        mask = np.isin(_key_hashes(keys, comparison), wanted)
        if not mask.any():
            continue
        rows = comparison.read(path, vectors=True).filter(pa.array(mask))
        rows = rows.select(comparison.schema.names).cast(comparison.schema)
        data, _ = parquet_bytes(rows, "{}", comparison.outputs)
        storage.put(storage.join(folder, "upserts", f"part-{number:05d}.parquet"), data)
        written += rows.num_rows
    return written


def _key_hashes(rows: pa.Table, comparison: Comparison) -> npt.NDArray[np.uint64]:
    """Return a hash of id and chunk, uint64 [rows]."""
    hashes = hash_strings(rows[ID].cast(pa.string()))
    if CHUNK in comparison.keys:
        chunks = rows[CHUNK].to_numpy() if CHUNK in rows.column_names else np.zeros(rows.num_rows)
        with np.errstate(over="ignore"):
            hashes = hashes * _ODD + chunks.astype(np.uint64)
    return hashes
