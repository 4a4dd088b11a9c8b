"""`vectide diff`: counts the rows that differ between two versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs import output
from jobs.options import AsJson, Table

if TYPE_CHECKING:
    from pipeline.table.diff import Difference


def diff(
    table: Table,
    old: Annotated[int, typer.Argument(metavar="A", min=0, help="The old version.")],
    new: Annotated[int, typer.Argument(metavar="B", min=0, help="The new version.")],
    json: AsJson = False,
) -> None:
    """Count the rows that were added, changed and removed from version A to version B."""
    from pipeline.table.diff import diff as run

    difference = run(table, old, new)
    if json:
        output.as_json(difference)
    else:
        _print(difference)


def _print(difference: Difference) -> None:
    print(
        f"{difference.table}, version {difference.old} to {difference.new}: {difference.added:,} rows added, "
        f"{difference.changed:,} changed, {difference.removed:,} removed"
    )
    if difference.embedding_spec_changed:
        print("the vectors of the two versions were made with different models or settings")
