"""Texts to token ids, with the `tokenizers` package alone: no torch, no transformers.

Called by the read stage, and by `Encoder.encode` in a notebook. Ids go out as one Arrow list array, cut to the
model's limit with special tokens kept.

A text far over the limit is cut before it is tokenized, because tokenizing a whole book to keep 256 tokens is
waste. The cut is at white space, and made again further on if what was kept did not reach the limit, so it
changes no token that is kept. (A text with no white space for thousands of characters is cut in the middle of
that run; only tokens beside the cut, past the limit, can differ.)

For chunks, `tokenize_whole` cuts nothing and says which characters each token stands for.
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
import tokenizers
from tokenizers import normalizers

from actors.encoders.spec import ModelSpec, check_task, folder_of
from actors.errors import ModelError
from actors.progress_counter import count_progress
from actors.storage.errors import redact

# Characters kept per token of the limit at the first cut. English has about 4, so one cut nearly always does.
_CHARS_PER_TOKEN = 12
# Characters that are tokenized at once, in about a second: with their places, which take some 100 bytes a token until they
# are copied, or without.
_CHARS_AT_ONCE = 4_000_000
# Without places fewer are enough, as long as each thread has two texts. A token takes some 150 bytes until its id is copied,
# and a text as much as so many characters.
_CHARS_A_BATCH = 500_000
_TEXT_CHARS = 16
_SURROGATE = re.compile("[\ud800-\udfff]")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of some texts.

    Attributes:
        ids: `list<int32>`, one list per text, special tokens and prompt included.
        truncated: bool [n]; the text had more tokens than the limit.
    """

    ids: pa.ListArray
    truncated: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Whole:
    """All tokens of one text.

    Attributes:
        ids: int32 [tokens], special tokens and prompt included.
        prefix: How many stand before the text's own: special ones and the prompt's.
        suffix: How many special ones stand behind.
        starts, ends: int64 [tokens - prefix - suffix], characters of the text (indices of the str) that each of its
            own tokens stands for. As the tokenizer says it: several may share a character, some may have none.
    """

    ids: npt.NDArray[np.int32]
    prefix: int
    suffix: int
    starts: Ints
    ends: Ints


