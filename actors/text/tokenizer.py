"""Turns texts into token ids with the `tokenizers` package. Imports neither torch nor transformers.

Called by the read stage and by `Encoder.encode`. `tokenize` returns the ids as one Arrow list array, truncated to the
model's limit with special tokens kept.

A text far longer than the limit is shortened before it is tokenized, because most of its tokens would be dropped. It is
cut at white space. If the kept part does not reach the token limit, it is cut again further on, so the kept tokens are
the same as without the cut. (A text without white space for thousands of characters is cut inside that run. Only tokens
next to the cut, beyond the limit, may differ.)

For chunks, `tokenize_whole` truncates nothing and returns the characters of each token.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from tokenizers import normalizers

from actors.encoders.spec import ModelSpec, check_task, folder_of
from actors.errors import ModelError
from actors.progress_counter import count_progress
from actors.storage.errors import redact

# Characters kept per token of the limit at the first cut. English has about 4, so one cut is nearly always enough.
_CHARS_PER_TOKEN = 12
# Characters of one call to the tokenizer, which then takes about a second. Offsets take about 100 bytes per token until
# they are copied.
_CHARS_AT_ONCE = 4_000_000
# Characters of one call without offsets: fewer are enough, as long as each thread has two texts. A token takes about 150
# bytes until its id is copied, and each text as much as `_TEXT_CHARS` characters.
_CHARS_A_BATCH = 500_000
_TEXT_CHARS = 16
_SURROGATE = re.compile("[\ud800-\udfff]")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of several texts.

    Attributes:
        ids: `list<int32>`, one list per text, special tokens and prompt included.
        truncated: bool [n], True if the text had more tokens than the limit.
    """

    ids: pa.ListArray
    truncated: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Whole:
    """All tokens of one text.

    Attributes:
        ids: int32 [tokens], special tokens and prompt included.
        prefix: Number of ids before those of the text: special tokens and prompt.
        suffix: Number of special tokens after them.
        starts, ends: int64 [tokens - prefix - suffix], characters (indices of the str) of each token of the text, as
            the tokenizer reports them: tokens may share a character, and a token may have none.
    """

    ids: npt.NDArray[np.int32]
    prefix: int
    suffix: int
    starts: Ints
    ends: Ints


