"""Writes tiny v3 checkpoints in their three layouts; one seed gives the same model in each.

- "hub": fused query, key and value, `parametrizations` with a leading axis of five adapters.
- "native": the names of transformers' class, a PEFT folder per task.
- "fused": the hub's names without parametrizations, PEFT folders, as transformers saves its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.checkpoints.files import Random, write_checkpoint, write_json
from tests.checkpoints.unigram import xlm_roberta

TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
PROMPTS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
}
RANK = 4
EMBEDDINGS = ("embeddings.word_embeddings", "embeddings.token_type_embeddings")
_PARAMETRIZED = "parametrizations.weight"
Tensors = dict[str, torch.Tensor]


def write_jina_v3(
    folder: Path,
    *,
    layout: str = "hub",
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    inner: int = 64,
    positions: int = 1200,
    theta: float = 20_000.0,
    dims: tuple[int, ...] = (8, 16, 32),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a checkpoint. The published file has a 16-bit type."""
    tokenizer = xlm_roberta()
    vocab = tokenizer.get_vocab_size()
    random = Random(seed)
    linears: dict[str, tuple[int, int]] = {"pooler.dense": (hidden, hidden)}
    for i in range(layers):
        linears |= {
            f"encoder.layers.{i}.mixer.Wqkv": (3 * hidden, hidden),
            f"encoder.layers.{i}.mixer.out_proj": (hidden, hidden),
            f"encoder.layers.{i}.mlp.fc1": (inner, hidden),
            f"encoder.layers.{i}.mlp.fc2": (hidden, inner),
        }
    base: Tensors = {}
    down: Tensors = {}
    up: Tensors = {}
    for name, rows in zip(EMBEDDINGS, (vocab, 1), strict=True):
        base[f"{name}.weight"] = random.matrix(rows, hidden, scale=1.0)
        down[name] = random.matrix(len(TASKS), rows, RANK, scale=1.0)
        up[name] = random.matrix(len(TASKS), RANK, hidden, scale=1.0)
    for name, (rows, columns) in linears.items():
        base[f"{name}.weight"], base[f"{name}.bias"] = random.matrix(rows, columns), random.bias(rows)
        down[name] = random.matrix(len(TASKS), RANK, columns)
        up[name] = random.matrix(len(TASKS), rows, RANK, scale=1.0)
    for norm in ("emb_ln", *(f"encoder.layers.{i}.norm{n}" for i in range(layers) for n in (1, 2))):
        base[f"{norm}.weight"], base[f"{norm}.bias"] = random.gain(hidden), random.bias(hidden)
    config = {
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": positions + 2,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "vocab_size": vocab,
    }
    if layout == "hub":
        tensors, config = _hub(base, down, up), config | _hub_config(theta, dims)
    else:
        config |= {
            "architectures": ["JinaEmbeddingsV3Model"],
            "matryoshka_dimensions": list(dims),
            "model_type": "jina_embeddings_v3",
            "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        }
        native = layout == "native"
        tensors = _native(base) if native else base
        for k, task in enumerate(TASKS):
            factors = _peft(down, up, k, native=native)
            write_peft(folder / task.replace(".", "_").replace("-", "_"), factors, dtype=dtype)
    return write_checkpoint(folder, config=config, tensors=tensors, tokenizer=tokenizer, dtype=dtype)


def write_peft(
    folder: Path, factors: Mapping[str, torch.Tensor], *, dtype: torch.dtype = torch.float32, **settings: Any
) -> Path:
    """Writes a PEFT folder without PEFT.

    Args:
        factors: The tensors by their whole names in the file.
        settings: Keys of adapter_config.json to add or change.
    """
    folder.mkdir(parents=True, exist_ok=True)
    converted = {name: tensor.to(dtype).contiguous() for name, tensor in factors.items()}
    save_file(converted, folder / "adapter_model.safetensors")
    modules = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in factors})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 1, "bias": "none", "target_modules": modules}
    write_json(folder / "adapter_config.json", config | settings)
    return folder


def _hub_config(theta: float, dims: tuple[int, ...]) -> dict[str, Any]:
    return {
        "architectures": ["XLMRobertaLoRA"],
        "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"},
        "load_trained_adapters": True,
        "lora_adaptations": list(TASKS),
        "lora_alpha": 1,
        "lora_dropout_p": 0.0,
        "lora_main_params_trainable": False,
        "lora_rank": RANK,
        "matryoshka_dimensions": list(dims),
        "model_type": "xlm-roberta",
        "position_embedding_type": "rotary",
        "rotary_emb_base": theta,
        "task_instructions": {task: PROMPTS.get(task, "") for task in TASKS},
        "truncate_dim": None,
        "use_flash_attn": True,
    }


def _hub(base: Tensors, down: Tensors, up: Tensors) -> Tensors:
    tensors = {}
    for name, tensor in base.items():
        module, _, kind = name.rpartition(".")
        adapted = kind == "weight" and module in down
        tensors[f"roberta.{module}.{_PARAMETRIZED}.original" if adapted else f"roberta.{name}"] = tensor
    for module in down:
        tensors[f"roberta.{module}.{_PARAMETRIZED}.0.lora_A"] = down[module]
        tensors[f"roberta.{module}.{_PARAMETRIZED}.0.lora_B"] = up[module]
    return tensors


def _native(base: Tensors) -> Tensors:
    tensors = {}
    for name, tensor in base.items():
        module, _, kind = name.rpartition(".")
        parts = _native_names(module)
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            tensors[f"{part}.{kind}"] = rows
    return tensors


def _peft(down: Tensors, up: Tensors, k: int, *, native: bool) -> Tensors:
    """Returns the factors of adapter k. The "fused" folders keep those of the pooler, which loading ignores."""
    factors = {}
    for module in down:
        if module in EMBEDDINGS:
            factors[f"base_model.model.{module}.lora_embedding_A"] = down[module][k].T
            factors[f"base_model.model.{module}.lora_embedding_B"] = up[module][k].T
        elif not native or module != "pooler.dense":
            parts = _native_names(module) if native else [module]
            for part, rows in zip(parts, up[module][k].chunk(len(parts)), strict=True):
                factors[f"base_model.model.{part}.lora_A.weight"] = down[module][k].clone()
                factors[f"base_model.model.{part}.lora_B.weight"] = rows
    return factors


def _native_names(module: str) -> list[str]:
    module = module.removeprefix("encoder.").replace("emb_ln", "embeddings.LayerNorm")
    module = module.replace("norm1", "post_attention_layernorm").replace("norm2", "post_mlp_layernorm")
    if module.endswith("mixer.Wqkv"):
        return [module.replace("mixer.Wqkv", f"self_attn.{x}_proj") for x in "qkv"]
    return [module.replace("mixer.out_proj", "self_attn.o_proj")]
