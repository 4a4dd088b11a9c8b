"""jina-embedding v1: the encoder of T5 v1.0, packed.

Pre-norm layers with RMS norms, ReLU, no biases; scores are not scaled by the width of a head; what stands for
positions is one learned number per head and distance, shared by all layers. Token states are summed up in float32
whatever the layers compute in: T5's grow large, and bfloat16 would lose the small steps.
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
    """One block: attention and MLP, each on normed states and added to them."""

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

    def __call__(self, x: torch.Tensor, batch: PackedBatch, bias: RelativeBias) -> torch.Tensor:
        """float32 [tokens, hidden] to the same, in place."""
        query, key, value = self.qkv(self.norm1(x)).view(len(x), 3, self.heads, -1).unbind(1)
        x += self.out(attend(query, key, value, batch, scale=1.0, bias=bias, approximate=self.int8))
        x += self.down(self.up(self.norm2(x)).relu_())
        return x


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
        """What is added to the scores by distance, float32 [heads, 2 * length - 1]."""
        if length > TRAINED_TOKENS:
            raise DataError(f"a row has {length} tokens, family 'jina_v1' takes {TRAINED_TOKENS}. Cut it first.")
        return self._bias[:, TRAINED_TOKENS - length : TRAINED_TOKENS + length - 1]

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Token states [tokens, hidden] in the compute type."""
        x = functional.embedding(batch.ids, self.words).float()
        for layer in self.layers:
            x = layer(x, batch, self.bias)
        return self.norm(x)


def bucket(distance: torch.Tensor, count: int, farthest: int) -> torch.Tensor:
    """The number of the bucket that a distance (key minus query, in tokens) falls into.

    Half of the buckets are for keys behind the query and half for those ahead. Of each half, the first half is for
    one distance each; the others widen by a constant factor up to `farthest`, and the last takes all beyond it.
    """
    side = count // 2
    single = side // 2
    ahead = (distance > 0).long() * side
    far = distance.abs()
    growth = (far.float() / single).clamp_min(1).log() / math.log(farthest / single)
    wide = (single + (growth * (side - single)).long()).clamp_max(side - 1)
    return ahead + torch.where(far < single, far, wide)


def build(checkpoint: Checkpoint, compute: Compute) -> JinaV1:
    """Loads a v1 checkpoint."""
    return JinaV1(checkpoint, compute)
