"""Token ids for engines that bring no tokenizer of their own: the checkpoint's, through the `tokenizers` package."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer


class TokenIds:
    """Texts to token ids, cut at `max_tokens`."""

    def __init__(self, model: str, max_tokens: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """One list of ids a text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
