"""`vectide report`: shows what a run did, as one HTML page."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.options import Table


def report(
    table: Table,
    out: Annotated[str, typer.Option(metavar="FILE.html", help="Where to write the page.")],
    run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Name of a run; default: the run that embedded the current version."),
    ] = None,
) -> None:
    """Write a page about a run: rows, tokens, speed, quarantine, files, lineage, and the command that repeats it."""
    from pipeline.report.page import report as write

    print(f"wrote {write(table, out, run=run)}")
