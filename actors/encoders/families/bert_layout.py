"""Layout of checkpoints of BERT, RoBERTa and XLM-RoBERTa encoders with learned positions. Torch-free.

They are recognised by their tensor names too, because `model_type` is "bert" for other architectures as well.
"""

from __future__ import annotations

from actors.encoders.layout import Config, FamilyFacts, Tensors, check_encoder, config_int
from actors.encoders.lora.files import Target
from actors.errors import ModelError

POSITIONS = "embeddings.position_embeddings.weight"
WORDS, TYPES = "embeddings.word_embeddings", "embeddings.token_type_embeddings"
_PREFIXES = ("", "bert.", "roberta.")
_TYPES = {"bert": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}
IDLE = (
    r"(.*\.)?embeddings\.position_ids",
    r"(.*\.)?embeddings\.token_type_ids",
    r"(.*\.)?pooler\.dense\.(weight|bias)",
    r"cls\..*",
    r"lm_head\..*",
)


def layout(config: Config, tensors: Tensors) -> FamilyFacts | None:
    """Returns the facts of a BERT-like checkpoint, or None if it is not one.

    Raises:
        ModelError: It is one, with a setting that is not supported.
    """
    if config.get("model_type") not in _TYPES:
        return None
    prefix = next((p for p in _PREFIXES if f"{p}{POSITIONS}" in tensors), None)
    if prefix is None:
        return None
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ModelError(f"config.json has position_embedding_type {kind!r}; family 'bert' knows 'absolute' only.")
    act = config.get("hidden_act", "gelu")
    if act != "gelu":
        raise ModelError(f"config.json has hidden_act {act!r}; family 'bert' knows 'gelu' only.")
    check_encoder(config, "bert")
    hidden, inner = config_int(config, "hidden_size"), config_int(config, "intermediate_size")
    heads = config_int(config, "num_attention_heads")
    if hidden % heads:
        raise ModelError(f"config.json has hidden_size {hidden} that num_attention_heads {heads} does not divide.")
    positions = config_int(config, "max_position_embeddings")
    needed: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config_int(config, "vocab_size"), hidden),
        POSITIONS: (positions, hidden),
        "embeddings.token_type_embeddings.weight": (config_int(config, "type_vocab_size"), hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    targets = table_targets(config, hidden)
    for i in range(config_int(config, "num_hidden_layers")):
        layer, ours = f"encoder.layer.{i}", f"layers.{i}"
        targets |= attention_targets(f"{layer}.attention", ours, hidden)
        targets[f"{layer}.intermediate.dense"] = Target(f"{ours}.up", hidden, inner, 0, inner)
        targets[f"{layer}.output.dense"] = Target(f"{ours}.down", inner, hidden, 0, hidden)
        for name, rows, columns in (
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ):
            needed[f"{layer}.{name}.weight"] = (rows, columns)
            needed[f"{layer}.{name}.bias"] = (rows,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            needed[f"{layer}.{name}.weight"] = needed[f"{layer}.{name}.bias"] = (hidden,)
    return FamilyFacts(
        family="bert",
        hidden=hidden,
        vocab_size=config_int(config, "vocab_size"),
        max_tokens=positions - position_offset(config),
        needed={f"{prefix}{name}": shape for name, shape in needed.items()},
        ignorable=IDLE,
        prefix=prefix,
        targets=targets,
    )


def table_targets(config: Config, hidden: int) -> dict[str, Target]:
    """Returns the embeddings that an adapter may change, and the pooler, whose part of an adapter is ignored."""
    tables = {
        name: Target(name, config_int(config, key), hidden, 0, hidden, embedding=True)
        for name, key in ((WORDS, "vocab_size"), (TYPES, "type_vocab_size"))
    }
    return {**tables, "pooler.dense": Target("pooler.dense", hidden, hidden, 0, hidden, idle=True)}


def attention_targets(attention: str, ours: str, hidden: int) -> dict[str, Target]:
    """Returns the linear layers of attention, by their names in files.

    Args:
        attention: Name of the attention in files.
        ours: Our name of what contains the layers `qkv` and `out`.
        hidden: Width of the token states.
    """
    parts = {
        f"{attention}.self.{name}": Target(f"{ours}.qkv", hidden, hidden, place * hidden, 3 * hidden)
        for place, name in enumerate(("query", "key", "value"))
    }
    return {**parts, f"{attention}.output.dense": Target(f"{ours}.out", hidden, hidden, 0, hidden)}


def position_offset(config: Config) -> int:
    """Returns the row of the position table for the first token: RoBERTa starts after its padding id."""
    if _TYPES[config["model_type"]] == 0:
        return 0
    return int(config.get("pad_token_id", 1)) + 1
