"""BERT, RoBERTa and XLM-RoBERTa encoders with learned positions (all-MiniLM, E5, BGE and the like), packed.

Post-norm layers: attention, add, norm, MLP with exact GELU, add, norm. Query, key and value are one product; the
addition of the residual is fused into the product before it. LoRA adapters are kept beside the weights, as in `jina_v3`.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from actors.encoders.build import Checkpoint
from actors.encoders.compute.attention import attend
from actors.encoders.compute.device import Compute
from actors.encoders.compute.linear import LayerNorm, Linear
from actors.encoders.families.bert_layout import TYPES, WORDS, position_offset
from actors.encoders.lora.store import AdapterStore, Adding, adding
from actors.encoders.packed import PackedBatch
from actors.encoders.weights import Weights
from actors.errors import DataError


class BertLayer:
    """One layer."""

    def __init__(self, weights: Weights, name: str, *, heads: int, eps: float, compute: Compute) -> None:
        def linear(*parts: str, gelu: bool = False) -> Linear:
            names = [f"{name}.{part}" for part in parts]
            weight, bias = (weights.stack(*(f"{n}.{kind}" for n in names)) for kind in ("weight", "bias"))
            return Linear(weight, bias, compute=compute, gelu=gelu)

        def norm(part: str) -> LayerNorm:
            weight, bias = weights.get(f"{name}.{part}.weight"), weights.get(f"{name}.{part}.bias")
            return LayerNorm(weight, bias, eps, compute=compute)

        self.heads, self.int8 = heads, compute.int8
        self.qkv = linear("attention.self.query", "attention.self.key", "attention.self.value")
        self.out = linear("attention.output.dense")
        self.norm1 = norm("attention.output.LayerNorm")
        self.up = linear("intermediate.dense", gelu=True)
        self.down = linear("output.dense")
        self.norm2 = norm("output.LayerNorm")

    def __call__(self, x: torch.Tensor, batch: PackedBatch, add: Adding) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        query, key, value = self.qkv(x, add("qkv", x)).view(len(x), 3, self.heads, -1).unbind(1)
        mixed = attend(query, key, value, batch, approximate=self.int8)
        x = self.norm1.after(self.out, mixed, x, add=add("out", mixed))
        wide = self.up(x, add("up", x))
        return self.norm2.after(self.down, wide, x, add=add("down", wide))


class Bert:
    """The encoder: embeddings and layers."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        config, weights = checkpoint.config, checkpoint.weights
        eps = float(config.get("layer_norm_eps", 1e-12))
        self.words = weights.get("embeddings.word_embeddings.weight").to(compute.device, compute.dtype)
        # Every token is of type 0, so the row of type 0 is added to the position table at load.
        types = weights.get("embeddings.token_type_embeddings.weight")[0]
        offset = position_offset(config)
        # RoBERTa counts positions from 1; row 0 of the slice is for padding.
        self.padding = offset - 1 if offset else None
        first = offset - 1 if offset else 0
        positions = weights.get("embeddings.position_embeddings.weight")[first:] + types
        self.positions = positions.to(compute.device, compute.dtype)
        self.norm = LayerNorm(
            weights.get("embeddings.LayerNorm.weight"), weights.get("embeddings.LayerNorm.bias"), eps, compute=compute
        )
        heads = int(config["num_attention_heads"])
        self.layers = [
            BertLayer(weights, f"encoder.layer.{i}", heads=heads, eps=eps, compute=compute)
            for i in range(int(config["num_hidden_layers"]))
        ]
        self.adapters = AdapterStore(checkpoint.facts.targets, compute, {task: {} for task in checkpoint.spec.tasks})

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden] in the compute type."""
        route = self.adapters.route(batch)
        rows = position_rows(batch, self.padding, len(self.positions))
        x = functional.embedding(batch.ids, self.words) + functional.embedding(rows, self.positions)
        if route is not None:
            x = route.look_up_words(WORDS, TYPES, batch.ids, x)
        x = self.norm(x)
        for i, layer in enumerate(self.layers):
            x = layer(x, batch, adding(route, f"layers.{i}"))
        return x


def position_rows(batch: PackedBatch, padding: int | None, count: int) -> torch.Tensor:
    """Returns the row of the position table for each token, int64 or int32 [tokens].

    Args:
        batch: The tokens.
        padding: In RoBERTa the id of padding, whose row is row 0 here; else None. A padding token, which a text may
            contain literally, has that row and is not counted.
        count: Rows of the table, from that of padding.

    Raises:
        DataError: A row of the batch has more tokens than the table has positions.
    """
    limit = count - (padding is not None)
    if batch.max_length > limit:  # on a GPU the lookup would end the process
        raise DataError(f"a row has {batch.max_length} tokens, this model has {limit} positions. Cut it first.")
    if padding is None:
        return batch.positions
    counts = batch.ids != padding
    if batch.device.type == "cpu" and bool(counts.all()):  # on a GPU this test would cost more than it saves
        return batch.positions + 1
    counted = torch.cumsum(counts, 0)
    before = (counted - counts.long())[batch.offsets[:-1].long()]
    return (counted - batch.spread(before)) * counts


def build(checkpoint: Checkpoint, compute: Compute) -> Bert:
    """Loads a BERT-like checkpoint."""
    return Bert(checkpoint, compute)
