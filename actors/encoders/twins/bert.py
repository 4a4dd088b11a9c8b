"""The twin of `families.bert`: BERT, RoBERTa and XLM-RoBERTa with learned positions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from actors.encoders.build import Checkpoint
from actors.encoders.families.bert import position_rows
from actors.encoders.families.bert_layout import position_offset
from actors.encoders.packed import PackedBatch
from actors.encoders.twins.attention import Group, attend, make_groups
from actors.encoders.twins.base import Twin, project


class Sizes:
    """Sizes of a BERT-like config.json."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        self.hidden, self.inner = int(config["hidden_size"]), int(config["intermediate_size"])
        self.heads, self.layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
        self.eps = float(config.get("layer_norm_eps", 1e-12))
        self.words, self.types = int(config["vocab_size"]), int(config["type_vocab_size"])
        self.positions = int(config["max_position_embeddings"])

    def norm(self) -> nn.LayerNorm:
        """Returns a layer norm over the token states."""
        return nn.LayerNorm(self.hidden, eps=self.eps)


class Embeddings(nn.Module):
    """Word, type and position tables, and a norm; every token is of type 0."""

    def __init__(self, sizes: Sizes, *, positions: bool) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.words, sizes.hidden)
        self.token_type_embeddings = nn.Embedding(sizes.types, sizes.hidden)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.hidden) if positions else None
        self.LayerNorm = sizes.norm()

    def forward(self, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """Returns [tokens, hidden] of token ids [tokens] and their rows of the position table, if there is one."""
        x = self.word_embeddings(ids) + self.token_type_embeddings(ids.new_zeros(1))
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(positions)
        states: torch.Tensor = self.LayerNorm(x)
        return states


class Output(nn.Module):
    """A linear layer, the residual, and a norm."""

    def __init__(self, width: int, sizes: Sizes) -> None:
        super().__init__()
        self.dense = nn.Linear(width, sizes.hidden)
        self.LayerNorm = sizes.norm()

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Maps [tokens, width] to [tokens, hidden]."""
        states: torch.Tensor = self.LayerNorm(self.dense(x) + residual)
        return states


class SelfAttention(nn.Module):
    """Query, key and value; with `normed`, query and key are normalised over all heads together."""

    def __init__(self, sizes: Sizes, *, normed: bool = False) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query, self.key, self.value = (nn.Linear(sizes.hidden, sizes.hidden) for _ in range(3))
        self.layer_norm_q = sizes.norm() if normed else None
        self.layer_norm_k = sizes.norm() if normed else None

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...]) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        query, key, value = project(x, self.query, self.key, self.value)
        if self.layer_norm_q is not None and self.layer_norm_k is not None:
            query, key = self.layer_norm_q(query), self.layer_norm_k(key)
        split = (len(x), self.heads, -1)
        query, key, value = (each.view(split) for each in (query, key, value))
        return attend(query, key, value, groups)


class Attention(nn.Module):
    """Attention, the residual, and a norm."""

    def __init__(self, sizes: Sizes, *, normed: bool = False) -> None:
        super().__init__()
        self.self = SelfAttention(sizes, normed=normed)
        self.output = Output(sizes.hidden, sizes)

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...]) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        states: torch.Tensor = self.output(self.self(x, groups), x)
        return states


class Intermediate(nn.Module):
    """A linear layer and the exact GELU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.dense = nn.Linear(sizes.hidden, sizes.inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, inner]."""
        return functional.gelu(self.dense(x))


class BertLayer(nn.Module):
    """One layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.intermediate = Intermediate(sizes)
        self.output = Output(sizes.inner, sizes)

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...]) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        x = self.attention(x, groups)
        states: torch.Tensor = self.output(self.intermediate(x), x)
        return states


class Layers(nn.Module):
    """The layers, named `layer.0` and so on."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...]) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        for layer in self.layer:
            x = layer(x, groups)
        return x


class BertTwin(Twin):
    """The encoder: embeddings and layers."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        sizes = Sizes(checkpoint)
        self.embeddings = Embeddings(sizes, positions=True)
        self.encoder = Layers([BertLayer(sizes) for _ in range(sizes.layers)])
        # RoBERTa's first row in use is that of padding.
        offset = position_offset(checkpoint.config)
        self.padding = offset - 1 if offset else None
        self.positions = sizes.positions - (self.padding or 0)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden]."""
        rows = position_rows(batch, self.padding, self.positions) + (self.padding or 0)
        x: torch.Tensor = self.embeddings(batch.ids, rows)
        states: torch.Tensor = self.encoder(x, make_groups(batch, self.embeddings.word_embeddings.weight))
        return states
