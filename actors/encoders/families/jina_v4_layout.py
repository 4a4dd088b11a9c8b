"""Layout of v4 checkpoints (Qwen2.5-VL, three LoRA adapters, Matryoshka). Torch-free.

The language model is read, for pictures the vision tower (`jina_v4_vision_layout`), and for many vectors a row the projector.
There are two kinds of repository, distinguished by `task_names` in the config:

- "adapters": the main one. Its three adapters are in one file of one PEFT folder; the names of the factors contain the
  adapter's name (`...q_proj.lora_A.retrieval.weight`).
- "merged": one task's adapter is merged into the weights, which gives a plain Qwen2.5-VL. The files do not contain the
  name of the task, so its tasks are the two prompts. The published ones have no projector.

The tensor names are those of Qwen2.5-VL before transformers 4.52 (`model.layers`) or since (`model.language_model.layers`).
The config's sizes are in `text_config` or, in old files, at the top level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.encoders.families.jina_v4_vision_layout import tower_prefix, tower_sizes, tower_tensors
from actors.encoders.layout import Config, FamilyFacts, Tensors, config_int
from actors.encoders.lora.files import FILES, Target
from actors.errors import ModelError

# Limit of the publisher's own code for texts; positions beyond are for images.
TRAINED_TOKENS = 32_768
DIMS = (128, 256, 512, 1024, 2048)
PROMPTS = {"query": "Query: ", "passage": "Passage: "}
# The task with one prompt for both sides: the publisher's code puts the query's prompt before passages too.
SYMMETRIC = "text-matching"
FOLDER = "adapters"
WORDS = "embed_tokens"
_PREFIXES = ("model.language_model.", "model.")
_TYPES = ("qwen2_5_vl", "jina_embeddings_v4")
PROJECTOR = "multi_vector_projector"
_IDLE = (r"lm_head\.weight", rf"{PROJECTOR}\.(weight|bias)")
_PROJECTOR_DIM = 128
_THETA = 1_000_000.0


def layout(config: Config, tensors: Tensors) -> FamilyFacts | None:
    """Returns the facts of a v4 checkpoint, or None if it is not one.

    Raises:
        ModelError: It is one, with a setting that is not supported.
    """
    prefix = next((p for p in _PREFIXES if f"{p}layers.0.self_attn.q_proj.weight" in tensors), None)
    if prefix is None or (config.get("model_type") not in _TYPES and "task_names" not in config):
        return None
    text = text_config(config)
    _check(config, text)
    hidden = config_int(text, "hidden_size")
    tower = tower_prefix(tensors)
    adapters = _adapter_names(config)
    sides = {
        adapter: (adapter,) if adapter == SYMMETRIC else tuple(f"{adapter}.{p}" for p in PROMPTS)
        for adapter in adapters
    }
    tasks = tuple(task for group in sides.values() for task in group) or tuple(PROMPTS)
    many = int(config.get("multi_vector_projector_dim") or _PROJECTOR_DIM)
    has_projector = f"{PROJECTOR}.weight" in tensors
    return FamilyFacts(
        family="jina_v4",
        variant="adapters" if adapters else "merged",
        hidden=hidden,
        vocab_size=config_int(text, "vocab_size"),
        max_tokens=min(TRAINED_TOKENS, config_int(text, "max_position_embeddings")),
        needed={f"{prefix}{name}": shape for name, shape in _needed(text).items()} | _tower(config, text, tower),
        tower=tower,
        ignorable=_IDLE,
        prefix=prefix,
        tasks=tasks,
        needs_task=True,
        prompts={task: PROMPTS.get(task.rpartition(".")[2], PROMPTS["query"]) for task in tasks},
        query_of={task: task.removesuffix("passage") + "query" for task in tasks if task.endswith("passage")},
        dims=_dims(config, hidden),
        extra_files=tuple(f"{FOLDER}/{file}" for file in FILES) if adapters else (),
        adapters=dict.fromkeys(adapters, FOLDER),
        shared_adapters=True,
        adapters_key="task_names",
        targets=_targets(text, many),
        multi_dim=many if has_projector else 0,
        multi_needed={f"{PROJECTOR}.weight": (many, hidden), f"{PROJECTOR}.bias": (many,)},
    )


def adapter_of(task: str) -> str:
    """Returns the adapter of a task: the query and the passage task share one and differ in their prompts."""
    return task.removesuffix(".query").removesuffix(".passage")


def text_config(config: Config) -> Config:
    """Returns the settings of the language model: those of `text_config`, if there is one, override the top level's."""
    nested = config.get("text_config") or {}
    if not isinstance(nested, Mapping):
        raise ModelError(
            f"config.json has text_config {nested!r} where settings are needed. Fetch the checkpoint again."
        )
    return {**config, **nested}


def rope_theta(text: Config) -> float:
    """Returns the base of the rotary frequencies.

    Qwen2.5-VL gives each token three positions. For a text's tokens the three are equal, which is plain RoPE.

    Raises:
        ModelError: The config asks for scaled RoPE.
    """
    rope = _rope(text)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ModelError(
            f"config.json asks for RoPE of type {kind!r}; family 'jina_v4' knows 'default' and 'mrope' only."
        )
    return float(rope.get("rope_theta") or text.get("rope_theta") or _THETA)


