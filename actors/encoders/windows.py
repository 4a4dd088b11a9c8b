"""Cuts texts longer than a model's limit into overlapping windows. Uses no model and no torch.

Called by late chunking. Window i has at most E of the text's own tokens, from token i * (E - O) on, where O is the
overlap. The first O states of every window but the first are dropped, so each token counts once and has at least O tokens
of context before it. No window is made that would add no new token. Every window has the special tokens and the prompt
around it, as a whole text has: models are not trained on text without them. Their states count where they belong in the
text: those at the front in the first window, the one at the end in the last. A text within the limit is one unchanged
window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.schema import INPUT_IDS, PARTS, PREFIX, SUFFIX

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of some texts. Each window is divided into stretches, and each stretch belongs to one chunk.

    Attributes:
        ids: `list<int32>` [windows].
        text: int64 [windows], the row of each window's text.
        first: int64 [windows + 1], number of the first stretch of each window.
        starts, stops: int64 [stretches], token range within the window; tokens between stretches are dropped.
        chunk: int64 [stretches], the chunk's number among all texts.
    """

    ids: pa.ListArray
    text: Ints
    first: Ints
    starts: Ints
    stops: Ints
    chunk: Ints

    def stretches(self, window: int) -> slice:
        """Returns the slice of a window's stretches."""
        return slice(int(self.first[window]), int(self.first[window + 1]))


def cut_windows(documents: pa.Table, *, max_tokens: int, overlap_tokens: int) -> Windows:
    """Cuts chunked texts into windows.

    Args:
        documents: `actors.text.chunks.SCHEMA`, made for late chunking.
        max_tokens: Limit of a window, special tokens and prompt included.
        overlap_tokens: Number of the text's own tokens that a window shares with the one before.
    """
    lengths = pc.list_value_length(documents.column(INPUT_IDS)).to_numpy()
    chunks = pc.list_value_length(documents.column(PARTS)).to_numpy()
    ids = _values(documents.column(INPUT_IDS))
    tokens = _values(pc.struct_field(_flat(documents.column(PARTS)), "tokens"))
    prefixes, suffixes = (documents.column(name).to_numpy() for name in (PREFIX, SUFFIX))
    id_ends, chunk_ends = np.cumsum(lengths), np.cumsum(chunks)

    window_ids: list[npt.NDArray[np.int32]] = []
    texts: list[int] = []
    counts: list[int] = []
    parts: list[tuple[Ints, Ints, Ints]] = []
    for row in range(documents.num_rows):
        own = ids[id_ends[row] - lengths[row] : id_ends[row]]
        chunk = int(chunk_ends[row] - chunks[row])
        ends = np.cumsum(tokens[chunk : chunk_ends[row]])
        prefix, suffix = int(prefixes[row]), int(suffixes[row])
        for low, high, shift in _window_ranges(len(own), prefix, suffix, max_tokens, overlap_tokens):
            if shift == 0 and high == len(own):
                window_ids.append(own)
            else:
                last = min(high, len(own) - suffix)
                window_ids.append(np.concatenate([own[:prefix], own[shift + prefix : last], own[len(own) - suffix :]]))
            inner = ends[(ends > low) & (ends < high)]
            edges = np.concatenate([[low], inner, [high]])
            number = chunk + int(np.searchsorted(ends, low, side="right"))
            parts.append((edges[:-1] - shift, edges[1:] - shift, np.arange(number, number + len(edges) - 1)))
            texts.append(row)
            counts.append(len(edges) - 1)
    empty = np.zeros(0, np.int64)
    starts, stops_in_window, chunk_of = (
        (np.concatenate([empty, *each]) for each in zip(*parts, strict=True)) if parts else (empty,) * 3
    )
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in window_ids])]).astype(np.int32)
    values = np.concatenate([np.zeros(0, np.int32), *window_ids])
    return Windows(
        ids=pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)),
        text=np.array(texts, np.int64),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        starts=starts,
        stops=stops_in_window,
        chunk=chunk_of,
    )


def _window_ranges(length: int, prefix: int, suffix: int, limit: int, overlap: int) -> list[tuple[int, int, int]]:
    """Cuts one text of `length` tokens into windows.

    Returns:
        For each window (low, high, shift): its states are used for tokens low to high of the text, and token t of the
        text is token t - shift of the window.
    """
    if length <= limit:
        return [(0, length, 0)]
    own = length - prefix - suffix
    window_tokens = limit - prefix - suffix
    ranges = []
    start = 0
    while True:
        stop = min(start + window_tokens, own)
        low = prefix + start + overlap if start else 0
        high = prefix + stop if stop < own else length
        ranges.append((low, high, start))
        if stop == own:
            return ranges
        start += window_tokens - overlap


def _flat(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return (array.chunk(0) if isinstance(array, pa.ChunkedArray) else array).flatten()


def _values(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int32]:
    values = _flat(column) if isinstance(column, pa.ChunkedArray) else column
    array: npt.NDArray[np.int32] = values.to_numpy(zero_copy_only=False)
    return array
