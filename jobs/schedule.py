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
    ray_cron = "ray-cron"
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
    from pipeline.job_file import load_job
    from pipeline.submit import submit as send

    loaded = load_job(job, settings=settings or ())
    raise typer.Exit(send(loaded, address, sys.stdout, command=command.value, detach=detach))


def schedule(  # noqa: PLR0917  (typer's arguments are options by name)
    job: Job,
    cron: Annotated[str, typer.Option(metavar="'M H D M W'", help="When: five fields, as in '0 3 * * *'.")],
    target: Annotated[Target, typer.Option(help="What runs things by the clock.")],
    command: What = RunCommand.refresh,
    rayjob: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The RayJob whose cluster is wanted; deploy/rayjob.yaml.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Hand it over, rather than print it.")] = False,
    settings: Settings = None,
) -> None:
    """Print what makes a job run by the clock: a CronJob, a RayCronJob, a line of a crontab, or a systemd timer."""
    from pipeline.job_file import load_job
    from pipeline.schedule import apply as applied
    from pipeline.schedule import kubernetes, machine
    from pipeline.schedule.cron import Cron

    when = Cron.parse(cron)
    loaded = load_job(job, settings=settings or ())
    name = kubernetes.schedule_name(loaded, Path(job).stem)
    if target in {Target.kubernetes, Target.ray_cron}:
        shape = kubernetes.read_rayjob(rayjob or Path(__file__).parent.parent / "deploy" / "rayjob.yaml")
        make = kubernetes.cron_job if target is Target.kubernetes else kubernetes.ray_cron_job
        text = kubernetes.to_yaml(*make(loaded, when, shape, name=name, command=command.value))
        print(applied.apply_kubernetes(text) if apply else text.rstrip())
        return
    if rayjob is not None:
        raise ConfigError(f"--rayjob is for kubernetes and ray-cron, not for {target.value}; leave it out")
    path = Path(job).absolute()
    words = machine.words_of(_program(), command.value, path, settings or ())
    what = machine.Command(name, path, Path.cwd(), words, about=f"vectide {command.value} of {loaded.table.uri}")
    if target is Target.crontab:
        line = machine.crontab_line(what, when)
        print(applied.apply_crontab(line, name) if apply else line)
        return
    units = machine.systemd_units(what, when)
    if apply:
        print(applied.apply_systemd(units))
        return
    print("\n".join(f"# ~/.config/systemd/user/{file}\n{text}" for file, text in units.items()).rstrip())


def watch(
    job: Job,
    every: Annotated[str, typer.Option(metavar="TIME", help="From start to start, as in 15m, 1h or 7d.")],
    command: What = RunCommand.refresh,
    settings: Settings = None,
) -> None:
    """Run a job again and again on this machine, one process and one line a round, until Ctrl-C."""
    from pipeline import watch as watching
    from pipeline.job_file import load_job
    from pipeline.schedule.machine import words_of

    load_job(job, settings=settings or ())  # a mistake is said now, not in an hour
    every_s = watching.seconds_of(every)
    words = words_of(_program(), command.value, Path(job).absolute(), settings or ())
    with watching.Stop().on_signals() as stop:
        code = watching.watch(
            lambda: watching.run_round(words, stop), every_s, lambda line: print(line, flush=True), stop=stop.asked
        )
    raise typer.Exit(code)


def _program() -> tuple[str, ...]:
    """This program, by its full path."""
    beside = Path(sys.executable).with_name("vectide")
    return (str(beside),) if beside.exists() else (sys.executable, "-m", "jobs")
