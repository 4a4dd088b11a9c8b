"""`vectide quarantine`: the rows that were set aside, with place and reason.

Registered by `jobs/cli.py`. A person sees a hundred rows and how many there are; a program, with --json, asks for what
it wants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs import output

if TYPE_CHECKING:
    from pipeline.table.quarantine import Quarantine


def quarantine(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="URI of the table.")],
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run; that of the current version by default.")
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="REASON", help="Only this one, as in timed_out.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many rows at most.")] = 100,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the rows that were set aside: shard, position, id, reason, error."""
    from pipeline.table.quarantine import quarantine as read

    found = read(table, run=run, reason=reason, limit=limit)
    if json:
        output.as_json(found)
    else:
        _show(found)


def _show(found: Quarantine) -> None:
    shown = output.console()
    of = f"version {found.version}" if found.version is not None else f"run {found.run}"
    counts = ", ".join(f"{count:,} {reason}" for reason, count in found.reasons.items())
    shown.print(f"{found.table}, {of}: {found.total:,} rows set aside" + (f" ({counts})" if counts else ""))
    for row in found.rows:
        # A position of -1 is not known: the row's id is what it was found by.
        place = f"{row.shard} at {row.position}" if row.position >= 0 else row.shard
        name = f" (id {row.id})" if row.id is not None else ""
        text = f"{row.reason}: {place}{name}: {row.error}"
        shown.print(text)
    if found.total > len(found.rows):
        shown.print(f"the first {len(found.rows):,} of them; --limit {found.total} shows all")
