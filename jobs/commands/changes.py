"""`vectide changes`: writes the upserts and deletes that a vector index needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs import output
from jobs.options import AsJson, Table

if TYPE_CHECKING:
    from pipeline.table.export import Exported


def changes(
    table: Table,
    since: Annotated[int, typer.Option(min=0, metavar="VERSION", help="The version that the index holds.")],
    out: Annotated[
        str, typer.Option(metavar="URI", help="An empty folder to write to, or one with an unfinished export.")
    ],
    json: AsJson = False,
) -> None:
    """Write, as Parquet, the upserts and deletes that bring a vector index from a version to the current one."""
    from pipeline.table.export import changes as run

    written = run(table, since, out)
    if json:
        output.as_json(written)
    else:
        _print(written)


def _print(changes: Exported) -> None:
    print(
        f"{changes.upserts:,} upserts and {changes.deletes:,} deletes from version {changes.since} to {changes.version}: "
        f"{changes.out}"
    )
    if changes.embedding_spec_changed:
        print("the new vectors were made with another model or setting: an index must not mix them with its old ones")
