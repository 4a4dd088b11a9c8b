"""Puts the values of a job into the templates that run it by the clock.

Used by `jobs schedule`. The templates are data of this package, so that they are there where the package is installed. A
value that a template cannot hold is refused. None of the manifests brings credentials: they come from the role of the
machine or the pod, or from where the user's own programs find them.
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
from pipeline.job.config import Job

LONGEST_NAME = 36  # a RayJob's is 47 at most, and the CronJob adds 11
_FOLDER = "/etc/vectide"  # in a pod
_VOLUME = "vectide-job"
_CRON = re.compile(r"[0-9A-Za-z*/,-]+( [0-9A-Za-z*/,-]+){4}")
_CALENDAR = re.compile(r"[0-9A-Za-z*/,.:~+_-]+( [0-9A-Za-z*/,.:~+_-]+){0,3}")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NO_LINE = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8


class _Template(Template):
    """A text with `@name` for each value: `$` is what shells and units use."""

    delimiter = "@"


@dataclass(frozen=True, slots=True)
class Run:
    """What is to run on a machine.

    Attributes:
        name: Of the schedule.
        command: `backfill` or `refresh`.
        table: Its URI.
        job: The job file, by its full path: a clock has another working folder than a person.
        folder: Where to run it, which is what relative places in it are relative to.
        words: The command line, program first, by its full path: a clock has another PATH than a person.
    """

    name: str
    command: str
    table: str
    job: Path
    folder: Path
    words: Sequence[str]


def cron(text: str) -> str:
    """A cron expression, one space between its fields. What the fields mean is for the program that takes it to say.

    Raises:
        ConfigError: it does not have five fields, or other characters than a field may have.
    """
    fields = " ".join(text.split())
    if _CRON.fullmatch(fields) is None:
        raise ConfigError(
            f"--cron {text!r} must have five fields (minute, hour, day of the month, month, day of the week) of letters, "
            f"digits and * / , -, as in --cron '0 3 * * *'"
        )
    return fields


def on_calendar(text: str) -> str:
    """A calendar event of systemd, one space between its words. What it means is for systemd to say.

    Raises:
        ConfigError: it cannot be one.
    """
    event = " ".join(text.split())
    if _CALENDAR.fullmatch(event) is None:
        raise ConfigError(
            f"--on-calendar {text!r} must be a calendar event of systemd, as in --on-calendar '*-*-* 03:00:00'; "
            f"`systemd-analyze calendar EVENT` says when it is due"
        )
    return event


def schedule_name(job: Job, stem: str) -> str:
    """A name for a job's schedule: the same job file and table give the same one, so that applying it twice changes it."""
    readable = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem.lower())
    digest = hashlib.sha256(storage.absolute(job.table.uri).encode()).hexdigest()[:6]
    return f"vectide-{readable[: LONGEST_NAME - 15].strip('-') or 'job'}-{digest}"


def crontab(run: Run, when: str) -> str:
    """A line for a crontab. The job file itself is the lock: while one run holds it, the next is left out."""
    values = {"folder": str(run.folder), "job": str(run.job), "log": str(run.job.with_name(f"{run.name}.log"))}
    quoted = {key: _crontab_quote(value) for key, value in values.items()}
    words = " ".join(map(_crontab_quote, run.words))
    return _fill("crontab", cron=cron(when), words=words, name=run.name, **quoted)


def systemd(run: Run, when: str) -> str:
    """A service and its timer, each under a comment that names its file. A service that still runs is never started a
    second time."""
    program, *rest = run.words
    # systemd puts variables into the words after the program only.
    words = " ".join([_unit_quote(program), *(_unit_quote(word).replace("$", "$$") for word in rest)])
    values = {"name": run.name, "command": run.command, "table": _unit_text(run.table)}
    service = _fill("vectide.service", folder=_unit_text(str(run.folder)), words=words, **values)
    return f"{service}\n{_fill('vectide.timer', on_calendar=on_calendar(when), **values)}"


