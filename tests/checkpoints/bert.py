"""Writes tiny BERT or RoBERTa checkpoints, fast enough for whole jobs.

By default every letter is a token, so that different texts have different vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tests.checkpoints.files import Random, byte_level, letters, word_piece, write_checkpoint

TOKENIZERS = {"letters": letters, "word_piece": word_piece, "byte_level": byte_level}


def write_bert(
    folder: Path,
    *,
    seed: int = 0,
    kind: str = "bert",
    prefix: str = "",
    tokenizer: str | Tokenizer = "letters",
    hidden: int = 32,
    layers: int = 2,
    heads: int = 2,
    inner: int = 64,
    positions: int = 64,
    dtype: torch.dtype = torch.float32,
    pooling: dict[str, Any] | None = None,
    max_tokens: int | None = None,
) -> Path:
    """Writes a checkpoint with a pooler and position ids besides the encoder, as old files have them.

    Args:
        kind: "bert", or "xlm-roberta", whose positions begin after the padding id.
        tokenizer: Its name, or the tokenizer itself.
    """
    words = TOKENIZERS[tokenizer]() if isinstance(tokenizer, str) else tokenizer
    vocab = words.get_vocab_size()
    random = Random(seed)
    padding, eps, types, rows = (0, 1e-12, 2, positions) if kind == "bert" else (1, 1e-5, 1, positions + 2)
    config = {
        "architectures": ["BertModel" if kind == "bert" else "XLMRobertaModel"],
        "model_type": kind,
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "layer_norm_eps": eps,
        "max_position_embeddings": rows,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": padding,
        "position_embedding_type": "absolute",
        "type_vocab_size": types,
        "vocab_size": vocab,
    }
    tensors = {
        "embeddings.position_ids": torch.arange(rows)[None],
        "embeddings.word_embeddings.weight": random.matrix(vocab, hidden, scale=1.0),
        "embeddings.position_embeddings.weight": random.matrix(rows, hidden, scale=0.5),
        "embeddings.token_type_embeddings.weight": random.matrix(types, hidden, scale=0.5),
        "embeddings.LayerNorm.weight": random.gain(hidden),
        "embeddings.LayerNorm.bias": random.bias(hidden),
        "pooler.dense.weight": random.matrix(hidden, hidden),
        "pooler.dense.bias": random.bias(hidden),
    }
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        for name, out, into in (
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ):
            tensors[f"{layer}.{name}.weight"] = random.matrix(out, into)
            tensors[f"{layer}.{name}.bias"] = random.bias(out)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors[f"{layer}.{name}.weight"] = random.gain(hidden)
            tensors[f"{layer}.{name}.bias"] = random.bias(hidden)
    return write_checkpoint(
        folder,
        config=config,
        tensors={f"{prefix}{name}": tensor for name, tensor in tensors.items()},
        tokenizer=words,
        dtype=dtype,
        pooling=pooling,
        max_tokens=max_tokens,
    )
