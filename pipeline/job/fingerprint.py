"""Fingerprint of an embedding spec, and names of runs and of their content.

Used by the backfill, publish and search. A fingerprint covers everything that changes vectors and nothing else: not the
batch size, not the hardware, and not the place of the weights, because it contains their hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from actors.encoders.spec import ModelSpec
from actors.schema import Shard
from actors.storage import identity
from actors.text.chunk_rules import Chunking
from actors.text.chunks import resolve
from actors.vectors import MULTI_STORED
from pipeline.job.config import Job

# Keys that name the place of a model. They do not change its vectors; the fingerprint contains its hashes instead.
_NAMES = ("model", "revision")


def digest(value: object, length: int = 16) -> str:
    """Return a hash of plain data, as hex of `length` bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=length).hexdigest()


def chunking_of(model: ModelSpec, job: Job) -> Chunking | None:
    """Return the chunking of a job with all defaults filled in; None for mode "none".

    Raises:
        ConfigError: the model does not support it.
    """
    settings = job.chunking
    return resolve(
        model,
        mode=settings.mode,
        max_tokens=settings.max_tokens,
        by=settings.by,
        overlap_tokens=settings.overlap_tokens,
        every_task=job.source.task_column is not None,
    )


def lineage(model: ModelSpec, chunking: Chunking | None, job: Job) -> dict[str, Any]:
    """Return the embedding spec as plain data; it is recorded in the table and in the footer of each file."""
    by_row = job.source.task_column is not None
    adapters = {
        task: {"sha256": ref.sha256, "prompt": model.prompts[task]} for ref in model.adapters for task in ref.tasks
    }
    multi = next((output for output in model.outputs if output.kind == "multi"), None)
    return {
        "model": model.model,
        "revision": model.revision,
        **model.lineage(),
        **({"adapters": adapters} if by_row and adapters else {}),
        **(chunking.lineage() if chunking is not None else {}),
        "precision_stored": job.table.precision,
        **({} if multi is None else {MULTI_STORED: f"{multi.precision} {multi.layout}"}),
    }


def fingerprint(made_of: dict[str, Any]) -> str:
    """Return a hash of the settings of an embedding spec that change vectors."""
    return digest({key: value for key, value in made_of.items() if key not in _NAMES})


def run_name(content: str, base: str | None, *, foreign: str | None = None, retries: str | None = None) -> str:
    """Return the name of the run that replaces `base` with `content`.

    The same command on the same source and table has the same name, and so finds its own ledger. The base is part of
    the name: if a source returns to an earlier state, the version of that state was replaced, so a new run is needed.

    Args:
        content: See `content_name`.
        base: The version that the run starts from; None if there is none.
        foreign: The policy for commits of other tools, if there are some.
        retries: Name of the run whose quarantined rows are retried.
    """
    special = [foreign, retries] if foreign or retries else []  # without them the name is that of earlier versions
    return digest([content, base, *special], length=8)


def content_name(job: Job, print_: str, shards: Iterable[Shard]) -> str:
    """Return a name for the content of the table: its shards, columns and embedding spec.

    The units and the distribution of the work are not part of it.
    """
    source = job.source.model_dump(mode="json", exclude={"uri", "verify"})
    layout: dict[str, object] = {"partition_by": job.table.partition_by, "precision": job.table.precision}
    if job.table.keep_text:
        layout["keep_text"] = True
    return digest([print_, listing_digest(shards), source, layout], length=8)


def listing_digest(shards: Iterable[Shard]) -> str:
    """Return a hash of the paths, sizes and identities of shards."""
    listing = hashlib.blake2b(digest_size=16)
    for shard in shards:
        listing.update(f"{shard.path}\0{shard.size_bytes}\0{identity.content_part(shard.etag)}\n".encode())
    return listing.hexdigest()
