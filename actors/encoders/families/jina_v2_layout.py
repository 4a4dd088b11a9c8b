"""Layout of v2 checkpoints (JinaBERT: ALiBi, GEGLU, 8,192 tokens). Torch-free.

The config has `model_type: bert`, as BERT's has. There are two architectures: variant A (small-en, base-en, -de, -zh) and
variant B (base-code), which has `layer_norm_q`. The variant is detected from tensor names, never from the repository's
name.
"""

from __future__ import annotations

from actors.encoders.families.bert_layout import IDLE, attention_targets, table_targets
from actors.encoders.layout import Config, FamilyFacts, Tensors, check_encoder, config_int
from actors.encoders.lora.files import Target
from actors.errors import ModelError

# A tensor of each variant that no other architecture has.
MARKS = {
    "A": "encoder.layer.0.mlp.gated_layers.weight",
    "B": "encoder.layer.0.attention.self.layer_norm_q.weight",
}
_PREFIXES = ("", "bert.")


def layout(config: Config, tensors: Tensors) -> FamilyFacts | None:
    """Returns the facts of a v2 checkpoint, or None if it is not one.

    Raises:
        ModelError: It is one, with a setting that is not supported.
    """
    matches = [(p, variant) for variant, mark in MARKS.items() for p in _PREFIXES if f"{p}{mark}" in tensors]
    if not matches:
        return None
    prefix, variant = matches[-1]
    for key, known in (("position_embedding_type", "alibi"), ("feed_forward_type", "geglu"), ("hidden_act", "gelu")):
        if config.get(key, known) != known:
            raise ModelError(f"config.json has {key} {config[key]!r}; family 'jina_v2' knows {known!r} only.")
    check_encoder(config, "jina_v2")
    hidden, heads = config_int(config, "hidden_size"), config_int(config, "num_attention_heads")
    if hidden % heads:
        raise ModelError(f"config.json has hidden_size {hidden} that num_attention_heads {heads} does not divide.")
    needed: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config_int(config, "vocab_size"), hidden),
        "embeddings.token_type_embeddings.weight": (config_int(config, "type_vocab_size"), hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    inner, targets = config_int(config, "intermediate_size"), table_targets(config, hidden)
    for i in range(config_int(config, "num_hidden_layers")):
        for name, shape in _layer(variant, hidden, inner).items():
            needed[f"encoder.layer.{i}.{name}"] = shape
        targets |= _layer_targets(variant, i, hidden, inner)
    return FamilyFacts(
        family="jina_v2",
        variant=variant,
        hidden=hidden,
        vocab_size=config_int(config, "vocab_size"),
        max_tokens=config_int(config, "max_position_embeddings"),
        needed={f"{prefix}{name}": shape for name, shape in needed.items()},
        ignorable=IDLE,
        prefix=prefix,
        # Published revisions have 512 in one file and 8,192 in another. A new revision must not change the limit.
        trust_repo_max_tokens=False,
        targets=targets,
    )


def _layer_targets(variant: str, i: int, hidden: int, inner: int) -> dict[str, Target]:
    """Returns the layers of layer i that an adapter may change, by their names in files."""
    layer, ours = f"encoder.layer.{i}", f"layers.{i}"
    fused, down = ("gated_layers", "wo") if variant == "A" else ("up_gated_layer", "down_layer")
    gate, up = f"{ours}.mlp.gate", f"{ours}.mlp.up"
    halves = (gate, up) if variant == "A" else (up, gate)
    return {
        **attention_targets(f"{layer}.attention", f"{ours}.attention", hidden),
        f"{layer}.mlp.{fused}": Target(f"{ours}.mlp.fused", hidden, 2 * inner, 0, 2 * inner, halves=halves),
        f"{layer}.mlp.{down}": Target(f"{ours}.mlp.down", inner, hidden, 0, hidden),
    }


def _layer(variant: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int, *, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)

    for name in ("query", "key", "value"):
        linear(f"attention.self.{name}", hidden, hidden)
    linear("attention.output.dense", hidden, hidden)
    norm("attention.output.LayerNorm")
    if variant == "A":
        linear("mlp.gated_layers", 2 * inner, hidden, bias=False)
        linear("mlp.wo", hidden, inner)
        norm("mlp.layernorm")
    else:
        norm("attention.self.layer_norm_q")
        norm("attention.self.layer_norm_k")
        norm("layer_norm_1")
        linear("mlp.up_gated_layer", 2 * inner, hidden, bias=False)
        linear("mlp.down_layer", hidden, inner)
        norm("layer_norm_2")
    return shapes
