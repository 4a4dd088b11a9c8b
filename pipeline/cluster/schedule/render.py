"""Fills the templates of schedules with the values of a job.

Used by `vectide schedule`. The templates are package data, so an installed package has them. A value that a template
cannot hold raises ConfigError. The manifests contain no credentials: those come from the role of the machine or the pod, or
from the user's environment.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml

from actors import storage
from actors.errors import ConfigError
from pipeline.job.load import AnyJob, result_uri
from pipeline.job.places import models, places

MAX_NAME_CHARACTERS = 36  # a RayJob's name has at most 47, of which the CronJob adds 11
_MOUNT_PATH = "/etc/vectide"  # in a pod
_VOLUME = "vectide-job"
_CRON = re.compile(r"[0-9A-Za-z*/,-]+( [0-9A-Za-z*/,-]+){4}")
_CALENDAR = re.compile(r"[0-9A-Za-z*/,.:~+_-]+( [0-9A-Za-z*/,.:~+_-]+){0,3}")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NOT_IN_A_LINE = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8


class _Template(Template):
    """Template with `@name` for each value. Shells and systemd units use `$` themselves."""

    delimiter = "@"


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """Command that cron or systemd runs on a machine.

    Attributes:
        name: Name of the schedule.
        command: `backfill`, `refresh`, `curate` or `train`.
        table: URI of the table, or of the folder of a trained model.
        job: Full path of the job file, because cron and systemd have their own working folder.
        folder: Working folder of the command. Relative paths in the job file are relative to it.
        argv: The command line. The program has its full path, because cron and systemd have their own PATH.
    """

    name: str
    command: str
    table: str
    job: Path
    folder: Path
    argv: Sequence[str]


def cron(text: str) -> str:
    """Return a cron expression with one space between its fields. The meaning of the fields is not checked.

    Raises:
        ConfigError: it does not have five fields, or a field has a character that fields cannot have.
    """
    fields = " ".join(text.split())
    if _CRON.fullmatch(fields) is None:
        raise ConfigError(
            f"--cron {text!r} must have five fields (minute, hour, day of the month, month, day of the week) of letters, "
            f"digits and * / , -, as in --cron '0 3 * * *'"
        )
    return fields


def on_calendar(text: str) -> str:
    """Return a systemd calendar event with one space between its words. Its meaning is not checked.

    Raises:
        ConfigError: it has characters that a calendar event cannot have.
    """
    event = " ".join(text.split())
    if _CALENDAR.fullmatch(event) is None:
        raise ConfigError(
            f"--on-calendar {text!r} must be a systemd calendar event, as in --on-calendar '*-*-* 03:00:00'; "
            f"`systemd-analyze calendar EVENT` prints when it is due"
        )
    return event


def schedule_name(job: AnyJob, stem: str) -> str:
    """Return the name of a job's schedule. One job file and table have one name, so a second `apply` updates the first."""
    stem_letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem.lower())
    digest = hashlib.sha256(storage.absolute(result_uri(job)).encode()).hexdigest()[:6]
    return f"vectide-{stem_letters[: MAX_NAME_CHARACTERS - 15].strip('-') or 'job'}-{digest}"


def crontab(run: ScheduledRun, when: str) -> str:
    """Return a crontab line. It locks the job file (flock), so a run is skipped while the last one still runs."""
    values = {"folder": str(run.folder), "job": str(run.job), "log": str(run.job.with_name(f"{run.name}.log"))}
    quoted = {key: _crontab_quote(value) for key, value in values.items()}
    command_line = " ".join(map(_crontab_quote, run.argv))
    return _fill("crontab", cron=cron(when), command_line=command_line, name=run.name, **quoted)


def systemd(run: ScheduledRun, when: str) -> str:
    """Return a service and its timer, each under a comment with its file name. systemd does not start a service that runs."""
    program, *arguments = run.argv
    # systemd expands variables in the arguments, not in the program.
    quoted = [_unit_quote(program), *(_unit_quote(argument).replace("$", "$$") for argument in arguments)]
    values = {"name": run.name, "command": run.command, "table": _unit_text(run.table)}
    service = _fill("vectide.service", folder=_unit_text(str(run.folder)), command_line=" ".join(quoted), **values)
    return f"{service}\n{_fill('vectide.timer', on_calendar=on_calendar(when), **values)}"


