"""Vectors of chunks: each encoded alone, or late, from the token states of the whole text. Called by `Encoder`.

Late: sums of token states are made on the device, micro-batch by micro-batch, so what is kept of a text is one row
a chunk and never its tokens. Mean, then slice, then normalise: as for a whole text, whose vector is that of its one
chunk.
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
from actors.encoders.pooling import finish
from actors.encoders.running import MicroBatch, Reduce
from actors.encoders.spec import ModelSpec
from actors.encoders.windows import Windows, cut_windows
from actors.schema import CHUNKS, INPUT_IDS
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
        tokens: Tokens behind the vector. Special ones and the prompt count: in split mode in every chunk, in late
            mode in the first chunk and the last.
        vector: float32 [dim], of unit length.
    """

    start: int
    end: int
    tokens: int
    vector: Floats


def encode_documents(
    encoder: TokenEncoder, documents: pa.Table, chunking: Chunking, tasks: Sequence[str | None] | None
) -> Floats:
    """Vectors of all chunks, text by text: float32 [chunks, dim]. As `Encoder.encode_documents`."""
    chunks = pc.list_value_length(documents.column(CHUNKS)).to_numpy()
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
    """A chunk in words, from how many each text has and its number among all."""
    ends = np.cumsum(chunks)
    text = int(np.searchsorted(ends, number, side="right"))
    return f"chunk {number - int(ends[text] - chunks[text])} of text {text}"


def chunk_vectors(documents: pa.Table, vectors: Floats) -> list[list[ChunkVector]]:
    """Chunks as objects, one list a text, from `encode_documents`' vectors."""
    places = chunk_places(documents)
    columns = (places[name].tolist() for name in ("start", "end", "tokens"))
    flat = [ChunkVector(*each) for each in zip(*columns, vectors, strict=True)]
    ends = np.cumsum(places["counts"])
    return [flat[end - count : end] for end, count in zip(ends, places["counts"], strict=True)]


def chunk_places(documents: pa.Table) -> dict[str, Ints]:
    """Start, end and number of tokens of each chunk, and how many chunks each text has."""
    counts = pc.list_value_length(documents.column(CHUNKS)).to_numpy().astype(np.int64)
    flat = documents.column(CHUNKS).combine_chunks().flatten()
    start, end, stop = (flat.field(name).to_numpy().astype(np.int64) for name in ("start", "end", "stop"))
    before = np.concatenate([[0], stop[:-1]])
    before[(np.cumsum(counts) - counts)[counts > 0]] = 0
    return {"start": start, "end": end, "tokens": stop - before, "counts": counts}


def _chunk_ids(documents: pa.Table) -> pa.ListArray:
    """One row a chunk."""
    values = documents.column(INPUT_IDS).combine_chunks().flatten()
    ends = np.cumsum(chunk_places(documents)["tokens"])
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]).astype(np.int32)), values)


def _late(encoder: TokenEncoder, windows: Windows, chunks: int, tasks: Sequence[str | None] | None) -> Floats:
    """Means over the states of each chunk's tokens, which may come from several windows."""
    sums = torch.zeros(chunks, encoder.spec.hidden)

    def reduce(hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        return _sums(hidden, batch, windows)

    order: list[Ints] = []
    found: list[torch.Tensor] = []
    for micro in encoder.micro_batches(windows.ids, tasks, reduce=reduce, side_by_side=True):
        order += [windows.chunk[windows.stretches(int(row))] for row in micro.rows]
        found.append(micro.value)
    if found:
        sums.index_add_(0, torch.from_numpy(np.concatenate(order)), torch.cat(found).cpu())
    counts = np.bincount(windows.chunk, weights=windows.stops - windows.starts, minlength=chunks)
    means = sums / torch.from_numpy(counts).to(torch.float32)[:, None]
    vectors: Floats = finish(means, encoder.spec.dim).numpy()
    return vectors


def _sums(hidden: torch.Tensor, batch: PackedBatch, windows: Windows) -> torch.Tensor:
    """float32 [stretches, hidden]: sums over the stretches of a micro-batch's windows, in their order."""
    places = [windows.stretches(int(row)) for row in batch.numbers]
    base = np.repeat(np.cumsum(batch.lengths) - batch.lengths, [place.stop - place.start for place in places])
    starts = base + np.concatenate([windows.starts[place] for place in places])
    stops = base + np.concatenate([windows.stops[place] for place in places])
    return sums_by_slices(hidden, starts, stops) if hidden.device.type == "cpu" else sums_on_card(hidden, starts, stops)


def sums_by_slices(hidden: torch.Tensor, starts: Ints, stops: Ints) -> torch.Tensor:
    """float32 [stretches, hidden]: sums over `hidden[start:stop]`."""
    return torch.stack(
        [hidden[start:stop].sum(0, dtype=torch.float32) for start, stop in zip(starts, stops, strict=True)]
    )


def sums_on_card(hidden: torch.Tensor, starts: Ints, stops: Ints) -> torch.Tensor:
    """The same in one call, and the same in every run: no stretch is added up by racing threads.

    Stretches must rise and not overlap.
    """
    # Segments cover everything, so what is dropped between two stretches is a segment too, perhaps an empty one.
    before = starts - np.concatenate([[0], stops[:-1]])
    lengths = np.append(np.stack([before, stops - starts], axis=1).reshape(-1), len(hidden) - stops[-1])
    segments = torch.from_numpy(lengths).to(hidden.device)
    return torch.segment_reduce(hidden.float(), "sum", lengths=segments, axis=0, initial=0)[1::2]
