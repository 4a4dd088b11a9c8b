"""The twin of `families.jina_v3`: XLM-RoBERTa with rotary positions. The adapters of its tasks are not in it.

Its modules have the names of the hub's layout, in which query, key and value are one layer, whatever the checkpoint's layout:
an adapter has one down factor for the three, as the hub's layout needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn import functional

from actors.encoders.build import Checkpoint
from actors.encoders.families import jina_v3_layout as names
from actors.encoders.packed import PackedBatch
from actors.encoders.twins.attention import Group, attend, make_groups
from actors.encoders.twins.base import Twin
from actors.encoders.twins.rotary import Angles, angles, rotate
from actors.encoders.weights import Weights


class JinaV3Layer(nn.Module):
    """One post-norm layer."""

    def __init__(self, *, hidden: int, inner: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.mixer = nn.ModuleDict({"Wqkv": nn.Linear(hidden, 3 * hidden), "out_proj": nn.Linear(hidden, hidden)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(hidden, inner), "fc2": nn.Linear(inner, hidden)})
        self.norm1, self.norm2 = nn.LayerNorm(hidden, eps), nn.LayerNorm(hidden, eps)

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...], turned: Angles) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        query, key, value = self.mixer["Wqkv"](x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        mixed = attend(rotate(query, turned), rotate(key, turned), value, groups)
        x = self.norm1(self.mixer["out_proj"](mixed) + x)
        states: torch.Tensor = self.norm2(self.mlp["fc2"](functional.gelu(self.mlp["fc1"](x))) + x)
        return states


class JinaV3Layers(nn.Module):
    """The layers, named `layers.0` and so on."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...], turned: Angles) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        for layer in self.layers:
            x = layer(x, groups, turned)
        return x


class JinaV3Twin(Twin):
    """The encoder: embeddings and layers."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        config = checkpoint.config
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        self.width, self.theta = hidden // heads, names.rope_theta(config)
        eps, inner = float(config.get("layer_norm_eps", 1e-5)), int(config["intermediate_size"])
        rows = {"word_embeddings": int(config["vocab_size"]), "token_type_embeddings": int(config["type_vocab_size"])}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(count, hidden) for name, count in rows.items()})
        self.emb_ln = nn.LayerNorm(hidden, eps)
        self.encoder = JinaV3Layers(
            JinaV3Layer(hidden=hidden, inner=inner, heads=heads, eps=eps)
            for _ in range(int(config["num_hidden_layers"]))
        )

    def read(self, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Twin.read`."""
        for name in self.state_dict():
            module, _, kind = name.rpartition(".")
            parts = self.parts_of(module) if self.facts.variant == "native" else (module,)
            stored = [f"{part}.{kind}" for part in parts]
            adapted = [f"{part}.{names.ORIGINAL}" for part in parts]
            yield name, weights.stack(*(stored if stored[0] in weights else adapted))

    def parts_of(self, module: str) -> tuple[str, ...]:
        """See `Twin.parts_of`."""
        return names.native_names(self.config).get(module, (module,))

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden]."""
        words, types = (self.embeddings[name] for name in ("word_embeddings", "token_type_embeddings"))
        # Every token is of type 0. The table is looked up, because an adapter may change it.
        x: torch.Tensor = self.emb_ln(words(batch.ids) + types(torch.zeros_like(batch.ids)))
        states: torch.Tensor = self.encoder(x, make_groups(batch, x), angles(batch, self.width, self.theta))
        return states
