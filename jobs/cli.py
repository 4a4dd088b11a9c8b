"""The command line: one function a command, each of which calls one pipeline and prints the outcome.

Exit codes: 0 done, 1 the run failed, 2 the arguments or the job file are wrong, 130 stopped by hand. Pipelines are
imported inside the commands, so that `vectide --help` does not load Ray or torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from actors.errors import VectideError
from jobs import output, quarantine, schedule
from jobs import table as tables

if TYPE_CHECKING:
    from pipeline.execute.progress import Outcome, Reporter
    from pipeline.job.config import Job


class _Commands(typer.core.TyperGroup):
    """All commands. Typer ends a Ctrl-C with its code and no word, so the word is said before it sees one."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            output.error("stopped; the same command goes on from here")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="vectide",
    cls=_Commands,
    help="Turn a corpus of any size into a table of embeddings, and keep that table true.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

JobFile = Annotated[str | None, typer.Argument(metavar="[JOB.yaml]", help="The job file.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A key of the job file, as in encoder.dim=256.")
]
SourceUri = Annotated[str | None, typer.Option("--source", metavar="URI", help="source.uri")]
TableUri = Annotated[str | None, typer.Option("--table", metavar="URI", help="table.uri")]
ModelName = Annotated[str | None, typer.Option("--model", metavar="NAME_OR_DIR", help="encoder.model")]
Retry = Annotated[
    bool, typer.Option("--retry-quarantined", help="Try rows again that the encoder could not take: one new version.")
]


class Foreign(StrEnum):
    """What becomes of rows that other tools removed or added."""

    refuse = "refuse"
    keep = "keep"
    restore = "restore"


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _job(  # noqa: PLR0917
    path: str | None,
    settings: list[str] | None,
    source: str | None,
    table: str | None,
    model: str | None,
    others: dict[str, Any] | None = None,
) -> Any:
    from pipeline.job.load import load_job

    named = {"source.uri": source, "table.uri": table, "encoder.model": model, **(others or {})}
    defaults = {key: value for key, value in named.items() if value is not None}
    return load_job(path, settings=settings or (), defaults=defaults)


def _run(pipeline: Callable[[Job, Reporter], Outcome], job: Job) -> None:
    """Run a pipeline that writes a table, show how it goes, and print what it came to."""
    from jobs.progress import reporter

    with reporter() as told:
        outcome = pipeline(job, told)
    output.outcome(outcome)


@app.command()
def plan(  # noqa: PLR0917  (typer's arguments are options by name)
    job: JobFile = None,
    settings: Settings = None,
    source: SourceUri = None,
    table: TableUri = None,
    model: ModelName = None,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="Price of the whole cluster an hour.")] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1, help="The cluster's rate; measured on this machine where not given.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Dry run: shards, units, rows, tokens, output size, time and cost. Nothing is written."""
    from pipeline.run.estimate import estimate

    loaded = _job(job, settings, source, table, model)
    output.estimate(estimate(loaded, tokens_per_s=tokens_per_second, price_per_hour=price_per_hour), as_json=json)


@app.command()
def backfill(  # noqa: PLR0917  (typer's arguments are options by name)
    job: JobFile = None,
    settings: Settings = None,
    source: SourceUri = None,
    table: TableUri = None,
    model: ModelName = None,
    retry_quarantined: Retry = False,
) -> None:
    """Embed a corpus into a table; the same command again goes on where it stopped."""
    from pipeline.run.backfill import backfill as pipeline
    from pipeline.run.retry import backfill_again

    _run(backfill_again if retry_quarantined else pipeline, _job(job, settings, source, table, model))


@app.command()
def refresh(  # noqa: PLR0917  (typer's arguments are options by name)
    job: JobFile = None,
    settings: Settings = None,
    source: SourceUri = None,
    table: TableUri = None,
    model: ModelName = None,
    no_publish: Annotated[
        bool, typer.Option("--no-publish", help="Re-embed, and leave the version that readers see in place.")
    ] = False,
    min_agreement: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of neighbours that a second generation must keep.")
    ] = None,
    queries: Annotated[str | None, typer.Option(metavar="URI", help="Judged queries to measure both by.")] = None,
    judgements: Annotated[str | None, typer.Option(metavar="URI", help="Their judgements.")] = None,
    foreign_commits: Annotated[
        Foreign | None,
        typer.Option(
            "--foreign-commits",
            help="What becomes of rows that other tools removed or added: refuse (the default) names them and ends, "
            "keep leaves them so, restore makes the table what a backfill would.",
        ),
    ] = None,
    retry_quarantined: Retry = False,
) -> None:
    """Make a table equal to a fresh backfill of today's source, at the cost of what changed.

    Where the model or a setting of it changed, a second generation is built beside the first and takes over at the end.
    """
    from pipeline.run.refresh import refresh as pipeline
    from pipeline.run.retry import refresh_again

    gate = {
        "min_agreement": min_agreement,
        "queries": queries,
        "judgements": judgements,
        "publish": False if no_publish else None,
    }
    others = {f"generation.{key}": value for key, value in gate.items()}
    others["table.foreign_commits"] = foreign_commits.value if foreign_commits else None
    loaded = _job(job, settings, source, table, model, others)
    _run(refresh_again if retry_quarantined else pipeline, loaded)


@app.command()
def search(  # noqa: PLR0917  (typer's arguments are options by name)
    table: Annotated[str, typer.Argument(metavar="TABLE", help="URI of the table.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits.")] = 10,
    where: Annotated[str | None, typer.Option(help="An SQL condition, as in \"lang = 'de'\".")] = None,
    version: Annotated[
        int | None, typer.Option(min=0, help="A version of the table; the current one by default.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME_OR_DIR", help="Where the same model is now, if it moved.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Exact top-k over a table, with the model, settings and query prompt that its own lineage names."""
    from pipeline.search.search import Searcher

    searcher = Searcher(table, version=version, model=model)
    output.hits(searcher.search([question], k=k, where=where)[0], as_json=json)


@app.command()
def status(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="URI of the table.")], json: AsJson = False
) -> None:
    """Versions, rows, files, lineage, unfinished runs and quarantine of a table."""
    from pipeline.table.status import status as read

    output.status(read(table), as_json=json)


app.command()(quarantine.quarantine)
for command in (tables.versions, tables.rollback, tables.diff, tables.changes, tables.compact, tables.vacuum):
    app.command()(command)
app.command()(schedule.submit)
app.command()(schedule.schedule)
app.command()(schedule.watch)


@app.command()
def doctor(job: JobFile = None, settings: Settings = None, json: AsJson = False) -> None:
    """Check this machine or cluster: storage, model, GPUs, memory, processor, Ray."""
    from pipeline.cluster.doctor import examine

    loaded = _job(job, settings, None, None, None) if job or settings else None
    findings = examine(loaded)
    output.findings(findings, as_json=json)
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run a command; a mistake of the user's ends in one message, never in a traceback."""
    try:
        app()
    except VectideError as error:
        output.error(str(error))
        sys.exit(error.exit_code)
