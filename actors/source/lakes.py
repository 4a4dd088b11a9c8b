"""Refuses a source inside a lake table, because its folder also contains files that its current version has removed.

Called when a corpus is listed. A lake table has a metadata folder beside its data files or above them: the log of Delta
Lake, the metadata of Iceberg, the versions of Lance, the timeline of Hudi. The trade-off: on a store, each folder between
a shard and the corpus's root is listed once more, and each of a few folders above costs four requests. If there are many
folders and the whole tree was listed to find the shards, the tree is listed again instead.
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

_THREADS = 8  # each creates its own client
_MOST_FOLDERS = 16  # of a tree on a store, listed one by one
_PAGE = 1000  # names in one response of a store
_LEVELS_ABOVE = 4  # of the root, `name=value` folders not counted


@dataclass(frozen=True, slots=True)
class _Kind:
    """Table format.

    Attributes:
        folder: Name of its metadata folder.
        proof: Names of files in it: another folder may have the same name by chance.
        export: Code that exports one version as files.
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
    """Refuse shards in the folder of a lake table.

    Args:
        uri: `source.uri` as the job gives it.
        root: The corpus's folder, as `corpus_root` gives it.
        shards: Its shards.
        own: URL of the job's own table, whose log may be beside the source.

    Raises:
        ConfigError: Some are; the message names the table and explains how to export a version of it.
        StorageError: A folder of the corpus cannot be listed.
    """
    inside, above = _inside(root, shards), _above(root)
    for folders in (inside, above):
        folders.discard(_spelled(own))
    if storage.is_local(root):
        table = next(filter(None, map(_local_table, sorted(inside | above))), None)
    else:
        tree = "**" in uri or not any(mark in uri for mark in "*?[")
        large = {folder for folder, count in Counter(map(_folder, shards)).items() if count > _PAGE}
        table = _in_store(root, inside, above, large, tree=tree)
    if table is not None:
        kind, folder = table
        raise ConfigError(
            f"source.uri {uri!r} matches files in the folder of the {kind.name} table {folder!r}, which also holds files "
            f"that its current version has removed; export that version, as by {kind.export.format(table=folder)}, and "
            f"name the export as source.uri"
        )


def _spelled(url: str) -> str:
    """Return a URL in the spelling of listings."""
    if storage.is_local(url):
        return storage.absolute(url)
    fs, path = storage.filesystem(storage.absolute(url))
    return str(fs.unstrip_protocol(path)).rstrip("/")


def _folder(shard: Shard) -> str:
    return shard.path.rpartition("/")[0]


def _inside(root: str, shards: Iterable[Shard]) -> set[str]:
    """Return the folders from the root, included, down to each shard."""
    folders = {root}
    for folder in set(map(_folder, shards)):
        below = folder
        while len(below) > len(root) and below not in folders:
            folders.add(below)
            below = below.rpartition("/")[0]
    return folders


def _above(root: str) -> set[str]:
    """Return a few folders above the root, up to its bucket or the root of the disk."""
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
        except OSError:  # missing, or no permission
            continue
        if any(kind.proof.fullmatch(name) for name in names):
            return kind, folder
    return None


def _in_store(root: str, inside: set[str], above: set[str], large: set[str], *, tree: bool) -> tuple[_Kind, str] | None:
    if tree and len(inside) > _MOST_FOLDERS:
        table = _table_among(shard.path for shard in storage.walk(root))
        if table is not None:
            return table
        inside = set()

    def suspects(folder: str) -> tuple[_Kind, ...]:
        if folder not in inside or folder in large:  # its listing may take more than one response
            return _KINDS
        subfolders = storage.folders(folder)
        return tuple(kind for kind in _KINDS if kind.folder in subfolders)

    def is_table(suspect: tuple[str, _Kind]) -> bool:
        folder, kind = suspect
        try:
            names = storage.names(folder, kind.folder)
        except StorageError:
            if folder in inside:
                raise
            return False  # permissions may end at the corpus
        return any(kind.proof.fullmatch(name) for name in names)

    with ThreadPoolExecutor(_THREADS) as pool:
        folders = sorted(above | inside)
        candidates = [
            (folder, kind) for folder, kinds in zip(folders, pool.map(suspects, folders), strict=True) for kind in kinds
        ]
        for (folder, kind), proven in zip(candidates, pool.map(is_table, candidates), strict=True):
            if proven:
                return kind, folder
    return None


def _table_among(paths: Iterable[str]) -> tuple[_Kind, str] | None:
    for path in paths:
        folder, _, name = path.rpartition("/")
        table, _, last = folder.rpartition("/")
        for kind in _KINDS:
            if last == kind.folder and kind.proof.fullmatch(name):
                return kind, table
    return None
