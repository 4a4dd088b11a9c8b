"""The vision tower of the tiny v4 checkpoints."""

from __future__ import annotations

from typing import Any

import torch

from tests.checkpoints.files import Random

VISION: dict[str, Any] = {
    "depth": 3,
    "fullatt_block_indexes": [1],
    "hidden_act": "silu",
    "hidden_size": 32,
    "in_chans": 3,
    "intermediate_size": 40,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
}
PUBLISHED_VISION = {
    **VISION, "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
}  # fmt: skip
PREPROCESSOR = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 602_112,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "JinaEmbeddingsV4Processor",
    "temporal_patch_size": 2,
}


def vision_tensors(random: Random, hidden: int, sizes: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Returns the tensors of a vision tower; `hidden` is the width of the language model."""
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    tensors = {"patch_embed.proj.weight": random.matrix(width, 3, 2, 14, 14, scale=0.02).to(dtype)}

    def linear(name: str, rows: int, columns: int) -> None:
        tensors[f"{name}.weight"] = random.matrix(rows, columns).to(dtype)
        tensors[f"{name}.bias"] = random.bias(rows).to(dtype)

    norms = ["merger.ln_q"]
    for i in range(sizes["depth"]):
        linear(f"blocks.{i}.attn.qkv", 3 * width, width)
        linear(f"blocks.{i}.attn.proj", width, width)
        linear(f"blocks.{i}.mlp.gate_proj", inner, width)
        linear(f"blocks.{i}.mlp.up_proj", inner, width)
        linear(f"blocks.{i}.mlp.down_proj", width, inner)
        norms += [f"blocks.{i}.norm1", f"blocks.{i}.norm2"]
    linear("merger.mlp.0", 4 * width, 4 * width)
    linear("merger.mlp.2", hidden, 4 * width)
    for norm in norms:
        tensors[f"{norm}.weight"] = random.gain(width).to(dtype)
    return tensors