def rope_sections(text: Config) -> tuple[int, int, int]:
    """Returns the numbers of rotary frequencies that turn by a token's time, row and column.

    Raises:
        ModelError: They are not the frequencies of a head.
    """
    *_, width = head_sizes(text)
    half = width // 2
    quarter = half // 4
    published = [quarter, (half - quarter) // 2, half - quarter - (half - quarter) // 2]
    sections = _rope(text).get("mrope_section") or published
    if not isinstance(sections, list | tuple) or len(sections) != 3 or not all(type(each) is int for each in sections):
        raise ModelError(f"config.json has mrope_section {sections!r} where three whole numbers are needed.")
    if min(sections) < 0 or sum(sections) != half:
        raise ModelError(f"config.json has mrope_section {sections!r}, which must add up to {half}, half of a head.")
    time, row, column = sections
    return time, row, column


def _rope(text: Config) -> Mapping[str, Any]:
    return text.get("rope_parameters") or text.get("rope_scaling") or {}


def head_sizes(text: Config) -> tuple[int, int, int]:
    """Returns the number of query heads, the number of key and value heads, and the width of a head.

    Raises:
        ModelError: The numbers do not divide one another.
    """
    hidden, heads = config_int(text, "hidden_size"), config_int(text, "num_attention_heads")
    groups = heads if text.get("num_key_value_heads") is None else config_int(text, "num_key_value_heads")
    if heads < 1 or hidden % (2 * heads):
        raise ModelError(f"config.json has hidden_size {hidden}, not a multiple of 2 * num_attention_heads {heads}.")
    if groups < 1 or heads % groups:
        raise ModelError(
            f"config.json has num_attention_heads {heads}, not a multiple of num_key_value_heads {groups}."
        )
    return heads, groups, hidden // heads


def linears(text: Config, i: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Names and sizes of the linear layers of layer i.

    Returns:
        Our name to the names in the file, to be stacked, each with (outputs, inputs).
    """
    hidden, inner = config_int(text, "hidden_size"), config_int(text, "intermediate_size")
    heads, groups, width = head_sizes(text)
    attention, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
    return {
        "qkv": {
            f"{attention}.q_proj": (heads * width, hidden),
            f"{attention}.k_proj": (groups * width, hidden),
            f"{attention}.v_proj": (groups * width, hidden),
        },
        "out": {f"{attention}.o_proj": (hidden, heads * width)},
        "gate_up": {f"{mlp}.gate_proj": (inner, hidden), f"{mlp}.up_proj": (inner, hidden)},
        "down": {f"{mlp}.down_proj": (hidden, inner)},
    }


def norm_names(i: int) -> tuple[str, str]:
    """Returns the names of the norms of layer i: before attention, before the MLP."""
    return f"layers.{i}.input_layernorm", f"layers.{i}.post_attention_layernorm"


def _check(config: Config, text: Config) -> None:
    """Raises `ModelError` unless the config describes the architecture implemented in `jina_v4`."""
    for settings, key, known in (
        (text, "hidden_act", "silu"),
        (text, "use_sliding_window", False),
        (config, "single_vector_pool_strategy", "mean"),
    ):
        if settings.get(key, known) != known:
            raise ModelError(f"config.json has {key} {settings[key]!r}; family 'jina_v4' knows {known!r} only.")
    kinds = set(text.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise ModelError(f"config.json has layer_types {sorted(kinds)}; family 'jina_v4' knows 'full_attention' only.")
    *_, width = head_sizes(text)
    if text.get("head_dim", width) not in (None, width):
        raise ModelError(f"config.json has head_dim {text['head_dim']!r} where hidden_size and heads make it {width}.")
    rope_theta(text)


def _adapter_names(config: Config) -> tuple[str, ...]:
    """Returns the names of the checkpoint's own adapters; none if one is merged."""
    names = config.get("task_names") or ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ModelError(f"config.json has task_names {names!r} where a list of names is needed.")
    return tuple(dict.fromkeys(names))


def _dims(config: Config, hidden: int) -> tuple[int, ...]:
    dims = config.get("matryoshka_dims") or DIMS
    if not isinstance(dims, list | tuple) or not all(type(dim) is int for dim in dims):
        raise ModelError(f"config.json has matryoshka_dims {dims!r} where a list of whole numbers is needed.")
    return tuple(sorted(dim for dim in dims if 0 < dim <= hidden))


def _needed(text: Config) -> dict[str, tuple[int, ...]]:
    hidden = config_int(text, "hidden_size")
    needed: dict[str, tuple[int, ...]] = {
        f"{WORDS}.weight": (config_int(text, "vocab_size"), hidden),
        "norm.weight": (hidden,),
    }
    for i in range(config_int(text, "num_hidden_layers")):
        for ours, parts in linears(text, i).items():
            for name, shape in parts.items():
                needed[f"{name}.weight"] = shape
                if ours == "qkv":
                    needed[f"{name}.bias"] = shape[:1]
        for name in norm_names(i):
            needed[f"{name}.weight"] = (hidden,)
    return needed


def _tower(config: Config, text: Config, prefix: str) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of the vision tower, none if there is no prefix."""
    if not prefix:
        return {}
    rope_sections(text)
    tensors = tower_tensors(tower_sizes(config, config_int(text, "hidden_size")))
    return {f"{prefix}{name}": shape for name, shape in tensors.items()}


def _targets(text: Config, many: int) -> dict[str, Target]:
    """Returns the layers that a PEFT adapter may change, by their names within the language model.

    Args:
        text: Settings of the language model.
        many: Outputs of the projector.
    """
    hidden, vocab = config_int(text, "hidden_size"), config_int(text, "vocab_size")
    targets = {
        WORDS: Target(WORDS, vocab, hidden, 0, hidden, embedding=True),
        PROJECTOR: Target("projector", hidden, many, 0, many, idle=True),
    }
    for i in range(config_int(text, "num_hidden_layers")):
        for ours, parts in linears(text, i).items():
            total, start = sum(outputs for outputs, _ in parts.values()), 0
            for name, (outputs, inputs) in parts.items():
                targets[name] = Target(f"layers.{i}.{ours}", inputs, outputs, start, total)
                start += outputs
    return targets