def kubernetes(job: AnyJob, when: str, rayjob: Path | None, *, name: str, command: str) -> str:
    """Return a ConfigMap with the job file and a RayJob, the role to create RayJobs, and the CronJob.

    The CronJob creates a RayJob, and does not submit to a permanent cluster: the GPUs exist only during the run, and
    a run with another image needs no new cluster.

    Args:
        job: The job.
        when: A cron expression, in UTC.
        rayjob: File with the RayJob whose cluster and image to use; None: that of deploy/rayjob.yaml.
        name: Name of the schedule.
        command: `backfill`, `refresh`, `curate` or `train`.

    Raises:
        ConfigError: the cron expression or the RayJob is invalid, or a path in the job has no meaning in a pod.
    """
    namespace, spec = _read_rayjob(rayjob, name, command)
    values = {"job": textwrap.indent(job_text(job), " " * 4), "rayjob": textwrap.indent(_to_yaml(spec), " " * 6)}
    indented = {key: value.rstrip("\n") for key, value in values.items()}
    return _fill("cronjob.yaml", name=name, namespace=namespace, cron=cron(when), **indented)


def job_text(job: AnyJob) -> str:
    """Return the job file for a pod, as YAML.

    Raises:
        ConfigError: a path in the job has no meaning in a pod.
    """
    document = job.model_dump(mode="json", exclude_none=True)
    document["run"]["address"] = "auto"
    for place, section, key in places(document):
        uri = section[key]
        if storage.is_local(uri) and not uri.startswith(("/", "file:///")):
            raise ConfigError(
                f"{place} {uri!r} is relative to this machine's folder; a pod has another one. Use an object store, "
                f"or the full path of a volume that every pod mounts"
            )
    for name, section, key in models(document):
        if Path(section[key]).exists() and not Path(section[key]).is_absolute():
            raise ConfigError(
                f"{name} {section[key]!r} is a folder of this machine; use a hub id, "
                f"or the full path of the folder in the pods (docs/models.md)"
            )
    return _to_yaml(document)


def _read_rayjob(path: Path | None, name: str, command: str) -> tuple[str, dict[str, Any]]:
    """Return the namespace of a RayJob, and its spec with our command and the job file of ConfigMap `name` on the head."""
    shown = repr(str(path))
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8") if path else _read_template("rayjob.yaml"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the RayJob {shown}: {error.strerror or error}; name one with --rayjob, or leave --rayjob out"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown} is not one YAML document: {' '.join(str(error).split())}") from None
    mount = {"name": _VOLUME, "mountPath": _MOUNT_PATH, "readOnly": True}
    items = [{"key": "job.yaml", "path": "job.yaml"}]
    try:
        spec: dict[str, Any] = document["spec"]
        pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        head, *others = pod["containers"]
        mounted = {**head, "volumeMounts": [*_without_our_volume(head.get("volumeMounts")), mount]}
        pod["containers"] = [mounted, *others]
        pod["volumes"] = [
            *_without_our_volume(pod.get("volumes")),
            {"name": _VOLUME, "configMap": {"name": name, "items": items}},
        ]
        spec["entrypoint"] = f"vectide {command} {_MOUNT_PATH}/job.yaml"
        namespace = str((document.get("metadata") or {}).get("namespace") or "default")
        if document["kind"] != "RayJob" or _NAMESPACE.fullmatch(namespace) is None:
            raise ValueError(document["kind"], namespace)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(
            f"{shown} must be a RayJob with spec.rayClusterSpec, whose head has a container, and a namespace of lower case "
            f"letters, digits and -, if it has one; start from deploy/rayjob.yaml"
        ) from None
    return namespace, spec


def _without_our_volume(items: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    return [item for item in items or [] if item["name"] != _VOLUME]


def _read_template(template: str) -> str:
    return resources.files(__package__).joinpath("templates", template).read_text(encoding="utf-8")


def _fill(template: str, **values: str) -> str:
    return _Template(_read_template(template)).substitute(values)


def _to_yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=120)


def _crontab_quote(word: str) -> str:
    """Quote a word for the shell of a crontab, where `%` ends the command.

    Cron daemons differ in how they read a backslash before `%` or another backslash, so the quote is closed and opened
    after each backslash.
    """
    return shlex.quote(_one_line(word)).replace("\\", "\\''").replace("%", r"\%")


def _unit_text(value: str) -> str:
    return _one_line(value).replace("%", "%%")


def _unit_quote(word: str) -> str:
    text = _unit_text(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _one_line(value: str) -> str:
    if _NOT_IN_A_LINE.search(value):
        raise ConfigError(
            f"{value!r} has a line break or another control character, which a crontab or a unit file cannot hold; rename it"
        )
    return value
