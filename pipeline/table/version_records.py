"""Records of our versions: run, files and digests of their rows, in a small object beside the ledgers.

    <table>/_vectide/versions/<version>-<commit>.parquet     one row a file; run and columns in the footer

A record is written before each of our commits, under the number that the version gets if the commit succeeds. Other tools
may commit to the table and clean up its log at any time; the record still names the run that made the rows, and the files
of the version. A record is valid only if the table has its commit as an application transaction, which checkpoints keep.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from actors import storage
from actors.unit.receipt import DataFile
from actors.unit.table_files import run_of

_FOLDER = ("_vectide", "versions")
_FACTS = b"vectide"
FILE_COLUMNS = (("path", pa.string()), ("size_bytes", pa.int64()), ("rows", pa.int64()), ("partition", pa.string()))
_SCHEMA = pa.schema([*FILE_COLUMNS, ("digest", pa.uint64())])


@dataclass(frozen=True, slots=True)
class Anchor:
    """The record of one version.

    Attributes:
        commit: Name of the commit that made it.
        run: The run whose ledger has the sources of the rows.
        kept: The run whose ledger has the rows of other tools that are kept; None if there are none.
        table: Id of the table in the log; a table created again at the same URL has another id.
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
    """Write the record of a version before its commit. A repeat of the same commit writes the same."""
    facts = {"run": anchor.run, "kept": anchor.kept, "table": anchor.table, "columns": anchor.columns}
    schema = _SCHEMA.with_metadata({_FACTS: json.dumps(facts).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(files_to_table(anchor.files.values(), schema), sink, compression="zstd")
    storage.put(_place(url, anchor.version, anchor.commit), bytes(sink.getvalue()))


def read(url: str, version: int, commit: str) -> Anchor | None:
    """Return the record of one version; None if there is none, as for a version of an earlier release."""
    try:
        record = pq.read_table(pa.BufferReader(storage.read(_place(url, version, commit))))
    except FileNotFoundError:
        return None
    facts = json.loads((record.schema.metadata or {})[_FACTS])
    files = {file.path: file for file in table_to_files(record)}
    return Anchor(version, commit, facts["run"], facts["kept"], facts["table"], tuple(facts["columns"]), files)


def files_to_table(files: Iterable[DataFile], schema: pa.Schema) -> pa.Table:
    """Return files as a table of `FILE_COLUMNS` and any other fields of a file."""
    others = schema.names[len(FILE_COLUMNS) :]
    rows = (
        (file.path, file.size_bytes, file.rows, json.dumps(file.partition), *(getattr(file, name) for name in others))
        for file in files
    )
    columns = [list(values) for values in zip(*rows, strict=True)]
    return pa.table(columns, schema=schema) if columns else schema.empty_table()


def table_to_files(table: pa.Table) -> Iterator[DataFile]:
    """Yield the files of such a table; without statistics in it, these are the number of rows."""
    for row in table.to_pylist():
        stats = json.dumps({"numRecords": row["rows"]})
        yield DataFile(**{"stats": stats, **row, "partition": json.loads(row["partition"])})


def names(url: str) -> list[tuple[int, str]]:
    """Return version and commit of every record, oldest first. Some are of commits that never succeeded."""
    records = []
    for shard in storage.walk(storage.join(url, *_FOLDER)):
        version, dash, commit = shard.path.rsplit("/", 1)[1].removesuffix(".parquet").partition("-")
        if dash and version.isdigit():
            records.append((int(version), commit))
    return sorted(records)


def newest(url: str, table: DeltaTable) -> Anchor | None:
    """Return the record of our newest version, up to the open one, whose commit the table has; None if there is none."""
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
        if all(run_of(path) is None for path in unknown):
            break  # no record has the digest of a file that another tool wrote since the last one
    return by_path


def version_of(url: str, commit: str) -> int | None:
    """Return the version that a commit made, by the records; None if there is no record."""
    return max((version for version, name in names(url) if name == commit), default=None)


def forget(url: str, keep: Iterable[tuple[int, str]], before: int) -> None:
    """Delete the records of versions before a number, except `keep`."""
    kept = set(keep)
    for version, commit in names(url):
        if version < before and (version, commit) not in kept:
            storage.delete(_place(url, version, commit))


def table_id(table: DeltaTable) -> str:
    """Return the id of a table in its log."""
    return str(table.metadata().id)


def _place(url: str, version: int, commit: str) -> str:
    return storage.join(url, *_FOLDER, f"{version:020d}-{commit}.parquet")
