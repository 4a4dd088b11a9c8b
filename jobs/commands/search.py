"""`vectide search`: exact top-k search over a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, cast

import typer

from actors.errors import ConfigError, DataError
from actors.images.errors import UnfitPicture
from actors.quantities import counted
from jobs import output
from jobs.options import AsJson, CacheSize, MovedModel, Table, Version
from jobs.terminal import visible
from pipeline.scan import DEFAULT_CACHE_SIZE

if TYPE_CHECKING:
    from pipeline.search.candidates import Candidates
    from pipeline.search.search import Hit, Searcher

_MAX_CHARACTERS, _MAX_TEXT_CHARACTERS = 160, 200  # of a column's value, and of the text


def search(  # noqa: PLR0917  (typer's arguments are options by name)
    table: Table,
    question: Annotated[str | None, typer.Argument(metavar="[QUESTION]")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    where: Annotated[str | None, typer.Option(help="An SQL condition, as in \"lang = 'de'\".")] = None,
    late: Annotated[
        bool, typer.Option("--late", help="Score by late interaction, for tables with many vectors a row.")
    ] = False,
    candidates: Annotated[
        str | None,
        typer.Option(
            metavar="N | all",
            help="With --late: score the N rows nearest by dense vectors, or all. Default: 200, or 10 for each hit if more.",
        ),
    ] = None,
    version: Version = None,
    model: MovedModel = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME_OR_DIR", help="New place of the table's adapter, if it has moved.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="URI", help="A picture in place of the question, for models that see.")
    ] = None,
    pages_out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write the pages and pictures of the hits as PNG files.")
    ] = None,
    questions: Annotated[
        str | None, typer.Option(metavar="URI", help="A Parquet file of questions: `text`, and `id` if there is one.")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="URI", help="The Parquet file of hits for --questions.")] = None,
    address: Annotated[str | None, typer.Option(help="Scan on this Ray cluster; the question is encoded here.")] = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Read the table's files and no local cache.")] = False,
    json: AsJson = False,
) -> None:
    """Search a table exactly, with the model, settings and query prompt that the table was embedded with."""
    from pipeline.search.questions import read_file
    from pipeline.search.search import Searcher

    if [question, image, questions].count(None) != 2:
        raise ConfigError("give one QUESTION, or --image, or a file of questions with --questions and --out")
    if (questions is None) != (out is None):
        raise ConfigError("--questions and --out go together: the file of questions and the file of hits")
    if pages_out is not None and questions is not None:
        raise ConfigError("--pages-out is for one question; leave it out with --questions")
    asked = str(question) if image is None else read_file(image, "--image", "a picture")
    chosen = _number_or_all(candidates)
    searcher = Searcher(
        table,
        version=version,
        model=model,
        adapter=adapter,
        cache_size=None if no_cache else cache_size,
        address=address,
    )
    if questions is not None and out is not None:
        _search_file(searcher, questions, out, k=k, where=where, late=late, candidates=chosen)
        return
    try:
        hits = searcher.search([asked], k=k, where=where, late=late, candidates=chosen)[0]
    except DataError as error:
        if image is not None and isinstance(error.__cause__, UnfitPicture):
            raise DataError(f"--image {image!r} cannot be encoded: {error.__cause__}") from None
        raise
    _warn(searcher)
    if pages_out is not None:
        _write_pages(hits, pages_out)
    if json:
        output.as_json(hits)
    else:
        _print(hits)


def _number_or_all(candidates: str | None) -> Candidates:
    if candidates is None or candidates == "all":
        return cast("Candidates", candidates)
    if not candidates.isdecimal():
        raise ConfigError(f"--candidates {candidates!r} is neither a whole number nor all")
    return int(candidates)


def _search_file(
    searcher: Searcher,
    questions: str,
    out: str,
    *,
    k: int,
    where: str | None,
    late: bool,
    candidates: Candidates,
) -> None:
    from jobs.progress import rows_bar
    from pipeline.search.questions import search_file

    with rows_bar("scanning") as report:
        count = search_file(searcher, questions, out, k=k, where=where, late=late, candidates=candidates, report=report)
    _warn(searcher)
    print(f"wrote {count:,} hits to {out}")


def _write_pages(hits: Sequence[Hit], folder: str) -> None:
    from pipeline.search.pages import write_pages

    written, notes = write_pages(hits, folder)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"wrote {counted(len(written), 'PNG file')} to {folder}", file=sys.stderr)


def _warn(searcher: Searcher) -> None:
    if searcher.cache_problem is not None:
        print(f"note: {searcher.cache_problem}", file=sys.stderr)


def _print(hits: Sequence[Hit]) -> None:
    from actors.schema import KEPT_TEXT
    from pipeline.search.search import LateHit

    console = output.console()
    if not hits:
        console.print("no rows")
    for rank, hit in enumerate(hits, 1):
        mean = f" (mean {hit.mean_score:.3f})" if isinstance(hit, LateHit) else ""
        console.print(f"{rank:>3}  {hit.score:.3f}{mean}  {visible(str(hit.id))}")
        for name, value in hit.columns.items():
            if value is None or name == "tokens" or name.startswith("_"):
                continue
            text = visible(" ".join(str(value).split()))
            most = _MAX_TEXT_CHARACTERS if name == KEPT_TEXT else _MAX_CHARACTERS
            shortened = text if len(text) <= most else text[: most - 1] + "…"
            console.print(f"            {name}: {shortened}")
    if hits and KEPT_TEXT not in hits[0].columns:
        print(
            "the table has no texts to show: set table.keep_text: true in the job file and run vectide refresh, which "
            "encodes nothing again",
            file=sys.stderr,
        )
