"""Export of the changes between two versions of a table as Parquet, for the loader of a vector database.

    <out>/upserts/part-00000.parquet ...   whole rows, as the table has them, vectors and partition columns included
    <out>/deletes/part-00000.parquet ...   the keys of removed rows: id, and in a table of chunks also chunk
    <out>/changes.json                     versions, fingerprint and counts; written last
    <out>/unfinished.json                  table and versions, until changes.json is there

Called by `jobs changes`. A part has the number of the table's file that its rows are from. Parts are written whole and in
order, so the same command resumes after the last one.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.arguments import need_place, need_whole
from actors.errors import ConfigError, TableConflict
from actors.storage.own_table import is_inside
from actors.unit.writer import parquet_bytes
from pipeline.table.changes import Changes

_PART = re.compile(r"/(upserts|deletes)/part-(\d+)\.parquet$")
_TEMPORARY = re.compile(r"/\.[^/]*\.tmp$")  # left by a process that was killed


@dataclass(frozen=True, slots=True)
class Exported:
    """Result of an export."""

    table: str
    since: int
    version: int
    out: str
    upserts: int
    deletes: int
    embedding_spec_changed: bool
    fingerprint: str | None


def changes(table: str | Path, since: int, out: str | Path) -> Exported:
    """Export the changes from version `since` to the current one, or resume an unfinished export.

    Args:
        table: URI of the table.
        since: Version of the index.
        out: URI of a folder that is empty, does not exist, or has an unfinished export with the same arguments.

    Raises:
        ConfigError: there is no table, or `out` holds something else.
        TableConflict: there is no such version, or a vacuum took some of its files.
    """
    out, since = need_place(out, "out"), need_whole(since, "since")
    url, folder = storage.absolute(need_place(table, "table")), storage.absolute(out)
    if is_inside(folder, url):
        raise ConfigError(
            f"--out {out!r} lies where the table {url!r} keeps its own files, and other tools' vacuum deletes all others; name a "
            f"folder outside of it"
        )
    if storage.exists(folder):  # a folder is no object
        raise ConfigError(f"--out {out!r} is a file; name a folder that is empty or not there")
    marker = storage.join(folder, "unfinished.json")
    stored = [shard.path for shard in storage.walk(folder) if not _TEMPORARY.search(shard.path)]
    version = _resumed_version(marker, url, since, out) if stored else None
    try:
        found = Changes(url, since, version)
    except TableConflict as error:
        if version is None:
            raise
        raise TableConflict(f"{error}. The unfinished export in {out!r} cannot go on; name another folder") from None
    if version is None:
        facts = {"table": url, "since": since, "version": found.version}
        if not storage.create(marker, json.dumps(facts).encode()):
            raise ConfigError(f"another process has begun to write to --out {out!r}; name another folder")
    counts = {"upserts": 0, "deletes": 0}
    for path in stored:
        if part := _PART.search(path):
            kind, number = part[1], int(part[2])
            found.start = max(found.start, number + 1 + (found.upsert_files if kind == "deletes" else 0))
            with storage.open_read(path) as file:
                counts[kind] += pq.read_metadata(file).num_rows
    for change in found:
        kind, number = "upserts", change.position - 1
        if change.upserts.num_rows:
            data, _ = parquet_bytes(change.upserts, "{}", found.outputs)
        else:
            kind, number = "deletes", number - found.upsert_files
            sink = pa.BufferOutputStream()
            pq.write_table(change.deletes, sink, compression="zstd", store_schema=False)
            data = bytes(sink.getvalue())
        storage.put(storage.join(folder, kind, f"part-{number:05d}.parquet"), data)
        counts[kind] += change.upserts.num_rows + change.deletes.num_rows
    done = Exported(
        table=url,
        since=since,
        version=found.version,
        out=folder,
        **counts,
        embedding_spec_changed=found.embedding_spec_changed,
        fingerprint=found.fingerprint,
    )
    storage.put(storage.join(folder, "changes.json"), json.dumps(asdict(done), indent=1).encode())
    storage.delete(marker)
    return done


def _resumed_version(marker: str, url: str, since: int, out: str) -> int:
    """Return the version that an unfinished export of the same changes writes.

    Raises:
        ConfigError: the folder holds something else.
    """
    try:
        facts = json.loads(storage.read(marker))
    except FileNotFoundError:
        raise ConfigError(f"--out {out!r} holds something already; name a folder that is empty or not there") from None
    if (facts["table"], facts["since"]) != (url, since):
        raise ConfigError(
            f"--out {out!r} holds an unfinished export of the changes since version {facts['since']} of {facts['table']!r}; "
            f"repeat that command, or name a folder that is empty or not there"
        )
    return int(facts["version"])
