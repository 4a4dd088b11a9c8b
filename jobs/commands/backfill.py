"""`vectide backfill`: embeds a corpus into a table."""

from __future__ import annotations

from jobs import output
from jobs.options import JobFile, ModelName, RetryQuarantined, Settings, SourceUri, TableUri, load_job


def backfill(  # noqa: PLR0917  (typer's arguments are options by name)
    job: JobFile = None,
    settings: Settings = None,
    source: SourceUri = None,
    table: TableUri = None,
    model: ModelName = None,
    retry_quarantined: RetryQuarantined = False,
) -> None:
    """Embed a corpus into a table. The same command resumes a run that was stopped."""
    from pipeline.run.backfill import backfill as run
    from pipeline.run.retry import backfill_again

    loaded = load_job(job, settings, source=source, table=table, model=model)
    output.run_pipeline(backfill_again if retry_quarantined else run, loaded)
