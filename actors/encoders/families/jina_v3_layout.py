"""How a v3 checkpoint (XLM-RoBERTa with RoPE, five LoRA adapters, Matryoshka) looks on disk. Torch-free.

Three layouts are about, told apart by tensor names:

- "hub": query, key and value fused, base weights and adapters in one file, as torch's `parametrizations` names them;
  the factors have a leading axis with one entry per task.
- "native": the names of transformers' own class, one PEFT folder per task.
- "fused": query, key and value fused, no parametrizations, PEFT folders; what transformers writes by default when it
  saves its own class.

`model_type` does not help: the hub's config says "xlm-roberta", and loading it as one gives random weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from actors.encoders.layout import Config, FamilyFacts, Tensors, check_encoder, config_int
from actors.encoders.lora.files import FILES, Target
from actors.errors import ModelError

NATIVE_TYPE = "jina_embeddings_v3"
TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
PROMPTS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
}
DIMS = (32, 64, 128, 256, 512, 768, 1024)
ORIGINAL, DOWN, UP = (f"parametrizations.weight.{name}" for name in ("original", "0.lora_A", "0.lora_B"))
_PREFIXES = ("roberta.", "")
_IDLE = (
    r"(roberta\.)?pooler\.dense\..*",
    r"(roberta\.)?embeddings\.(position_ids|token_type_ids)",
    r"lm_head\..*",
)
# The rows of the position table that RoBERTa's count of positions includes and no token uses.
_RESERVED_POSITIONS = 2

WORDS, TYPES = "embeddings.word_embeddings", "embeddings.token_type_embeddings"


def layout(config: Config, tensors: Tensors) -> FamilyFacts | None:
    """The facts of a v3 checkpoint, or None if it is not one.

    Raises:
        ModelError: It is one, with a setting that is not supported.
    """
    found = _find(config, tensors)
    if found is None:
        return None
    prefix, variant = found
    rope_theta(config)
    for key, known in (("hidden_act", "gelu"), ("position_embedding_type", "rotary")):
        if config.get(key, known) != known:
            raise ModelError(f"config.json has {key} {config[key]!r}; family 'jina_v3' knows {known!r} only.")
    check_encoder(config, "jina_v3")
    hidden, heads = config_int(config, "hidden_size"), config_int(config, "num_attention_heads")
    if hidden % (2 * heads):
        raise ModelError(f"config.json has hidden_size {hidden}, not a multiple of 2 * num_attention_heads {heads}.")
    # An empty list is a checkpoint without adapters.
    said = config.get("lora_adaptations")
    tasks = TASKS if said is None else tuple(said)
    folders = {} if variant == "hub" else {task: task.replace(".", "_").replace("-", "_") for task in tasks}
    prompts = config.get("task_instructions") or PROMPTS
    return FamilyFacts(
        family="jina_v3",
        variant=variant,
        hidden=hidden,
        vocab_size=config_int(config, "vocab_size"),
        max_tokens=config_int(config, "max_position_embeddings") - _RESERVED_POSITIONS,
        needed={f"{prefix}{name}": shape for name, shape in _needed(config, variant, len(tasks))},
        ignorable=_IDLE,
        prefix=prefix,
        tasks=tasks,
        prompts={task: prompts.get(task, "") for task in tasks},
        query_of={"retrieval.passage": "retrieval.query"} if "retrieval.passage" in tasks else {},
        dims=tuple(config.get("matryoshka_dimensions") or [dim for dim in DIMS if dim <= hidden]),
        extra_files=tuple(f"{folder}/{file}" for folder in folders.values() for file in FILES),
        adapters=folders,
        adapters_key="lora_adaptations",
        targets=_targets(config),
    )


def rope_theta(config: Config) -> float:
    """The base of the rotary frequencies: 20,000 as published, but a config may say otherwise.

    Raises:
        ModelError: Another kind of RoPE.
    """
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    if kind != "default" or config.get("rope_scaling"):
        raise ModelError(
            f"config.json asks for RoPE of type {kind!r} or scaled; family 'jina_v3' knows 'default' only."
        )
    # 10,000 is what the hub's own code takes for a config that does not say.
    silent = 20_000.0 if config.get("model_type") == NATIVE_TYPE else 10_000.0
    return float(rope.get("rope_theta") or config.get("rotary_emb_base") or config.get("rope_theta") or silent)


def linear_names(variant: str, i: int) -> dict[str, tuple[str, ...]]:
    """The linear layers of layer i: our name to the names in the file, to be stacked."""
    if variant == "native":
        at = f"layers.{i}"
        return {
            "qkv": tuple(f"{at}.self_attn.{x}_proj" for x in "qkv"),
            "out": (f"{at}.self_attn.o_proj",),
            "up": (f"{at}.mlp.fc1",),
            "down": (f"{at}.mlp.fc2",),
        }
    at = f"encoder.layers.{i}"
    return {
        "qkv": (f"{at}.mixer.Wqkv",),
        "out": (f"{at}.mixer.out_proj",),
        "up": (f"{at}.mlp.fc1",),
        "down": (f"{at}.mlp.fc2",),
    }


def norm_names(variant: str, i: int) -> tuple[str, str]:
    """The norms of layer i: after attention, after the MLP."""
    if variant == "native":
        return f"layers.{i}.post_attention_layernorm", f"layers.{i}.post_mlp_layernorm"
    return f"encoder.layers.{i}.norm1", f"encoder.layers.{i}.norm2"


def embedding_norm(variant: str) -> str:
    """The norm of the embeddings."""
    return "embeddings.LayerNorm" if variant == "native" else "emb_ln"


def weight_name(variant: str, module: str) -> str:
    """Where the base weight of a module is."""
    return f"{module}.{ORIGINAL}" if variant == "hub" else f"{module}.weight"


def widths(config: Config) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the linear layers by our names."""
    hidden, inner = config_int(config, "hidden_size"), config_int(config, "intermediate_size")
    return {"qkv": (3 * hidden, hidden), "out": (hidden, hidden), "up": (inner, hidden), "down": (hidden, inner)}


