"""Modules of the extra `curate`, which an installation may lack."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from importlib.util import find_spec

from actors.errors import ConfigError


def need_module(name: str) -> ModuleSpec:
    """Return where a module is, without importing it.

    Raises:
        ConfigError: it is missing.
    """
    found = find_spec(name)
    if found is None:
        raise ConfigError(f"curation needs the module {name}: pip install 'vectide[curate]'")
    return found
