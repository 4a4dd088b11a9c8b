"""Sources of training rows in files, and what was prepared of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

from actors.source.content_hash import content_hashes
from pipeline.job.training import Training, parse_training
from pipeline.table.delta_table import EmbeddingSpec
from pipeline.train.data import TrainingData
from pipeline.train.prepare import prepare


class Silent:
    """A reporter that says nothing."""

    def step(self, text: str) -> None:
        """See `Reporter`."""


def write(path: Path, **columns: Any) -> str:
    """Write columns as a Parquet file; return its path."""
    pq.write_table(pa.table(columns), path)
    return str(path)


def pairs(path: Path, count: int = 20, **columns: Any) -> str:
    """Write pairs of different texts and other columns as a Parquet file; return its path."""
    query, passage = ([f"{side} {row}" for row in range(count)] for side in ("query", "passage"))
    return write(path, **{"query": query, "passage": passage, **columns})


def job_of(*sources: dict[str, Any], **train: Any) -> Training:
    """Return a job with these sources and other keys of `train`."""
    settings = {"model": "m", "batch_rows": 4, **train}
    return parse_training({"train": settings, "data": list(sources), "out": {"uri": "out"}})


def prepared(folder: Path, *sources: dict[str, Any], held_out: Iterable[str] = (), **train: Any) -> TrainingData:
    """Prepare the sources of a job in a folder."""
    hashes = content_hashes(pa.array(list(held_out), pa.string())).to_pylist()
    return prepare(job_of(*sources, **train), folder, [bytes.fromhex(each) for each in hashes], Silent())


def embedded(
    folder: Path, texts: list[str], vectors: Any = None, *, keep_text: bool = True, chunks: bool = False
) -> str:
    """Write a table of embeddings with the ids d0, d1, ..., as a backfill writes it; return its path."""
    vectors = np.eye(len(texts), 2, dtype=np.float32) if vectors is None else vectors
    spec = EmbeddingSpec("", {"dim": vectors.shape[1]}, {})
    columns = {
        "id": pa.array([f"d{row}" for row in range(len(texts))]),
        "embedding": pa.array(list(vectors), pa.list_(pa.float32())),
        "_hash": content_hashes(pa.array(texts)),
        **({"text": pa.array(texts)} if keep_text else {}),
        **({"chunk": pa.array(range(len(texts)))} if chunks else {}),
    }
    table = pa.table(columns)
    schema = table.schema.set(1, table.schema.field(1).with_metadata({b"vectide.embedding_spec": spec.to_json()}))
    write_deltalake(str(folder), table.cast(schema))
    return str(folder)


def mining(
    folder: Path,
    table: str,
    rows: Iterable[tuple[str, str, list[str]]],
    *,
    id: str | None = None,  # noqa: A002
    passage_id: str | None = None,
) -> str:
    """Write the result of a mining: ids of pair, positive and negatives; return its folder."""
    folder.mkdir()
    names = ("pair_id", "positive_id", "negative_ids")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    write(folder / "negatives-0-000000.parquet", **columns)
    settings = {"id": id, "passage_id": passage_id, "passages": ["passage"]}
    outcome = {"table": table, "version": 0, "settings": settings, "rows": len(columns["pair_id"])}
    done = {"name": "0", "outcome": outcome}
    (folder / "_mining.json").write_text(json.dumps(done))
    return str(folder)
