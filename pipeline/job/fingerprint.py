"""Names for what must not be mixed: the fingerprint of a making of vectors, the name of a run.

Used by the backfill, publish and search. A fingerprint covers everything that changes vectors and nothing else: not the
batch size, not the hardware, and not the place that the weights were read from, since the hash of the weights says more.
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
from pipeline.job.config import Job

# Where a model was found, which does not change what it computes: its hashes are in the fingerprint instead.
_NAMES = ("model", "revision")


def digest(value: object, length: int = 16) -> str:
    """A hash of plain data, as hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=length).hexdigest()


def chunking_of(model: ModelSpec, job: Job) -> Chunking | None:
    """How a job cuts texts, with nothing left open; None where it does not.

    Raises:
        ConfigError: the model cannot do that.
    """
    asked = job.chunking
    return resolve(
        model,
        mode=asked.mode,
        max_tokens=asked.max_tokens,
        by=asked.by,
        overlap_tokens=asked.overlap_tokens,
        every_task=job.source.task_column is not None,
    )


def lineage(model: ModelSpec, job: Job) -> dict[str, Any]:
    """All that vectors are made of, as plain data: recorded in the table and in every file's footer."""
    chunking = chunking_of(model, job)
    return {
        "model": model.model,
        "revision": model.revision,
        **model.lineage(),
        **(chunking.lineage() if chunking is not None else {}),
        "precision_stored": job.table.precision,
    }


def fingerprint(made_of: dict[str, Any]) -> str:
    """A hash of what changes vectors."""
    return digest({key: value for key, value in made_of.items() if key not in _NAMES})


def run_name(content: str, base: str | None) -> str:
    """The name of the run that puts `content` in the place of `base`.

    The same command on the same source and table has the same name, and so finds its own ledger. The base is part of
    it: a source that returns to what it was makes a new run, for the version that it would have made was replaced.
    """
    return digest([content, base], length=8)


def content_name(job: Job, print_: str, shards: Iterable[Shard]) -> str:
    """A name for what the table would hold: these shards, these columns, this making of vectors.

    How the work is cut and spread is not part of it.
    """
    listing = hashlib.blake2b(digest_size=16)
    for shard in shards:
        listing.update(f"{shard.path}\0{shard.size_bytes}\0{identity.content_part(shard.etag)}\n".encode())
    source = job.source.model_dump(mode="json", exclude={"uri", "verify"})
    layout = {"partition_by": job.table.partition_by, "precision": job.table.precision}
    return digest([print_, listing.hexdigest(), source, layout], length=8)