def _find(config: Config, tensors: Tensors) -> tuple[str, str] | None:
    """Prefix and variant."""
    kind = config.get("model_type")
    for prefix in _PREFIXES:
        fused = [name for name in tensors if name.startswith(f"{prefix}encoder.layers.") and ".mixer." in name]
        if any(".parametrizations." in name for name in fused):
            return prefix, "hub"
        if fused and kind == NATIVE_TYPE:
            return prefix, "fused"
        # Others in transformers have layers of these names, so here the type must be right as well.
        if kind == NATIVE_TYPE and any(name.startswith(f"{prefix}layers.") for name in tensors):
            return prefix, "native"
    return None


def _needed(config: Config, variant: str, tasks: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config_int(config, "hidden_size")
    rank = config_int(config, "lora_rank") if variant == "hub" else 0
    for name, key in ((WORDS, "vocab_size"), (TYPES, "type_vocab_size")):
        rows = config_int(config, key)
        yield weight_name(variant, name), (rows, hidden)
        if variant == "hub":
            # The factors of an embedding are the other way round: rows are looked up in the first.
            yield f"{name}.{DOWN}", (tasks, rows, rank)
            yield f"{name}.{UP}", (tasks, rank, hidden)
    norms = [embedding_norm(variant)]
    shapes = widths(config)
    for i in range(config_int(config, "num_hidden_layers")):
        norms += norm_names(variant, i)
        for ours, names in linear_names(variant, i).items():
            outputs, inputs = shapes[ours]
            for name in names:
                yield weight_name(variant, name), (outputs // len(names), inputs)
                yield f"{name}.bias", (outputs // len(names),)
                if variant == "hub":
                    yield f"{name}.{DOWN}", (tasks, rank, inputs)
                    yield f"{name}.{UP}", (tasks, outputs, rank)
    for norm in norms:
        yield f"{norm}.weight", (hidden,)
        yield f"{norm}.bias", (hidden,)


def _targets(config: Config) -> dict[str, Target]:
    """What a PEFT adapter may change, under the names of either way to write the layers."""
    hidden = config_int(config, "hidden_size")
    targets = {
        name: Target(name, config_int(config, key), hidden, 0, hidden, embedding=True)
        for name, key in ((WORDS, "vocab_size"), (TYPES, "type_vocab_size"))
    }
    targets["pooler.dense"] = Target("pooler.dense", hidden, hidden, 0, hidden, idle=True)
    for i in range(config_int(config, "num_hidden_layers")):
        for variant in ("native", "fused"):
            for ours, names in linear_names(variant, i).items():
                total, inputs = widths(config)[ours]
                each = total // len(names)
                for place, name in enumerate(names):
                    targets[name] = Target(f"layers.{i}.{ours}", inputs, each, place * each, total)
    return targets
