"""Lists a file system without hiding errors, and reports all names left out. Used only by `actors.storage`.

fsspec's own walk is not used: it treats a folder that it cannot list as empty, and does not pass its `on_error` argument
to deeper levels. After a short failure of a store, rows would be missing in the plan, and a refresh would delete them from
the table.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import cast

import fsspec

from actors.errors import ConfigError, StorageError
from actors.schema import Shard
from actors.storage.disk import walk_disk
from actors.storage.listed import Again, Box, Found, Info, Listing
from actors.storage.patterns import PLAIN, Pattern, is_pattern, literal_depth

# From this number of folders in one folder on, a store lists everything below that folder at once.
_MANY_FOLDERS = 16


def search(
    fs: fsspec.AbstractFileSystem,
    path: str,
    *,
    again: Again,
    is_document: Callable[[str], bool],
    shard: Callable[[str, Info], Shard],
    local: bool,
    folders_only: bool,
) -> Listing:
    """List the files that a path names on a file system: see `actors.storage.glob`.

    Args:
        fs: The file system.
        path: A glob, the name of one object, or a folder.
        again: Retries calls of the file system.
        is_document: Returns whether a path is a text, picture or PDF.
        shard: Returns the shard of a path and its info from the file system.
        local: Whether this is the disk of this machine.
        folders_only: Whether a glob matches only folders.

    Raises:
        StorageError: A folder cannot be listed, or a link not be followed.
        ConfigError: `**` is a part of a name.
    """

    def exists(place: str) -> bool:
        if local:
            return os.path.lexists(place)
        try:
            again(place, "look at", partial(fs.info, place))
        except (
            FileNotFoundError,
            NotADirectoryError,
            StorageError,
        ):  # the permission to list does not include this request
            return False
        return True

    def walk(found: Found) -> dict[str, Info]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            walk_disk(found, again) if local else walk_store(fs, found, again)
        return found.settled(is_document)

    pattern, other = parse_pattern(path, exists, folders_only=folders_only)
    found = Found(pattern)
    chosen = walk(found)
    if other is not None:
        with contextlib.suppress(StorageError):  # nothing of it is read
            for name in walk(Found(other)).keys() - chosen.keys():
                found.tally.add("literal_path", name)
    shards = []
    for name in sorted(chosen):
        try:
            shards.append(shard(name, chosen[name]))
        except FileNotFoundError:
            found.tally.add("vanished", name)
        except OSError:
            shards.append(again(name, "look at", partial(shard, name, chosen[name])))
    return Listing(tuple(shards), found.tally.left_out(str if local else fs.unstrip_protocol))


def parse_pattern(path: str, exists: Callable[[str], bool], *, folders_only: bool) -> tuple[Pattern, Pattern | None]:
    """Return the pattern of a path, and the pattern if no part were read as an existing name, where it differs."""
    parts = path.split("/")
    first = next((number for number, part in enumerate(parts) if is_pattern(part)), len(parts))
    depth = literal_depth(parts, exists)
    other = None
    if depth > first:
        with contextlib.suppress(ConfigError):  # a name that is no valid pattern
            other = Pattern("/".join(parts[:first]), tuple(parts[first:]), folders_only=folders_only)
    if depth == len(parts):
        return Pattern(path, ("**",)), other
    return Pattern("/".join(parts[:depth]), tuple(parts[depth:]), folders_only=folders_only), other


def is_folder(name: str, info: Info) -> bool:
    """Return whether an entry is a folder.

    Consoles of object stores create an empty object whose name ends with a slash, Hadoop one that ends with `_$folder$`.
    """
    if info.get("type") == "directory" or name.endswith("/"):
        return True
    return name.endswith("_$folder$") and not info.get("size")


def below(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Info]:
    """Return every object below a folder, at all levels.

    Raises:
        FileNotFoundError: There is no object.
    """
    if fs.async_impl:  # a store lists everything below a folder at once, and raises errors
        listed = fs.find(path, detail=True)
        if isinstance(listed, list):  # adlfs, for the name of one object
            return {name: fs.info(name) for name in listed}
        if not listed:  # as `ls` does; the caller checks whether the bucket is missing
            raise FileNotFoundError(path)
        return cast(dict[str, Info], listed)
    infos = {}
    for info in fs.ls(path, detail=True):
        name = info["name"].rstrip("/")
        if info["type"] != "directory" or name == path.rstrip("/"):
            infos[info["name"]] = info
        else:
            with contextlib.suppress(FileNotFoundError):  # it was just removed
                infos.update(below(fs, name))
    return infos


def walk_store(fs: fsspec.AbstractFileSystem, found: Found, again: Again) -> None:
    """List the matches of a pattern on a store.

    Raises:
        FileNotFoundError: There is nothing at the pattern's root.
        StorageError: A folder cannot be listed; the message names it.
    """
    _StoreWalk(fs, found, again).run()


class _StoreWalk:
    def __init__(self, fs: fsspec.AbstractFileSystem, found: Found, again: Again) -> None:
        self._fs = fs
        self._found = found
        self._again = again
        self._pattern = found.pattern
        self._root = found.pattern.root or fs.root_marker

    def run(self) -> None:
        """List everything at once if the store can and the pattern has `**`; else level by level."""
        if self._pattern.recursive and self._fs.async_impl:
            for name, info in self._again(self._root, "list", lambda: below(self._fs, self._root)).items():
                self._file(name, info)
            return
        folders = [(self._root, 0, PLAIN)]
        while folders:
            path, depth, kind = folders.pop()
            folders += self._level(path, depth, kind)

    def _below_root(self, name: str) -> str:
        root = self._pattern.root
        return name[len(root) + 1 :] if name.startswith(f"{root}/") else name.lstrip("/")

    def _file(self, name: str, info: Info, box: Box | None = None) -> None:
        if is_folder(name, info):
            return
        if name == self._root and self._pattern.parts == ("**",):  # the URL is that of one object
            self._found.plain[name] = info
        elif info.get("type") == "other":
            if self._pattern.kind(self._below_root(name)) is not None:
                self._found.tally.add("not_a_file", name)
        else:
            self._found.add(name, self._below_root(name), info, box)

    def _level(self, path: str, depth: int, kind: int) -> list[tuple[str, int, int]]:
        """Add the files directly below a folder, and return the folders to list next."""
        try:
            infos = self._again(path, "list", lambda: self._fs.ls(path, detail=True))
        except FileNotFoundError:
            if depth == 0:
                raise
            return []  # it was just removed
        except StorageError as error:
            self._found.refused(path, kind, error)
            return []
        deeper, named = [], []
        for info in infos:
            name = info["name"].rstrip("/")
            if info["type"] != "directory" or name == path.rstrip("/"):
                self._file(info["name"], info)
            elif (own := self._pattern.enters(depth + 1, name.rpartition("/")[2])) is not None:
                if not self._pattern.recursive and self._pattern.names_folder(self._below_root(name)):
                    named.append((name, max(kind, own)))
                else:
                    deeper.append((name, depth + 1, max(kind, own)))
        self._named(path, named)
        return deeper

    def _named(self, path: str, folders: list[tuple[str, int]]) -> None:
        """Add everything below folders in `path` that the pattern names."""
        boxes = {name: Box(name, None) for name, _ in folders}
        if len(folders) > _MANY_FOLDERS and self._fs.async_impl:
            start = len(path.rstrip("/")) + 1
            for name, info in self._again(path, "list", lambda: below(self._fs, path)).items():
                box = boxes.get(name[: start + name[start:].find("/")])
                if box is not None:
                    self._file(name, info, box)
        else:
            for folder, kind in folders:
                self._folder(folder, kind, boxes[folder])
        for box in boxes.values():
            if not box.full:
                self._found.tally.add("empty_folder", box.path)

    def _folder(self, folder: str, kind: int, box: Box) -> None:
        try:
            objects = self._again(folder, "list", lambda: below(self._fs, folder))
        except FileNotFoundError:
            return
        except StorageError as error:
            box.fill()
            self._found.refused(folder, kind, error)
            return
        for name, info in objects.items():
            self._file(name, info, box)
