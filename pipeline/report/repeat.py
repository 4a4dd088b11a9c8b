"""The command line that repeats a run, from the job that its plan was frozen with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from actors.errors import ConfigError
from pipeline.job.config import parse_job
from pipeline.job.curation import parse_curation
from pipeline.job.training import parse_training
from pipeline.job.values import Section

_COMMANDS = {name: name for name in ("backfill", "refresh", "curate", "train")} | {"generation": "refresh"}
_PARSERS: dict[str, Callable[[object], Section]] = {"curate": parse_curation, "train": parse_training}


def command_of(operation: str, job: Mapping[str, Any], *, retries: bool = False) -> str:
    """Return the command that runs a job again, with each key of the job that is not the default.

    Args:
        operation: As in the description of the run.
        job: The whole job as plain data, with defaults.
        retries: Whether quarantined rows are retried.

    Returns:
        The command; empty if the job is of a release with other keys, or the operation has no job.
    """
    if operation not in _COMMANDS:
        return ""
    try:
        settings = _PARSERS.get(operation, parse_job)(job).model_dump(mode="json", exclude_defaults=True)
    except ConfigError:
        return ""
    words = ["vectide", _COMMANDS[operation], *(["--retry-quarantined"] if retries else [])]
    for key, value in _flat(settings):
        words += ["--set", f"{key}={_yaml(value)}"]
    return shlex.join(words)


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, keys in settings.items():
        if isinstance(keys, dict):
            yield from ((f"{section}.{key}", value) for key, value in keys.items())
        else:
            yield section, keys  # the steps of a curation, the data of a training


def _yaml(value: object) -> str:
    """Return a value as YAML on one line: as it is if YAML reads it as the same text, else as JSON."""
    if isinstance(value, str):
        try:
            if yaml.safe_load(value) == value:
                return value
        except yaml.YAMLError:
            pass
    return json.dumps(value, ensure_ascii=False)
