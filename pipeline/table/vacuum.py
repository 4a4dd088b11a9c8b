"""Deletes unneeded files: never those of a kept version, or of a run that may resume.

Called by `jobs vacuum`. It keeps the versions that were current at any time in the last `keep_s`, the files in receipts of
unfinished runs, and files younger than `keep_s` (an attempt may still be writing them). Times of files are the store's.
The vacuum has the table lock, so no run begins meanwhile. A stalled attempt of a run whose files were deleted could resume;
it then finds at publish that files are missing.

The ledger of a run is deleted with it: the plan first and data files last, so that after a crash no ledger names files that
do not exist.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from deltalake import DeltaTable

from actors import storage
from actors.errors import ConfigError, NoSuchVersion
from actors.schema import Shard
from actors.unit.table_files import data_folder, relative_path, run_of
from pipeline.ledger.ledger import FOLDER, ROWS_FOLDER, UNIT_FILES, Ledger, files_of_run, run_names
from pipeline.ledger.table_lock import lock_table
from pipeline.table import delta_table, version_records

_THREADS = 32


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """Result of a vacuum: the files that it deleted, or would delete.

    Attributes:
        files: Number of data files; `size_bytes` is their total size.
        runs: Number of ledgers.
        versions: Number of versions that can still be read.
        unfinished: Number of unfinished runs that are kept.
        unfinished_bytes: Total size of their files.
    """

    table: str
    dry_run: bool
    files: int
    size_bytes: int
    runs: int
    versions: int
    unfinished: int
    unfinished_bytes: int


@dataclass(slots=True)
class _Plan:
    """Files (paths relative to the table) and runs that a vacuum keeps."""

    files: set[str]
    runs: set[str]
    versions: int
    unfinished: set[str]
    oldest: int = 0  # the first version that is kept


def vacuum(table: str, keep_s: float, *, unfinished: bool = False, dry_run: bool = False) -> Vacuumed:
    """Delete files that no kept version and no run needs.

    Args:
        table: URI of the table.
        keep_s: Versions that were current in this time are kept, and younger files.
        unfinished: Whether to delete unfinished runs too, if their last write is older than that.
        dry_run: Whether to report only.

    Raises:
        ConfigError: there is neither a table nor a run.
        TableConflict: a run has the table lock.
    """
    url = storage.absolute(table)
    if delta_table.open_table(url) is None and not run_names(url):
        raise ConfigError(f"there is no table and no run at {url!r}")
    with lock_table(url, f"vacuum-{secrets.token_hex(4)}", what="vectide vacuum") as lock:
        opened = delta_table.open_table(url)
        before_s = _now_s(url) - keep_s
        plan = _stays(url, opened, before_s, unfinished=unfinished)
        data = {relative_path(shard.path): shard for shard in storage.walk(data_folder(url))}
        going = [shard for path, shard in data.items() if path not in plan.files and shard.written_s < before_s]
        ledgers = [name for name in run_names(url) if name not in plan.runs]
        going += [shard for shard in _unit_files(url, plan) if shard.written_s < before_s]
        kept_bytes = sum(shard.size_bytes for path, shard in data.items() if run_of(path) in plan.unfinished)
        if not dry_run:
            lock.check_unbroken()
            for name in ledgers:
                _forget(url, name)
            _delete(shard.path for shard in going)
            _forget_records(url, opened, plan.oldest)
            storage.prune(data_folder(url))
    return Vacuumed(
        table=url,
        dry_run=dry_run,
        files=len(going),
        size_bytes=sum(shard.size_bytes for shard in going),
        runs=len(ledgers),
        versions=plan.versions,
        unfinished=len(plan.unfinished),
        unfinished_bytes=kept_bytes,
    )


def _unit_files(url: str, plan: _Plan) -> list[Shard]:
    """Return the files with rows of a curation's units that no kept run has read; none while a run is unfinished."""
    files = list(storage.walk(storage.join(url, FOLDER, ROWS_FOLDER)))
    if not files or plan.unfinished:
        return []
    kept: set[str] = set()
    for run in plan.runs:
        with suppress(FileNotFoundError):
            kept.update(Ledger(url, run).table(UNIT_FILES)["name"].to_pylist())
    return [shard for shard in files if shard.path.rpartition("/")[2] not in kept]


def _now_s(url: str) -> float:
    """Return the time by the store's clock: that of an object written now."""
    probe = storage.join(url, FOLDER, "probes", f"clock-{secrets.token_hex(6)}")
    storage.put(probe, b"")
    try:
        return storage.stat(probe).written_s
    finally:
        storage.delete(probe)


def _stays(url: str, opened: DeltaTable | None, before_s: float, *, unfinished: bool) -> _Plan:
    plan = _Plan(set(), set(), 0, set())
    if opened is not None:
        plan.files.update(delta_table.file_sizes(opened))
        state = delta_table.state_of(opened)
        plan.runs.update(name for name in (state and state.run, state and state.kept) if name)
        if (
            anchor := version_records.newest(url, opened)
        ) is not None:  # a refresh may restore files that another tool removed
            plan.files.update(anchor.files)
            plan.runs.update(name for name in (anchor.run, anchor.commit, anchor.kept) if name)
    for entry in delta_table.commits(opened) if opened is not None else ():  # newest first
        try:
            version = delta_table.open_table(url, int(entry["version"]))
        except NoSuchVersion:  # the log has the commit, but not the files of the version any more
            break
        if version is not None:
            plan.files.update(delta_table.file_sizes(version))
        plan.runs.update(
            str(entry[name]) for name in (delta_table.RUN, delta_table.COMMIT, delta_table.KEPT) if entry.get(name)
        )
        plan.versions += 1
        plan.oldest = int(entry["version"])
        if entry["timestamp"] / 1000 < before_s:
            break  # the version that was current when the kept time began
    for name in run_names(url):
        if name in plan.runs:
            continue
        ledger = Ledger(url, name)
        written_s = max((shard.written_s for shard in storage.walk(ledger.url)), default=0.0)
        published = delta_table.is_published(opened, name)
        if written_s >= before_s:
            plan.runs.add(name)
        if published or (unfinished and written_s < before_s):
            continue
        plan.runs.add(name)
        plan.unfinished.add(name)
        plan.files.update(file.path for file in files_of_run(ledger))
    return plan


def _forget_records(url: str, opened: DeltaTable | None, oldest: int) -> None:
    """Delete the records of versions that are not kept, except that of our newest version."""
    newest = None if opened is None else version_records.newest(url, opened)
    if newest is not None:
        version_records.forget(url, [(newest.version, newest.commit)], oldest)


def _forget(url: str, run: str) -> None:
    """Delete a ledger: run.json first, because without it the rest of the ledger is ignored."""
    ledger = Ledger(url, run)
    everything = [shard.path for shard in storage.walk(ledger.url)]
    storage.delete(storage.join(ledger.url, "run.json"))
    _delete(everything)
    storage.prune(ledger.url)


def _delete(paths: Iterable[str]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(storage.delete, paths):
            pass