def _load(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise ModelError(f"{path} is not a tokenizer ({redact(error)}). Fetch the checkpoint again.") from error


class Tokenizer:
    """Tokenizer of one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._tokenizer = _load(folder_of(spec) / "tokenizer.json")
        # A published file may configure padding and truncation: replace both.
        self._tokenizer.no_padding()
        if spec.lowercase:
            self._tokenizer.normalizer = _lowering(self._tokenizer.normalizer)
        # A marker takes one token of the limit.
        self._limit = spec.max_tokens - (spec.markers is not None)
        self._tokenizer.enable_truncation(self._limit)

    def tokenize(self, texts: Sequence[str], tasks: Sequence[str | None] | None = None) -> Tokens:
        """Return the token ids of `texts`, each with the prompt of its task in front.

        Args:
            texts: Any strings, also empty ones. Lone surrogates become U+FFFD.
            tasks: One per text, where None means no task and no prompt; `tasks=None`: all texts have the spec's task.

        Raises:
            ConfigError: the model does not have a task.
            ValueError: `tasks` and `texts` have different lengths.
        """
        prompts = self._prompts(texts, tasks)
        if len(prompts) != len(texts):
            raise ValueError(f"{len(prompts)} tasks for {len(texts)} texts.")
        parts, of_texts = [_tokens([])], self._tasks(len(texts), tasks)
        limit = _CHARS_PER_TOKEN * self.spec.max_tokens
        lengths = [min(len(text), limit) + _TEXT_CHARS for text in texts]
        chars = min(_CHARS_AT_ONCE, max(_CHARS_A_BATCH, 2 * (os.cpu_count() or 1) * limit))
        for start, stop in _batches(lengths, chars):
            prepared = [self._prepare(texts[i], prompts[i]) for i in range(start, stop)]
            parts.append(self._marked(self._encode_cut(prepared), of_texts[start:stop]))
        ids: pa.ListArray = pa.concat_arrays([part.ids for part in parts])
        return Tokens(ids, np.concatenate([part.truncated for part in parts]))

    def _marked(self, encodings: list[tokenizers.Encoding], tasks: Sequence[str | None]) -> Tokens:
        """Return the tokens of texts, with the markers of their tasks if the model has some."""
        rows = [(encoding.ids, bool(encoding.overflowing)) for encoding in encodings]
        if (markers := self.spec.markers) is not None:
            put = (markers.put(ids, task) for (ids, _), task in zip(rows, tasks, strict=True))
            rows = [(ids, was_cut or cut) for (_, was_cut), (ids, cut) in zip(rows, put, strict=True)]
        return _tokens(rows)

    def prompt_lengths(self, ids: pa.ListArray, tasks: Sequence[str | None] | None = None) -> npt.NDArray[np.int32]:
        """Return how many of the first ids of each text are special tokens and its prompt's.

        Args:
            ids: As `tokenize` returned them.
            tasks: As they were given to it.
        """
        prompts = list(zip(self._prompts(range(len(ids)), tasks), self._tasks(len(ids), tasks), strict=True))
        values, starts = ids.flatten().to_numpy(), ids.offsets.to_numpy()[:-1].astype(np.int64)
        lengths = np.zeros(len(ids), np.int32)
        for key in set(prompts):
            rows = np.flatnonzero([prompt == key for prompt in prompts])
            room = pc.list_value_length(ids).to_numpy()[rows]
            # A token with the end of the prompt and the beginning of the text belongs to the text.
            for place, token in enumerate(self._marked(self._encode_some([key[0]]), [key[1]]).ids[0].as_py()):
                rows, room = rows[room > place], room[room > place]
                is_same = values[starts[rows] + place] == token
                rows, room = rows[is_same], room[is_same]
                lengths[rows] = place + 1
        return lengths

    def _encode_cut(self, prepared: list[str]) -> list[tokenizers.Encoding]:
        """Return encodings of texts that are shortened to well above the model's limit."""
        limits = [_CHARS_PER_TOKEN * self.spec.max_tokens] * len(prepared)
        encodings = self._encode([_cut(text, limit) for text, limit in zip(prepared, limits, strict=True)])
        again = self._too_short(prepared, limits, encodings)
        while again:
            for i in again:
                limits[i] *= 4
            longer = self._encode([_cut(prepared[i], limits[i]) for i in again])
            for i, encoding in zip(again, longer, strict=True):
                encodings[i] = encoding
            again = self._too_short(prepared, limits, encodings)
        return encodings

    def tokenize_whole(self, texts: Sequence[str], tasks: Sequence[str | None] | None = None) -> Iterator[Whole]:
        """Yield all tokens of each text with their offsets, without truncation.

        Args:
            texts: Strings in which each lone surrogate is already replaced by U+FFFD, so that offsets stay valid.
            tasks: See `tokenize`.

        Raises:
            ConfigError: the model does not have a task.
            ValueError: `tasks` and `texts` have different lengths.
        """
        prompts = self._prompts(texts, tasks)
        if len(prompts) != len(texts):
            raise ValueError(f"{len(prompts)} tasks for {len(texts)} texts.")
        for start, stop in _batches([len(text) for text in texts], _CHARS_AT_ONCE):
            prepared = [self._prepare(texts[i], prompts[i]) for i in range(start, stop)]
            self._tokenizer.no_truncation()
            try:
                encodings = self._tokenizer.encode_batch(prepared)
            except Exception as error:
                raise self._tokenizer_error(error) from error
            finally:
                self._tokenizer.enable_truncation(self._limit)
            for i in range(start, stop):
                count_progress()
                yield self._whole(encodings[i - start], prompts[i])

    def _whole(self, encoding: tokenizers.Encoding, prompt: str) -> Whole:
        """Return ids and offsets of one text; the offsets do not count the prompt."""
        offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding.ids)).reshape(-1, 2)
        special = np.array(encoding.special_tokens_mask, bool)
        ordinary = np.flatnonzero(~special)
        first, stop = (int(ordinary[0]), int(ordinary[-1]) + 1) if len(ordinary) else (len(special), len(special))
        if prompt:
            # A token with the end of the prompt and the beginning of the text belongs to the text.
            while first < stop and offsets[first, 1] <= len(prompt):
                first += 1
            offsets = np.maximum(offsets - len(prompt), 0)
        return Whole(
            ids=np.array(encoding.ids, np.int32),
            prefix=first,
            suffix=len(special) - stop,
            starts=offsets[first:stop, 0],
            ends=offsets[first:stop, 1],
        )

    def _tasks(self, count: int, tasks: Sequence[str | None] | None) -> Sequence[str | None]:
        return [self.spec.task] * count if tasks is None else tasks

    def _prompts(self, texts: Sequence[object], tasks: Sequence[str | None] | None) -> Sequence[str]:
        if tasks is None:
            return [self.spec.prompt] * len(texts)
        for task in {task for task in tasks if task is not None}:
            check_task(task, self.spec.tasks, where=self.spec.model)
        # The prompt of the spec's task may be one that the user set.
        return [self.spec.prompt if task == self.spec.task else self.spec.prompts.get(task or "", "") for task in tasks]

    def _prepare(self, text: str, prompt: str) -> str:
        return prompt + text if prompt else text

    def _encode(self, texts: list[str]) -> list[tokenizers.Encoding]:
        encodings: list[tokenizers.Encoding] = []
        for start, stop in _batches([len(text) for text in texts], _CHARS_AT_ONCE):
            encodings += self._encode_some(texts[start:stop])
            count_progress()
        return encodings

    def _encode_some(self, texts: list[str]) -> list[tokenizers.Encoding]:
        try:
            encodings: list[tokenizers.Encoding] = self._tokenizer.encode_batch_fast(texts)
        except TypeError:  # a lone surrogate, which has no UTF-8 form
            encodings = self._tokenizer.encode_batch_fast([without_surrogates(text) for text in texts])
        except Exception as error:  # see `_tokenizer_error`
            raise self._tokenizer_error(error) from error
        return encodings

    def _tokenizer_error(self, error: Exception) -> Exception:
        """Return a ModelError for a plain Exception, which the package raises if a loaded tokenizer does not work."""
        if type(error) is not Exception:
            return error
        return ModelError(
            f"the tokenizer of {self.spec.model!r} cannot tokenize: {error}. Fetch the checkpoint again, or name another"
        )

    @staticmethod
    def _too_short(texts: list[str], limits: list[int], encodings: list[tokenizers.Encoding]) -> list[int]:
        """Return the texts that were cut although their kept part does not reach the token limit."""
        return [
            i
            for i, (text, limit, encoding) in enumerate(zip(texts, limits, encodings, strict=True))
            if len(text) > limit and not encoding.overflowing
        ]


