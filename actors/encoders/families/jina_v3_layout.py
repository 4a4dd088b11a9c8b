"""Layout of v3 checkpoints (XLM-RoBERTa with RoPE, five LoRA adapters, Matryoshka). Torch-free.

There are three layouts, distinguished by tensor names:

- "hub": query, key and value are fused. Base weights and adapters are in one file, under the names of torch's
  `parametrizations`; the factors have a leading axis with one entry per task.
- "native": the names of transformers' own class, one PEFT folder per task.
- "fused": query, key and value are fused, without parametrizations, with PEFT folders. transformers writes this by default
  when it saves its own class.

`model_type` does not identify the family: the hub's config has "xlm-roberta", and loading it as one gives random weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from actors.encoders.layout import Config, FamilyFacts, Tensors, check_encoder, config_int
from actors.encoders.lora.files import FILES, Target
from actors.errors import ConfigError, ModelError

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
# RoBERTa's `max_position_embeddings` includes this many rows of the position table that no token uses.
RESERVED_POSITIONS = 2

WORDS, TYPES = "embeddings.word_embeddings", "embeddings.token_type_embeddings"


def layout(config: Config, tensors: Tensors) -> FamilyFacts | None:
    """Returns the facts of a v3 checkpoint, or None if it is not one.

    Raises:
        ModelError: It is one, with a setting that is not supported.
    """
    match = _find_variant(config, tensors)
    if match is None:
        return None
    prefix, variant = match
    hidden = check_config(config, "jina_v3")
    # An empty list is a checkpoint without adapters.
    adaptations = config.get("lora_adaptations")
    tasks = TASKS if adaptations is None else tuple(adaptations)
    folders = {} if variant == "hub" else {task: adapter_folder(task) for task in tasks}
    prompts = config.get("task_instructions") or PROMPTS
    return FamilyFacts(
        family="jina_v3",
        variant=variant,
        hidden=hidden,
        vocab_size=config_int(config, "vocab_size"),
        max_tokens=config_int(config, "max_position_embeddings") - RESERVED_POSITIONS,
        needed={f"{prefix}{name}": shape for name, shape in needed(config, variant, len(tasks))},
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


def check_config(config: Config, family: str) -> int:
    """Returns the width of the token states, after a check of the settings that the encoder computes with.

    Raises:
        ModelError: A setting is not supported.
    """
    rope_theta(config)
    for key, known in (("hidden_act", "gelu"), ("position_embedding_type", "rotary")):
        if config.get(key, known) != known:
            raise ModelError(f"config.json has {key} {config[key]!r}; family {family!r} knows {known!r} only.")
    check_encoder(config, family)
    hidden, heads = config_int(config, "hidden_size"), config_int(config, "num_attention_heads")
    if hidden % (2 * heads):
        raise ModelError(f"config.json has hidden_size {hidden}, not a multiple of 2 * num_attention_heads {heads}.")
    return hidden


def adapter_folder(task: str) -> str:
    """Returns the PEFT folder of a task, relative to the checkpoint."""
    return task.replace(".", "_").replace("-", "_")


def check_folders(tasks: Collection[str]) -> None:
    """Raises `ConfigError` if two tasks have the same PEFT folder."""
    owners: dict[str, str] = {}
    for task in tasks:
        other = owners.setdefault(adapter_folder(task), task)
        if other != task:
            raise ConfigError(
                f"tasks {other!r} and {task!r} have one folder, {adapter_folder(task)!r}. Choose another name."
            )


def rope_theta(config: Config) -> float:
    """Returns the base of the rotary frequencies: 20,000 as published, or the config's.

    Raises:
        ModelError: The config asks for another type of RoPE.
    """
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    if kind != "default" or config.get("rope_scaling"):
        raise ModelError(f"config.json asks for RoPE of type {kind!r} or scaled; this family knows 'default' only.")
    # The hub's own code uses 10,000 for a config without a value.
    default = 20_000.0 if config.get("model_type") == NATIVE_TYPE else 10_000.0
    return float(rope.get("rope_theta") or config.get("rotary_emb_base") or config.get("rope_theta") or default)


def linear_names(variant: str, i: int) -> dict[str, tuple[str, ...]]:
    """Returns the linear layers of layer i: our name to the names in the file, to be stacked."""
    if variant == "native":
        layer = f"layers.{i}"
        return {
            "qkv": tuple(f"{layer}.self_attn.{x}_proj" for x in "qkv"),
            "out": (f"{layer}.self_attn.o_proj",),
            "up": (f"{layer}.mlp.fc1",),
            "down": (f"{layer}.mlp.fc2",),
        }
    layer = f"encoder.layers.{i}"
    return {
        "qkv": (f"{layer}.mixer.Wqkv",),
        "out": (f"{layer}.mixer.out_proj",),
        "up": (f"{layer}.mlp.fc1",),
        "down": (f"{layer}.mlp.fc2",),
    }


def norm_names(variant: str, i: int) -> tuple[str, str]:
    """Returns the names of the norms of layer i: after attention, after the MLP."""
    if variant == "native":
        return f"layers.{i}.post_attention_layernorm", f"layers.{i}.post_mlp_layernorm"
    return f"encoder.layers.{i}.norm1", f"encoder.layers.{i}.norm2"


def native_names(config: Config) -> dict[str, tuple[str, ...]]:
    """Returns the names in transformers' class of the modules that have another one in the hub's layout, by the latter.

    Rows of several modules, one after another, are those of the hub's.
    """
    named: dict[str, tuple[str, ...]] = {embedding_norm("hub"): (embedding_norm("native"),)}
    for i in range(config_int(config, "num_hidden_layers")):
        native = linear_names("native", i)
        named |= {hub: native[ours] for ours, (hub,) in linear_names("hub", i).items()}
        named |= {hub: (own,) for hub, own in zip(norm_names("hub", i), norm_names("native", i), strict=True)}
    return named


def embedding_norm(variant: str) -> str:
    """Returns the name of the norm of the embeddings."""
    return "embeddings.LayerNorm" if variant == "native" else "emb_ln"


def weight_name(variant: str, module: str) -> str:
    """Returns the name of a module's base weight."""
    return f"{module}.{ORIGINAL}" if variant == "hub" else f"{module}.weight"


