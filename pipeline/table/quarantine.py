"""Quarantined rows of a run, read from its ledger, never from the table.

Called by `jobs quarantine`. The current version's run also has the rows of unchanged shards. The trade-off: all of a run's
quarantine files are read for any query; `run.max_quarantined` keeps them small.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from actors import storage
from actors.errors import ConfigError
from actors.schema import REASONS, RETRIED, QuarantinedRow
from pipeline.ledger.ledger import Ledger, run_names
from pipeline.table import delta_table


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Quarantined rows of a run.

    Attributes:
        version: The current version of the table if the run made it, else None.
        total: Number of matching rows; `rows` are the first of them, by shard and position.
        reasons: Reason to number of matching rows.
    """

    table: str
    run: str
    version: int | None
    total: int
    reasons: dict[str, int]
    rows: tuple[QuarantinedRow, ...]


def quarantine(
    table: str, *, run: str | None = None, reason: str | None = None, limit: int | None = None
) -> Quarantine:
    """Return the quarantined rows of a run.

    Args:
        table: URL of the table.
        run: Name of the run; that of the current version by default, or the only one if nothing is published.
        reason: One of `REASONS`; all by default.
        limit: Maximum number of rows; all by default.

    Raises:
        ConfigError: there is no such table, run or reason.
    """
    if reason is not None and reason not in REASONS:
        near = difflib.get_close_matches(reason, REASONS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"reasons are {', '.join(REASONS)}"
        raise ConfigError(f"--reason {reason!r}: no row is ever quarantined for that; {hint}")
    url = storage.absolute(table)
    state = delta_table.state_of(delta_table.open_table(url))
    name = run_to_show(url, state, run)
    ledger = Ledger(url, name)
    if ledger.description() is None:
        if name in run_names(url):
            raise ConfigError(
                f"run {name} of {url!r} ended before its plan and quarantined nothing; `vectide report {url} --run {name} "
                f"--out report.html` shows its error"
            )
        raise ConfigError(f"{url!r} has no run {name!r}; `vectide status` lists its runs")
    bad = ledger.quarantine(ledger.receipts().values())
    if reason is not None:
        bad = bad.filter(pc.equal(bad["reason"], reason))
    bad = bad.sort_by([("shard", "ascending"), ("position", "ascending")])
    counts = bad.group_by("reason").aggregate([("reason", "count")]).sort_by("reason").to_pydict()
    columns = ("shard", "position", "id", "reason", "error")
    rows = bad.slice(0, limit).select(columns).to_pylist()
    return Quarantine(
        table=url,
        run=name,
        version=state.version if state is not None and name == state.run else None,
        total=bad.num_rows,
        reasons=dict(zip(counts["reason"], counts["reason_count"], strict=True)),
        rows=tuple(QuarantinedRow(**row) for row in rows),
    )


def worth_retrying(bad: pa.Table) -> pa.Table:
    """Return the quarantined rows that another attempt may embed."""
    return bad.filter(pc.is_in(bad["reason"], value_set=pa.array(RETRIED)))


def run_to_show(url: str, state: delta_table.State | None, run: str | None) -> str:
    """Return the run that a command shows: the one that a person names, that of the current version, or the only one.

    Raises:
        ConfigError: nothing is published, and the number of runs is not one.
    """
    if name := run or (state.run if state is not None else None):
        return name
    names = run_names(url)
    if not names:
        raise ConfigError(f"there is no table and no run at {url!r}; make one with `vectide backfill`")
    if len(names) > 1:
        raise ConfigError(f"{url!r} has no version yet, but runs {', '.join(names)}: name one with --run")
    return names[0]
