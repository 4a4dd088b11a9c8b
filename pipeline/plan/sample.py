"""A sample of a corpus, and estimates from it: tokens a row, and whether the job fits in this process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from actors.encoders.spec import ModelSpec, folder_of
from actors.images.pixels import PATCHES_PER_TOKEN, grid_of
from actors.inputs import load_preparer
from actors.schema import CONTENT, COST, PARTS, PICTURE
from actors.source.read_unit import read_sample
from actors.text.chunk_rules import Chunking
from pipeline.plan.corpus import Survey
from pipeline.plan.throughput import core_flops

SAMPLE_SHARDS = 8
SAMPLE_ROWS = 64
SAMPLE_PICTURES = 8  # rows of a shard with pictures, each of which takes megabytes
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
        compressed_bytes_per_row: Mean size of the text of a row as a table stores it.
        picture_share: Share of the rows that are pictures or pages, 0 to 1.
        patches_per_row: Mean number of patches that the vision tower of a model sees.
        inputs: The same rows, prepared for the model; None if there are none.
    """

    rows: int
    tokens_per_row: float
    truncated_share: float
    bytes_per_row: float
    inputs: pa.Table | None
    chunks_per_row: float = 1.0
    compressed_bytes_per_row: float = 1.0
    picture_share: float = 0.0
    patches_per_row: float = 0.0


def take_sample(found: Survey, model: ModelSpec, chunking: Chunking | None = None) -> Sample:
    """Read and prepare a few rows from the heads of shards spread over the corpus.

    Of pictures and pages only the size is read: they are white in the sample.
    """
    source, rows = found.source, SAMPLE_ROWS
    if source.pictures is not None:
        source, rows = replace(source, pictures=replace(source.pictures, blank=True)), SAMPLE_PICTURES
    step = max(1, len(found.shards) // SAMPLE_SHARDS)
    content: list[pa.Array] = []
    size_bytes = 0
    for shard in found.shards[::step][:SAMPLE_SHARDS]:
        if shard.size_bytes == 0:
            continue
        table = read_sample(shard, source, rows=rows).table
        size_bytes += table.nbytes
        content += table.column(CONTENT).chunks
    count = sum(map(len, content))
    if not count:
        return Sample(0, 1.0, 0.0, 1.0, None)
    contents = pa.chunked_array(content)
    prepared = load_preparer(model, chunking).prepare(contents)
    patches = _patches(prepared.rows)
    texts = pc.struct_field(contents, 0) if pa.types.is_struct(contents.type) else contents
    compressed = pa.compress(b"".join(texts.drop_null().cast(pa.binary()).to_pylist()), "zstd")
    has_parts = PARTS in prepared.rows.column_names
    return Sample(
        rows=count,
        tokens_per_row=float(pc.mean(prepared.rows[COST]).as_py()),
        truncated_share=prepared.truncated / count,
        bytes_per_row=size_bytes / count,
        inputs=prepared.rows,
        chunks_per_row=float(pc.mean(pc.list_value_length(prepared.rows[PARTS])).as_py()) if has_parts else 1.0,
        compressed_bytes_per_row=compressed.size / count,
        picture_share=len(patches) / count,
        patches_per_row=sum(patches) / count,
    )


def _patches(inputs: pa.Table) -> list[int]:
    """Return the number of patches of each picture."""
    if PICTURE not in inputs.column_names:
        return []
    grids = (grid_of(picture) for picture in inputs[PICTURE].drop_null().to_pylist())
    return [rows * columns * PATCHES_PER_TOKEN for rows, columns in grids]


def flops_per_token(model: ModelSpec) -> float:
    """Arithmetic of one token through the layers, without attention: twice the weights of a standard transformer."""
    config = json.loads((Path(folder_of(model)) / "config.json").read_text(encoding="utf-8"))
    config = {**config, **(config.get("text_config") or {})}
    layers = config.get("num_hidden_layers") or config.get("num_layers") or 12
    # A vision tower costs about as much again: 4.0 and 4.2 TFLOP for an A4 page of v4 at its own limit.
    parts = 2.0 if model.modality == "page" else 1.0
    return parts * 2.0 * 12 * float(layers) * model.hidden**2


def fits_in_process(tokens: float, model: ModelSpec) -> bool:
    """Return whether this process encodes so many tokens sooner than a cluster that has to be started first."""
    return tokens * flops_per_token(model) <= INLINE_S * (os.cpu_count() or 1) * core_flops(model.precision)
