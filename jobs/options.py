"""Arguments and options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.job.config import Job
    from pipeline.job.load import AnyJob

JobFile = Annotated[str | None, typer.Argument(metavar="[JOB.yaml]", help="The job file.")]
RequiredJobFile = Annotated[str, typer.Argument(metavar="JOB.yaml", help="The job file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the job file, as in encoder.dim=256."),
]
SourceUri = Annotated[str | None, typer.Option("--source", metavar="URI", help="source.uri")]
TableUri = Annotated[str | None, typer.Option("--table", metavar="URI", help="table.uri")]
ModelName = Annotated[str | None, typer.Option("--model", metavar="NAME_OR_DIR", help="encoder.model")]
RetryQuarantined = Annotated[
    bool,
    typer.Option(
        "--retry-quarantined",
        help="Try failed rows again: in the encoder, in fetching, in decoding; publishes a new version.",
    ),
]
Table = Annotated[str, typer.Argument(metavar="TABLE", help="URI of the table.")]
Version = Annotated[int | None, typer.Option(min=0, help="Version of the table; default: the current one.")]
MovedModel = Annotated[
    str | None, typer.Option(metavar="NAME_OR_DIR", help="New place of the table's model, if it has moved.")
]
CacheSize = Annotated[str, typer.Option(help="Limit of the local cache of vectors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class RunCommand(StrEnum):
    """Commands that can run on a cluster or on a schedule."""

    backfill = "backfill"
    refresh = "refresh"
    curate = "curate"
    train = "train"


RunCommandName = Annotated[
    RunCommand | None,
    typer.Option("--command", help="The command to run; by default the one for jobs of the file's kind."),
]


def load_job(
    path: str | None,
    settings: list[str] | None,
    *,
    source: str | None = None,
    table: str | None = None,
    model: str | None = None,
    others: Mapping[str, Any] | None = None,
) -> Job:
    """Read a job file, with the options of a command applied. An option that is None was not given.

    Args:
        path: The job file; None where options give every required key.
        settings: Values of `--set`, as KEY=VALUE.
        source: Value of source.uri.
        table: Value of table.uri.
        model: Value of encoder.model.
        others: Values of further options, by key of the job file.

    Raises:
        ConfigError: the job file cannot be read, or a key or a value is invalid.
    """
    from pipeline.job.load import load_job as load

    options = {"source.uri": source, "table.uri": table, "encoder.model": model, **(others or {})}
    given = {key: value for key, value in options.items() if value is not None}
    return load(path, settings=settings or (), defaults=given)


def load_any(path: str | None, settings: list[str] | None) -> AnyJob:
    """Read a job file of any kind: of a backfill, of a curation, or of a training.

    Raises:
        ConfigError: see `load_job`.
    """
    from pipeline.job.load import load_any as load

    return load(path, settings=settings or ())


def load_for(
    path: str, settings: list[str] | None, command: RunCommand | None, default: RunCommand
) -> tuple[AnyJob, RunCommand]:
    """Read a job file of any kind; return it with the command that runs it.

    Raises:
        ConfigError: see `load_job`; or the command is for another kind.
    """
    from pipeline.job.config import Job
    from pipeline.job.load import command_of

    job = load_any(path, settings)
    own = command_of(job)
    chosen = command or (default if isinstance(job, Job) else RunCommand(own))
    allowed = (RunCommand.backfill, RunCommand.refresh) if isinstance(job, Job) else (RunCommand(own),)
    if chosen not in allowed:
        kind = {"curate": "is a curation job", "train": "is a training job"}.get(own, f"is no job of {chosen.value}")
        raise ConfigError(f"--command {chosen.value}: {path} {kind}; leave --command out")
    return job, chosen


def command_line(command: RunCommand, job: Path, settings: list[str] | None) -> tuple[str, ...]:
    """Return the command line that runs a job. The program has its full path."""
    script = Path(sys.executable).with_name("vectide")
    program = (str(script),) if script.exists() else (sys.executable, "-m", "jobs")
    options = [word for setting in settings or () for word in ("--set", setting)]
    return (*program, command.value, str(job), *options)
