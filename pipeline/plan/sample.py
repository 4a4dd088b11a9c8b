"""A sample of a corpus, and estimates from it: tokens a row, and whether the job fits in this process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from actors.encoders.spec import ModelSpec, folder_of
from actors.schema import CHUNKS, INPUT_IDS
from actors.source.read_unit import TEXT, read_sample
from actors.text.chunk_rules import Chunking
from actors.text.chunks import Chunker
from actors.text.tokenizer import Tokenizer
from pipeline.plan.corpus import Survey
from pipeline.plan.throughput import core_flops

SAMPLE_SHARDS = 8
SAMPLE_ROWS = 64
# So much work is done in this process before a cluster on this machine would be ahead: its start takes 15 s of all cores.
INLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A few rows from the heads of a few shards.

    Attributes:
        tokens_per_row: Mean, after the cut at the model's limit (there is no cut with chunking).
        chunks_per_row: Mean number of vectors of a row.
        truncated_share: Share of the texts that were cut, 0 to 1.
        bytes_per_row: Mean size of a row as read, without its vector.
        texts: The texts themselves.
    """

    rows: int
    tokens_per_row: float
    truncated_share: float
    bytes_per_row: float
    texts: tuple[str, ...]
    chunks_per_row: float = 1.0


def take_sample(found: Survey, model: ModelSpec, chunking: Chunking | None = None) -> Sample:
    """Read, tokenize and cut a few rows from the heads of shards spread over the corpus."""
    step = max(1, len(found.shards) // SAMPLE_SHARDS)
    texts: list[str] = []
    size_bytes = 0
    for shard in found.shards[::step][:SAMPLE_SHARDS]:
        if shard.size_bytes == 0:
            continue
        table = read_sample(shard, found.source, rows=SAMPLE_ROWS).table
        size_bytes += table.nbytes
        texts += table.column(TEXT).to_pylist()
    if not texts:
        return Sample(0, 1.0, 0.0, 1.0, ())
    if chunking is None:
        tokens = Tokenizer(model).tokenize(texts)
        ids, truncated_share, chunks_per_row = tokens.ids, float(np.mean(tokens.truncated)), 1.0
    else:
        documents = Chunker(model, chunking).chunk(texts)
        ids, truncated_share = documents.column(INPUT_IDS), 0.0
        chunks_per_row = float(pc.mean(pc.list_value_length(documents.column(CHUNKS))).as_py())
    return Sample(
        rows=len(texts),
        tokens_per_row=float(pc.mean(pc.list_value_length(ids)).as_py()),
        truncated_share=truncated_share,
        bytes_per_row=size_bytes / len(texts),
        texts=tuple(texts),
        chunks_per_row=chunks_per_row,
    )


def flops_per_token(model: ModelSpec) -> float:
    """Arithmetic of one token through the layers, without attention: twice the weights of a standard transformer."""
    config = json.loads((Path(folder_of(model)) / "config.json").read_text(encoding="utf-8"))
    config = {**config, **(config.get("text_config") or {})}
    layers = config.get("num_hidden_layers") or config.get("num_layers") or 12
    return 2.0 * 12 * float(layers) * model.hidden**2


def fits_in_process(tokens: float, model: ModelSpec) -> bool:
    """Return whether this process encodes so many tokens sooner than a cluster that has to be started first."""
    return tokens * flops_per_token(model) <= INLINE_S * (os.cpu_count() or 1) * core_flops(model.precision)
