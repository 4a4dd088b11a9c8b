"""`vectide submit`: runs a job on a Ray cluster."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.options import RequiredJobFile, RunCommand, RunCommandName, Settings, load_job


def submit(
    job: RequiredJobFile,
    address: Annotated[str, typer.Option(metavar="URL", help="Dashboard of the cluster, as in http://head:8265.")],
    command: RunCommandName = RunCommand.backfill,
    detach: Annotated[bool, typer.Option("--detach", help="Exit once the job is submitted.")] = False,
    settings: Settings = None,
) -> None:
    """Submit a job to a cluster, or find it if it runs already, and follow its log. The exit code is that of the job."""
    from pipeline.cluster.submit import submit as run

    loaded = load_job(job, settings)
    raise typer.Exit(run(loaded, address, sys.stdout, command=command.value, detach=detach))
