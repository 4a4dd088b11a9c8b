"""Where a text is cut into chunks: token offsets in, chunks out. Pure: no tokenizer, no model, no I/O.

Called by the chunker. A chunk takes in as much as its limit allows and ends at the coarsest boundary that lies in
reach: a paragraph, else a sentence, else a line, else a token. So it is one pass from the front, and the last chunk of
a text may be short. Chunks tile the text: put together they are the text, character by character, white space and
characters that no token stands for included.
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
    """How texts are cut and their chunks encoded: what a job asks for, made to fit its model by `chunker.resolve`.

    Attributes:
        mode: "split" encodes each chunk alone; "late" runs the whole text through the model and averages the token
            states of each chunk.
        max_tokens: Tokens of text in a chunk, special tokens and prompt not counted.
        by: What a chunk ends with, where it can: a sentence, a paragraph, or any token.
        overlap_tokens: Late only: tokens of text that a window shares with the one before it, where a text is longer
            than the model takes at once.
    """

    mode: Literal["split", "late"]
    max_tokens: int
    by: By
    overlap_tokens: int = 0

    def lineage(self) -> dict[str, str | int | float | bool | None]:
        """All of it that changes vectors, JSON-able."""
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
    """The chunks of one text; chunk i has the tokens `stops[i - 1]:stops[i]` and the characters alike.

    Attributes:
        stops: int64 [chunks], where each ends among the tokens, the last at their number.
        ends: int64 [chunks], where each ends among the characters, the last at the end of the text.
    """

    stops: Ints
    ends: Ints


def cut(text: str, starts: Ints, ends: Ints, *, max_tokens: int, by: By) -> Cuts:
    """Cuts a text.

    Args:
        text: The text, without lone surrogates.
        starts: int64 [tokens], first character of each token. A token may have no characters (end <= start), several
            may share one, and they may stand out of order: no cut is made inside a character or between such tokens.
        ends: int64 [tokens], one past its last character.
        max_tokens: Tokens of a chunk. More only where one character alone is made into more.
        by: What a chunk ends with, where it can.

    Returns:
        At least one chunk, also of a text without tokens.
    """
    count = len(starts)
    if count <= max_tokens:
        return Cuts(np.array([count]), np.array([len(text)]))
    levels = _levels(text, starts, ends, by)
    tokens, _ = levels[-1]
    stops: list[int] = []
    places: list[int] = []
    here = 0
    while count - here > max_tokens:
        found = _furthest(levels, here, here + max_tokens)
        if found is None:
            # One character of more tokens than a chunk may have.
            next_ = int(np.searchsorted(tokens, here, side="right"))
            if next_ == len(tokens):
                break
            found = int(tokens[next_]), int(levels[-1][1][next_])
        here, place = found
        stops.append(here)
        places.append(place)
    return Cuts(np.array([*stops, count]), np.array([*places, len(text)]))


# Tokens that a chunk may begin with, rising, and the character where it then begins.
_Level = tuple[Ints, Ints]


def _levels(text: str, starts: Ints, ends: Ints, by: By) -> list[_Level]:
    """From the coarsest kind of boundary to single tokens."""
    empty = ends <= starts
    reached = np.maximum.accumulate(np.where(empty, 0, ends))  # how far tokens up to this one have come
    before = np.concatenate([[0], reached[:-1]])
    first = np.minimum.accumulate(np.where(empty, before, starts)[::-1])[::-1]  # where those from this one on begin
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
        tokens, at = tokens[tokens < len(first)], boundaries[tokens < len(first)]
        # A token that stands across a boundary stays with the chunk that it begins in.
        usable = clean[tokens]
        levels.append((tokens[usable], np.maximum(at, before[tokens])[usable]))
    places = np.flatnonzero(clean)
    return [*levels, (places, first[places])]


def _furthest(levels: Sequence[_Level], here: int, limit: int) -> tuple[int, int] | None:
    """The last boundary in (here, limit] of the coarsest level that has one."""
    for tokens, places in levels:
        last = int(np.searchsorted(tokens, limit, side="right")) - 1
        if last >= 0 and tokens[last] > here:
            return int(tokens[last]), int(places[last])
    return None
