"""Status of a table: versions, lineage, unfinished runs, quarantine.

Called by `jobs status`. Reads the Delta log and the ledgers; opens data files only if another tool changed some.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from actors import storage
from actors.arguments import need_place
from actors.errors import ConfigError
from pipeline.ledger.ledger import Ledger, run_names
from pipeline.table import delta_table, version_records
from pipeline.table.foreign import look
from pipeline.table.versions import Version, versions_of


@dataclass(frozen=True, slots=True)
class RunState:
    """One run with a ledger in the table's folder.

    Attributes:
        version: The version that it published; None while it is unfinished, or if the number is unknown.
        published: Whether it made a version.
        rows_done: Documents embedded so far; `quarantined`: rows quarantined so far.
        fingerprint: None for a run that has no plan: it failed before, or is planning.
    """

    run: str
    fingerprint: str | None
    units: int
    units_done: int
    rows: int
    rows_done: int
    quarantined: int
    reasons: dict[str, int]
    version: int | None
    published: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """Status of a table. `version` is None before the first is published.

    Attributes:
        foreign: Description of the changes of other tools since our last commit; None if there are none.
    """

    table: str
    version: int | None
    rows: int
    files: int
    size_bytes: int
    lineage: dict[str, Any]
    fingerprint: str | None
    versions: list[Version]
    runs: list[RunState]
    foreign: str | None = None


def status(table: str | Path) -> Status:
    """Return the status of a table.

    Raises:
        ConfigError: there is neither a table nor a run at `table`.
    """
    url = storage.absolute(need_place(table, "table"))
    opened = delta_table.open_table(url)
    names = run_names(url)
    if opened is None and not names:
        raise ConfigError(f"there is no table and no run at {url!r}; make one with `vectide backfill`")
    published = _published(url, opened)
    runs = [_run(url, name, opened, published) for name in names]
    if opened is None:
        return Status(url, None, 0, 0, 0, {}, None, [], runs)
    actions = delta_table.actions_of(opened)
    embedding_spec = delta_table.embedding_spec_of(opened)
    foreign = look(opened, url, delta_table.state_of(opened))
    return Status(
        table=url,
        version=int(opened.version()),
        rows=sum(rows or 0 for rows in actions.column("num_records").to_pylist()),
        files=actions.num_rows,
        size_bytes=sum(actions.column("size_bytes").to_pylist()),
        lineage=embedding_spec.lineage if embedding_spec else {},
        fingerprint=embedding_spec.fingerprint if embedding_spec else None,
        versions=versions_of(opened),
        runs=runs,
        foreign=None if foreign is None else foreign.words(url),
    )


def _published(url: str, opened: DeltaTable | None) -> dict[str, int]:
    """Return our commits and their versions, from the log, and from our records if the log was cleaned up."""
    if opened is None:
        return {}
    known = {name: version for version, name in version_records.names(url) if delta_table.is_published(opened, name)}
    return known | {str(entry.get(delta_table.COMMIT)): int(entry["version"]) for entry in delta_table.commits(opened)}


def _run(url: str, name: str, table: DeltaTable | None, published: dict[str, int]) -> RunState:
    ledger = Ledger(url, name)
    description = ledger.description()
    if description is None:
        return RunState(name, None, 0, 0, 0, 0, 0, {}, None)
    receipts = ledger.receipts().values()
    bad = ledger.quarantine(receipts)
    reasons = bad.group_by("reason").aggregate([("reason", "count")]).to_pydict()
    return RunState(
        run=name,
        fingerprint=description.fingerprint,
        units=description.units,
        units_done=len(receipts),
        rows=description.rows,
        rows_done=sum(receipt.documents for receipt in receipts),
        quarantined=sum(receipt.rows_quarantined for receipt in receipts),
        reasons=dict(zip(reasons["reason"], reasons["reason_count"], strict=True)),
        version=published.get(name),
        published=name in published or delta_table.is_published(table, name),
    )
