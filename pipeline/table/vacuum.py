"""Removes files that nothing needs any more: never one of a version that is kept, or of a run that may go on.

Called by `jobs vacuum`. Kept are the versions that were current at some moment of the last `keep_s`, the files that
receipts of unfinished runs name, and whatever is younger than `keep_s` (an attempt may still be writing it). All times
of files are the store's own. The table is held meanwhile, so no run of it begins; an attempt of a run that was given up for
dead could still wake up, and then finds at publish that files are missing.

Ledgers go with their runs: first what names the plan and data last, so that whatever a crash leaves is a run that knows of
less than there is, never of more.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from deltalake import DeltaTable

from actors import storage
from actors.errors import ConfigError, NoSuchVersion
from pipeline.ledger.ledger import FOLDER, Ledger, merge_ledger, run_names
from pipeline.ledger.table_lock import lock_table
from pipeline.table import delta_table, version_records

_THREADS = 32


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """What a vacuum removed, or would remove.

    Attributes:
        files: Data files; `size_bytes` is their sum.
        runs: Ledgers.
        versions: How many versions can still be read.
        unfinished: Runs that were begun and not published, and are kept.
        unfinished_bytes: What their files take.
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
    """What stays: paths relative to the table, and runs."""

    files: set[str]
    runs: set[str]
    versions: int
    unfinished: list[str]
    oldest: int = 0  # the first version that is kept


def vacuum(table: str, keep_s: float, *, unfinished: bool = False, dry_run: bool = False) -> Vacuumed:
    """Remove what no kept version and no run needs.

    Args:
        table: URI of the table.
        keep_s: Versions that were current within this time are kept, and files younger than it.
        unfinished: Take unfinished runs too whose last sign of life is older than that.
        dry_run: Only say what would go.

    Raises:
        ConfigError: there is neither a table nor a run.
        TableConflict: a run holds the table.
    """
    url = storage.absolute(table)
    if delta_table.open_table(url) is None and not run_names(url):
        raise ConfigError(f"there is no table and no run at {url!r}")
    with lock_table(url, f"vacuum-{secrets.token_hex(4)}", what="vectide vacuum") as lock:
        opened = delta_table.open_table(url)
        before_s = _now_s(url) - keep_s
        plan = _stays(url, opened, before_s, unfinished=unfinished)
        data = list(storage.walk(storage.join(url, "data")))
        relative = {shard.path: delta_table.relative(shard.path) for shard in data}
        going = [shard for shard in data if relative[shard.path] not in plan.files and shard.written_s < before_s]
        ledgers = [name for name in run_names(url) if name not in plan.runs]
        kept_bytes = sum(
            shard.size_bytes for shard in data if relative[shard.path].split("/", 2)[1] in set(plan.unfinished)
        )
        if not dry_run:
            lock.check_unbroken()
            for name in ledgers:
                _forget(url, name)
            _delete(shard.path for shard in going)
            _forget_records(url, opened, plan.oldest)
            storage.prune(storage.join(url, "data"))
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


def _now_s(url: str) -> float:
    """The time by the store's clock: that of an object that is written now."""
    probe = storage.join(url, FOLDER, "probes", f"clock-{secrets.token_hex(6)}")
    storage.put(probe, b"")
    try:
        return storage.stat(probe).written_s
    finally:
        storage.delete(probe)


def _stays(url: str, opened: DeltaTable | None, before_s: float, *, unfinished: bool) -> _Plan:
    plan = _Plan(set(), set(), 0, [])
    if opened is not None:  # whatever the log still says of it
        plan.files.update(delta_table.file_sizes(opened))
        state = delta_table.state_of(opened)
        plan.runs.update(name for name in (state and state.run, state and state.kept) if name)
        if (
            anchor := version_records.newest(url, opened)
        ) is not None:  # what another tool took out since may come back
            plan.files.update(anchor.files)
            plan.runs.update(name for name in (anchor.run, anchor.commit, anchor.kept) if name)
    for entry in delta_table.commits(opened) if opened is not None else ():  # newest first
        try:
            version = delta_table.open_table(url, int(entry["version"]))
        except NoSuchVersion:  # the log remembers that it was, and no longer what was in it
            break
        if version is not None:
            plan.files.update(delta_table.file_sizes(version))
        plan.runs.update(
            str(entry[name]) for name in (delta_table.RUN, delta_table.COMMIT, delta_table.KEPT) if entry.get(name)
        )
        plan.versions += 1
        plan.oldest = int(entry["version"])
        if entry["timestamp"] / 1000 < before_s:
            break  # this one was current when the time that is kept began; those before it were not
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
        plan.unfinished.append(name)
        receipts = [*ledger.receipts().values(), *merge_ledger(ledger).receipts().values()]
        plan.files.update(file.path for receipt in receipts for file in receipt.files)
    return plan


def _forget_records(url: str, opened: DeltaTable | None, oldest: int) -> None:
    """Remove what we noted of versions that are not kept, but for the last of ours."""
    newest = None if opened is None else version_records.newest(url, opened)
    if newest is not None:
        version_records.forget(url, [(newest.version, newest.commit)], oldest)


def _forget(url: str, run: str) -> None:
    """Remove a ledger. First what names its plan: without that nothing else of it counts."""
    ledger = Ledger(url, run)
    everything = [shard.path for shard in storage.walk(ledger.url)]
    storage.delete(storage.join(ledger.url, "run.json"))
    _delete(everything)
    storage.prune(ledger.url)


def _delete(paths: Iterable[str]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(storage.delete, paths):
            pass
