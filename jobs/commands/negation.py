"""`vectide negation`: makes triplets that test what a model sees of a negation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actors.errors import ConfigError
from actors.quantities import counted
from jobs import output
from jobs.options import AsJson
from jobs.terminal import visible

if TYPE_CHECKING:
    from pipeline.curate.negation.build import Outcome


def negation(  # noqa: PLR0917  (typer's arguments are options by name)
    pairs: Annotated[
        str, typer.Argument(metavar="PAIRS", help="Parquet, CSV or JSON Lines with pairs of texts, or a Delta table.")
    ],
    out: Annotated[str, typer.Option(metavar="URI", help="The Parquet file to write.")],
    anchor: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the first texts.")] = "anchor",
    entailment: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column of the texts that follow from them.")
    ] = "entailment",
    by: Annotated[
        str | None,
        typer.Option(
            metavar="WAY,WAY",
            help="Some of rules, antonyms, endpoint, in the order in which they are tried; default: rules,antonyms, and "
            "endpoint if there is one.",
        ),
    ] = None,
    wordnet: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of WordNet 3.0; default: that of Debian's wordnet-base.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint to ask, as in http://localhost:8000/v1; key: OPENAI_API_KEY.",
        ),
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model that the endpoint is asked for.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Make (anchor, entailment, negative) from entailment pairs, for `vectide evaluate --negation`."""
    from pipeline.curate.negation.build import WAYS, Settings, build_negations

    if (endpoint is None) != (endpoint_model is None):
        raise ConfigError("--endpoint and --endpoint-model go together: the URL and the name of a model there")
    ways = [way.strip() for way in (by or "rules,antonyms").split(",")]
    if by is None and endpoint is not None:
        ways.append("endpoint")
    if (unknown := [way for way in ways if way not in WAYS]) or len(set(ways)) < len(ways):
        raise ConfigError(f"--by {by!r} must name some of {', '.join(WAYS)}, each once; not {unknown or ways}")
    if ("endpoint" in ways) != (endpoint is not None):
        raise ConfigError("--by endpoint and --endpoint URL go together")
    where = None if endpoint is None or endpoint_model is None else (endpoint, endpoint_model)
    outcome = build_negations(pairs, out, Settings(anchor, entailment, ways, wordnet, where))
    if json:
        output.as_json(outcome)
    else:
        _print(outcome)


def _print(outcome: Outcome) -> None:
    rules = ", ".join(f"{rule} {count:,}" for rule, count in outcome.by_rule.items())
    print(f"{outcome.out}: {counted(outcome.rows, 'triplet')} of {counted(outcome.rows_read, 'pair')} ({rules})")
    for reason, count in outcome.left_out.items():
        print(f"left out: {count:,}  {reason}")
    for rule, text, negative in outcome.examples:
        print(f"{rule}: {visible(text)}  ->  {visible(negative)}")
    for note in outcome.notes:
        print(f"note: {note}")
