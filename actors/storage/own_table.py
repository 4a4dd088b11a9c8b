"""Whether a source URL names a place where a job's own table keeps its files, or will keep them after the first run.

Asked when a corpus is listed, before anything is encoded: a first run finds no table yet, and a later one would read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from actors import storage
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


def own_file_read(url: str, table: str, is_text: Callable[[str], bool]) -> str | None:
    """A file of the table that the source would read, as a URL; None where there is none.

    Args:
        url: What the source names, as for `actors.storage.glob`.
        table: URL of the table's folder, which need not be there.
        is_text: Whether a path is that of a text document.
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
        if kind == PLAIN or (kind == UNDERSCORE and is_text(below)):
            return storage.join(table, name)
    return None
