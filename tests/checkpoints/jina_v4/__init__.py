"""Writes tiny v4 checkpoints in their layouts; one seed gives the same model in each.

- The main repository: Qwen2.5-VL with its vision tower, the projector of the multi-vector output, and one PEFT folder with
  the adapters of all tasks in one file. Tensors have the names from before transformers 4.52 ("old") or since ("new").
  The file of the preprocessor has the published bounds.
- One task's adapter merged into a plain Qwen2.5-VL, without projector and adapters.

    python -m tests.checkpoints.jina_v4 FOLDER     # writes the main repository
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.checkpoints.files import Random, qwen2, write_checkpoint, write_json
from tests.checkpoints.jina_v4.vision import PREPROCESSOR, VISION, vision_tensors

ADAPTERS = ("retrieval", "text-matching", "code")
TASKS = ("retrieval.query", "retrieval.passage", "text-matching", "code.query", "code.passage")
PROMPTS = dict(zip(TASKS, ("Query: ", "Passage: ", "Query: ", "Query: ", "Passage: "), strict=True))
# Names of token ids in the config.
SPECIAL = {
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "image_token_id": "<|image_pad|>",
    "vision_end_token_id": "<|vision_end|>",
    "vision_start_token_id": "<|vision_start|>",
}
_PREFIXES = {"old": ("model", "visual"), "new": ("model.language_model", "model.visual")}
Tensors = dict[str, torch.Tensor]


def write_jina_v4(
    folder: Path,
    *,
    keys: str = "old",
    merged: str | None = None,
    nested: bool = True,
    vision: dict[str, Any] | None = VISION,
    max_pixels: int = 602_112,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    groups: int = 2,
    inner: int = 64,
    positions: int = 1200,
    theta: float = 1_000_000.0,
    rank: int = 4,
    alpha: int = 8,
    dims: tuple[int, ...] = (8, 16, 32, 64),
    projector_dim: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a checkpoint. The published files are bfloat16; each tensor is converted as soon as it is made.

    Args:
        folder: Target folder.
        keys: "old" or "new" tensor names.
        merged: The adapter to merge; None writes the main repository.
        nested: Put the sizes into `text_config`; if False, at the top level as in old files.
        vision: Sizes of the vision tower; None leaves it out.
        max_pixels: Upper bound of pictures, as in the published main repository.
        hidden, layers, heads, groups, inner: Sizes; `groups` is the number of key and value heads.
        positions: `max_position_embeddings`.
        theta: Base of the rotary frequencies.
        rank, alpha: Rank and alpha of the adapters; the published ones have 32 and 32.
        dims: `matryoshka_dims`.
        projector_dim: Width of the vectors of late interaction.
        seed: Seed of all random numbers.
        dtype: Type of the tensors in the files.
    """
    tokenizer = qwen2()
    # The published table has more rows than the tokenizer has tokens.
    vocab = -(-tokenizer.get_vocab_size() // 128) * 128
    random = Random(seed)
    width = hidden // heads
    language, tower = _PREFIXES[keys]
    tensors: Tensors = {f"{language}.embed_tokens.weight": random.matrix(vocab, hidden, scale=1.0).to(dtype)}
    factors: Tensors = {}

    def linear(name: str, rows: int, columns: int, *, bias: bool = False) -> None:
        weight = random.matrix(rows, columns)
        for adapter in ADAPTERS:
            down, up = random.matrix(rank, columns), random.matrix(rows, rank, scale=0.3)
            if adapter == merged:
                weight += alpha / rank * (up @ down)
            elif merged is None:
                stem = f"base_model.model.model.language_model.{name}"
                factors[f"{stem}.lora_A.{adapter}.weight"] = down.to(dtype)
                factors[f"{stem}.lora_B.{adapter}.weight"] = up.to(dtype)
        tensors[f"{language}.{name}.weight"] = weight.to(dtype)
        if bias:
            tensors[f"{language}.{name}.bias"] = random.bias(rows).to(dtype)

    for i in range(layers):
        for name, rows in (("q", heads * width), ("k", groups * width), ("v", groups * width)):
            linear(f"layers.{i}.self_attn.{name}_proj", rows, hidden, bias=True)
        linear(f"layers.{i}.self_attn.o_proj", hidden, heads * width)
        linear(f"layers.{i}.mlp.gate_proj", inner, hidden)
        linear(f"layers.{i}.mlp.up_proj", inner, hidden)
        linear(f"layers.{i}.mlp.down_proj", hidden, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{language}.layers.{i}.{norm}.weight"] = random.gain(hidden).to(dtype)
    tensors[f"{language}.norm.weight"] = random.gain(hidden).to(dtype)
    if vision:
        made = vision_tensors(random, hidden, vision, dtype)
        tensors |= {f"{tower}.{name}": tensor for name, tensor in made.items()}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "preprocessor_config.json", {**PREPROCESSOR, "max_pixels": max_pixels})
    text: dict[str, Any] = {
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": groups,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"mrope_section": _sections(width), "rope_type": "default", "type": "default"},
        "rope_theta": theta,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "vocab_size": vocab,
    }
    ids = {key: tokenizer.token_to_id(token) for key, token in SPECIAL.items()}
    config: dict[str, Any] = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "vision_config": {**(vision or VISION), "out_hidden_size": hidden},
        **({"text_config": {**text, **ids, "model_type": "qwen2_5_vl_text"}} if nested else text),
        **ids,
    }
    if merged is None:
        config |= {
            "architectures": ["JinaEmbeddingsV4Model"],
            "matryoshka_dims": list(dims),
            "multi_vector_projector_dim": projector_dim,
            "single_vector_pool_strategy": "mean",
            "task_names": list(ADAPTERS),
            "truncate_dim": None,
        }
        tensors["multi_vector_projector.weight"] = random.matrix(projector_dim, hidden).to(dtype)
        tensors["multi_vector_projector.bias"] = random.bias(projector_dim).to(dtype)
        for adapter in ADAPTERS:
            stem = f"base_model.model.multi_vector_projector.lora_{{}}.{adapter}.weight"
            factors[stem.format("A")] = random.matrix(rank, hidden).to(dtype)
            factors[stem.format("B")] = random.matrix(projector_dim, rank).to(dtype)
        write_shared_peft(folder / "adapters", factors, rank=rank, alpha=alpha)
    return write_checkpoint(folder, config=config, tensors=tensors, tokenizer=tokenizer, dtype=dtype)


def write_shared_peft(folder: Path, factors: Tensors, *, rank: int, alpha: int) -> Path:
    """Writes the folder of all adapters as the publisher's training does; `factors` has their full names as keys."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors")
    config = {
        "alpha_pattern": {},
        "bias": "none",
        "exclude_modules": ".*visual.*",
        "fan_in_fan_out": False,
        "init_lora_weights": "gaussian",
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": "(.*(model).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$|.*(multi_vector_projector).*$)",
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": False,
    }
    write_json(folder / "adapter_config.json", config)
    return folder


def edit(folder: Path, copy: Path, *, text: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Copies a checkpoint and changes its config, with `text` for `text_config`; None removes a key."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | settings
    config["text_config"] |= text or {}
    config["text_config"] = {key: value for key, value in config["text_config"].items() if value is not None}
    (copy / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    return copy


def _sections(width: int) -> list[int]:
    """Returns the frequencies per axis of a position (three axes); as published, one quarter and twice three eighths."""
    half = width // 2
    first = half // 4
    second = (half - first) // 2
    return [first, second, half - first - second]