def _load(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package has no class of its own for this
        raise ModelError(f"{path} is not a tokenizer ({redact(error)}). Fetch the checkpoint again.") from error


class Tokenizer:
    """The tokenizer of one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._tokenizer = _load(folder_of(spec) / "tokenizer.json")
        # A published file may carry padding and truncation of its own; ours are the only ones that count.
        self._tokenizer.no_padding()
        if spec.lowercase:
            self._tokenizer.normalizer = _lowering(self._tokenizer.normalizer)
        self._tokenizer.enable_truncation(spec.max_tokens)

    def tokenize(self, texts: Sequence[str], tasks: Sequence[str | None] | None = None) -> Tokens:
        """Token ids of `texts`, each with the prompt of its task in front.

        Args:
            texts: Any strings, empty ones included. Lone surrogates become U+FFFD.
            tasks: One per text (None among them: no task, no prompt); None for all takes the spec's own task.

        Raises:
            ConfigError: A task that the model does not have.
            ValueError: `tasks` has another length than `texts`.
        """
        prompts = self._prompts(texts, tasks)
        if len(prompts) != len(texts):
            raise ValueError(f"{len(prompts)} tasks for {len(texts)} texts.")
        parts = [_tokens([])]
        limit = _CHARS_PER_TOKEN * self.spec.max_tokens
        lengths = [min(len(text), limit) + _TEXT_CHARS for text in texts]
        chars = min(_CHARS_AT_ONCE, max(_CHARS_A_BATCH, 2 * (os.cpu_count() or 1) * limit))
        for start, stop in _at_once(lengths, chars):
            prepared = [self._prepare(texts[i], prompts[i]) for i in range(start, stop)]
            parts.append(_tokens(self._encode_cut(prepared)))
        ids: pa.ListArray = pa.concat_arrays([part.ids for part in parts])
        return Tokens(ids, np.concatenate([part.truncated for part in parts]))

    def _encode_cut(self, prepared: list[str]) -> list[tokenizers.Encoding]:
        """Encodings of texts that are cut well behind the model's limit."""
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
        """All tokens of each text, however long, and where they are in it.

        Args:
            texts: As for `tokenize`, but with each lone surrogate already a U+FFFD, so that characters keep their
                places.
            tasks: As for `tokenize`.

        Raises:
            ConfigError: A task that the model does not have.
            ValueError: `tasks` has another length than `texts`.
        """
        prompts = self._prompts(texts, tasks)
        if len(prompts) != len(texts):
            raise ValueError(f"{len(prompts)} tasks for {len(texts)} texts.")
        for start, stop in _at_once([len(text) for text in texts], _CHARS_AT_ONCE):
            prepared = [self._prepare(texts[i], prompts[i]) for i in range(start, stop)]
            self._tokenizer.no_truncation()
            try:
                encodings = self._tokenizer.encode_batch(prepared)
            except Exception as error:
                raise self._broken(error) from error
            finally:
                self._tokenizer.enable_truncation(self.spec.max_tokens)
            for i in range(start, stop):
                count_progress()
                yield self._whole(encodings[i - start], prompts[i])

    def _whole(self, encoding: tokenizers.Encoding, prompt: str) -> Whole:
        """Ids and places of one text, the places counted from behind the prompt."""
        places = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding.ids)).reshape(-1, 2)
        special = np.array(encoding.special_tokens_mask, bool)
        own = np.flatnonzero(~special)
        first, stop = (int(own[0]), int(own[-1]) + 1) if len(own) else (len(special), len(special))
        if prompt:
            # A token that takes in the end of the prompt and the beginning of the text is the text's.
            while first < stop and places[first, 1] <= len(prompt):
                first += 1
            places = np.maximum(places - len(prompt), 0)
        return Whole(
            ids=np.array(encoding.ids, np.int32),
            prefix=first,
            suffix=len(special) - stop,
            starts=places[first:stop, 0],
            ends=places[first:stop, 1],
        )

    def _prompts(self, texts: Sequence[str], tasks: Sequence[str | None] | None) -> Sequence[str]:
        if tasks is None:
            return [self.spec.prompt] * len(texts)
        for task in {task for task in tasks if task is not None}:
            check_task(task, self.spec.tasks, where=self.spec.model)
        # The spec's own task may carry a prompt that the user gave.
        return [self.spec.prompt if task == self.spec.task else self.spec.prompts.get(task or "", "") for task in tasks]

    def _prepare(self, text: str, prompt: str) -> str:
        return prompt + text if prompt else text

    def _encode(self, texts: list[str]) -> list[tokenizers.Encoding]:
        encodings: list[tokenizers.Encoding] = []
        for start, stop in _at_once([len(text) for text in texts], _CHARS_AT_ONCE):
            encodings += self._encode_some(texts[start:stop])
            count_progress()
        return encodings

    def _encode_some(self, texts: list[str]) -> list[tokenizers.Encoding]:
        try:
            encodings: list[tokenizers.Encoding] = self._tokenizer.encode_batch_fast(texts)
        except TypeError:  # a lone surrogate, which has no UTF-8 form
            encodings = self._tokenizer.encode_batch_fast([without_surrogates(text) for text in texts])
        except Exception as error:  # see `_broken`
            raise self._broken(error) from error
        return encodings

    def _broken(self, error: Exception) -> Exception:
        """What to raise where a tokenizer loads and then cannot do it: the package has no class of its own for that."""
        if type(error) is not Exception:
            return error
        return ModelError(
            f"the tokenizer of {self.spec.model!r} cannot tokenize: {error}. Fetch the checkpoint again, or name another"
        )

    @staticmethod
    def _too_short(texts: list[str], limits: list[int], encodings: list[tokenizers.Encoding]) -> list[int]:
        """Texts that were cut and yet did not reach the token limit."""
        return [
            i
            for i, (text, limit, encoding) in enumerate(zip(texts, limits, encodings, strict=True))
            if len(text) > limit and not encoding.overflowing
        ]


def _at_once(lengths: Sequence[int], chars: int) -> Iterator[tuple[int, int]]:
    """Ranges of texts of these lengths that have at most `chars` characters together, or are one."""
    start = 0
    while start < len(lengths):
        stop, size = start + 1, lengths[start]
        while stop < len(lengths) and size + lengths[stop] <= chars:
            size += lengths[stop]
            stop += 1
        yield start, stop
        start = stop


def _cut(text: str, limit: int) -> str:
    """The first `limit` characters at most, ending before white space where there is some in the last half."""
    if len(text) <= limit:
        return text
    # Only a plain space or line end: what else is white space differs from tokenizer to tokenizer.
    place = max(text.rfind(mark, limit // 2, limit) for mark in " \n")
    return text[: place if place > 0 else limit]


def without_surrogates(text: str) -> str:
    """Surrogates, which have no UTF-8 form, become U+FFFD one by one, so that no other character moves."""
    return _SURROGATE.sub("\ufffd", text)


def _lowering(normalizer: Any) -> Any:
    """The normalizer with lower-casing first, where it has none of its own.

    It is a step of the tokenizer, as in sentence-transformers 6, and not of the text before it: what the tokenizer takes for
    a special token, such as `[SEP]`, is found before any step, and stays one.
    """
    # The library's stubs do not say that a sequence is iterable.
    steps: list[Any] = [*cast(Any, normalizer)] if isinstance(normalizer, normalizers.Sequence) else [normalizer]
    if any(isinstance(step, normalizers.Lowercase) for step in steps):
        return normalizer
    return normalizers.Sequence([normalizers.Lowercase(), *(step for step in steps if step is not None)])


def _tokens(encodings: list[tokenizers.Encoding]) -> Tokens:
    lists = [encoding.ids for encoding in encodings]
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(ids) for ids in lists], out=offsets[1:])
    values = np.fromiter(chain.from_iterable(lists), np.int32, count=int(offsets[-1]))
    truncated = np.fromiter((bool(encoding.overflowing) for encoding in encodings), np.bool_, count=len(lists))
    return Tokens(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)), truncated)
