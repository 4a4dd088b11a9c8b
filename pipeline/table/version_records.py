"""What we know a version of ours to hold: its run and its files, in a small object beside the ledgers.

    <table>/_vectide/versions/<version>-<commit>.parquet     one line a file; run, commit and columns in the footer

Written before each of our commits, under the number that the version gets if the commit lands. The log may be cleaned up
at any moment by whoever looks after the table, and other tools commit to it too: this record then still says which run
made the rows, and which files should be there. A record counts only where the table itself remembers its commit as an
application transaction, which checkpoints keep.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from actors import storage
from actors.unit.receipt import DataFile

_FOLDER = ("_vectide", "versions")
_FACTS = b"vectide"
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("rows", pa.int64()),
        ("partition", pa.string()),
        ("digest", pa.uint64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A version of ours.

    Attributes:
        commit: Name of the commit that made it; `run`: of the run whose ledger says what the rows were made from.
        kept: The run whose ledger says which rows of other tools are kept; None where there are none.
        table: The table's own id, which a table that is made anew at the same place does not share.
        columns: Each as `name: type`, in order.
        files: Path to file, without statistics.
    """

    version: int
    commit: str
    run: str
    kept: str | None
    table: str
    columns: tuple[str, ...]
    files: dict[str, DataFile]


def write(url: str, anchor: Anchor) -> None:
    """Put the record of a version whose commit comes next. A repeat of the same commit writes the same."""
    rows = [
        (file.path, file.size_bytes, file.rows, json.dumps(file.partition), file.digest)
        for file in anchor.files.values()
    ]
    columns = [list(values) for values in zip(*rows, strict=True)] or [[] for _ in _SCHEMA]
    facts = {"run": anchor.run, "kept": anchor.kept, "table": anchor.table, "columns": anchor.columns}
    schema = _SCHEMA.with_metadata({_FACTS: json.dumps(facts).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    storage.put(_place(url, anchor.version, anchor.commit), bytes(sink.getvalue()))


def read(url: str, version: int, commit: str) -> Anchor | None:
    """The record of one version; None where there is none, as for one that an earlier release made."""
    try:
        found = pq.read_table(pa.BufferReader(storage.read(_place(url, version, commit))))
    except FileNotFoundError:
        return None
    facts = json.loads((found.schema.metadata or {})[_FACTS])
    files = {
        row["path"]: DataFile(
            row["path"],
            row["size_bytes"],
            row["rows"],
            json.loads(row["partition"]),
            json.dumps({"numRecords": row["rows"]}),
            row.get("digest"),
        )
        for row in found.to_pylist()
    }
    return Anchor(version, commit, facts["run"], facts["kept"], facts["table"], tuple(facts["columns"]), files)


def names(url: str) -> list[tuple[int, str]]:
    """Version and commit of every record, oldest first. Some are of commits that never landed."""
    found = []
    for shard in storage.walk(storage.join(url, *_FOLDER)):
        version, dash, commit = shard.path.rsplit("/", 1)[1].removesuffix(".parquet").partition("-")
        if dash and version.isdigit():
            found.append((int(version), commit))
    return sorted(found)


def newest(url: str, table: DeltaTable) -> Anchor | None:
    """The last version of ours, up to that which is open, that the table remembers; None where nothing is known."""
    for version, commit in reversed(names(url)):
        if version > table.version() or table.transaction_version(commit) is None:
            continue
        anchor = read(url, version, commit)
        if anchor is not None and anchor.table == table_id(table):
            return anchor
    return None


def with_digests(url: str, table: DeltaTable, files: Iterable[DataFile]) -> dict[str, DataFile]:
    """Return files by path, with the digests that earlier records have of those without one.

    Mostly the newest record has them all. A rollback brings back files that only older records name.
    """
    by_path = {file.path: file for file in files}
    unknown = {path for path, file in by_path.items() if file.digest is None}
    records = [(version, commit) for version, commit in names(url) if version <= table.version()] if unknown else []
    for version, commit in reversed(records):
        anchor = read(url, version, commit)
        digests = {} if anchor is None else {path: file.digest for path, file in anchor.files.items()}
        if digests and not any(digest is not None for digest in digests.values()):
            break  # a release without digests wrote this record and all before it
        for path in unknown & digests.keys():
            by_path[path] = replace(by_path[path], digest=digests[path])
        unknown = {path for path in unknown if by_path[path].digest is None}
        if not any(path.startswith("data/") for path in unknown):
            break  # no record has the digest of a file that another tool wrote since the last one
    return by_path


def version_of(url: str, commit: str) -> int | None:
    """The version that a commit which landed has made, by the records; None where there is no record."""
    return max((version for version, name in names(url) if name == commit), default=None)


def forget(url: str, keep: Iterable[tuple[int, str]], before: int) -> None:
    """Remove the records of versions before a number, but for some."""
    kept = set(keep)
    for version, commit in names(url):
        if version < before and (version, commit) not in kept:
            storage.delete(_place(url, version, commit))


def table_id(table: DeltaTable) -> str:
    """The id that the log gives a table."""
    return str(table.metadata().id)


def _place(url: str, version: int, commit: str) -> str:
    return storage.join(url, *_FOLDER, f"{version:020d}-{commit}.parquet")
