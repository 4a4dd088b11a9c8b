"""`vectide schedule`: prints a schedule for Kubernetes, cron or systemd."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from actors.errors import ConfigError
from jobs.options import RequiredJobFile, RunCommand, RunCommandName, Settings, command_line, load_for


class Target(StrEnum):
    """Schedulers."""

    kubernetes = "kubernetes"
    crontab = "crontab"
    systemd = "systemd"


def schedule(  # noqa: PLR0917  (typer's arguments are options by name)
    job: RequiredJobFile,
    target: Annotated[Target, typer.Option(help="The scheduler.")],
    cron: Annotated[
        str | None,
        typer.Option(metavar="'M H D M W'", help="Time for kubernetes and crontab, as in '0 3 * * *'."),
    ] = None,
    on_calendar: Annotated[
        str | None, typer.Option(metavar="EVENT", help="Time for systemd, as in '*-*-* 03:00:00'.")
    ] = None,
    command: RunCommandName = None,
    rayjob: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="RayJob whose cluster and image to use; default: deploy/rayjob.yaml."),
    ] = None,
    settings: Settings = None,
) -> None:
    """Print a schedule for a job: a Kubernetes CronJob, a crontab line, or a systemd timer."""
    from pipeline.cluster.schedule import render
    from pipeline.job.load import result_uri

    when = _time_option(target, cron, on_calendar)
    if rayjob is not None and target is not Target.kubernetes:
        raise ConfigError(f"--rayjob is for kubernetes, not for {target.value}; leave it out")
    loaded, chosen = load_for(job, settings, command, RunCommand.refresh)
    name = render.schedule_name(loaded, Path(job).stem)
    if target is Target.kubernetes:
        text = render.kubernetes(loaded, when, rayjob, name=name, command=chosen.value)
    else:
        path = Path(job).absolute()
        argv = command_line(chosen, path, settings)
        run = render.ScheduledRun(name, chosen.value, result_uri(loaded), path, Path.cwd(), argv)
        text = render.crontab(run, when) if target is Target.crontab else render.systemd(run, when)
    print(text, end="")


def _time_option(target: Target, cron: str | None, on_calendar: str | None) -> str:
    """Return the time option that the target takes. Raise ConfigError if it is missing, or if the other is given."""
    if target is Target.systemd:
        when, other, rule = on_calendar, cron, "--on-calendar '*-*-* 03:00:00', and no --cron"
    else:
        when, other, rule = cron, on_calendar, "--cron '0 3 * * *', and no --on-calendar"
    if when is None or other is not None:
        raise ConfigError(f"--target {target.value} takes {rule}")
    return when
