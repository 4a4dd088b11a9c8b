"""Turns texts into token ids and chunks, as plain Arrow columns. Does not import torch.

Called by the read stage and by `Encoder.encode_chunks`. `chunk_rules` decides where texts are cut. This module applies
the tokenizer, checks the settings against the model, and defines the table of chunked texts. The table has one row per
text, so that a text that cannot be encoded is quarantined with all of its chunks and without its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError
from actors.schema import INPUT_IDS, PARTS, PREFIX, SUFFIX
from actors.text.chunk_rules import BYS, MODES, By, Chunking, Cuts, Mode, cut
from actors.text.tokenizer import Tokenizer, Whole, without_surrogates

DEFAULT_TOKENS = 512
_DEFAULT_OVERLAP_TOKENS = 512
# Token limit of a tokenizer that returns all tokens; no model's limit comes near it.
_NO_LIMIT = 1 << 40

SCHEMA = pa.schema(
    [
        # Split: the ids of all chunks, each with special tokens and prompt. Late: the ids of the whole text.
        (INPUT_IDS, pa.list_(pa.int32())),
        # The chunks: their characters in the text, and the number of their ids, which follow each other.
        (PARTS, pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("tokens", pa.int32())]))),
        # Number of ids before and after those of the text; each window of a long text begins and ends with them.
        (PREFIX, pa.int32()),
        (SUFFIX, pa.int32()),
    ]
)


def resolve(
    spec: ModelSpec,
    *,
    mode: Mode,
    max_tokens: int | None = None,
    by: By = "sentence",
    overlap_tokens: int | None = None,
    every_task: bool = False,
) -> Chunking | None:
    """Fill in the defaults of the settings and check them against the model.

    Args:
        spec: The model.
        mode: "none", "split" or "late".
        max_tokens: Largest number of text tokens in a chunk; None: 512, in mode split at most the model's limit.
        by: "sentence", "paragraph" or "tokens".
        overlap_tokens: Mode late only; None: 512, at most a quarter of a window.
        every_task: True if rows may have any task of the model, and so any of its prompts.

    Returns:
        The settings, or None for mode "none".

    Raises:
        ConfigError: a setting is wrong, or the model does not support it.
    """
    for name, value, known in (("mode", mode, MODES), ("by", by, BYS)):
        if value not in known:
            raise ConfigError(f"chunking.{name} {value!r} is not known; use one of {', '.join(known)}.")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"chunking.max_tokens is {max_tokens}, must be 1 or more.")
    if mode != "late" and overlap_tokens is not None:
        raise ConfigError(
            f"chunking.overlap_tokens {overlap_tokens} is only for mode late (tokens that two windows of a long text "
            f"share), and the mode is {mode}. Leave it out; chunks never overlap."
        )
    if mode == "none":
        return None
    if spec.modality != "text":
        raise ConfigError(
            f"chunking.mode {mode} cuts texts, and the modality of this job's rows is {spec.modality!r}. Leave chunking out."
        )
    if spec.makes("multi"):
        raise ConfigError(
            f"chunking.mode {mode} cuts texts, and encoder.outputs names multi, whose vectors are those of whole texts. Leave "
            f"chunking out, or multi."
        )
    prompts = {spec.prompt, *spec.prompts.values()} if every_task else {spec.prompt}
    text_tokens = spec.max_tokens - _overhead(spec, tuple(sorted(prompts)))
    if text_tokens < 1:
        raise ConfigError(
            f"max_tokens {spec.max_tokens} of {spec.model} is used up by its special tokens and prompt. Raise it."
        )
    if mode == "split":
        return Chunking("split", _split_tokens(spec, max_tokens, text_tokens), by)
    if spec.pooling != "mean":
        raise ConfigError(
            f"chunking.mode late averages the token states of each chunk, which is only correct for a model whose "
            f"vectors are such averages; {spec.model} takes its vector from one token (pooling {spec.pooling!r}). Use "
            f"mode split."
        )
    return Chunking("late", max_tokens or DEFAULT_TOKENS, by, _overlap(spec, overlap_tokens, text_tokens))


def _split_tokens(spec: ModelSpec, max_tokens: int | None, text_tokens: int) -> int:
    if max_tokens is None:
        return min(DEFAULT_TOKENS, text_tokens)
    if max_tokens > text_tokens:
        raise ConfigError(
            f"chunking.max_tokens {max_tokens} does not fit: {spec.model} takes {spec.max_tokens} tokens at once, "
            f"special tokens and prompt included, which leaves {text_tokens} to a chunk. Lower it, or raise "
            f"encoder.max_tokens."
        )
    return max_tokens


def _overlap(spec: ModelSpec, overlap_tokens: int | None, text_tokens: int) -> int:
    if overlap_tokens is None:
        return min(_DEFAULT_OVERLAP_TOKENS, text_tokens // 4)
    if not 0 <= overlap_tokens <= text_tokens // 2:
        raise ConfigError(
            f"chunking.overlap_tokens {overlap_tokens} is outside 0..{text_tokens // 2}, half of the text tokens that "
            f"{spec.model} takes at once: with more, most tokens would be computed twice. Lower it, or raise "
            f"encoder.max_tokens."
        )
    return overlap_tokens


@lru_cache(maxsize=8)
def _overhead(spec: ModelSpec, prompts: tuple[str, ...]) -> int:
    """Return the number of special tokens plus the tokens of the longest prompt."""
    plain = Tokenizer(replace(spec, prompt="", max_tokens=_NO_LIMIT))
    return max(len(whole.ids) for whole in plain.tokenize_whole(prompts))


class Chunker:
    """Tokenizes texts for a model and cuts them into chunks."""

    def __init__(self, spec: ModelSpec, chunking: Chunking) -> None:
        self.spec = spec
        self.chunking = chunking
        self._tokenizer = Tokenizer(replace(spec, max_tokens=_NO_LIMIT))

    def chunk(self, texts: Sequence[str], tasks: Sequence[str | None] | None = None) -> pa.Table:
        """Return texts with their chunks, one row per text (`SCHEMA`).

        The characters of a chunk are `text[start:end]`; the concatenated chunks are the text.

        Args:
            texts: Any strings. A lone surrogate is encoded as U+FFFD, and character offsets do not change.
            tasks: One per text, where None means no task and no prompt; `tasks=None`: all texts have the spec's task.

        Raises:
            ConfigError: the model does not have a task.
            ValueError: `tasks` and `texts` have different lengths.
        """
        texts = [without_surrogates(text) for text in texts]
        wholes = self._tokenizer.tokenize_whole(texts, tasks)
        rows = [self._row(text, whole) for text, whole in zip(texts, wholes, strict=True)]
        ids = [row[0] for row in rows]
        cuts = [row[1] for row in rows]
        if self.chunking.mode == "split":
            ids, cuts = self._encode_alone(texts, tasks, ids, cuts, [row[2:] for row in rows])
        return _table(ids, cuts, [row[2] for row in rows], [row[3] for row in rows])

    def _row(self, text: str, whole: Whole) -> tuple[npt.NDArray[np.int32], Cuts, int, int]:
        """Return the ids, the chunks with stops in these ids, and the numbers of ids before and after the text's.

        The token offsets are large and are not kept.
        """
        cuts = cut(text, whole.starts, whole.ends, max_tokens=self.chunking.max_tokens, by=self.chunking.by)
        stops = cuts.stops + whole.prefix
        # The first chunk includes the ids before the text, and the last those after it.
        stops[-1] = len(whole.ids)
        return whole.ids, Cuts(stops, cuts.ends), whole.prefix, whole.suffix

    def _encode_alone(
        self,
        texts: Sequence[str],
        tasks: Sequence[str | None] | None,
        ids: list[npt.NDArray[np.int32]],
        cuts: list[Cuts],
        around: list[tuple[int, int]],
    ) -> tuple[list[npt.NDArray[np.int32]], list[Cuts]]:
        """Return the ids of each chunk tokenized as a text of its own, independent of its neighbours."""
        several = [i for i, each in enumerate(cuts) if len(each.stops) > 1]
        parts = [part for i in several for part in _parts(texts[i], cuts[i])]
        part_tasks = None if tasks is None else [tasks[i] for i in several for _ in cuts[i].stops]
        encoded: Iterator[Whole] = self._tokenizer.tokenize_whole(parts, part_tasks)
        for i in several:
            prefix, suffix = around[i]
            own = []
            for low, high in zip(
                [prefix, *cuts[i].stops[:-1]], [*cuts[i].stops[:-1], len(ids[i]) - suffix], strict=True
            ):
                alone = next(encoded).ids
                if len(alone) > self.spec.max_tokens:
                    # A chunk that begins inside a word may have more tokens alone: then its ids in the text are kept.
                    alone = np.concatenate([ids[i][:prefix], ids[i][low:high], ids[i][len(ids[i]) - suffix :]])
                own.append(alone)
            ids[i] = np.concatenate(own)
            cuts[i] = Cuts(np.cumsum([len(each) for each in own]), cuts[i].ends)
        return ids, cuts


def _parts(text: str, cuts: Cuts) -> list[str]:
    return [text[start:end] for start, end in zip([0, *cuts.ends[:-1]], cuts.ends, strict=True)]


def _table(ids: list[npt.NDArray[np.int32]], cuts: list[Cuts], prefix: list[int], suffix: list[int]) -> pa.Table:
    starts = [np.concatenate([[0], each.ends[:-1]]) for each in cuts]
    tokens = [np.diff(each.stops, prepend=0) for each in cuts]
    fields = [_flat(starts), _flat([each.ends for each in cuts]), _flat(tokens)]
    chunks = pa.StructArray.from_arrays([pa.array(field) for field in fields], ["start", "end", "tokens"])
    columns = [
        pa.ListArray.from_arrays(_offsets([len(each) for each in ids]), pa.array(_flat(ids))),
        pa.ListArray.from_arrays(_offsets([len(each.stops) for each in cuts]), chunks),
        pa.array(prefix, pa.int32()),
        pa.array(suffix, pa.int32()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _flat(arrays: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.int32]:
    return np.concatenate([np.zeros(0, np.int32), *arrays]).astype(np.int32)


def _offsets(lengths: list[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
