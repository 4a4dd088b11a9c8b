"""A text longer than a model takes at once, cut into windows that overlap. Pure: no model, no torch.

Called by late chunking. Window i has the text's own tokens from i * (E - O) on, E of them at most, where O is the
overlap. Its first O states are dropped except in the first window, so a token counts once, and each has O tokens of
the text or more before it; a window that would bring nothing new is not made. Around every window stand the special
tokens and the prompt, as around a whole text: a model has never seen text without them, and with a prompt they say what
the vectors are for. Their states count where they stand in the text: the front ones in the first window, the end one
in the last. A text that fits is one window, untouched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.schema import CHUNKS, INPUT_IDS, PREFIX, SUFFIX

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of some texts, and which stretches of them belong to which chunk.

    Attributes:
        ids: `list<int32>` [windows].
        text: int64 [windows], the row of the text that each is of.
        first: int64 [windows + 1], where the stretches of each window begin.
        starts, stops: int64 [stretches], tokens within the window; what lies between stretches is dropped.
        chunk: int64 [stretches], counted over all texts.
    """

    ids: pa.ListArray
    text: Ints
    first: Ints
    starts: Ints
    stops: Ints
    chunk: Ints

    def stretches(self, window: int) -> slice:
        """Those of a window."""
        return slice(int(self.first[window]), int(self.first[window + 1]))


def cut_windows(documents: pa.Table, *, max_tokens: int, overlap_tokens: int) -> Windows:
    """The windows of chunked texts.

    Args:
        documents: `actors.text.chunks.SCHEMA`, made for late chunking.
        max_tokens: Of a window, special tokens and prompt included.
        overlap_tokens: Of the text's own tokens, that a window shares with the one before.
    """
    lengths = pc.list_value_length(documents.column(INPUT_IDS)).to_numpy()
    chunks = pc.list_value_length(documents.column(CHUNKS)).to_numpy()
    ids = _values(documents.column(INPUT_IDS))
    stops = _values(pc.struct_field(_flat(documents.column(CHUNKS)), "stop"))
    prefixes, suffixes = (documents.column(name).to_numpy() for name in (PREFIX, SUFFIX))
    id_ends, chunk_ends = np.cumsum(lengths), np.cumsum(chunks)

    window_ids: list[npt.NDArray[np.int32]] = []
    texts: list[int] = []
    counts: list[int] = []
    parts: list[tuple[Ints, Ints, Ints]] = []
    for row in range(documents.num_rows):
        own = ids[id_ends[row] - lengths[row] : id_ends[row]]
        chunk = int(chunk_ends[row] - chunks[row])
        ends = stops[chunk : chunk_ends[row]]
        prefix, suffix = int(prefixes[row]), int(suffixes[row])
        for low, high, shift in _places(len(own), prefix, suffix, max_tokens, overlap_tokens):
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
    starts, ends_, chunk_of = (
        (np.concatenate([empty, *each]) for each in zip(*parts, strict=True)) if parts else (empty,) * 3
    )
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in window_ids])]).astype(np.int32)
    values = np.concatenate([np.zeros(0, np.int32), *window_ids])
    return Windows(
        ids=pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)),
        text=np.array(texts, np.int64),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        starts=starts,
        stops=ends_,
        chunk=chunk_of,
    )


def _places(length: int, prefix: int, suffix: int, limit: int, overlap: int) -> list[tuple[int, int, int]]:
    """The windows of one text of `length` tokens.

    Returns:
        For each, the tokens of the text whose states it gives (low, high), and how much further in the text than in
        the window they stand.
    """
    if length <= limit:
        return [(0, length, 0)]
    own = length - prefix - suffix
    reach = limit - prefix - suffix
    places = []
    start = 0
    while True:
        stop = min(start + reach, own)
        low = prefix + start + overlap if start else 0
        high = prefix + stop if stop < own else length
        places.append((low, high, start))
        if stop == own:
            return places
        start += reach - overlap


def _flat(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return (array.chunk(0) if isinstance(array, pa.ChunkedArray) else array).flatten()


def _values(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int32]:
    values = _flat(column) if isinstance(column, pa.ChunkedArray) else column
    array: npt.NDArray[np.int32] = values.to_numpy(zero_copy_only=False)
    return array
