"""The twin of `families.jina_v2`, whose docstring has the formulas of both variants."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from actors.encoders.alibi import Alibi
from actors.encoders.build import Checkpoint
from actors.encoders.packed import PackedBatch
from actors.encoders.twins.attention import Group, make_groups
from actors.encoders.twins.base import Twin
from actors.encoders.twins.bert import Attention, Embeddings, Layers, Sizes


class GatedA(nn.Module):
    """The MLP of variant A and its norm: the first half of the fused product goes through GELU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(sizes.hidden, 2 * sizes.inner, bias=False)
        self.wo = nn.Linear(sizes.inner, sizes.hidden)
        self.layernorm = sizes.norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        gate, up = self.gated_layers(x).chunk(2, dim=-1)
        states: torch.Tensor = self.layernorm(self.wo(functional.gelu(gate) * up) + x)
        return states


class GatedB(nn.Module):
    """The MLP of variant B: the second half of the fused product goes through GELU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.up_gated_layer = nn.Linear(sizes.hidden, 2 * sizes.inner, bias=False)
        self.down_layer = nn.Linear(sizes.inner, sizes.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        up, gate = self.up_gated_layer(x).chunk(2, dim=-1)
        states: torch.Tensor = self.down_layer(up * functional.gelu(gate))
        return states


class LayerA(nn.Module):
    """One layer of variant A."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.mlp = GatedA(sizes)

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...]) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        states: torch.Tensor = self.mlp(self.attention(x, groups))
        return states


class LayerB(nn.Module):
    """One layer of variant B."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = Attention(sizes, normed=True)
        self.mlp = GatedB(sizes)
        self.layer_norm_1, self.layer_norm_2 = sizes.norm(), sizes.norm()

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...]) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        x = self.layer_norm_1(x + self.attention(x, groups))
        states: torch.Tensor = self.layer_norm_2(x + self.mlp(x))
        return states


class JinaV2Twin(Twin):
    """The encoder: embeddings without positions, and layers."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        sizes = Sizes(checkpoint)
        layer = LayerA if checkpoint.facts.variant == "A" else LayerB
        self.embeddings = Embeddings(sizes, positions=False)
        self.encoder = Layers([layer(sizes) for _ in range(sizes.layers)])
        self.heads = sizes.heads

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden]."""
        x: torch.Tensor = self.embeddings(batch.ids, None)
        groups = make_groups(batch, self.embeddings.LayerNorm.weight, bias=Alibi(self.heads, batch.device))
        states: torch.Tensor = self.encoder(x, groups)
        return states
