"""Checks of what Python callers give to the functions of `vectide`. The command line checks its own options."""

from __future__ import annotations

import operator
import os
from typing import Any

from actors.errors import ConfigError


def need_place(value: object, name: str) -> str:
    """Return a path or URL, given as text or as a path object.

    Raises:
        ConfigError: it is something else, or empty.
    """
    place = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(place, str) or not place:
        raise ConfigError(f"{name} is {value!r}; it must be a path or a URL, as a text or a pathlib.Path")
    return place


def need_whole(value: Any, name: str, *, least: int = 0) -> int:
    """Return a whole number of at least `least`, of any integer type.

    Raises:
        ConfigError: it is something else.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of {least} or more")
    return number


def need_flag(value: object, name: str) -> bool:
    """Return True or False.

    Raises:
        ConfigError: it is something else, such as a text, which would count as true.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be True or False")
    return value


def need_above_zero(value: object, name: str) -> float:
    """Return a number above 0.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{name} is {value!r}; it must be a number above 0")
    return value
