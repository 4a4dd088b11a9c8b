"""Writes tiny jina-colbert-v2 checkpoints: v3's encoder without adapters, and the projection of the tokens."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.checkpoints.files import Random, write_checkpoint
from tests.checkpoints.unigram import xlm_roberta

# The last tokens of the published vocabulary, in this order.
ADDED = ("<mask>", "[QueryMarker]", "[DocumentMarker]")


def write_jina_colbert_v2(
    folder: Path,
    *,
    width: int = 128,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    inner: int = 64,
    positions: int = 600,
    added: tuple[str, ...] = ADDED,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a checkpoint. The published file has a 16-bit type."""
    tokenizer = xlm_roberta()
    tokenizer.add_special_tokens(list(added))
    vocab = tokenizer.get_vocab_size()
    random = Random(seed)
    tensors = {
        "linear.weight": random.matrix(width, hidden),
        "roberta.embeddings.word_embeddings.weight": random.matrix(vocab, hidden, scale=1.0),
        "roberta.embeddings.token_type_embeddings.weight": random.matrix(1, hidden, scale=1.0),
    }
    linears: dict[str, tuple[int, int]] = {"pooler.dense": (hidden, hidden)}
    norms = ["emb_ln"]
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        linears |= {
            f"{layer}.mixer.Wqkv": (3 * hidden, hidden),
            f"{layer}.mixer.out_proj": (hidden, hidden),
            f"{layer}.mlp.fc1": (inner, hidden),
            f"{layer}.mlp.fc2": (hidden, inner),
        }
        norms += [f"{layer}.norm1", f"{layer}.norm2"]
    for name, (rows, columns) in linears.items():
        tensors[f"roberta.{name}.weight"] = random.matrix(rows, columns)
        tensors[f"roberta.{name}.bias"] = random.bias(rows)
    for name in norms:
        tensors[f"roberta.{name}.weight"], tensors[f"roberta.{name}.bias"] = random.gain(hidden), random.bias(hidden)
    config = {
        "architectures": ["HF_ColBERT"],
        "auto_map": {
            "AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_xlm_roberta.XLMRobertaModel",
        },
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": positions + 2,
        "model_type": "xlm-roberta",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "position_embedding_type": "rotary",
        "type_vocab_size": 1,
        "use_flash_attn": True,
        "vocab_size": vocab,
    }
    return write_checkpoint(folder, config=config, tensors=tensors, tokenizer=tokenizer, dtype=dtype)
