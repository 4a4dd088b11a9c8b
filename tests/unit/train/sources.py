"""Sources of training rows in files, and what was prepared of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.source.content_hash import content_hashes
from pipeline.job.training import Training, parse_training
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
