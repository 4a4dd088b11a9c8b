"""Reads a job from a YAML file, from settings on the command line, or from both. Used by the commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from actors.arguments import need_place
from actors.errors import ConfigError
from pipeline.job.config import Job, parse_job
from pipeline.job.curation import Curation, parse_curation
from pipeline.job.training import Training, parse_training
from pipeline.job.validation import shortened, shown

AnyJob = Job | Curation | Training

# Keys by which a file of another kind is known, with its parser.
_KINDS: tuple[tuple[set[str], Callable[..., AnyJob]], ...] = (
    ({"train", "data", "out"}, parse_training),
    ({"steps", "pairs", "corpus"}, parse_curation),
)


def load_job(path: str | Path | None, *, settings: Sequence[str] = (), defaults: dict[str, Any] | None = None) -> Job:
    """Return the job of a YAML file and of `key=value` settings, which override the file.

    Args:
        path: The job file, or None for a job that settings alone describe.
        settings: `section.key=value`, the value in YAML.
        defaults: `section.key` to value; these override the file, and `settings` override them.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or a key or value of it is wrong, or it is a job of another kind.
    """
    job = load_any(path, settings=settings, defaults=defaults)
    if isinstance(job, Curation):
        raise ConfigError(f"{path or 'the job'} has steps, so it is a curation job: run it with `vectide curate`")
    if isinstance(job, Training):
        raise ConfigError(f"{path or 'the job'} has train, so it is a training job: run it with `vectide train`")
    return job


def load_curation(path: str | Path | None, *, settings: Sequence[str] = ()) -> Curation:
    """Return the curation job of a YAML file and of `key=value` settings, which override the file.

    Raises:
        ConfigError: see `load_job`.
    """
    job = load_any(path, settings=settings, parse_unclear=parse_curation)
    if not isinstance(job, Curation):
        raise _of_another_kind(path, job, "steps", "curation")
    return job


def load_training(path: str | Path | None, *, settings: Sequence[str] = ()) -> Training:
    """Return the training job of a YAML file and of `key=value` settings, which override the file.

    Raises:
        ConfigError: see `load_job`.
    """
    job = load_any(path, settings=settings, parse_unclear=parse_training)
    if not isinstance(job, Training):
        raise _of_another_kind(path, job, "train", "training")
    return job


def _of_another_kind(path: str | Path | None, job: AnyJob, key: str, kind: str) -> ConfigError:
    return ConfigError(
        f"{path or 'the job'} has no {key}, so it is no {kind} job: run it with `vectide {command_of(job)}`"
    )


def command_of(job: AnyJob) -> str:
    """Return the name of the command that runs a job of its kind."""
    return "curate" if isinstance(job, Curation) else "train" if isinstance(job, Training) else "backfill"


def result_uri(job: AnyJob) -> str:
    """Return the URI of what a job makes: its table, or the folder of its model."""
    return job.out.uri if isinstance(job, Training) else job.table.uri


def load_any(
    path: str | Path | None,
    *,
    settings: Sequence[str] = (),
    defaults: dict[str, Any] | None = None,
    parse_unclear: Callable[..., AnyJob] = parse_job,
) -> AnyJob:
    """Return the job of a file of any kind: one with `steps` is a curation, one with `train` a training. See `load_job`.

    `parse_unclear` parses what has no keys.
    """
    document: Any = {}
    if path is not None:
        path = need_place(path, "the job file")
        try:
            data = Path(path).read_bytes()
        except (OSError, ValueError) as error:  # a ValueError for a name that no file can have
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot read the job file {shown(path)}: {reason}") from None
        try:
            document = _from_yaml(data.decode("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path!r} is not a YAML file: {shortened(' '.join(str(error).split()))}") from None
    if isinstance(document, dict):
        for key, value in (defaults or {}).items():
            _set(document, key, value)
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise ConfigError(f"--set {shown(setting)} must be key=value, as in --set encoder.dim=256")
            try:
                _set(document, key.strip(), _from_yaml(text))
            except yaml.YAMLError:
                raise ConfigError(f"--set {shown(setting)}: the part after = is not a YAML value") from None
    parse = parse_unclear
    if isinstance(document, dict) and document:
        parse = next((parser for keys, parser in _KINDS if keys & document.keys()), parse_job)
    return parse(document, origin=path or "the job")


def _from_yaml(text: str) -> Any:
    """Parse YAML to plain data.

    The library's constructors raise errors of many types, for a date such as 2026-13-45 or for deep nesting; all of
    them become YAMLError.
    """
    try:
        return yaml.safe_load(text)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None


def _set(document: dict[str, Any], key: str, value: object) -> None:
    *sections, name = key.split(".")
    target: Any = document
    for section in sections:
        if isinstance(target, list):
            target = _item(target, section)
        else:
            target = target.setdefault(section, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise ConfigError(f"--set {shown(key)}: {shown('.'.join(sections))} is not a section of the job file")
    target[name] = value


def _item(items: list[Any], name: str) -> Any:
    """Return the item of a number or a name, as in `data.0.weight` and `steps.overlap.max_share`; a step gets settings."""
    if name.isdecimal():
        return items[int(name)] if int(name) < len(items) else None
    for number, step in enumerate(items):
        if step in (name, {name: None}):
            items[number] = {name: {}}
        if isinstance(items[number], dict) and name in items[number]:
            return items[number][name]
    return None
