"""`vectide mine`: hard negatives for pairs of texts, from a table of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actors.errors import ConfigError
from actors.quantities import counted
from jobs import output
from jobs.options import AsJson, CacheSize, MovedModel, Table, Version
from pipeline.scan import DEFAULT_CACHE_SIZE

if TYPE_CHECKING:
    from pipeline.mine.mine import Mined

_BAR = 40  # characters of the largest bin of gaps


def mine(  # noqa: PLR0917  (typer's arguments are options by name)
    table: Table,
    pairs: Annotated[
        str, typer.Option(metavar="URI", help="Pairs of texts: Parquet, CSV, JSON Lines, or a Delta table.")
    ],
    out: Annotated[str, typer.Option(metavar="URI", help="A folder for Parquet files of negatives.")],
    query: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the queries.")] = "query",
    passage: Annotated[
        str, typer.Option(metavar="COLUMN,COLUMN", help="Columns of the passages, as the table's job names them.")
    ] = "passage",
    passage_id: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the passages' ids in the table, in place of their texts."),
    ] = None,
    pair_id: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="Column of the pairs' ids; default: file and position.")
    ] = None,
    negatives: Annotated[int, typer.Option(help="Negatives of a pair at most.")] = 7,
    ranks: Annotated[str, typer.Option(metavar="FIRST,LAST", help="Ranks to take, without positives.")] = "1,100",
    max_share: Annotated[float, typer.Option(help="Largest score, as a share of the positive's.")] = 0.95,
    absolute_margin: Annotated[
        float | None, typer.Option(help="Least difference of the positive's score and the negative's.")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Least score.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Largest score.")] = None,
    sampling: Annotated[str, typer.Option(help="top: the nearest that are left; random: any.")] = "top",
    seed: Annotated[int, typer.Option(min=0, help="Seed of random sampling.")] = 0,
    cross_encoder: Annotated[
        str | None,
        typer.Option(metavar="NAME_OR_DIR", help="A cross-encoder that checks each negative."),
    ] = None,
    cross_margin: Annotated[
        float, typer.Option(help="Least difference of its scores of the positive and of a negative.")
    ] = 0.2,
    max_missing: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of pairs whose passage is not in the table.")
    ] = 0.05,
    version: Version = None,
    model: MovedModel = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    json: AsJson = False,
) -> None:
    """Find hard negatives for pairs of a query and a passage: rows of the table that are near to the query, and no answer."""
    from jobs.progress import rows_bar
    from pipeline.mine.block import Rules
    from pipeline.mine.choose import Thresholds
    from pipeline.mine.mine import mine as run
    from pipeline.mine.positives import Source
    from pipeline.search.search import Searcher

    first, comma, last = ranks.partition(",")
    if not (comma and first.strip().isdecimal() and last.strip().isdecimal()):
        raise ConfigError(f"--ranks {ranks!r} must be two whole numbers with a comma between them, as in 1,100")
    thresholds = Thresholds(
        negatives, int(first), int(last), max_share, absolute_margin, min_score, max_score, sampling, seed
    )
    thresholds.check()
    passages = tuple(name.strip() for name in passage.split(",") if name.strip())
    source = Source(pairs, query, passages, passage_id, pair_id)
    searcher = Searcher(table, version=version, model=model, cache_size=cache_size)
    with rows_bar("mining") as report:
        mined = run(searcher, source, out, Rules(thresholds, max_missing, cross_encoder, cross_margin), report=report)
    if json:
        output.as_json(mined)
    else:
        _print(mined)


def _print(mined: Mined) -> None:
    print(
        f"{mined.out}: {counted(mined.negatives, 'negative')} for {counted(mined.rows, 'pair')} of {mined.pairs:,}, from "
        f"version {mined.version} of {mined.table}"
    )
    for reason, count in mined.bad.items():
        print(f"left out: {count:,}  {reason}")
    if mined.missing:
        print(f"left out: {mined.missing:,}  the passage is not in the table")
    if mined.without:
        print(f"left out: {mined.without:,}  no negative is left")
    if short := mined.rows - mined.full:
        print(f"{counted(short, 'pair')} with fewer negatives than --negatives")
    print(f"{counted(mined.candidates, 'row')} near {counted(mined.queries, 'query')}:")
    for option, count in mined.removed.items():
        print(f"  removed by {option}: {count:,}")
    if mined.cross_encoded:
        print(f"  scored by the cross-encoder: {mined.cross_encoded:,}")
    print("score of the positive minus that of the negative:")
    most = max(mined.gaps.values())
    for gap, count in mined.gaps.items():
        print(f"  {gap:>5}  {'#' * max(1, round(_BAR * count / most))} {count:,}")
