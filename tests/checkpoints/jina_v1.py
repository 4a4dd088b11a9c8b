"""Writes tiny v1 checkpoints: the encoder of T5 v1.0, alone or with its decoder."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.checkpoints.files import Random, write_checkpoint
from tests.checkpoints.unigram import t5


def write_jina_v1(
    folder: Path,
    *,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    width: int = 12,
    inner: int = 64,
    decoder: bool = False,
    words: tuple[str, ...] = ("shared.weight",),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a checkpoint.

    Args:
        width: Width of a head; independent of `hidden`.
        words: The names that the word table is stored under.
    """
    tokenizer = t5()
    # Published vocabularies are rounded up: the table has more rows than the tokenizer has tokens.
    vocab = -(-tokenizer.get_vocab_size() // 128) * 128
    random = Random(seed)
    config = {
        "architectures": ["T5EncoderModel"],
        "d_ff": inner,
        "d_kv": width,
        "d_model": hidden,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "relu",
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "n_positions": 512,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "num_layers": layers,
        "pad_token_id": 0,
        "relative_attention_num_buckets": 32,
        "vocab_size": vocab,
    }
    table = random.matrix(vocab, hidden, scale=1.0)
    tensors = {name: table.clone() for name in words}
    for stack in ("encoder", "decoder") if decoder else ("encoder",):
        for i in range(layers):
            block = f"{stack}.block.{i}.layer"
            attentions = [f"{block}.0.SelfAttention"]
            if stack == "decoder":
                attentions.append(f"{block}.1.EncDecAttention")
            for attention in attentions:
                for name in "qkv":
                    tensors[f"{attention}.{name}.weight"] = random.matrix(heads * width, hidden)
                # Scores are not scaled in T5, so the query weights are small, as in a trained model.
                tensors[f"{attention}.q.weight"] *= width**-0.5
                tensors[f"{attention}.o.weight"] = random.matrix(hidden, heads * width)
            last = len(attentions)
            tensors[f"{block}.{last}.DenseReluDense.wi.weight"] = random.matrix(inner, hidden)
            tensors[f"{block}.{last}.DenseReluDense.wo.weight"] = random.matrix(hidden, inner)
            for n in range(last + 1):
                tensors[f"{block}.{n}.layer_norm.weight"] = random.gain(hidden)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        tensors[bias] = random.matrix(32, heads, scale=1.0)
        tensors[f"{stack}.final_layer_norm.weight"] = random.gain(hidden)
    return write_checkpoint(folder, config=config, tensors=tensors, tokenizer=tokenizer, dtype=dtype)
