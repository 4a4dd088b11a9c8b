"""jina-embedding v1: the encoder of T5 v1.0, packed.

Pre-norm layers with RMS norms, ReLU and no biases. Scores are not scaled by the width of a head. Positions enter as one
learned bias per head and distance, shared by all layers. The residual stream is float32 whatever the compute type: T5's
states grow large, and bfloat16 would lose small additions.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from actors.encoders.build import Checkpoint
from actors.encoders.compute.attention import RelativeBias, attend
from actors.encoders.compute.device import Compute
from actors.encoders.compute.linear import Linear, RmsNorm
from actors.encoders.families.jina_v1_layout import BIAS, TRAINED_TOKENS, buckets, word_table
from actors.encoders.layout import Config
from actors.encoders.packed import PackedBatch
from actors.encoders.weights import Weights
from actors.errors import DataError


class Layer:
    """One block: attention and MLP, each computed from normed states and added to the residual stream."""

    def __init__(self, weights: Weights, i: int, *, config: Config, compute: Compute) -> None:
        block = f"encoder.block.{i}.layer"
        eps = float(config.get("layer_norm_epsilon", 1e-6))

        def linear(*names: str) -> Linear:
            return Linear(weights.stack(*(f"{block}.{name}.weight" for name in names)), None, compute=compute)

        def norm(name: str) -> RmsNorm:
            return RmsNorm(weights.get(f"{block}.{name}.weight"), eps, compute=compute)

        self.heads, self.int8 = int(config["num_heads"]), compute.int8
        self.norm1, self.norm2 = norm("0.layer_norm"), norm("1.layer_norm")
        self.qkv = linear(*(f"0.SelfAttention.{name}" for name in "qkv"))
        self.out = linear("0.SelfAttention.o")
        self.up, self.down = linear("1.DenseReluDense.wi"), linear("1.DenseReluDense.wo")

    def __call__(
        self, x: torch.Tensor, last: torch.Tensor | None, batch: PackedBatch, bias: RelativeBias
    ) -> torch.Tensor:
        """Adds the previous layer's result and that of attention to float32 [tokens, hidden] in place; returns the MLP's."""
        query, key, value = self.qkv(self.norm1.of_sum_(x, last)).view(len(x), 3, self.heads, -1).unbind(1)
        mixed = attend(query, key, value, batch, scale=1.0, bias=bias, approximate=self.int8)
        return self.down(self.up(self.norm2.of_sum_(x, self.out(mixed))).relu_())


class JinaV1:
    """The encoder: word embeddings and layers."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        config, weights = checkpoint.config, checkpoint.weights
        self.words = weights.get(word_table(checkpoint.facts.needed)).to(compute.device, compute.dtype)
        self.layers = [Layer(weights, i, config=config, compute=compute) for i in range(int(config["num_layers"]))]
        eps = float(config.get("layer_norm_epsilon", 1e-6))
        self.norm = RmsNorm(weights.get("encoder.final_layer_norm.weight"), eps, compute=compute)
        farthest = int(config.get("relative_attention_max_distance", 128))
        numbers = bucket(torch.arange(1 - TRAINED_TOKENS, TRAINED_TOKENS), buckets(config), farthest)
        self._bias = weights.get(BIAS)[numbers].T.contiguous().to(compute.device)

    def bias(self, length: int) -> torch.Tensor:
        """Returns the bias on the scores by distance, float32 [heads, 2 * length - 1]."""
        if length > TRAINED_TOKENS:
            raise DataError(f"a row has {length} tokens, family 'jina_v1' takes {TRAINED_TOKENS}. Cut it first.")
        return self._bias[:, TRAINED_TOKENS - length : TRAINED_TOKENS + length - 1]

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden] in the compute type."""
        x = functional.embedding(batch.ids, self.words).float()
        last = None
        for layer in self.layers:
            last = layer(x, last, batch, self.bias)
        return self.norm.of_sum_(x, last)


def bucket(distance: torch.Tensor, count: int, farthest: int) -> torch.Tensor:
    """Returns the bucket of each distance (key minus query, in tokens).

    Half of the buckets are for keys before the query and half for keys after it. In each half, the first half holds one
    distance per bucket; the others widen by a constant factor up to `farthest`, and the last holds all beyond it.
    """
    per_side = count // 2
    single = per_side // 2
    offset = (distance > 0).long() * per_side
    absolute = distance.abs()
    growth = (absolute.float() / single).clamp_min(1).log() / math.log(farthest / single)
    wide = (single + (growth * (per_side - single)).long()).clamp_max(per_side - 1)
    return offset + torch.where(absolute < single, absolute, wide)


def build(checkpoint: Checkpoint, compute: Compute) -> JinaV1:
    """Loads a v1 checkpoint."""
    return JinaV1(checkpoint, compute)
