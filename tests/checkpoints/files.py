"""Parts shared by all tiny checkpoints: random tensors, small tokenizers, and functions that write the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A table of embeddings is kept true by one small job that runs every night.",
    "def encode(texts: list[str]) -> Vectors:\n    return model(texts)  # 3.14",
    "Der schnelle Fuchs springt, die Sätze fließen, und die Straße ist naß.",
    "El zorro salta; la mañana está fría y el niño duerme.",
    "快速 的 棕色 狐狸 跳过 了 懒惰 的 狗。 向量 表 每天 晚上 更新。",
    "Numbers 0 1 2 3 42 1999 and symbols #!? {} [] <> make up the rest.",
]


class Random:
    """Random tensors, the same for the same seed, scaled so that states neither vanish nor grow from layer to layer."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, *shape: int, scale: float | None = None) -> torch.Tensor:
        """Returns normal values; the default scale keeps the variance through a linear layer."""
        scale = shape[-1] ** -0.5 if scale is None else scale
        return torch.randn(*shape, generator=self._generator) * scale

    def bias(self, size: int) -> torch.Tensor:
        """Returns small values around 0."""
        return torch.randn(size, generator=self._generator) * 0.1

    def gain(self, size: int) -> torch.Tensor:
        """Returns values around 1, for norms."""
        return 1 + torch.randn(size, generator=self._generator) * 0.1


def write_checkpoint(
    folder: Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer,
    max_tokens: int | None = None,
    pooling: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes config.json, model.safetensors, tokenizer.json and, if requested, sentence-transformers' files.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    converted = {name: t.to(dtype).contiguous() if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(converted, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"))
    if max_tokens is not None:
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    if pooling is not None:
        write_modules(folder, pooling)
    return folder


def write_modules(folder: Path, pooling: Mapping[str, Any], *, normalize: bool = True) -> None:
    """Writes modules.json and the pooling config, with a module that normalises unless `normalize` is False."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds if normalize else kinds[:-1])
    ]
    write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", pooling)


def write_json(path: Path, content: object) -> None:
    """Writes `content` as JSON."""
    path.write_text(json.dumps(content, indent=2), "utf-8")


def letters() -> Tokenizer:
    """Returns a WordPiece tokenizer with single letters and digits only: every letter of a word is a token."""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *alphabet, *(f"##{letter}" for letter in alphabet)]
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=10_000))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _add_special(tokenizer, "[CLS]", "[SEP]")


def word_piece(vocab_size: int = 400) -> Tokenizer:
    """Returns a tokenizer like BERT's uncased WordPiece: [CLS] ... [SEP], padding id 0."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    )
    return _add_special(tokenizer, "[CLS]", "[SEP]")


def byte_level(vocab_size: int = 600) -> Tokenizer:
    """Returns a tokenizer like RoBERTa's byte-level BPE: <s> ... </s>, padding id 1."""
    tokenizer = _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), vocab_size)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def white_space(vocab_size: int = 600) -> Tokenizer:
    """Returns a tokenizer like the Chinese v2 model's: BPE with a pre-tokenizer of type "Whitespace"."""
    return _bpe(pre_tokenizers.Whitespace(), vocab_size)


def qwen2(vocab_size: int = 600) -> Tokenizer:
    """Returns a tokenizer like Qwen's byte-level BPE: no special tokens are added; a token may begin with a space."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [f"{prompt}: {text}" for prompt in ("Query", "Passage") for text in SENTENCES],
        trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False),
    )
    # As in the published vocabulary, special tokens follow the words.
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _bpe(pre_tokenizer: Any, vocab_size: int) -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(pre_tokenizer, pre_tokenizers.ByteLevel) else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return _add_special(tokenizer, "<s>", "</s>")


def _add_special(tokenizer: Tokenizer, first: str, last: str) -> Tokenizer:
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ids)
    return tokenizer
