"""Patterns in source URLs: one object, a folder, or a glob. Used by the listings and for the root of ids.

`*`, `?` and `[...]` match characters of one name, `**` any number of folders. A part of a path that exists is a name, even
if it looks like a pattern. The trade-off: `{a,b}` and lists with commas are not patterns, because names may contain both.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fsspec.utils import glob_translate

from actors.errors import ConfigError

MARKS = "*?["
PLAIN, UNDERSCORE, DOT = 0, 1, 2
_FORBIDDEN = ("._", ".", "")  # first characters that a match of kind PLAIN, UNDERSCORE, DOT may not have
_BOOKKEEPING = frozenset({"_SUCCESS", "_metadata", "_common_metadata"})
_BOOKKEEPING_NUMBERED = re.compile(r"_(committed|started)_(vacuum)?[0-9]+")  # Databricks
_BOOKKEEPING_ENDING = ".crc"
_TEMPORARY = "_temporary"  # folder of Spark for uncommitted files


def is_pattern(text: str) -> bool:
    """Return whether `text` has a special character of globs."""
    return any(mark in text for mark in MARKS)


def literal_depth(parts: list[str], exists: Callable[[str], bool]) -> int:
    """Return the number of leading parts of a path that are names and no patterns.

    Args:
        parts: The path, split at its slashes.
        exists: Returns whether a path exists; called only for paths whose last part looks like a pattern.
    """
    for depth, part in enumerate(parts, 1):
        if is_pattern(part) and not exists("/".join(parts[:depth])):
            return depth - 1
    return len(parts)


class Pattern:
    """Glob below a folder.

    Args:
        root: The folder, without a slash at its end.
        parts: The names below it, each of which may be a pattern; `("**",)` for everything below.
        folders_only: Whether only folders match, because the URL ends with a slash.

    Raises:
        ConfigError: `**` is a part of a name.
    """

    def __init__(self, root: str, parts: tuple[str, ...], *, folders_only: bool = False) -> None:
        self.root = root
        self.parts = parts
        self.recursive = "**" in parts
        translated = [part if part == "**" else _translated(part) for part in parts]
        heads = [_spelled(part) for part in parts]
        level = parts.index("**") if self.recursive else len(parts)
        self._kinds = [re.compile(_joined(translated, heads, no, folders_only=folders_only)) for no in _FORBIDDEN]
        self._body = None if parts[-1] == "**" else re.compile(_joined(translated, heads, "", tail=False))
        self._levels = [
            [re.compile(_one(each, head, no)) for no in _FORBIDDEN]
            for each, head in zip(translated[:level], heads[:level], strict=True)
        ]
        self._later = set("".join(heads[level:]))

    def kind(self, below: str) -> int | None:
        """Return how a path below the root matches, or None. Everything below a matching folder matches.

        PLAIN, or UNDERSCORE or DOT if a name begins with that character and the pattern does not spell it.
        """
        plain, undotted, anything = self._kinds
        if plain.match(below):
            return PLAIN
        if not anything.match(below):
            return None
        return UNDERSCORE if undotted.match(below) else DOT

    def enters(self, depth: int, name: str) -> int | None:
        """Return the kind of a folder's name if the folder may contain matches, else None.

        Args:
            depth: Its number of levels below the root; 1 for a folder directly below.
            name: The last part of its path.
        """
        if depth <= len(self._levels):
            matches = (kind for kind, each in enumerate(self._levels[depth - 1]) if each.match(name))
            return next(matches, None)
        head = name[:1]
        if head in self._later or head not in ("_", "."):
            return PLAIN
        return DOT if head == "." else UNDERSCORE

    def names_folder(self, below: str) -> bool:
        """Return whether the pattern names a folder at this path below the root."""
        return self._body is not None and self._body.match(below) is not None

    def is_bookkeeping(self, below: str) -> bool:
        """Return whether the path is a metadata file of another tool about the documents beside it."""
        name = below.rpartition("/")[2]
        if name.endswith(_BOOKKEEPING_ENDING):
            return not self.parts[-1].endswith(_BOOKKEEPING_ENDING)
        return (name in _BOOKKEEPING or _BOOKKEEPING_NUMBERED.fullmatch(name) is not None) and name != self.parts[-1]


def is_temporary(below: str) -> bool:
    """Return whether a path is in a folder of an unfinished write."""
    return _TEMPORARY in below.split("/")[:-1]


def _translated(part: str) -> str:
    try:
        return str(glob_translate(part))[len("(?s:") : -len(r")\Z")]
    except ValueError:
        raise ConfigError(
            f"source.uri has {part!r} in it: ** stands for folders, alone between two slashes, as in docs/**/*.md"
        ) from None


def _spelled(part: str) -> str:
    """Return which of `.` and `_` a part spells as its first character."""
    listed = re.match(r"\[([^]!][^]]*)\]", part)
    return "".join(head for head in "._" if head in (listed[1] if listed else part[:1]))


def _one(translated: str, head: str, forbidden: str) -> str:
    """Return a regular expression of one name without a first character in `forbidden` that its part does not spell."""
    excluded = "".join(each for each in forbidden if each not in head)
    guard = f"(?![{re.escape(excluded)}])" if excluded else ""
    return rf"(?s:{guard}{translated})\Z"


def _joined(
    translated: list[str], heads: list[str], forbidden: str, *, folders_only: bool = False, tail: bool = True
) -> str:
    """Return a regular expression of paths: all parts, and everything below a folder that they name."""
    name = f"(?![{re.escape(forbidden)}])[^/]*" if forbidden else "[^/]*"
    expressions = []
    for part, head in zip(translated, heads, strict=True):
        if part == "**":
            expressions.append(f"(?:{name}/)*")
        else:
            expressions.append(_one(part, head, forbidden)[: -len(r"\Z")] + "/")
    path = "".join(expressions)
    if translated[-1] == "**":
        path += name
    else:
        path = path.removesuffix("/")
        if tail:
            path += f"(?:/{name}){'+' if folders_only else '*'}"
    return rf"(?s:{path})\Z"