def kubernetes(job: Job, when: str, rayjob: Path | None, *, name: str, command: str) -> str:
    """A ConfigMap with job and RayJob, the rights to create one, and the CronJob that does.

    A RayJob rather than `vectide submit` to a cluster that stands: the GPUs are there for as long as the run, and a run
    with another image needs no new cluster.

    Args:
        job: The job.
        when: A cron expression, in UTC.
        rayjob: A file with the RayJob whose cluster is wanted; None takes the one that deploy/rayjob.yaml is.
        name: Of the schedule.
        command: `backfill` or `refresh`.

    Raises:
        ConfigError: the expression or the RayJob is none, or a place in the job means nothing in a pod.
    """
    namespace, spec = _read_rayjob(rayjob, name, command)
    values = {"job": textwrap.indent(job_text(job), " " * 4), "rayjob": textwrap.indent(_to_yaml(spec), " " * 6)}
    indented = {key: value.rstrip("\n") for key, value in values.items()}
    return _fill("cronjob.yaml", name=name, namespace=namespace, cron=cron(when), **indented)


def job_text(job: Job) -> str:
    """The job file for a pod, as YAML.

    Raises:
        ConfigError: a place in it means nothing in a pod.
    """
    document = job.model_dump(mode="json", exclude_none=True)
    document["run"]["address"] = "auto"
    for section in ("source", "table"):
        uri = document[section]["uri"]
        if storage.is_local(uri) and not uri.startswith(("/", "file:///")):
            raise ConfigError(
                f"{section}.uri {uri!r} is relative to this machine's folder; a pod has another one. Use an object store, "
                f"or the full path of a volume that every pod mounts"
            )
    if Path(job.encoder.model).is_dir() and not Path(job.encoder.model).is_absolute():
        raise ConfigError(
            f"encoder.model {job.encoder.model!r} is a folder of this machine; use a hub id, or the full path of the "
            f"folder in the pods (docs/models.md)"
        )
    return _to_yaml(document)


def _read_rayjob(path: Path | None, name: str, command: str) -> tuple[str, dict[str, Any]]:
    """Namespace and spec of a RayJob, with what is to run: the job file of ConfigMap `name`, mounted on the head."""
    said = repr(str(path))
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8") if path else _text("rayjob.yaml"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the RayJob {said}: {error.strerror or error}; name one with --rayjob, or leave --rayjob out"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{said} is not one YAML document: {' '.join(str(error).split())}") from None
    mount = {"name": _VOLUME, "mountPath": _FOLDER, "readOnly": True}
    items = [{"key": "job.yaml", "path": "job.yaml"}]
    try:
        spec: dict[str, Any] = document["spec"]
        pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        head, *others = pod["containers"]
        mounted = {**head, "volumeMounts": [*_but_ours(head.get("volumeMounts")), mount]}
        pod["containers"] = [mounted, *others]
        pod["volumes"] = [
            *_but_ours(pod.get("volumes")),
            {"name": _VOLUME, "configMap": {"name": name, "items": items}},
        ]
        spec["entrypoint"] = f"vectide {command} {_FOLDER}/job.yaml"
        namespace = str((document.get("metadata") or {}).get("namespace") or "default")
        if document["kind"] != "RayJob" or _NAMESPACE.fullmatch(namespace) is None:
            raise ValueError(document["kind"], namespace)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(
            f"{said} must be a RayJob with spec.rayClusterSpec, whose head has a container, and a namespace of lower case "
            f"letters, digits and -, if it has one; begin with deploy/rayjob.yaml"
        ) from None
    return namespace, spec


def _but_ours(items: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    return [item for item in items or [] if item["name"] != _VOLUME]


def _text(template: str) -> str:
    return resources.files(__package__).joinpath("templates", template).read_text(encoding="utf-8")


def _fill(template: str, **values: str) -> str:
    return _Template(_text(template)).substitute(values)


def _to_yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=120)


def _crontab_quote(word: str) -> str:
    """A word for the shell of a crontab, where `%` ends the command. Crons differ in what they make of a backslash before
    `%` or another backslash, so a quote is closed and opened after each."""
    return shlex.quote(_one_line(word)).replace("\\", "\\''").replace("%", r"\%")


def _unit_text(value: str) -> str:
    return _one_line(value).replace("%", "%%")


def _unit_quote(word: str) -> str:
    text = _unit_text(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _one_line(value: str) -> str:
    if _NO_LINE.search(value):
        raise ConfigError(
            f"{value!r} has a line break or another control character, which a crontab or a unit file cannot hold; rename it"
        )
    return value
