"""Three mixes of lengths, cut from any texts: short, long, and as they are found.

The same texts and seed give the same mixes. A mix has about as many tokens as asked for, so all take about as long.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from tokenizers import Tokenizer

SHORT = (20, 50)
LONG = (200, 256)
LONGEST_CHARACTERS = 20_000  # more of a text is never looked at


@dataclass(frozen=True, slots=True)
class Mix:
    """Texts of one distribution of lengths.

    Attributes:
        lengths: Tokens of each text as the engines see it: cut at the limit, special tokens counted.
    """

    name: str
    texts: tuple[str, ...]
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Real tokens of one pass."""
        return sum(self.lengths)


def read_texts(corpora: Path, *, seed: int = 0) -> list[str]:
    """Texts of every Parquet file below a folder, shuffled, from each of its sub-folders in turn.

    Raises:
        SystemExit: there are none.
    """
    by_folder: dict[Path, list[str]] = {}
    for path in sorted(corpora.rglob("*.parquet")):
        if "text" in pq.read_schema(path).names:
            texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
            by_folder.setdefault(path.parent, []).extend(text for text in texts if text and text.strip())
    if not by_folder:
        raise SystemExit(f"{corpora} has no Parquet file with a column 'text'")
    order = random.Random(seed)
    for texts in by_folder.values():
        order.shuffle(texts)
    return list(in_turns(list(by_folder.values())))


def in_turns(lists: list[list[str]]) -> Iterator[str]:
    """One of each, then the second of each, and so on; the short ones end first."""
    for place in range(max(map(len, lists))):
        for texts in lists:
            if place < len(texts):
                yield texts[place]


def cut_mixes(
    texts: Sequence[str], tokenizer: Tokenizer, *, max_tokens: int, tokens: int
) -> tuple[list[Mix], list[str]]:
    """The three mixes of about `tokens` tokens each, and the texts that none of them has, for calibration."""
    random_lengths = random.Random(1)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    short: list[str] = []
    long: list[str] = []
    found: list[str] = []
    counts = dict.fromkeys(("short", "long", "found"), 0)
    used = 0
    for whole in texts:
        if min(counts.values()) >= tokens:
            break
        used += 1
        text = whole[:LONGEST_CHARACTERS]
        spans = [span for span in tokenizer.encode(text, add_special_tokens=False).offsets if span[0] < span[1]]
        if counts["found"] < tokens:
            found.append(text)
            counts["found"] += min(len(spans) + 2, max_tokens)
        for low, high, pieces, name in ((*SHORT, short, "short"), (*LONG, long, "long")):
            if counts[name] < tokens and (piece := _piece(text, spans, low - 2, high - 2, random_lengths)) is not None:
                pieces.append(piece)
                counts[name] += len(tokenizer.encode(piece).ids)
    tokenizer.enable_truncation(max_tokens)
    mixes = []
    for name, chosen in (("short", short), ("long", long), ("as found", found)):
        lengths = tuple(len(encoding.ids) for encoding in tokenizer.encode_batch(list(chosen)))
        mixes.append(Mix(name, tuple(chosen), lengths))
    return mixes, [text[:LONGEST_CHARACTERS] for text in texts[used : used + 400]] or list(found)


def _piece(text: str, spans: list[tuple[int, int]], low: int, high: int, lengths: random.Random) -> str | None:
    """The text, if it has `low` to `high` tokens; the head of one that has more; None for one that has fewer."""
    if len(spans) < low:
        return None
    if len(spans) <= high:
        return text
    return text[: spans[lengths.randint(low, high) - 1][1]]
