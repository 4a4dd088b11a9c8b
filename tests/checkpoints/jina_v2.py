"""Writes tiny v2 checkpoints of variants A and B, as on the hub: `model_type` is "bert" in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tests.checkpoints.files import Random, byte_level, white_space, word_piece, write_checkpoint

IMPLEMENTATION = {"A": "jinaai/jina-bert-implementation", "B": "jinaai/jina-bert-v2-qk-post-norm"}
TOKENIZERS = {"word_piece": word_piece, "byte_level": byte_level, "white_space": white_space}


def write_jina_v2(
    folder: Path,
    *,
    variant: str = "A",
    prefix: str = "",
    tokenizer: str = "word_piece",
    hidden: int = 48,
    layers: int = 2,
    heads: int = 12,
    inner: int = 96,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    vocab_rows: int | None = None,
    pooling: dict[str, Any] | None = None,
    max_tokens: int | None = None,
) -> Path:
    """Writes a checkpoint. Of the published ones, small-en has 8 heads and the others 12; base-de, -es and -zh are float16."""
    words: Tokenizer = TOKENIZERS[tokenizer]()
    # Published vocabularies are rounded up: the table has more rows than the tokenizer has tokens.
    vocab = vocab_rows or -(-words.get_vocab_size() // 64) * 64
    random = Random(seed)
    config = {
        "_name_or_path": IMPLEMENTATION[variant],
        "architectures": ["JinaBertForMaskedLM"],
        "auto_map": {"AutoConfig": f"{IMPLEMENTATION[variant]}--configuration_bert.JinaBertConfig"},
        "attention_probs_dropout_prob": 0.0,
        "emb_pooler": "mean",
        "feed_forward_type": "geglu",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 8192,
        "model_max_length": 8192,
        "model_type": "bert",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "position_embedding_type": "alibi",
        "type_vocab_size": 2,
        "vocab_size": vocab,
    }
    tensors = {
        "embeddings.word_embeddings.weight": random.matrix(vocab, hidden, scale=1.0),
        "embeddings.token_type_embeddings.weight": random.matrix(2, hidden, scale=0.5),
        "embeddings.LayerNorm.weight": random.gain(hidden),
        "embeddings.LayerNorm.bias": random.bias(hidden),
        "pooler.dense.weight": random.matrix(hidden, hidden),
        "pooler.dense.bias": random.bias(hidden),
    }

    def linear(name: str, rows: int, columns: int, *, bias: bool = True) -> None:
        tensors[f"{name}.weight"] = random.matrix(rows, columns)
        if bias:
            tensors[f"{name}.bias"] = random.bias(rows)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = random.gain(hidden), random.bias(hidden)

    for i in range(layers):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{name}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        if variant == "A":
            linear(f"{layer}.mlp.gated_layers", 2 * inner, hidden, bias=False)
            linear(f"{layer}.mlp.wo", hidden, inner)
            norm(f"{layer}.mlp.layernorm")
        else:
            norm(f"{layer}.attention.self.layer_norm_q")
            norm(f"{layer}.attention.self.layer_norm_k")
            norm(f"{layer}.layer_norm_1")
            linear(f"{layer}.mlp.up_gated_layer", 2 * inner, hidden, bias=False)
            linear(f"{layer}.mlp.down_layer", hidden, inner)
            norm(f"{layer}.layer_norm_2")
    named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    if prefix:  # a file of the masked language model contains its head too
        named["cls.predictions.bias"] = random.bias(vocab)
        named["cls.predictions.transform.dense.weight"] = random.matrix(hidden, hidden)
    return write_checkpoint(
        folder,
        config=config,
        tensors=named,
        tokenizer=words,
        dtype=dtype,
        pooling=pooling,
        max_tokens=max_tokens,
    )