def _batches(lengths: Sequence[int], chars: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of texts with at most `chars` characters together; a longer text is a range of its own."""
    start = 0
    while start < len(lengths):
        stop, size = start + 1, lengths[start]
        while stop < len(lengths) and size + lengths[stop] <= chars:
            size += lengths[stop]
            stop += 1
        yield start, stop
        start = stop


def _cut(text: str, limit: int) -> str:
    """Return at most `limit` characters, ending before the last white space if its second half has any."""
    if len(text) <= limit:
        return text
    # Only space and newline: tokenizers differ in what else is white space.
    end = max(text.rfind(mark, limit // 2, limit) for mark in " \n")
    return text[: end if end > 0 else limit]


def without_surrogates(text: str) -> str:
    """Replace each lone surrogate, which has no UTF-8 form, by U+FFFD; offsets do not change."""
    return _SURROGATE.sub("\ufffd", text)


def _lowering(normalizer: Any) -> Any:
    """Return the normalizer with lower-casing as its first step, if it has no such step.

    Lower-casing is a step of the tokenizer, as in sentence-transformers 6, and is not done on the text before: the
    tokenizer recognises special tokens in the text, such as `[SEP]`, before any step, and they stay as they are.
    """
    # The library's stubs do not declare that a sequence is iterable.
    steps: list[Any] = [*cast(Any, normalizer)] if isinstance(normalizer, normalizers.Sequence) else [normalizer]
    if any(isinstance(step, normalizers.Lowercase) for step in steps):
        return normalizer
    return normalizers.Sequence([normalizers.Lowercase(), *(step for step in steps if step is not None)])


def _tokens(rows: Sequence[tuple[list[int], bool]]) -> Tokens:
    """Return the ids of texts, and whether each was cut."""
    lists = [ids for ids, _ in rows]
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(ids) for ids in lists], out=offsets[1:])
    values = np.fromiter(chain.from_iterable(lists), np.int32, count=int(offsets[-1]))
    truncated = np.fromiter((cut for _, cut in rows), np.bool_, count=len(rows))
    return Tokens(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)), truncated)
