"""Identity of the state of a source object: the tag from its store, and a hash of its bytes if the job requests it.

Used by `actors.storage` for every object that it lists, by the check of a shard after it was read, and by planning. An
object's identity is one text: its tag, followed by the hash of its bytes if the job sets `source.verify: content`. Every
frozen plan and listing contains it, so both parts stay together.

The trade-off: a local file's tag depends on more than its content. A `chmod` or a new hard link changes the ctime, and
the shard is read again; its texts have known hashes, so nothing is encoded.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

# Names in drivers of values that change with an object's bytes, the most reliable first. A dotted name is nested.
_TAGS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "generation",
    "xet_hash",  # hf://
    "lfs.sha256",
    "blob_id",
    "sha",  # github://
    "Content-MD5",  # http://, where the server sends no ETag
    "Digest",
    "md5Checksum",
    "checksum",
    "content_hash",
)
# Times, if a store has no better value: two writes within the resolution look the same.
_TIMES = (
    "mtime",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "modificationTime",  # webhdfs://
    "modified",  # webdav://
    "modify",  # ftp://
    "updated",
    "created",
)
_HASH = " sha256:"
_LOCAL = re.compile(r"([0-9]+-[0-9]+)-[0-9]+")


def tag_of(info: Mapping[str, Any]) -> str:
    """Return the tag in a driver's info of an object; empty if no value in it changes with the bytes."""
    for name in (*_TAGS, *_TIMES):
        value: Any = info
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
        if value:
            return (bytes(value).hex() if isinstance(value, (bytes, bytearray)) else str(value)).strip('"')
    return ""


def local_tag(stat: os.stat_result) -> str:
    """Return the tag of a local file: `<mtime>-<ctime>-<inode>`, times in ns.

    The mtime alone is not enough, because `rsync -t`, `cp -p` and `touch -d` set it; no tool can set a ctime.
    """
    return f"{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"


def with_hash(etag: str, sha256: str) -> str:
    """Return the identity with the tag of `etag` and this hash, in hex."""
    return f"{_split(etag)[0]}{_HASH}{sha256}"


def hash_of(etag: str) -> str:
    """Return the hash in an identity, in hex; empty if it has none."""
    return _split(etag)[1]


def content_part(etag: str) -> str:
    """Return the part that identifies the bytes: the hash if there is one, else the tag."""
    tag, sha256 = _split(etag)
    return _HASH.strip() + sha256 if sha256 else tag


def unchanged(before: str, now: str) -> bool:
    """Return whether two listings of an object of one size have the same bytes. Without a tag it counts as changed."""
    (old_tag, old_hash), (new_tag, new_hash) = _split(before), _split(now)
    if new_hash:
        return new_hash == old_hash
    return bool(new_tag) and new_tag == old_tag


def still_fits(planned: str, now: str) -> bool:
    """Return whether an object that was just read has the planned tag.

    If either has no tag, only the hash can show it: False if a hash was planned, else True. The inode is not compared:
    FUSE mounts of one store give a file another inode on each machine, and a replaced file has another ctime.
    """
    (tag, sha256), new_tag = _split(planned), _split(now)[0]
    if not tag or not new_tag:
        return not sha256
    first, second = _LOCAL.fullmatch(tag), _LOCAL.fullmatch(new_tag)
    return first[1] == second[1] if first and second else tag == new_tag


def written_s(info: Mapping[str, Any]) -> float:
    """Return when an object was written, in seconds by the store's clock; 0 if unknown."""
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        value = info.get(name)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return 0.0


def forget_listings(fs: Any) -> None:
    """Clear a driver's cached listings. Some drivers ignore `use_listings_cache` (hf://)."""
    if isinstance(getattr(fs, "dircache", None), dict):
        fs.dircache.clear()


def _split(etag: str) -> tuple[str, str]:
    tag, _, sha256 = etag.partition(_HASH)
    return tag, sha256
