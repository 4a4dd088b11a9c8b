"""`vectide watch`: runs a job repeatedly on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from actors.quantities import parse_duration
from jobs.options import RequiredJobFile, RunCommand, RunCommandName, Settings, command_line, load_job


def watch(
    job: RequiredJobFile,
    every: Annotated[
        str, typer.Option(metavar="TIME", help="Time from the start of a run to the start of the next: 15m, 1h, 7d.")
    ],
    command: RunCommandName = RunCommand.refresh,
    settings: Settings = None,
) -> None:
    """Run a job repeatedly on this machine until Ctrl-C: a process for each run, and one line of output."""
    from pipeline.cluster import watch as watching

    load_job(job, settings)  # reports an error in the job file before the first run
    every_s = parse_duration(every, option="--every")
    argv = command_line(command, Path(job).absolute(), settings)
    with watching.Stop().on_signals() as stop:
        code = watching.watch(
            lambda: watching.run_round(argv, stop),
            every_s,
            lambda line: print(line, flush=True),
            stop=stop.requested,
        )
    raise typer.Exit(code)
