"""Identities that a listing alone does not give: tags that a store tells of single objects only, and hashes of bytes.

Called when a corpus is listed, and when a shard's tag is not the planned one. Memory is bounded by one part of an object
in each thread. The trade-off: a hash costs one read of every byte, which a job asks for by `source.verify: content`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import lru_cache

from actors import storage
from actors.errors import SourceChanged
from actors.progress_counter import count_progress
from actors.schema import Shard
from actors.storage import identity

PART_BYTES = 8 << 20
_THREADS = 16
_TOLD_EVERY_S = 10.0


def content_hash(shard: Shard, add: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of an object's bytes, in hex.

    Args:
        shard: The object as it was listed.
        add: Called with the size of each part that was read, in bytes.

    Raises:
        SourceChanged: the object changed meanwhile, or is gone.
        StorageError: the store refused or failed.
    """
    digest = hashlib.sha256()
    size = 0
    try:
        for part in _parts(shard):
            digest.update(part)
            size += len(part)
            add(len(part))
            count_progress()
        now = storage.stat(shard.path)
    except (FileNotFoundError, NotADirectoryError):
        now = None
    whole = now is not None and size == now.size_bytes == shard.size_bytes
    if now is None or not whole or not identity.still_fits(shard.etag, now.etag):
        raise SourceChanged(f"{shard.path!r} changed while it was hashed. Run the same command again")
    return digest.hexdigest()


def _parts(shard: Shard) -> Iterable[bytes]:
    if storage.is_local(shard.path):
        with storage.open_read(shard.path) as file:
            while part := file.read(PART_BYTES):
                yield part
        return
    for start in range(0, shard.size_bytes, PART_BYTES):
        yield storage.read(shard.path, start, min(start + PART_BYTES, shard.size_bytes))


@lru_cache(maxsize=4096)
def _known_hash(shard: Shard) -> str:
    return content_hash(shard)


def has_hash(now: Shard, sha256: str) -> bool:
    """Whether an object, as it is now, has these bytes. Each state of it that a tag names is read once in a process."""
    return (_known_hash(now) if now.etag else content_hash(now)) == sha256


def with_tags(shards: Sequence[Shard]) -> tuple[Shard, ...]:
    """The shards, with tag and size asked for one by one where a listing did not give them (http://)."""
    blank = [index for index, shard in enumerate(shards) if not shard.etag and not storage.is_local(shard.path)]
    found = list(shards)
    with ThreadPoolExecutor(_THREADS) as pool:
        for index, shard in zip(blank, pool.map(_asked, (shards[index] for index in blank)), strict=True):
            found[index] = shard
    return tuple(found)


def _asked(shard: Shard) -> Shard:
    try:
        now = storage.stat(shard.path)
    except FileNotFoundError:  # whoever reads it will say so
        return shard
    return replace(now, path=shard.path)


def with_hashes(shards: Sequence[Shard], told: Callable[[int], None]) -> tuple[Shard, ...]:
    """The shards with the hash of their bytes in `etag`.

    Args:
        shards: As they were listed.
        told: Called every ten seconds with the bytes hashed so far.

    Raises:
        SourceChanged: one of them changed meanwhile.
        StorageError: the store refused or failed.
    """
    done: list[int] = []  # appended to by threads, which is atomic
    total, told_s = 0, time.monotonic()
    found: list[Shard] = []
    pool = ThreadPoolExecutor(_THREADS)
    try:
        futures = [pool.submit(content_hash, shard, done.append) for shard in shards]
        for shard, future in zip(shards, futures, strict=True):
            while not future.done():
                wait([future], timeout=_TOLD_EVERY_S)
                if time.monotonic() - told_s >= _TOLD_EVERY_S:
                    count = len(done)
                    total += sum(done[:count])
                    del done[:count]
                    told_s = time.monotonic()
                    told(total)
            found.append(replace(shard, etag=identity.with_hash(shard.etag, future.result())))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return tuple(found)
