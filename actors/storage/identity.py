"""What tells one state of a source object from another: the tag that its store gives, or a hash of its bytes.

Used by `actors.storage` for every object that it lists, by the check of a shard after it was read, and by planning. An
object's identity is one text: its tag, and behind it the hash of its bytes where a job asks for that
(`source.verify: content`). It stands in every frozen plan and listing, so both travel together.

The trade-off: a local file's tag holds more than its content needs. A `chmod` or a new hard link changes the ctime, and
the shard is read again; its texts have known hashes, so nothing is encoded.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

# Names that drivers give to what changes with an object's bytes, the surest first. A dotted name is inside another value.
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
# Times, where a store gives nothing better: two writes within its resolution look the same.
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
    """The tag in what a driver says of an object; empty where it says nothing that changes with the bytes."""
    for name in (*_TAGS, *_TIMES):
        value: Any = info
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
        if value:
            return (bytes(value).hex() if isinstance(value, (bytes, bytearray)) else str(value)).strip('"')
    return ""


def local_tag(stat: os.stat_result) -> str:
    """The tag of a local file: `<mtime>-<ctime>-<inode>`, times in ns.

    The mtime alone is what `rsync -t`, `cp -p` and `touch -d` set at will; nobody sets a ctime.
    """
    return f"{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"


def with_hash(etag: str, sha256: str) -> str:
    """An identity of this tag and of bytes that have this hash, in hex."""
    return f"{_split(etag)[0]}{_HASH}{sha256}"


def hash_of(etag: str) -> str:
    """The hash in an identity, in hex; empty where it has none."""
    return _split(etag)[1]


def content_part(etag: str) -> str:
    """What names the bytes: the hash where there is one, else the tag."""
    tag, sha256 = _split(etag)
    return _HASH.strip() + sha256 if sha256 else tag


def unchanged(before: str, now: str) -> bool:
    """Whether two listings of an object of one size name the same bytes. Without a tag it counts as changed."""
    (old_tag, old_hash), (new_tag, new_hash) = _split(before), _split(now)
    if new_hash:
        return new_hash == old_hash
    return bool(new_tag) and new_tag == old_tag


def still_fits(planned: str, now: str) -> bool:
    """Whether an object that was just read is the one that was planned, by their tags.

    Where either has no tag, only a hash can tell: False where one was planned, else True. The inode is not compared:
    FUSE mounts of one store number a file differently on each machine, and a file put in its place has another ctime.
    """
    (tag, sha256), new_tag = _split(planned), _split(now)[0]
    if not tag or not new_tag:
        return not sha256
    first, second = _LOCAL.fullmatch(tag), _LOCAL.fullmatch(new_tag)
    return first[1] == second[1] if first and second else tag == new_tag


def written_s(info: Mapping[str, Any]) -> float:
    """When an object was written, by the store's clock; 0 where the driver does not say."""
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
    """Let a driver ask its store again. Some keep listings whatever `use_listings_cache` says (hf://)."""
    if isinstance(getattr(fs, "dircache", None), dict):
        fs.dircache.clear()


def _split(etag: str) -> tuple[str, str]:
    tag, _, sha256 = etag.partition(_HASH)
    return tag, sha256
