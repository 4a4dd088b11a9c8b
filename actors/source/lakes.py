"""Refuses a source that is the inside of a lake table: its folder also holds files that no version has any more.

Called when a corpus is listed. Such a folder shows itself by what lies beside its data, or above it where the data are in
subfolders: the log of Delta Lake, the metadata of Iceberg, the versions of Lance, the timeline of Hudi. The trade-off:
a store lists each folder between a shard and the corpus's root once more, and is asked four times for each of a few above.
Where there are many, and the whole tree was listed to find the shards, that is listed again instead.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from actors import storage
from actors.errors import ConfigError, StorageError
from actors.schema import Shard

_THREADS = 8  # each makes a client of its own
_MOST_FOLDERS = 16  # of a tree in a store, listed one by one
_PAGE = 1000  # names in one answer of a store
_LEVELS_ABOVE = 4  # of the root, `name=value` folders not counted


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of table.

    Attributes:
        folder: What lies in its folder.
        proof: What a file there is named: a folder may have that name by chance.
        export: How to write one version of it out as files.
    """

    name: str
    folder: str
    proof: re.Pattern[str]
    export: str


_KINDS = (
    _Kind(
        "Delta Lake",
        "_delta_log",
        re.compile(r"[0-9]{20}\..*|_last_checkpoint"),
        "polars.scan_delta({table!r}).sink_parquet('export.parquet')",
    ),
    _Kind(
        "Iceberg",
        "metadata",
        re.compile(r".*\.metadata\.json(\.gz)?|.*\.gz\.metadata\.json|version-hint\.text|snap-.*\.avro"),
        "polars.scan_iceberg({table!r}).sink_parquet('export.parquet')",
    ),
    _Kind(
        "Lance",
        "_versions",
        re.compile(r".*\.manifest"),
        "pyarrow.parquet.write_table(lance.dataset({table!r}).to_table(), 'export.parquet')",
    ),
    _Kind(
        "Hudi",
        ".hoodie",
        re.compile(r"hoodie\.properties"),
        "spark.read.format('hudi').load({table!r}).write.parquet('export')",
    ),
)


def refuse_lakes(uri: str, root: str, shards: Sequence[Shard], *, own: str) -> None:
    """Refuse shards that lie in the folder of a lake table.

    Args:
        uri: `source.uri` as the job gives it.
        root: The corpus's folder, as `corpus_root` gives it.
        shards: Its shards.
        own: URL of the job's own table, whose log may lie beside the source.

    Raises:
        ConfigError: they do; the message names the table and how to export a version of it.
        StorageError: a folder of the corpus cannot be looked at.
    """
    inside, above = _inside(root, shards), _above(root)
    for folders in (inside, above):
        folders.discard(_spelled(own))
    if storage.is_local(root):
        found = next(filter(None, map(_local_table, sorted(inside | above))), None)
    else:
        tree = "**" in uri or not any(mark in uri for mark in "*?[")
        large = {folder for folder, count in Counter(map(_folder, shards)).items() if count > _PAGE}
        found = _in_store(root, inside, above, large, tree=tree)
    if found is not None:
        kind, table = found
        raise ConfigError(
            f"source.uri {uri!r} matches files in the folder of the {kind.name} table {table!r}, which also holds files "
            f"that its current version has no more; export that version, as by {kind.export.format(table=table)}, and "
            f"name the export as source.uri"
        )


def _spelled(url: str) -> str:
    """A URL as listings spell it."""
    if storage.is_local(url):
        return storage.absolute(url)
    fs, path = storage.filesystem(storage.absolute(url))
    return str(fs.unstrip_protocol(path)).rstrip("/")


def _folder(shard: Shard) -> str:
    return shard.path.rpartition("/")[0]


def _inside(root: str, shards: Iterable[Shard]) -> set[str]:
    """The folders from the root, itself included, down to each shard."""
    folders = {root}
    for folder in set(map(_folder, shards)):
        below = folder
        while len(below) > len(root) and below not in folders:
            folders.add(below)
            below = below.rpartition("/")[0]
    return folders


def _above(root: str) -> set[str]:
    """A few folders above the root, up to its bucket or the disk's root."""
    protocol, mark, path = root.rpartition("://")
    folders: set[str] = set()
    levels = 0
    for parent in PurePosixPath(path).parents:
        if str(parent) in (".", "/") or levels == _LEVELS_ABOVE:
            break
        folders.add(f"{protocol}{mark}{parent}")
        levels += "=" not in parent.name
    return folders


def _local_table(folder: str) -> tuple[_Kind, str] | None:
    for kind in _KINDS:
        try:
            names = os.listdir(storage.local_path(f"{folder}/{kind.folder}"))
        except OSError:  # not there, or not ours to look at
            continue
        if any(kind.proof.fullmatch(name) for name in names):
            return kind, folder
    return None


def _in_store(root: str, inside: set[str], above: set[str], large: set[str], *, tree: bool) -> tuple[_Kind, str] | None:
    if tree and len(inside) > _MOST_FOLDERS:
        listed = _listed(shard.path for shard in storage.walk(root))
        if listed is not None:
            return listed
        inside = set()

    def suspects(folder: str) -> tuple[_Kind, ...]:
        if folder not in inside or folder in large:  # what lies there may be more than one answer holds
            return _KINDS
        there = storage.folders(folder)
        return tuple(kind for kind in _KINDS if kind.folder in there)

    def look(question: tuple[str, _Kind]) -> bool:
        folder, kind = question
        try:
            names = storage.names(folder, kind.folder)
        except StorageError:
            if folder in inside:
                raise
            return False  # rights may end at the corpus
        return any(kind.proof.fullmatch(name) for name in names)

    with ThreadPoolExecutor(_THREADS) as pool:
        folders = sorted(above | inside)
        asked = [
            (folder, kind) for folder, kinds in zip(folders, pool.map(suspects, folders), strict=True) for kind in kinds
        ]
        for (folder, kind), there in zip(asked, pool.map(look, asked), strict=True):
            if there:
                return kind, folder
    return None


def _listed(paths: Iterable[str]) -> tuple[_Kind, str] | None:
    for path in paths:
        folder, _, name = path.rpartition("/")
        table, _, last = folder.rpartition("/")
        for kind in _KINDS:
            if last == kind.folder and kind.proof.fullmatch(name):
                return kind, table
    return None
