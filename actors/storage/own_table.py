"""Finds sources that would read the files of their own table, and outputs that would be written among them.

Used when a corpus is listed, before anything is encoded. On the first run the table does not exist yet, so the source is
compared with the names that the table's files will have; a later run would read them.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from actors import storage
from actors.storage import providers
from actors.storage.listing import parse_pattern
from actors.storage.patterns import PLAIN, UNDERSCORE

# Names as long as those of real files: a data file, one in a partition, the log and a receipt.
_RUN = "0123456789abcdef"
_FILES = (
    f"data/{_RUN}/000000000-0123456789ab.parquet",
    f"data/{_RUN}/column=value/000000000-0123456789ab.parquet",
    "_delta_log/00000000000000000000.json",
    f"_vectide/runs/{_RUN}/receipts/000000000.json",
)


def own_file_read(url: str, table: str, is_document: Callable[[str], bool]) -> str | None:
    """Return the URL of a file of the table that the source would read; None if it would read none.

    Args:
        url: URL of the source, as for `actors.storage.glob`.
        table: URL of the table's folder, which need not exist.
        is_document: Returns whether a path is that of a text, picture or PDF.
    """
    local = storage.is_local(url)
    if local != storage.is_local(table) or (url.partition("://")[0] != table.partition("://")[0] and not local):
        return None
    (fs, path), (_, folder) = storage.filesystem(url), storage.filesystem(table)
    exists = os.path.lexists if local else fs.exists
    pattern, _ = storage.retried(url, "look at", lambda: parse_pattern(path, exists, folders_only=url.endswith("/")))
    # A link above the pattern or the table leads both to one place.
    root, folder = map(os.path.realpath, (pattern.root or "/", folder)) if local else (pattern.root, folder)
    start = f"{root.rstrip('/')}/"
    for name in _FILES:
        below = f"{folder.rstrip('/')}/{name}"
        kind = pattern.kind(below.removeprefix(start)) if below.startswith(start) else None
        if kind == PLAIN or (kind == UNDERSCORE and is_document(below)):
            return storage.join(table, name)
    return None


def is_inside(url: str, folder: str) -> bool:
    """Return whether a place is a folder or lies in it; both may be missing. Links are followed on a local disk."""
    local = storage.is_local(url)
    if local != storage.is_local(folder):
        return False
    if local:
        place, top = (os.path.realpath(storage.absolute(each)) for each in (url, folder))
    else:
        # One store may have several protocols, such as s3:// and s3a://.
        if (providers.of(url) or url.partition("://")[0]) != (providers.of(folder) or folder.partition("://")[0]):
            return False
        place, top = (each.partition("://")[2].lstrip("/") for each in (url, folder))
    return f"{place.rstrip('/')}/".startswith(f"{top.rstrip('/')}/")
