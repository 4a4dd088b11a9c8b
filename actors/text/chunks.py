"""Texts to token ids with their chunks, as plain Arrow columns. Torch-free.

Called by the read stage, and by `Encoder.encode_chunks` in a notebook. What is cut where is decided in `chunking`; here
are the tokenizer, the settings' fit to the model, and the shape in which chunked texts travel: one row a text, so that a
text that cannot be encoded can be told from its neighbours, however many chunks it has.
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
from actors.schema import CHUNKS, INPUT_IDS, PREFIX, SUFFIX
from actors.text.chunk_rules import BYS, MODES, By, Chunking, Cuts, Mode, cut
from actors.text.tokenizer import Tokenizer, Whole, without_surrogates

DEFAULT_TOKENS = 512
_DEFAULT_OVERLAP_TOKENS = 512
# Where a tokenizer is asked for everything. A model's own limit is far below.
_NO_LIMIT = 1 << 40

SCHEMA = pa.schema(
    [
        # Split: the ids of all chunks, each with its special tokens and prompt. Late: those of the whole text.
        (INPUT_IDS, pa.list_(pa.int32())),
        # `stop`: where the chunk ends in the ids; `start` and `end`: its characters in the text.
        (CHUNKS, pa.list_(pa.struct([("stop", pa.int32()), ("start", pa.int32()), ("end", pa.int32())]))),
        # Tokens before and behind the text's own; what each window of a long text begins and ends with.
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
    """Settings made whole, and checked against the model.

    Args:
        spec: The model.
        mode: "none", "split" or "late".
        max_tokens: Tokens of text in a chunk; None takes 512, or what the model takes at once where that is less and
            chunks are encoded alone.
        by: "sentence", "paragraph" or "tokens".
        overlap_tokens: Late only; None takes 512, or a quarter of a window where that is less.
        every_task: Rows may have any of the model's tasks, and so any of its prompts.

    Returns:
        None for mode "none".

    Raises:
        ConfigError: A setting is wrong, or is nothing that this model can do.
    """
    for name, value, known in (("mode", mode, MODES), ("by", by, BYS)):
        if value not in known:
            raise ConfigError(f"chunking.{name} {value!r} is not known; use one of {', '.join(known)}.")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"chunking.max_tokens is {max_tokens}, must be 1 or more.")
    if mode != "late" and overlap_tokens is not None:
        raise ConfigError(
            f"chunking.overlap_tokens {overlap_tokens} is for mode late alone (what two windows of a long text share), "
            f"and the mode is {mode}. Leave it out; chunks themselves never overlap."
        )
    if mode == "none":
        return None
    prompts = {spec.prompt, *spec.prompts.values()} if every_task else {spec.prompt}
    own = spec.max_tokens - _overhead(spec, tuple(sorted(prompts)))
    if own < 1:
        raise ConfigError(
            f"max_tokens {spec.max_tokens} of {spec.model} is used up by its special tokens and prompt. Raise it."
        )
    if mode == "split":
        return Chunking("split", _split_tokens(spec, max_tokens, own), by)
    if spec.pooling != "mean":
        raise ConfigError(
            f"chunking.mode late averages the token states of each chunk, which makes sense only for a model whose "
            f"vectors are such averages; {spec.model} takes its vector from one token (pooling {spec.pooling!r}). Use "
            f"mode split."
        )
    return Chunking("late", max_tokens or DEFAULT_TOKENS, by, _overlap(spec, overlap_tokens, own))


def _split_tokens(spec: ModelSpec, asked: int | None, own: int) -> int:
    if asked is None:
        return min(DEFAULT_TOKENS, own)
    if asked > own:
        raise ConfigError(
            f"chunking.max_tokens {asked} does not fit: {spec.model} takes {spec.max_tokens} tokens at once, special "
            f"tokens and prompt included, which leaves {own} to a chunk. Lower it, or raise encoder.max_tokens."
        )
    return asked


def _overlap(spec: ModelSpec, asked: int | None, own: int) -> int:
    if asked is None:
        return min(_DEFAULT_OVERLAP_TOKENS, own // 4)
    if not 0 <= asked <= own // 2:
        raise ConfigError(
            f"chunking.overlap_tokens {asked} is outside 0..{own // 2}, half of the text that {spec.model} takes at "
            f"once: with more, most of it would be computed twice. Lower it, or raise encoder.max_tokens."
        )
    return asked


@lru_cache(maxsize=8)
def _overhead(spec: ModelSpec, prompts: tuple[str, ...]) -> int:
    """Special tokens, and those of the longest prompt."""
    plain = Tokenizer(replace(spec, prompt="", max_tokens=_NO_LIMIT))
    return max(len(whole.ids) for whole in plain.tokenize_whole(prompts))


class Chunker:
    """The tokenizer of a model, and how its texts are cut."""

    def __init__(self, spec: ModelSpec, chunking: Chunking) -> None:
        self.spec = spec
        self.chunking = chunking
        self._tokenizer = Tokenizer(replace(spec, max_tokens=_NO_LIMIT))

    def chunk(self, texts: Sequence[str], tasks: Sequence[str | None] | None = None) -> pa.Table:
        """Texts with their chunks, one row a text (`SCHEMA`).

        Every chunk's characters are `text[start:end]`; one after another they are the text.

        Args:
            texts: Any strings. Lone surrogates are encoded as U+FFFD, and keep their places.
            tasks: One per text (None among them: no task, no prompt); None for all takes the spec's own task.

        Raises:
            ConfigError: A task that the model does not have.
            ValueError: `tasks` has another length than `texts`.
        """
        texts = [without_surrogates(text) for text in texts]
        wholes = self._tokenizer.tokenize_whole(texts, tasks)
        rows = [self._row(text, whole) for text, whole in zip(texts, wholes, strict=True)]
        ids = [row[0] for row in rows]
        cuts = [row[1] for row in rows]
        if self.chunking.mode == "split":
            ids, cuts = self._alone(texts, tasks, ids, cuts, [row[2:] for row in rows])
        return _table(ids, cuts, [row[2] for row in rows], [row[3] for row in rows])

    def _row(self, text: str, whole: Whole) -> tuple[npt.NDArray[np.int32], Cuts, int, int]:
        """Ids, chunks with their stops among them, and how many ids are not the text's own. The rest of what the
        tokenizer said is large, and not kept."""
        cuts = cut(text, whole.starts, whole.ends, max_tokens=self.chunking.max_tokens, by=self.chunking.by)
        stops = cuts.stops + whole.prefix
        stops[-1] = len(whole.ids)  # the last takes the special tokens behind the text, the first those before it
        return whole.ids, Cuts(stops, cuts.ends), whole.prefix, whole.suffix

    def _alone(
        self,
        texts: Sequence[str],
        tasks: Sequence[str | None] | None,
        ids: list[npt.NDArray[np.int32]],
        cuts: list[Cuts],
        around: list[tuple[int, int]],
    ) -> tuple[list[npt.NDArray[np.int32]], list[Cuts]]:
        """Each chunk with ids of its own, as if it were a text: what stands around it changes nothing in it."""
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
                    # Cut out of a word or a character it may become more tokens than it was: then it stays as it was.
                    alone = np.concatenate([ids[i][:prefix], ids[i][low:high], ids[i][len(ids[i]) - suffix :]])
                own.append(alone)
            ids[i] = np.concatenate(own)
            cuts[i] = Cuts(np.cumsum([len(each) for each in own]), cuts[i].ends)
        return ids, cuts


def _parts(text: str, cuts: Cuts) -> list[str]:
    return [text[start:end] for start, end in zip([0, *cuts.ends[:-1]], cuts.ends, strict=True)]


def _table(ids: list[npt.NDArray[np.int32]], cuts: list[Cuts], prefix: list[int], suffix: list[int]) -> pa.Table:
    starts = [np.concatenate([[0], each.ends[:-1]]) for each in cuts]
    fields = [_flat([each.stops for each in cuts]), _flat(starts), _flat([each.ends for each in cuts])]
    chunks = pa.StructArray.from_arrays([pa.array(field) for field in fields], ["stop", "start", "end"])
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
