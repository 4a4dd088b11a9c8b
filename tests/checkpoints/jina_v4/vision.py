"""The vision tower of the tiny v4 checkpoints."""

from __future__ import annotations

from typing import Any

import torch

from tests.checkpoints.files import Random

# The published tower has 32 blocks; blocks 7, 15, 23 and 31 attend to the whole picture.
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


def vision_tensors(random: Random, hidden: int) -> dict[str, torch.Tensor]:
    """Returns the tensors of a vision tower."""
    width, inner = VISION["hidden_size"], VISION["intermediate_size"]
    tensors = {"patch_embed.proj.weight": random.matrix(width, 3, 2, 14, 14, scale=0.02)}

    def linear(name: str, rows: int, columns: int) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = random.matrix(rows, columns), random.bias(rows)

    norms = ["merger.ln_q"]
    for i in range(VISION["depth"]):
        linear(f"blocks.{i}.attn.qkv", 3 * width, width)
        linear(f"blocks.{i}.attn.proj", width, width)
        linear(f"blocks.{i}.mlp.gate_proj", inner, width)
        linear(f"blocks.{i}.mlp.up_proj", inner, width)
        linear(f"blocks.{i}.mlp.down_proj", width, inner)
        norms += [f"blocks.{i}.norm1", f"blocks.{i}.norm2"]
    linear("merger.mlp.0", 4 * width, 4 * width)
    linear("merger.mlp.2", hidden, 4 * width)
    for norm in norms:
        tensors[f"{norm}.weight"] = random.gain(width)
    return tensors
