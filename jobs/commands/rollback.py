"""`vectide rollback`: makes the rows of an old version current again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import Table

if TYPE_CHECKING:
    from pipeline.table.versions import RolledBack


def rollback(
    table: Table, to: Annotated[int, typer.Option(min=0, metavar="VERSION", help="The version to restore.")]
) -> None:
    """Restore an old version as a new version. No row is copied or encoded."""
    from pipeline.table.versions import rollback as run

    _print(run(table, to))


def _print(rolled_back: RolledBack) -> None:
    if rolled_back.files_added == rolled_back.files_removed == 0:
        print(f"nothing to do: {rolled_back.table} already holds the rows of version {rolled_back.restored}")
        return
    print(
        f"published version {rolled_back.version} of {rolled_back.table}: restored the {rolled_back.rows:,} rows of "
        f"version {rolled_back.restored}. The next run applies the job file, so restore the old job file too"
    )
