"""Identities that a listing does not contain: tags that a store returns only for single objects, and content hashes.

Called when a corpus is listed, and when a shard's tag is not the planned one. Memory is bounded by one part of an object
per thread. The trade-off: a hash reads every byte, so a job requests it with `source.verify: content`.
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
_REPORT_INTERVAL_S = 10.0


def content_hash(shard: Shard, add: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of an object's bytes, in hex.

    Args:
        shard: The listed object.
        add: Called with the size of each part after it is read, in bytes.

    Raises:
        SourceChanged: The object changed after it was listed, or was removed.
        StorageError: The store refused or failed.
    """
    digest = hashlib.sha256()
    size = 0
    try:
        for part in parts(shard):
            digest.update(part)
            size += len(part)
            add(len(part))
            count_progress()
        now = storage.stat(shard.path)
    except (FileNotFoundError, NotADirectoryError):
        now = None
    same_size = now is not None and size == now.size_bytes == shard.size_bytes
    if now is None or not same_size or not identity.still_fits(shard.etag, now.etag):
        raise SourceChanged(f"{shard.path!r} changed while it was hashed. Run the same command again")
    return digest.hexdigest()


def parts(shard: Shard, part_bytes: int | None = None) -> Iterable[bytes]:
    """Yield the bytes of an object in parts of so many bytes, by default `PART_BYTES`."""
    step = part_bytes or PART_BYTES
    if storage.is_local(shard.path):
        with storage.open_read(shard.path) as file:
            while part := file.read(step):
                yield part
        return
    for start in range(0, shard.size_bytes, step):
        yield storage.read(shard.path, start, min(start + step, shard.size_bytes))


@lru_cache(maxsize=4096)
def _known_hash(shard: Shard) -> str:
    return content_hash(shard)


def has_hash(now: Shard, sha256: str) -> bool:
    """Return whether an object now has this hash. An object with a tag is read once per tag and process."""
    return (_known_hash(now) if now.etag else content_hash(now)) == sha256


def with_tags(shards: Sequence[Shard]) -> tuple[Shard, ...]:
    """Return the shards, with tag and size requested one by one if the listing has no tags (http://)."""
    untagged = [index for index, shard in enumerate(shards) if not shard.etag and not storage.is_local(shard.path)]
    tagged = list(shards)
    with ThreadPoolExecutor(_THREADS) as pool:
        for index, shard in zip(untagged, pool.map(_tagged, (shards[index] for index in untagged)), strict=True):
            tagged[index] = shard
    return tuple(tagged)


def _tagged(shard: Shard) -> Shard:
    try:
        now = storage.stat(shard.path)
    except FileNotFoundError:  # the reader will report it
        return shard
    return replace(now, path=shard.path)


def with_hashes(shards: Sequence[Shard], report: Callable[[int], None]) -> tuple[Shard, ...]:
    """Return the shards with the hash of their bytes in `etag`.

    Args:
        shards: The listed shards.
        report: Called every ten seconds with the number of bytes hashed so far.

    Raises:
        SourceChanged: A shard changed after it was listed.
        StorageError: The store refused or failed.
    """
    done: list[int] = []  # appended to by threads, which is atomic
    total, reported_s = 0, time.monotonic()
    hashed: list[Shard] = []
    pool = ThreadPoolExecutor(_THREADS)
    try:
        futures = [pool.submit(content_hash, shard, done.append) for shard in shards]
        for shard, future in zip(shards, futures, strict=True):
            while not future.done():
                wait([future], timeout=_REPORT_INTERVAL_S)
                if time.monotonic() - reported_s >= _REPORT_INTERVAL_S:
                    count = len(done)
                    total += sum(done[:count])
                    del done[:count]
                    reported_s = time.monotonic()
                    report(total)
            hashed.append(replace(shard, etag=identity.with_hash(shard.etag, future.result())))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return tuple(hashed)
