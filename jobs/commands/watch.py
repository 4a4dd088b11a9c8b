"""`vectide watch`: runs a job repeatedly on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from actors.quantities import parse_duration
from jobs.options import RequiredJobFile, RunCommand, RunCommandName, Settings, command_line, load_for


def watch(
    job: RequiredJobFile,
    every: Annotated[
        str, typer.Option(metavar="TIME", help="Time from the start of a run to the start of the next: 15m, 1h, 7d.")
    ],
    command: RunCommandName = None,
    settings: Settings = None,
) -> None:
    """Run a job repeatedly on this machine until Ctrl-C: a process for each run, and one line of output."""
    from pipeline.cluster import watch as watching

    _, chosen = load_for(
        job, settings, command, RunCommand.refresh
    )  # reports an error in the file before the first run
    every_s = parse_duration(every, option="--every")
    argv = command_line(chosen, Path(job).absolute(), settings)
    with watching.Stop().on_signals() as stop:
        code = watching.watch(
            lambda: watching.run_round(argv, stop),
            every_s,
            lambda line: print(line, flush=True),
            stop=stop.requested,
        )
    raise typer.Exit(code)
