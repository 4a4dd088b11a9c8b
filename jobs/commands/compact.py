"""`vectide compact`: merges small files of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actors.quantities import format_bytes, parse_bytes
from jobs.options import Table

if TYPE_CHECKING:
    from pipeline.run.compact import Compacted


def compact(
    table: Table,
    target: Annotated[str, typer.Option(metavar="SIZE", help="Target size of the merged files.")] = "128MiB",
    address: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Ray cluster to run on, as run.address of a job file.")
    ] = "auto",
) -> None:
    """Merge small files into larger ones. No row changes."""
    from jobs.progress import reporter
    from pipeline.run.compact import compact as run

    target_bytes = parse_bytes(target, option="--target")
    with reporter() as progress:
        compacted = run(table, progress, target_bytes=target_bytes, address=address)
    _print(compacted)


def _print(compacted: Compacted) -> None:
    if not compacted.published:
        print(f"nothing to do: {compacted.table} has no small files to merge")
        return
    print(
        f"published version {compacted.version} of {compacted.table}: merged {compacted.files_before:,} files into "
        f"{compacted.files_after:,} ({compacted.rows:,} rows rewritten, {format_bytes(compacted.size_bytes)})"
    )
