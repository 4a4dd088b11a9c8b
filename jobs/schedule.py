"""Commands that run a job elsewhere or later: `submit`, `schedule`, `watch`.

Part of the command line (`jobs/cli.py`); the same exit codes.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from actors.errors import ConfigError


class RunCommand(StrEnum):
    """What may run elsewhere or later."""

    backfill = "backfill"
    refresh = "refresh"


class Target(StrEnum):
    """What runs things by the clock."""

    kubernetes = "kubernetes"
    crontab = "crontab"
    systemd = "systemd"


Job = Annotated[str, typer.Argument(metavar="JOB.yaml", help="The job file.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A key of the job file, as in encoder.dim=256.")
]
What = Annotated[RunCommand, typer.Option("--command", help="What to run.")]


def submit(
    job: Job,
    address: Annotated[str, typer.Option(metavar="URL", help="The cluster's dashboard, as in http://head:8265.")],
    command: What = RunCommand.backfill,
    detach: Annotated[bool, typer.Option("--detach", help="Leave as soon as it is submitted.")] = False,
    settings: Settings = None,
) -> None:
    """Run a job on a cluster, or find it where it runs already, and follow it; the exit code is its own."""
    from pipeline.cluster.submit import submit as send
    from pipeline.job.load import load_job

    loaded = load_job(job, settings=settings or ())
    raise typer.Exit(send(loaded, address, sys.stdout, command=command.value, detach=detach))


def schedule(  # noqa: PLR0917  (typer's arguments are options by name)
    job: Job,
    target: Annotated[Target, typer.Option(help="What runs things by the clock.")],
    cron: Annotated[
        str | None, typer.Option(metavar="'M H D M W'", help="When, for kubernetes and crontab, as in '0 3 * * *'.")
    ] = None,
    on_calendar: Annotated[
        str | None, typer.Option(metavar="EVENT", help="When, for systemd, as in '*-*-* 03:00:00'.")
    ] = None,
    command: What = RunCommand.refresh,
    rayjob: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Whose cluster and image are wanted; else deploy/rayjob.yaml's.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Print what makes a job run by the clock: a Kubernetes CronJob, a line of a crontab, or a systemd timer."""
    from pipeline.cluster.schedule import render
    from pipeline.job.load import load_job

    if target is Target.systemd:
        when, other, rule = on_calendar, cron, "--on-calendar '*-*-* 03:00:00', and no --cron"
    else:
        when, other, rule = cron, on_calendar, "--cron '0 3 * * *', and no --on-calendar"
    if when is None or other is not None:
        raise ConfigError(f"--target {target.value} takes {rule}")
    if rayjob is not None and target is not Target.kubernetes:
        raise ConfigError(f"--rayjob is for kubernetes, not for {target.value}; leave it out")
    loaded = load_job(job, settings=settings or ())
    name = render.schedule_name(loaded, Path(job).stem)
    if target is Target.kubernetes:
        text = render.kubernetes(loaded, when, rayjob, name=name, command=command.value)
    else:
        path = Path(job).absolute()
        words = _words(command, path, settings)
        run = render.Run(name, command.value, loaded.table.uri, path, Path.cwd(), words)
        text = render.crontab(run, when) if target is Target.crontab else render.systemd(run, when)
    print(text, end="")


def watch(
    job: Job,
    every: Annotated[str, typer.Option(metavar="TIME", help="From start to start, as in 15m, 1h or 7d.")],
    command: What = RunCommand.refresh,
    settings: Settings = None,
) -> None:
    """Run a job again and again on this machine, one process and one line a round, until Ctrl-C."""
    from pipeline.cluster import watch as watching
    from pipeline.job.load import load_job

    load_job(job, settings=settings or ())  # a mistake is said now, not in an hour
    every_s = watching.seconds_of(every)
    words = _words(command, Path(job).absolute(), settings)
    with watching.Stop().on_signals() as stop:
        code = watching.watch(
            lambda: watching.run_round(words, stop), every_s, lambda line: print(line, flush=True), stop=stop.asked
        )
    raise typer.Exit(code)


def _words(command: RunCommand, job: Path, settings: list[str] | None) -> tuple[str, ...]:
    """The command line that runs a job, with this program by its full path."""
    beside = Path(sys.executable).with_name("vectide")
    program = (str(beside),) if beside.exists() else (sys.executable, "-m", "jobs")
    return (*program, command.value, str(job), *(word for setting in settings or () for word in ("--set", setting)))
