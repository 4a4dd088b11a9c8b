"""Listings of a file system that hide no error. Used by `actors.storage` alone.

By hand, because fsspec's own walk takes a folder that it cannot list for an empty one, and loses what it is told about
errors on the way down: a store that was busy for a moment would have rows left out of a plan, and a refresh would take them
out of the table.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any, cast

import fsspec
from fsspec.utils import glob_translate


def below(fs: fsspec.AbstractFileSystem, path: str, depth: int | None = None) -> dict[str, dict[str, Any]]:
    """Every object below a folder, `depth` levels down; all levels where that is None.

    Raises:
        FileNotFoundError: there is nothing.
    """
    if depth is None and fs.async_impl:  # a store lists all that is below a place at once, and raises
        listed = fs.find(path, detail=True)
        if isinstance(listed, list):  # adlfs, for the name of one object
            return {name: fs.info(name) for name in listed}
        if not listed:  # as `ls` does; the caller finds out whether the bucket is missing too
            raise FileNotFoundError(path)
        return cast(dict[str, dict[str, Any]], listed)
    found = {}
    for info in fs.ls(path, detail=True):
        name = info["name"].rstrip("/")
        if info["type"] != "directory" or name == path.rstrip("/"):
            found[info["name"]] = info
        elif depth is None or depth > 1:
            with contextlib.suppress(FileNotFoundError):  # it went away meanwhile
                found.update(below(fs, name, None if depth is None else depth - 1))
    return found


def matching(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """The objects that a glob names."""
    root = path[: min(path.index(mark) for mark in "*?[" if mark in path)].rpartition("/")[0] or fs.root_marker
    depth = None if "**" in path else path[len(root.rstrip("/")) :].count("/")
    pattern = re.compile(glob_translate(path))
    return {name: info for name, info in below(fs, root, depth).items() if pattern.match(name)}
