"""Encodes chunks: each alone ("split"), or from the token states of the whole text ("late"). Called by `Encoder`.

In late mode the token states of each chunk are summed on the device, micro-batch by micro-batch, so only one row per chunk
is kept in memory and not the token states. The mean is sliced, then normalised, as for a whole text: a text with one
chunk has the same vector either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from actors.encoders.finite import UnfitVectors, refuse_unfit
from actors.encoders.packed import PackedBatch
from actors.encoders.pooling import finish, sums
from actors.encoders.running import MicroBatch, Reduce
from actors.encoders.spec import ModelSpec
from actors.encoders.windows import Windows, cut_windows
from actors.schema import INPUT_IDS, PARTS
from actors.text.chunk_rules import Chunking

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class TokenEncoder(Protocol):
    """The part of `Encoder` that chunks need."""

    @property
    def spec(self) -> ModelSpec:
        """The model."""

    def encode_tokens(self, ids: pa.ListArray, tasks: Sequence[str | None] | None = None) -> Floats:
        """See `Encoder.encode_tokens`."""

    def micro_batches(
        self,
        ids: pa.ListArray,
        tasks: Sequence[str | None] | None = None,
        *,
        reduce: Reduce | None = None,
        side_by_side: bool = False,
    ) -> Iterator[MicroBatch]:
        """See `Encoder.micro_batches`."""


@dataclass(frozen=True, slots=True)
class ChunkVector:
    """A chunk of a text.

    Attributes:
        start, end: `text[start:end]` is the chunk.
        tokens: Number of tokens in the vector. Special tokens and the prompt count in every chunk in split mode, and
            in the first and the last chunk in late mode.
        vector: float32 [dim], of unit length.
    """

    start: int
    end: int
    tokens: int
    vector: Floats


def encode_documents(
    encoder: TokenEncoder, documents: pa.Table, chunking: Chunking, tasks: Sequence[str | None] | None
) -> Floats:
    """Encodes all chunks, text by text, as float32 [chunks, dim]. See `Encoder.encode_documents`."""
    chunks = pc.list_value_length(documents.column(PARTS)).to_numpy()
    if chunking.mode == "split":
        each = (
            None if tasks is None else [task for task, count in zip(tasks, chunks, strict=True) for _ in range(count)]
        )
        try:
            return encoder.encode_tokens(_chunk_ids(documents), each)
        except UnfitVectors as error:
            return refuse_unfit(error.vectors, partial(_chunk_name, chunks))
    windows = cut_windows(documents, max_tokens=encoder.spec.max_tokens, overlap_tokens=chunking.overlap_tokens)
    vectors = _late(
        encoder, windows, int(chunks.sum()), None if tasks is None else [tasks[row] for row in windows.text]
    )
    return refuse_unfit(vectors, partial(_chunk_name, chunks))


def _chunk_name(chunks: Ints, number: int) -> str:
    """Returns the name of a chunk for messages.

    Args:
        chunks: Number of chunks of each text.
        number: The chunk's number among all texts.
    """
    ends = np.cumsum(chunks)
    text = int(np.searchsorted(ends, number, side="right"))
    return f"chunk {number - int(ends[text] - chunks[text])} of text {text}"


def chunk_vectors(documents: pa.Table, vectors: Floats) -> list[list[ChunkVector]]:
    """Returns the chunks as objects, one list per text, with the vectors of `encode_documents`."""
    parts = documents.column(PARTS).to_pylist()
    flat = iter(vectors)
    return [[ChunkVector(**part, vector=next(flat)) for part in parts_of_text] for parts_of_text in parts]


def _chunk_ids(documents: pa.Table) -> pa.ListArray:
    """Returns the token ids of each chunk, one row per chunk."""
    values = documents.column(INPUT_IDS).combine_chunks().flatten()
    ends = np.cumsum(documents.column(PARTS).combine_chunks().flatten().field("tokens").to_numpy())
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]).astype(np.int32)), values)


def _late(encoder: TokenEncoder, windows: Windows, chunks: int, tasks: Sequence[str | None] | None) -> Floats:
    """Returns the mean over the states of each chunk's tokens, which may come from several windows, as unit vectors."""
    sums = torch.zeros(chunks, encoder.spec.hidden)

    def reduce(hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        return _sums(hidden, batch, windows)

    order: list[Ints] = []
    summed: list[torch.Tensor] = []
    for micro in encoder.micro_batches(windows.ids, tasks, reduce=reduce, side_by_side=True):
        order += [windows.chunk[windows.stretches(int(row))] for row in micro.rows]
        summed.append(micro.value)
    if summed:
        sums.index_add_(0, torch.from_numpy(np.concatenate(order)), torch.cat(summed).cpu())
    counts = np.bincount(windows.chunk, weights=windows.stops - windows.starts, minlength=chunks)
    means = sums / torch.from_numpy(counts).to(torch.float32)[:, None]
    vectors: Floats = finish(means, encoder.spec.dim).numpy()
    return vectors


def _sums(hidden: torch.Tensor, batch: PackedBatch, windows: Windows) -> torch.Tensor:
    """Returns the sums over the stretches of a micro-batch's windows, in their order, float32 [stretches, hidden]."""
    places = [windows.stretches(int(row)) for row in batch.numbers]
    base = np.repeat(np.cumsum(batch.lengths) - batch.lengths, [place.stop - place.start for place in places])
    starts = base + np.concatenate([windows.starts[place] for place in places])
    stops = base + np.concatenate([windows.stops[place] for place in places])
    return sums(hidden, starts, stops)
