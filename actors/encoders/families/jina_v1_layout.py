"""Layout of v1 checkpoints (the encoder of T5 v1.0). Torch-free.

A file may hold the encoder alone or the whole T5; the decoder's tensors are ignored by name. Later T5 models have a gated
MLP and are not supported.
"""

from __future__ import annotations

from collections.abc import Container

from actors.encoders.layout import Config, FamilyFacts, Tensors, config_int
from actors.errors import ModelError

TRAINED_TOKENS = 512
_WORDS = ("shared.weight", "encoder.embed_tokens.weight")
_IDLE = (r"decoder\..*", r"lm_head\..*")
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def layout(config: Config, tensors: Tensors) -> FamilyFacts | None:
    """Returns the facts of a v1 checkpoint, or None if it is not one.

    Raises:
        ModelError: It is a T5 of another version.
    """
    if config.get("model_type") != "t5" or not any(name.startswith("encoder.block.") for name in tensors):
        return None
    kind = config.get("feed_forward_proj", "relu")
    if kind != "relu":
        raise ModelError(f"config.json has feed_forward_proj {kind!r}; family 'jina_v1' (T5 v1.0) knows 'relu' only.")
    hidden, inner = config_int(config, "d_model"), config_int(config, "d_ff")
    heads = config_int(config, "num_heads")
    attended = heads * config_int(config, "d_kv")
    words = word_table(tensors)
    needed: dict[str, tuple[int, ...]] = {
        words: (config_int(config, "vocab_size"), hidden),
        BIAS: (buckets(config), heads),
        "encoder.final_layer_norm.weight": (hidden,),
    }
    for i in range(config_int(config, "num_layers")):
        block = f"encoder.block.{i}.layer"
        for name in "qkv":
            needed[f"{block}.0.SelfAttention.{name}.weight"] = (attended, hidden)
        needed[f"{block}.0.SelfAttention.o.weight"] = (hidden, attended)
        needed[f"{block}.1.DenseReluDense.wi.weight"] = (inner, hidden)
        needed[f"{block}.1.DenseReluDense.wo.weight"] = (hidden, inner)
        needed[f"{block}.0.layer_norm.weight"] = needed[f"{block}.1.layer_norm.weight"] = (hidden,)
    return FamilyFacts(
        family="jina_v1",
        hidden=hidden,
        vocab_size=config_int(config, "vocab_size"),
        max_tokens=TRAINED_TOKENS,
        needed=needed,
        # The word table is stored under one of two names, or under both.
        ignorable=(*_IDLE, *(name.replace(".", r"\.") for name in _WORDS if name != words)),
    )


def word_table(tensors: Container[str]) -> str:
    """Returns the name of the word table in this file."""
    return next((name for name in _WORDS if name in tensors), _WORDS[0])


def buckets(config: Config) -> int:
    """Returns the number of buckets of relative positions."""
    return int(config.get("relative_attention_num_buckets", 32))
