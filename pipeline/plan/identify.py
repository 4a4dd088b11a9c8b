"""Gives each listed shard the identity that a job asks for, and reports shards without a tag.

Called right after the corpus is listed. By default the identity is the tag of the store. With `source.verify: content` it
is the hash of the bytes, which costs one read of the whole source each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from actors.schema import RewriteUnit, Shard, Unit
from actors.storage import identity
from actors.storage.content_tags import with_hashes
from pipeline.job.config import Job


def identified(
    job: Job, shards: tuple[Shard, ...], step: Callable[[str], None], *, limit_bytes: float = math.inf
) -> tuple[Shard, ...]:
    """Return the shards of a job, hashed if it asks for that.

    Args:
        job: The job.
        shards: Listed shards.
        step: Receives messages about the progress.
        limit_bytes: Total size above which shards are not hashed.

    Raises:
        SourceChanged: a shard changed while it was hashed.
        StorageError: a store refused or failed.
    """
    if job.source.verify == "content":
        size_bytes = sum(shard.size_bytes for shard in shards)
        if size_bytes > limit_bytes:
            return shards
        total = _size(size_bytes)
        step(f"hashing {total} of the source (source.verify: content)")
        return with_hashes(shards, lambda done: step(f"hashed {_size(done)} of {total} of the source"))
    if text := untagged(shards):
        step(text)
    return shards


def untagged(shards: Sequence[Shard]) -> str:
    """Return a sentence about the shards whose store gives no tag; empty if there are none."""
    blank = [shard.path for shard in shards if not shard.etag]
    if not blank:
        return ""
    return (
        f"{len(blank):,} of {len(shards):,} objects have no tag, such as {blank[0]!r}: each refresh counts them as changed "
        f"and reads them again. source.verify: content knows them by a hash of their bytes"
    )


def retagged(units: Iterable[Unit | RewriteUnit], shards: Sequence[Shard]) -> Iterator[Unit | RewriteUnit]:
    """Units of a frozen plan, with the tags that their shards have now where the bytes are known to be the same.

    Without this each reader would hash a shard that was only touched since the plan was frozen.
    """
    now = {shard.path: shard for shard in shards if identity.hash_of(shard.etag)}
    for unit in units:
        if isinstance(unit, RewriteUnit) or not now:
            yield unit
            continue
        pieces = []
        for piece in unit.pieces:
            new = now.get(piece.shard.path)
            if new is not None and identity.unchanged(piece.shard.etag, new.etag):
                piece = replace(piece, shard=replace(piece.shard, etag=new.etag))  # noqa: PLW2901
            pieces.append(piece)
        yield replace(unit, pieces=tuple(pieces))


def _size(size_bytes: int) -> str:
    for name, unit_bytes in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:,.1f} {name}"
    return f"{size_bytes} bytes"