def widths(config: Config) -> dict[str, tuple[int, int]]:
    """Returns (outputs, inputs) of the linear layers, by our names."""
    hidden, inner = config_int(config, "hidden_size"), config_int(config, "intermediate_size")
    return {"qkv": (3 * hidden, hidden), "out": (hidden, hidden), "up": (inner, hidden), "down": (hidden, inner)}


def _find_variant(config: Config, tensors: Tensors) -> tuple[str, str] | None:
    """Returns the prefix of the tensor names and the variant; None if it is not a v3 checkpoint."""
    kind = config.get("model_type")
    for prefix in _PREFIXES:
        fused = [name for name in tensors if name.startswith(f"{prefix}encoder.layers.") and ".mixer." in name]
        if any(".parametrizations." in name for name in fused):
            return prefix, "hub"
        if fused and kind == NATIVE_TYPE:
            return prefix, "fused"
        # Other models of transformers have layers of these names, so the type must match too.
        if kind == NATIVE_TYPE and any(name.startswith(f"{prefix}layers.") for name in tensors):
            return prefix, "native"
    return None


def needed(config: Config, variant: str, tasks: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the tensors of the encoder with their shapes, without the prefix of their names."""
    hidden = config_int(config, "hidden_size")
    rank = config_int(config, "lora_rank") if variant == "hub" else 0
    for name, key in ((WORDS, "vocab_size"), (TYPES, "type_vocab_size")):
        rows = config_int(config, key)
        yield weight_name(variant, name), (rows, hidden)
        if variant == "hub":
            # The factors of an embedding are transposed: rows are looked up in the first.
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
    """Returns the layers that a PEFT adapter may change, under the names of the "native" and of the "fused" layout."""
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
