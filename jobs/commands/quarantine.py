"""`vectide quarantine`: lists quarantined rows with position and reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs import output
from jobs.options import AsJson, Table
from jobs.terminal import visible

if TYPE_CHECKING:
    from pipeline.table.quarantine import Quarantine


def quarantine(
    table: Table,
    run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Name of a run; default: the run that embedded the current version."),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(metavar="REASON", help="List only rows with this reason, as in timed_out.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of rows to list.")] = 100,
    json: AsJson = False,
) -> None:
    """List quarantined rows: shard, position, id, reason, error."""
    from pipeline.table.quarantine import quarantine as read

    quarantined = read(table, run=run, reason=reason, limit=limit)
    if json:
        output.as_json(quarantined)
    else:
        _print(quarantined)


def _print(quarantine: Quarantine) -> None:
    console = output.console()
    origin = f"version {quarantine.version}" if quarantine.version is not None else f"run {quarantine.run}"
    counts = ", ".join(f"{count:,} {reason}" for reason, count in quarantine.reasons.items())
    summary = f"{quarantine.table}, {origin}: {quarantine.total:,} rows quarantined"
    console.print(summary + (f" ({counts})" if counts else ""))
    for row in quarantine.rows:
        # A position of -1 is unknown: the row was found by its id.
        place = f"{row.shard} at {row.position}" if row.position >= 0 else row.shard
        row_id = f" (id {row.id})" if row.id is not None else ""
        console.print(visible(f"{row.reason}: {place}{row_id}: {row.error}"))
    if quarantine.total > len(quarantine.rows):
        console.print(f"these are the first {len(quarantine.rows):,}; --limit {quarantine.total} shows all")
