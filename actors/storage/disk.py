"""Lists a folder of a local disk: files, folders, links and other entries. Used only by `actors.storage`.

A link is followed under its own name, once; a link to a folder above it is a loop. A file that is read under its own
name is not read again through a link. The trade-off: folders whose names begin with a dot are listed although nothing in
them is read, so that the number of omitted files is known.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import NamedTuple

from actors.errors import StorageError
from actors.storage.listed import Again, Box, Found
from actors.storage.patterns import DOT, PLAIN

_FILE, _FOLDER, _LINK, _OTHER, _DANGLING, _LOOP = range(6)
_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}


class _Folder(NamedTuple):
    """Folder to list.

    Attributes:
        below: Its path below the root; empty for the root.
        real: Its path without links.
        depth: Its number of levels below the root.
        kind: The visibility of its name: PLAIN, UNDERSCORE or DOT.
        chain: Real paths of the folders with the links that were followed to reach it.
        box: The folder around it that the pattern names, or None.
    """

    below: str
    real: str
    depth: int
    kind: int
    chain: tuple[str, ...]
    box: Box | None


def walk_disk(found: Found, again: Again) -> None:
    """List the matches of a pattern on this machine's disk. No file is opened: opening a pipe would block.

    Raises:
        FileNotFoundError: There is nothing at the pattern's root.
        StorageError: A folder or link cannot be read; the message names it.
    """
    _DiskWalk(found, again).run()


class _DiskWalk:
    def __init__(self, found: Found, again: Again) -> None:
        self._found = found
        self._again = again
        self._pattern = found.pattern
        self._root = found.pattern.root
        self._own: list[_Folder] = []
        self._linked: list[_Folder] = []  # after all others, so that files are found under their own names first
        self._followed: set[str] = set()

    def run(self) -> None:
        """Walk from the root down, without recursion: a tree may be deeper than Python's stack."""
        root = self._root or "/"
        kind = self._again(root, "look at", partial(_target, root))
        if kind == _DANGLING and not os.path.lexists(root):
            raise FileNotFoundError(root)
        if kind != _FOLDER:
            if self._pattern.parts == ("**",):
                self._single(root, kind)
            return
        self._found.real_root = os.path.realpath(root)
        self._own.append(_Folder("", self._found.real_root, 0, PLAIN, (), None))
        boxes: list[Box] = []
        while self._own or self._linked:
            if not self._own:
                self._linked.sort(key=lambda folder: folder.below, reverse=True)
            folder = self._own.pop() if self._own else self._linked.pop()
            if folder.box is not None and folder.box.path == self._path(folder.below):
                boxes.append(folder.box)
            self._list_folder(folder)
        for box in boxes:
            if not box.full:
                self._found.tally.add("empty_folder", box.path)

    def _path(self, below: str) -> str:
        return f"{self._root}/{below}" if below else self._root or "/"

    def _single(self, path: str, kind: int) -> None:
        """Add the file that the URL names, or report that it is no file."""
        if kind == _FILE:
            self._found.plain[path] = {}
        else:
            self._found.tally.add(_REASON[kind], path)

    def _list_folder(self, folder: _Folder) -> None:
        path = self._path(folder.below)
        try:
            entries = self._again(path, "list", partial(_entries, path))
        except (FileNotFoundError, NotADirectoryError):
            if folder.depth == 0:
                raise
            self._found.tally.add("vanished", path)
            return
        except StorageError as error:
            if folder.box is not None:
                folder.box.fill()
            self._found.refused(path, folder.kind, error)
            return
        start = f"{folder.below}/" if folder.below else ""
        for name, kind in entries:
            below = start + name
            if kind == _FILE:
                inner_path = self._path(below)
                if self._found.add(inner_path, below, {}, folder.box) and folder.chain:
                    self._found.behind[inner_path] = _joined(folder.real, name)
            elif kind == _FOLDER:
                if (inner := self._entered(folder, name, below)) is not None:
                    self._own.append(inner)
            elif kind == _LINK:
                self._link(folder, name, below)
            elif self._pattern.kind(below) is not None:
                self._leave_out("not_a_file", below, folder.box)

    def _leave_out(self, reason: str, below: str, box: Box | None) -> None:
        if box is not None:
            box.fill()
        self._found.tally.add(reason, self._path(below))

    def _entered(self, folder: _Folder, name: str, below: str) -> _Folder | None:
        """Return a folder inside a folder, or None if nothing in it can match."""
        own = self._pattern.enters(folder.depth + 1, name)
        if own is None:
            return None
        box = folder.box
        if self._pattern.names_folder(below):
            box = Box(self._path(below), box)
        return _Folder(below, _joined(folder.real, name), folder.depth + 1, max(own, folder.kind), folder.chain, box)

    def _link(self, folder: _Folder, name: str, below: str) -> None:
        entered = self._pattern.enters(folder.depth + 1, name)
        matches = self._pattern.kind(below)
        if entered is None and matches is None:
            return
        if DOT in (folder.kind, entered, matches):
            if matches is not None and not self._pattern.is_bookkeeping(below):
                self._leave_out("dot_name", below, folder.box)
            return
        path = self._path(below)
        kind = self._again(path, "look at", partial(_target, path))
        if kind == _FILE:
            if matches is not None and self._found.add(path, below, {}, folder.box):
                self._found.behind[path] = os.path.realpath(path)
        elif kind == _FOLDER:
            if (inner := self._entered(folder, name, below)) is not None:
                self._follow(folder, name, inner)
        elif kind == _DANGLING or matches is not None:
            self._leave_out(_REASON[kind], below, folder.box)

    def _follow(self, folder: _Folder, name: str, inner: _Folder) -> None:
        """Schedule the target folder of a link, unless the link is a loop or was followed before."""
        real = os.path.realpath(self._path(inner.below))
        chain = (*folder.chain, folder.real)
        link = _joined(folder.real, name)
        if any(_contains(real, above) for above in chain):
            self._leave_out("link_loop", inner.below, folder.box)
        elif link in self._followed:
            self._leave_out("repeated", inner.below, folder.box)
        else:
            self._followed.add(link)
            self._linked.append(inner._replace(real=real, chain=chain))


_REASON = {_DANGLING: "dangling_link", _LOOP: "link_loop", _OTHER: "not_a_file"}


def _joined(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _contains(folder: str, path: str) -> bool:
    """Return whether `path` is `folder` or inside it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _entries(path: str) -> list[tuple[str, int]]:
    """Return the names in a folder with the kind of each."""
    with os.scandir(path) as entries:
        return [(entry.name, _kind(entry)) for entry in entries]


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_file(follow_symlinks=False):
        return _FILE
    if entry.is_dir(follow_symlinks=False):
        return _FOLDER
    return _LINK if entry.is_symlink() else _OTHER


def _target(path: str) -> int:
    """Return the kind of the target of a path."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno in _NOWHERE:
            return _DANGLING
        if error.errno == errno.ELOOP:
            return _LOOP
        raise
    return _FOLDER if stat.S_ISDIR(mode) else _FILE if stat.S_ISREG(mode) else _OTHER
