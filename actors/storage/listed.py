"""Result of listing a source: the files to read, and those left out with the reason. Used by listings and reports.

A name is classified when it is listed, except for two checks that need all names: whether the source is text, so that
names may begin with `_`, and whether the target of a link is read under its own name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from actors.errors import StorageError
from actors.schema import Shard
from actors.storage.patterns import DOT, PLAIN, Pattern, is_temporary

T = TypeVar("T")
Info = dict[str, Any]

REASONS = {
    "underscore_name": "a name that begins with _",
    "dot_name": "a name that begins with a dot",
    "dangling_link": "a link that leads nowhere",
    "link_loop": "a link that leads back to a folder above it, or to itself",
    "repeated": "a link to what is read under its own name, or a link that was followed before",
    "not_a_file": "a pipe, a socket or a device",
    "empty_folder": "a folder with no file to read",
    "vanished": "removed while the corpus was listed",
    "literal_path": "source.uri is the name of what it matches too, and is read as that name",
    "not_code": "no source code in a language that is known",
    "foreign_code": "in a folder of other people's code, such as node_modules",
    "generated_name": "a name of generated code, as in a.min.js or a_pb2.py",
}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Names that a source URL matches and that are not read.

    Attributes:
        reason: A key of `REASONS`.
        count: Number of files, links, and folders that could not be listed.
        first: The first of them by name, as printable text.
    """

    reason: str
    count: int
    first: str

    def sentence(self) -> str:
        """Return the count, the reason and the first name as text."""
        return f"{self.count:,} ({REASONS[self.reason]}), first {self.first!r}"


@dataclass(frozen=True, slots=True)
class Listing:
    """Files that a source URL names.

    Attributes:
        shards: The files to read, sorted by path.
        left_out: The files left out, one entry per reason.
    """

    shards: tuple[Shard, ...]
    left_out: tuple[LeftOut, ...] = ()


class Again(Protocol):
    """`actors.storage.retried`, for a path of one file system."""

    def __call__(self, place: str, what: str, call: Callable[[], T], /) -> T:
        """Return the result of `call`, retried while the store is busy; errors name `place`."""


class Tally:
    """Counts of the names left out, by reason."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, reason: str, path: str) -> None:
        """Count one more name."""
        self._count[reason] = self._count.get(reason, 0) + 1
        self._first[reason] = min(self._first.get(reason, path), path)

    def left_out(self, spelled: Callable[[str], str]) -> tuple[LeftOut, ...]:
        """Return the counts in the order of `REASONS`; `spelled` converts a path to a URL."""
        return tuple(
            LeftOut(reason, self._count[reason], _printable(spelled(self._first[reason])))
            for reason in REASONS
            if reason in self._count
        )


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(slots=True)
class Box:
    """Folder that a pattern names; `full` shows whether a file was found in it."""

    path: str
    above: Box | None
    full: bool = False

    def fill(self) -> None:
        """Mark this folder and those around it as not empty."""
        box: Box | None = self
        while box is not None and not box.full:
            box.full, box = True, box.above


@dataclass(slots=True)
class Found:
    """Names found by a walk, by full path. Filled by `walk_store` and `actors.storage.disk.walk_disk`.

    Attributes:
        plain: Files to read.
        underscored: Files to read if the source is text.
        behind: The real path of each file that was found through a link.
        unread: Folders whose name begins with `_` and that could not be listed, with the error.
        real_root: The pattern's root without links, on a local disk.
    """

    pattern: Pattern
    plain: dict[str, Info] = field(default_factory=dict)
    underscored: dict[str, Info] = field(default_factory=dict)
    behind: dict[str, str] = field(default_factory=dict)
    unread: list[tuple[str, StorageError]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    real_root: str = ""

    def add(self, path: str, below: str, info: Info, box: Box | None = None) -> bool:
        """Classify a file by its name, and return whether it may be read."""
        kind = self.pattern.kind(below)
        if kind is None or self.pattern.is_bookkeeping(below):
            return False
        if box is not None:
            box.fill()
        if kind == DOT:
            self.tally.add("dot_name", path)
            return False
        (self.plain if kind == PLAIN else self.underscored)[path] = info
        return True

    def refused(self, path: str, kind: int, error: StorageError) -> None:
        """Raise the error of a folder that could not be listed, unless nothing below it would be read."""
        if kind == PLAIN:
            raise error
        if kind == DOT:
            self.tally.add("dot_name", path)
        else:
            self.unread.append((path, error))

    def settled(self, is_document: Callable[[str], bool]) -> dict[str, Info]:
        """Return the files to read, after the checks of names that begin with `_` and of second names of a file."""
        chosen = dict(self.plain)
        if self.underscored or self.unread:
            documents = all(map(is_document, self.plain))
            for path, error in self.unread:
                if documents and is_document("x.txt"):
                    raise error
                self.tally.add("underscore_name", path)
            start = len(self.pattern.root) + 1
            for path, info in self.underscored.items():
                if documents and is_document(path) and not is_temporary(path[start:]):
                    chosen[path] = info
                else:
                    self.tally.add("underscore_name", path)
        inside = self.real_root.rstrip("/") + "/"
        for path, real in self.behind.items():
            own = f"{self.pattern.root}/{real.removeprefix(inside)}"
            if (
                real.startswith(inside)
                and own in chosen
                and own not in self.behind
                and chosen.pop(path, None) is not None
            ):
                self.tally.add("repeated", path)
        return chosen
