"""Cuts a text into chunks by its token offsets. Pure: no tokenizer, no model, no I/O.

Called by the chunker. A chunk ends at the last boundary of the coarsest kind within its limit: a paragraph, else a
sentence, else a line, else a token. This is one pass from the front, so the last chunk of a text may be short. The
concatenated chunks are exactly the text, including white space and characters without a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from actors.text import sentences

Ints = npt.NDArray[np.int64]
Mode = Literal["none", "split", "late"]
By = Literal["sentence", "tokens", "paragraph"]
MODES: tuple[str, ...] = get_args(Mode)
BYS: tuple[str, ...] = get_args(By)


@dataclass(frozen=True, slots=True)
class Chunking:
    """Settings for cutting texts and encoding chunks: those of a job, completed for its model by `chunks.resolve`.

    Attributes:
        mode: "split" encodes each chunk alone; "late" runs the whole text through the model and averages the token
            states of each chunk.
        max_tokens: Largest number of text tokens in a chunk, without special tokens and prompt.
        by: Preferred end of a chunk: a sentence, a paragraph, or any token.
        overlap_tokens: Mode late only: text tokens that two consecutive windows share, if a text is longer than the
            model's limit.
    """

    mode: Literal["split", "late"]
    max_tokens: int
    by: By
    overlap_tokens: int = 0

    def lineage(self) -> dict[str, str | int | float | bool | None]:
        """Return all settings that change vectors, as JSON types."""
        late = {"chunk_overlap_tokens": self.overlap_tokens} if self.mode == "late" else {}
        rules = {} if self.by == "tokens" else {"chunk_rules": sentences.RULES}
        return {
            "chunking": self.mode,
            "chunk_max_tokens": self.max_tokens,
            "chunk_by": self.by,
            **late,
            **rules,
        }


@dataclass(frozen=True, slots=True)
class Cuts:
    """Chunks of one text: chunk i has the tokens `stops[i - 1]:stops[i]` and the characters `ends[i - 1]:ends[i]`.

    Attributes:
        stops: int64 [chunks], end of each chunk in tokens; the last is the number of tokens.
        ends: int64 [chunks], end of each chunk in characters; the last is the length of the text.
    """

    stops: Ints
    ends: Ints


def cut(text: str, starts: Ints, ends: Ints, *, max_tokens: int, by: By) -> Cuts:
    """Cut a text into chunks.

    Args:
        text: The text, without lone surrogates.
        starts: int64 [tokens], first character of each token. A token may have no characters (end <= start), tokens may
            share a character, and they may be out of order: there is no cut inside a character or between such tokens.
        ends: int64 [tokens], one past the last character of each token.
        max_tokens: Largest number of tokens of a chunk. Only a single character of more tokens exceeds it.
        by: Preferred end of a chunk.

    Returns:
        At least one chunk, also for a text without tokens.
    """
    count = len(starts)
    if count <= max_tokens:
        return Cuts(np.array([count]), np.array([len(text)]))
    levels = _levels(text, starts, ends, by)
    tokens, _ = levels[-1]
    stops: list[int] = []
    chunk_ends: list[int] = []
    token = 0
    while count - token > max_tokens:
        boundary = _last_boundary(levels, token, token + max_tokens)
        if boundary is None:
            # One character has more tokens than a chunk may have: end the chunk after it.
            next_ = int(np.searchsorted(tokens, token, side="right"))
            if next_ == len(tokens):
                break
            boundary = int(tokens[next_]), int(levels[-1][1][next_])
        token, character = boundary
        stops.append(token)
        chunk_ends.append(character)
    return Cuts(np.array([*stops, count]), np.array([*chunk_ends, len(text)]))


# First tokens of possible chunks, rising, and the first character of each such chunk.
_Level = tuple[Ints, Ints]


def _levels(text: str, starts: Ints, ends: Ints, by: By) -> list[_Level]:
    """Return the boundaries of each kind, from the coarsest kind to single tokens."""
    empty = ends <= starts
    reached = np.maximum.accumulate(np.where(empty, 0, ends))  # largest end of the tokens up to this one
    before = np.concatenate([[0], reached[:-1]])
    first = np.minimum.accumulate(np.where(empty, before, starts)[::-1])[::-1]  # least start from this token on
    clean = before <= first
    clean[0] = False

    kinds: Sequence[Ints] = ()
    if by == "paragraph":
        kinds = sentences.paragraphs(text), sentences.sentences(text), sentences.lines(text)
    elif by == "sentence":
        kinds = sentences.sentences(text), sentences.lines(text)
    levels = []
    for boundaries in kinds:
        tokens = np.searchsorted(first, boundaries, side="left")
        tokens, characters = tokens[tokens < len(first)], boundaries[tokens < len(first)]
        # A token across a boundary belongs to the chunk in which it begins.
        usable = clean[tokens]
        levels.append((tokens[usable], np.maximum(characters, before[tokens])[usable]))
    any_token = np.flatnonzero(clean)
    return [*levels, (any_token, first[any_token])]


def _last_boundary(levels: Sequence[_Level], start: int, limit: int) -> tuple[int, int] | None:
    """Return the last boundary in (start, limit] of the coarsest level that has one."""
    for tokens, characters in levels:
        last = int(np.searchsorted(tokens, limit, side="right")) - 1
        if last >= 0 and tokens[last] > start:
            return int(tokens[last]), int(characters[last])
    return None
