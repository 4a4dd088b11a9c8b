"""Parts that several sections of the job file share: the base class, URIs, lists of columns, the labels of machines.

Used by `pipeline.job.config` and `pipeline.job.encoder`. Validators raise ValueError, which pydantic reports with the key.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)

from actors.errors import ConfigError
from actors.quantities import parse_bytes
from actors.storage.errors import check_url

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# Syntax of Ray's node labels and of the values that a selector may ask for.
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"(?:[A-Za-z0-9.-]{{1,253}}/)?{_WORD}")
_HOST = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+")
_LABEL_VALUE = re.compile(rf"!?(?:{_WORD}|in\({_WORD}(?:, ?{_WORD})*\))")


class Section(BaseModel):
    """A section of the job file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false where no boolean is expected.

        Python counts True as 1, so `max_quarantined: yes` would allow every row to be quarantined.
        """
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation is not bool and bool not in get_args(annotation):
            raise ValueError(f"must not be {str(value).lower()}; YAML reads yes, no, on and off as true and false")
        return value


def as_text(value: object) -> object:
    """Return a path object as text; any other value as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _expand(value: object) -> object:
    """Replace `${NAME}` from the environment, and refuse a URL that contains credentials."""
    value = as_text(value)
    if not isinstance(value, str):
        return value

    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ValueError(f"${{{name}}} is not set in the environment")
        return os.environ[name]

    expanded = _VARIABLE.sub(value_of, value)
    if "\0" in expanded:
        raise ValueError("it has a NUL character, which no path may contain")
    try:
        return check_url(expanded)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def as_list(value: object) -> object:
    """Return a single text as a list; any other value as it is."""
    return [value] if isinstance(value, str) else value


def _as_kept(value: object) -> object:
    """Return the list form of a mapping that changes no name, so that both forms are the same job."""
    if isinstance(value, dict) and all(name == stored for name, stored in value.items()):
        return list(value)
    return as_list(value)


def check_labels(value: object) -> object:
    """Return the labels of `run.labels`; raise ValueError where Ray would not accept one."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f"must be labels and their values, as in {{ray.io/accelerator-type: H100}}, not {value!r}")
    for key, condition in value.items():
        if not isinstance(key, str) or not _LABEL.fullmatch(key):
            raise ValueError(f"{key!r} is not a label name: use letters, digits, dots, dashes and at most one slash")
        if not isinstance(condition, str) or not _LABEL_VALUE.fullmatch(condition):
            raise ValueError(
                f"{key} must be a text like 'H100', '!T4', 'in(A100, H100)' or '!in(T4, P4)', not {condition!r}"
            )
    return value


def check_hosts(value: object) -> object:
    """Return `source.fetch`, a text as a list; raise ValueError where it is neither true, false nor a list of hosts."""
    if isinstance(value, bool):
        return value
    hosts = [value] if isinstance(value, str) else value
    if not isinstance(hosts, list | tuple) or not hosts:
        raise ValueError(f"must be true, false or a list of hosts, as in [images.example.com], not {value!r}")
    for host in hosts:
        if not isinstance(host, str) or not _HOST.fullmatch(host):
            raise ValueError(f"{host!r} is not a host: write the name or address alone, as in images.example.com")
    return hosts


def _check_size(value: object) -> object:
    """Return a size as text; YAML reads one without a unit as a number."""
    text = str(value) if type(value) is int else value
    if isinstance(text, str):
        try:
            parse_bytes(text, option="the size")
        except ConfigError as error:
            raise ValueError(str(error)) from None
    return text


def cluster_at(address: str) -> str:
    """Return what `run.address` stands for: "inline", "local" or the address of a Ray cluster."""
    return os.environ.get("RAY_ADDRESS") or "local" if address == "auto" else address


def is_inline(address: str, *, fits_in_process: bool) -> bool:
    """Return whether the work is done in this process: for "inline", or a small job for which the user named no cluster."""
    return address == "inline" or (fits_in_process and address == "auto" and "RAY_ADDRESS" not in os.environ)


Uri = Annotated[str, BeforeValidator(_expand), Field(min_length=1)]
Columns = Annotated[tuple[str, ...], BeforeValidator(as_list)]
Kept = Annotated[
    Annotated[tuple[str, ...], Tag("list")] | Annotated[dict[str, str], Tag("mapping")],
    Discriminator(lambda value: "mapping" if isinstance(value, dict) else "list"),
    BeforeValidator(_as_kept),
]
Size = Annotated[str, BeforeValidator(_check_size)]
