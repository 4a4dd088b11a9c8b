"""Texts to token ids, with the `tokenizers` package alone: no torch, no transformers.

Called by the read stage, and by `Encoder.encode` in a notebook. Ids go out as one Arrow list array, cut to the
model's limit with special tokens kept.

A text far over the limit is cut before it is tokenized, because tokenizing a whole book to keep 256 tokens is
waste. The cut is at white space, and made again further on if what was kept did not reach the limit, so it
changes no token that is kept. (A text with no white space for thousands of characters is cut in the middle of
that run; only tokens beside the cut, past the limit, can differ.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tokenizers

from actors.encoders.spec import ModelSpec, check_task, folder_of

# Characters kept per token of the limit at the first cut. English has about 4, so one cut nearly always does.
_CHARS_PER_TOKEN = 12


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of some texts.

    Attributes:
        ids: `list<int32>`, one list per text, special tokens and prompt included.
        truncated: bool [n]; the text had more tokens than the limit.
    """

    ids: pa.ListArray
    truncated: npt.NDArray[np.bool_]


class Tokenizer:
    """The tokenizer of one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder_of(spec) / "tokenizer.json"))
        # A published file may carry padding and truncation of its own; ours are the only ones that count.
        self._tokenizer.no_padding()
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
        prepared = [
            self._prepare(text, prompt) for text, prompt in zip(texts, self._prompts(texts, tasks), strict=True)
        ]
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
        return _tokens(encodings)

    def _prompts(self, texts: Sequence[str], tasks: Sequence[str | None] | None) -> Sequence[str]:
        if tasks is None:
            return [self.spec.prompt] * len(texts)
        for task in {task for task in tasks if task is not None}:
            check_task(task, self.spec.tasks, where=self.spec.model)
        # The spec's own task may carry a prompt that the user gave.
        return [self.spec.prompt if task == self.spec.task else self.spec.prompts.get(task or "", "") for task in tasks]

    def _prepare(self, text: str, prompt: str) -> str:
        if prompt:
            text = prompt + text
        if self.spec.lowercase:
            text = text.lower()
        return text

    def _encode(self, texts: list[str]) -> list[tokenizers.Encoding]:
        try:
            encodings: list[tokenizers.Encoding] = self._tokenizer.encode_batch_fast(texts)
        except TypeError:  # a lone surrogate, which has no UTF-8 form
            encodings = self._tokenizer.encode_batch_fast([_without_surrogates(text) for text in texts])
        return encodings

    @staticmethod
    def _too_short(texts: list[str], limits: list[int], encodings: list[tokenizers.Encoding]) -> list[int]:
        """Texts that were cut and yet did not reach the token limit."""
        return [
            i
            for i, (text, limit, encoding) in enumerate(zip(texts, limits, encodings, strict=True))
            if len(text) > limit and not encoding.overflowing
        ]


def _cut(text: str, limit: int) -> str:
    """The first `limit` characters at most, ending before white space where there is some in the last half."""
    if len(text) <= limit:
        return text
    # Only a plain space or line end: what else is white space differs from tokenizer to tokenizer.
    place = max(text.rfind(mark, limit // 2, limit) for mark in " \n")
    return text[: place if place > 0 else limit]


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tokens(encodings: list[tokenizers.Encoding]) -> Tokens:
    lists = [encoding.ids for encoding in encodings]
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(ids) for ids in lists], out=offsets[1:])
    values = np.fromiter(chain.from_iterable(lists), np.int32, count=int(offsets[-1]))
    truncated = np.fromiter((bool(encoding.overflowing) for encoding in encodings), np.bool_, count=len(lists))
    return Tokens(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)), truncated)
