"""`vectide submit`: runs a job on a Ray cluster."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.options import RequiredJobFile, RunCommand, RunCommandName, Settings, load_for


def submit(
    job: RequiredJobFile,
    address: Annotated[str, typer.Option(metavar="URL", help="Dashboard of the cluster, as in http://head:8265.")],
    command: RunCommandName = None,
    detach: Annotated[bool, typer.Option("--detach", help="Exit once the job is submitted.")] = False,
    settings: Settings = None,
) -> None:
    """Submit a job to a cluster, or find it if it runs already, and follow its log. The exit code is that of the job."""
    from pipeline.cluster.submit import submit as run

    loaded, chosen = load_for(job, settings, command, RunCommand.backfill)
    raise typer.Exit(run(loaded, address, sys.stdout, command=chosen.value, detach=detach))
