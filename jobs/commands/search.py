"""`vectide search`: exact top-k search over a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from actors.schema import KEPT_TEXT
from jobs import output
from jobs.options import AsJson, Table

if TYPE_CHECKING:
    from pipeline.search.search import Hit

_MAX_CHARACTERS, _MAX_TEXT_CHARACTERS = 160, 200  # of a column's value, and of the text


def search(  # noqa: PLR0917  (typer's arguments are options by name)
    table: Table,
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    where: Annotated[str | None, typer.Option(help="An SQL condition, as in \"lang = 'de'\".")] = None,
    version: Annotated[int | None, typer.Option(min=0, help="Version of the table; default: the current one.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME_OR_DIR", help="New place of the table's model, if it has moved.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Search a table exactly, with the model, settings and query prompt that the table was embedded with."""
    from pipeline.search.search import Searcher

    searcher = Searcher(table, version=version, model=model)
    hits = searcher.search([question], k=k, where=where)[0]
    if json:
        output.as_json(hits)
    else:
        _print(hits)


def _print(hits: Sequence[Hit]) -> None:
    console = output.console()
    if not hits:
        console.print("no rows")
    for rank, hit in enumerate(hits, 1):
        console.print(f"{rank:>3}  {hit.score:.3f}  {hit.id}")
        for name, value in hit.columns.items():
            if value is None or name == "tokens" or name.startswith("_"):
                continue
            text = " ".join(str(value).split())
            most = _MAX_TEXT_CHARACTERS if name == KEPT_TEXT else _MAX_CHARACTERS
            shortened = text if len(text) <= most else text[: most - 1] + "…"
            console.print(f"            {name}: {shortened}")
    if hits and KEPT_TEXT not in hits[0].columns:
        print(
            "the table has no texts to show: set table.keep_text: true in the job file and run vectide refresh, which "
            "encodes nothing again",
            file=sys.stderr,
        )
