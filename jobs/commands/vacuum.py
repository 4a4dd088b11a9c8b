"""`vectide vacuum`: removes files that no kept version and no unfinished run needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actors.quantities import format_bytes, parse_duration
from jobs import output
from jobs.options import AsJson, Table

if TYPE_CHECKING:
    from pipeline.table.vacuum import Vacuumed


def vacuum(
    table: Table,
    keep: Annotated[
        str, typer.Option(metavar="TIME", help="Keep the versions that were current within this time.")
    ] = "7d",
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also remove unfinished runs older than --keep.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed; remove nothing.")] = False,
    json: AsJson = False,
) -> None:
    """Remove files that no kept version and no unfinished run needs."""
    from pipeline.table.vacuum import vacuum as run

    keep_s = 0.0 if keep.strip() == "0" else parse_duration(keep, option="--keep")
    vacuumed = run(table, keep_s, unfinished=unfinished, dry_run=dry_run)
    if json:
        output.as_json(vacuumed)
    else:
        _print(vacuumed)


def _print(vacuumed: Vacuumed) -> None:
    verb = "would remove" if vacuumed.dry_run else "removed"
    print(
        f"{verb} {vacuumed.files:,} files ({format_bytes(vacuumed.size_bytes)}) and {vacuumed.runs:,} ledgers of "
        f"{vacuumed.table}; {vacuumed.versions:,} versions can be read"
    )
    if vacuumed.unfinished:
        print(
            f"{vacuumed.unfinished:,} unfinished runs keep {format_bytes(vacuumed.unfinished_bytes)}: run their job again "
            f"to resume them, or remove them with --unfinished"
        )
