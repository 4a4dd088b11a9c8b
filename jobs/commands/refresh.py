"""`vectide refresh`: brings a table up to date with its source and its job file."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from jobs import output
from jobs.options import JobFile, ModelName, RetryQuarantined, Settings, SourceUri, TableUri, load_job


class ForeignRows(StrEnum):
    """Treatment of rows that other tools removed or added."""

    refuse = "refuse"
    keep = "keep"
    restore = "restore"


def refresh(  # noqa: PLR0917  (typer's arguments are options by name)
    job: JobFile = None,
    settings: Settings = None,
    source: SourceUri = None,
    table: TableUri = None,
    model: ModelName = None,
    no_publish: Annotated[
        bool, typer.Option("--no-publish", help="Re-embed without publishing: readers keep the current version.")
    ] = False,
    min_agreement: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of nearest neighbours that a re-embedding must keep to be published."),
    ] = None,
    queries: Annotated[
        str | None, typer.Option(metavar="URI", help="Judged queries to evaluate the old and the new vectors with.")
    ] = None,
    judgements: Annotated[str | None, typer.Option(metavar="URI", help="Judgements of --queries.")] = None,
    late: Annotated[
        bool, typer.Option("--late", help="Measure both by late interaction, for models with many vectors a row.")
    ] = False,
    foreign_commits: Annotated[
        ForeignRows | None,
        typer.Option(
            "--foreign-commits",
            help="What to do with rows that other tools removed or added. refuse (the default): list them and stop. "
            "keep: leave them as they are. restore: make the table equal to a backfill.",
        ),
    ] = None,
    retry_quarantined: RetryQuarantined = False,
) -> None:
    """Make a table equal to a fresh backfill of the current source; only changes are encoded.

    If the model or one of its settings changed, all rows are re-embedded and published in one new version.
    """
    from pipeline.run.refresh import refresh as run
    from pipeline.run.retry import refresh_again

    others = {
        "generation.min_agreement": min_agreement,
        "generation.queries": queries,
        "generation.judgements": judgements,
        "generation.late": True if late else None,
        "generation.publish": False if no_publish else None,
        "table.foreign_commits": foreign_commits.value if foreign_commits else None,
    }
    loaded = load_job(job, settings, source=source, table=table, model=model, others=others)
    output.run_pipeline(refresh_again if retry_quarantined else run, loaded)
