"""The twin of `families.jina_v1`: the encoder of T5 v1.0, with the residual stream in float32 or better."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from actors.encoders.build import Checkpoint
from actors.encoders.families.jina_v1 import bucket
from actors.encoders.families.jina_v1_layout import BIAS, TRAINED_TOKENS, buckets, word_table
from actors.encoders.layout import Config
from actors.encoders.packed import PackedBatch
from actors.encoders.twins.attention import Group, attend, make_groups
from actors.encoders.twins.base import Twin, project
from actors.errors import DataError


class SelfAttention(nn.Module):
    """Attention without scaling; the first layer has the bias by distance of all."""

    def __init__(self, config: Config, *, biased: bool) -> None:
        super().__init__()
        hidden, self.heads = int(config["d_model"]), int(config["num_heads"])
        width = self.heads * int(config["d_kv"])
        self.q, self.k, self.v = (nn.Linear(hidden, width, bias=False) for _ in range(3))
        self.o = nn.Linear(width, hidden, bias=False)
        self.relative_attention_bias = nn.Embedding(buckets(config), self.heads) if biased else None

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...]) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        split = (len(x), self.heads, -1)
        query, key, value = (each.view(split) for each in project(x, self.q, self.k, self.v))
        states: torch.Tensor = self.o(attend(query, key, value, groups, scale=1.0))
        return states


class DenseReluDense(nn.Module):
    """The MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, inner = int(config["d_model"]), int(config["d_ff"])
        self.wi = nn.Linear(hidden, inner, bias=False)
        self.wo = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        states: torch.Tensor = self.wo(functional.relu(self.wi(x)))
        return states


class Norm(nn.RMSNorm):
    """An RMS norm with the statistics of the residual stream and the result in the type of the weight."""

    def __init__(self, config: Config) -> None:
        super().__init__(int(config["d_model"]), eps=float(config.get("layer_norm_epsilon", 1e-6)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises [tokens, hidden]."""
        return functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(self.weight.dtype)


class Attention(nn.Module):
    """Attention of normed states, added to the residual stream."""

    def __init__(self, config: Config, *, biased: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, biased=biased)
        self.layer_norm = Norm(config)

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...]) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        states: torch.Tensor = x + self.SelfAttention(self.layer_norm(x), groups)
        return states


class Mlp(nn.Module):
    """The MLP of normed states, added to the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.DenseReluDense = DenseReluDense(config)
        self.layer_norm = Norm(config)

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...]) -> torch.Tensor:  # noqa: ARG002
        """Maps [tokens, hidden] to [tokens, hidden]."""
        states: torch.Tensor = x + self.DenseReluDense(self.layer_norm(x))
        return states


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: Config, *, biased: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Attention(config, biased=biased), Mlp(config)])

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...]) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        for part in self.layer:
            x = part(x, groups)
        return x


class Encoder(nn.Module):
    """The layers and a norm; the word table is here if the file has it under this name."""

    def __init__(self, config: Config, words: nn.Embedding | None) -> None:
        super().__init__()
        if words is not None:
            self.embed_tokens = words
        self.block = nn.ModuleList([Block(config, biased=not i) for i in range(int(config["num_layers"]))])
        self.final_layer_norm = Norm(config)


class JinaV1Twin(Twin):
    """The encoder: word embeddings and layers."""

    copies = r"shared\.weight|(encoder|decoder)\.embed_tokens\.weight"

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        config = checkpoint.config
        words = nn.Embedding(int(config["vocab_size"]), int(config["d_model"]))
        shared = word_table(checkpoint.facts.needed) == "shared.weight"
        if shared:
            self.shared = words
        self.encoder = Encoder(config, None if shared else words)
        self.farthest = int(config.get("relative_attention_max_distance", 128))

    def bias(self, length: int) -> torch.Tensor:
        """Returns the bias on the scores by distance, [heads, 2 * length - 1]."""
        if length > TRAINED_TOKENS:
            raise DataError(f"a row has {length} tokens, family 'jina_v1' takes {TRAINED_TOKENS}. Cut it first.")
        weight = self.get_parameter(BIAS)
        distances = torch.arange(1 - length, length, device=weight.device)
        return weight[bucket(distances, len(weight), self.farthest)].T.contiguous()

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden]."""
        x = functional.embedding(batch.ids, self.get_parameter(word_table(self.facts.needed)))
        groups = make_groups(batch, x, bias=self.bias)
        x = x if x.dtype == torch.float64 else x.float()
        for block in self.encoder.block:
            x = block(x, groups)
        states: torch.Tensor = self.encoder.final_layer_norm(x)
        return states
