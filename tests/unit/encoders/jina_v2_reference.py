"""A second implementation of JinaBERT v2 from its formulas: float64, one text, no packing, dense ALiBi.

Reference for `actors.encoders.families.jina_v2`; shares no code with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file


def slope(head: int, heads: int) -> float:
    """Returns the slope of a head as published, for 8 and for 12 heads."""
    table = {
        4: [2**-2, 2**-4, 2**-6, 2**-8],
        8: [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625],
        12: [2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
    }
    return table[heads][head]


class Reference:
    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        loaded = load_file(folder / "model.safetensors")
        self.w = {name.removeprefix("bert."): tensor.double() for name, tensor in loaded.items()}
        self.code = any("layer_norm_q" in name for name in self.w)

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred**2).mean(-1, keepdim=True)
        normed = centred / torch.sqrt(spread + self.config["layer_norm_eps"])
        return normed * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attention(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        own = f"{layer}.attention.self"
        q, k, v = (self.linear(x, f"{own}.{name}") for name in ("query", "key", "value"))
        if self.code:
            q, k = self.norm(q, f"{own}.layer_norm_q"), self.norm(k, f"{own}.layer_norm_k")
        heads, places = self.config["num_attention_heads"], torch.arange(len(x))
        width = x.shape[1] // heads
        mixed = torch.empty_like(x)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T / width**0.5
            scores -= slope(head, heads) * (places[:, None] - places[None, :]).abs()
            mixed[:, part] = torch.softmax(scores, -1) @ v[:, part]
        return self.linear(mixed, f"{layer}.attention.output.dense")

    def layer(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        half = self.config["intermediate_size"]
        first = self.norm(x + self.attention(x, layer), f"{layer}.attention.output.LayerNorm")
        if self.code:
            second = self.norm(x + first, f"{layer}.layer_norm_1")
            wide = self.linear(second, f"{layer}.mlp.up_gated_layer")
            gated = wide[:, :half] * gelu(wide[:, half:])
            return self.norm(second + self.linear(gated, f"{layer}.mlp.down_layer"), f"{layer}.layer_norm_2")
        wide = self.linear(first, f"{layer}.mlp.gated_layers")
        gated = gelu(wide[:, :half]) * wide[:, half:]
        return self.norm(first + self.linear(gated, f"{layer}.mlp.wo"), f"{layer}.mlp.layernorm")

    def forward(self, ids: list[int]) -> torch.Tensor:
        x = self.w["embeddings.word_embeddings.weight"][ids] + self.w["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(x, "embeddings.LayerNorm")
        for i in range(self.config["num_hidden_layers"]):
            x = self.layer(x, f"encoder.layer.{i}")
        return x

    def states(self, ids: list[int]) -> np.ndarray:
        return self.forward(ids).numpy()

    def vector(self, ids: list[int]) -> np.ndarray:
        mean: np.ndarray = self.states(ids).mean(0)
        mean /= np.linalg.norm(mean)
        return mean


def gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))
