"""jina-embeddings-v2: BERT with ALiBi, a gated MLP (GEGLU) and up to 8,192 tokens, in two variants, packed.

With `x` the layer's input and `a = LN_attn(x + dense(attention(x)))`:

- A: `LN(a + wo(gelu(u) * v))` with `u, v` the first and second half of `gated_layers(a)`.
- B: queries and keys are normalised over all heads together before they are split into heads. The input is added a second
  time, `h = LN_1(x + a)`. Then `LN_2(h + down(u * gelu(v)))`: in this variant the second half goes through GELU.

At load the halves are put in the same order (the half with GELU first), so that both variants run the same MLP.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from actors.encoders.alibi import Alibi
from actors.encoders.build import Checkpoint
from actors.encoders.compute.attention import RelativeBias, attend
from actors.encoders.compute.device import Compute
from actors.encoders.compute.linear import LayerNorm, Linear
from actors.encoders.families.bert_layout import TYPES, WORDS
from actors.encoders.lora.store import AdapterStore, Adding, adding
from actors.encoders.packed import PackedBatch
from actors.encoders.weights import Weights


class Blocks:
    """Builds the layers of a model from named weights."""

    def __init__(self, weights: Weights, *, eps: float, compute: Compute) -> None:
        self.weights = weights
        self._eps = eps
        self.compute = compute

    def linear(self, *names: str, bias: bool = True) -> Linear:
        """Builds one product for one or several layers that share their input."""
        joined = self.weights.stack(*(f"{name}.bias" for name in names)) if bias else None
        return Linear(self.weights.stack(*(f"{name}.weight" for name in names)), joined, compute=self.compute)

    def gelu(self, weight: torch.Tensor) -> Linear:
        """Builds a product without bias, followed by GELU."""
        return Linear(weight, None, compute=self.compute, gelu=True)

    def plain(self, weight: torch.Tensor) -> Linear:
        """Builds a product without bias."""
        return Linear(weight, None, compute=self.compute)

    def norm(self, name: str) -> LayerNorm:
        """Builds a layer norm."""
        return LayerNorm(
            self.weights.get(f"{name}.weight"), self.weights.get(f"{name}.bias"), self._eps, compute=self.compute
        )


class Attention:
    """Attention with ALiBi and, in variant B, normalised queries and keys; the caller applies `out`."""

    def __init__(self, blocks: Blocks, layer: str, *, heads: int, bias: RelativeBias, normed: bool) -> None:
        own = f"{layer}.attention.self"
        self.heads, self.int8 = heads, blocks.compute.int8
        self.bias = bias
        self.qkv = blocks.linear(f"{own}.query", f"{own}.key", f"{own}.value")
        self.out = blocks.linear(f"{layer}.attention.output.dense")
        self.norms = (blocks.norm(f"{own}.layer_norm_q"), blocks.norm(f"{own}.layer_norm_k")) if normed else None

    def __call__(self, x: torch.Tensor, batch: PackedBatch, add: Adding) -> torch.Tensor:
        """Maps [tokens, hidden] to the input of `out`, [tokens, hidden]."""
        query, key, value = self.qkv(x, add("attention.qkv", x)).chunk(3, dim=1)
        if self.norms is not None:
            query, key = self.norms[0](query), self.norms[1](key)
        split = (len(x), self.heads, -1)
        query, key, value = (each.view(split) for each in (query, key, value))
        return attend(query, key, value, batch, bias=self.bias, approximate=self.int8)


class Gated:
    """GEGLU, `gelu(gate(x)) * up(x)`; the caller applies `down`."""

    def __init__(self, blocks: Blocks, fused: str, down: str, *, gate_first: bool) -> None:
        halves = blocks.weights.get(f"{fused}.weight").chunk(2)
        gate, up = halves if gate_first else reversed(halves)
        # Two products instead of one of double width: GELU is fused into the first, and no half is copied.
        self.gate, self.up = blocks.gelu(gate), blocks.plain(up)
        self.down = blocks.linear(down)

    def __call__(self, x: torch.Tensor, add: Adding) -> torch.Tensor:
        """Maps [tokens, hidden] to the input of `down`, [tokens, inner]."""
        return self.gate.times(x, self.up(x, add("mlp.up", x)), add("mlp.gate", x))


class LayerA:
    """One layer of variant A."""

    def __init__(self, blocks: Blocks, layer: str, *, heads: int, bias: RelativeBias) -> None:
        self.attention = Attention(blocks, layer, heads=heads, bias=bias, normed=False)
        self.norm1 = blocks.norm(f"{layer}.attention.output.LayerNorm")
        self.mlp = Gated(blocks, f"{layer}.mlp.gated_layers", f"{layer}.mlp.wo", gate_first=True)
        self.norm2 = blocks.norm(f"{layer}.mlp.layernorm")

    def __call__(self, x: torch.Tensor, batch: PackedBatch, add: Adding) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        mixed = self.attention(x, batch, add)
        x = self.norm1.after(self.attention.out, mixed, x, add=add("attention.out", mixed))
        wide = self.mlp(x, add)
        return self.norm2.after(self.mlp.down, wide, x, add=add("mlp.down", wide))


class LayerB:
    """One layer of variant B."""

    def __init__(self, blocks: Blocks, layer: str, *, heads: int, bias: RelativeBias) -> None:
        self.attention = Attention(blocks, layer, heads=heads, bias=bias, normed=True)
        self.norm_attention = blocks.norm(f"{layer}.attention.output.LayerNorm")
        self.norm1 = blocks.norm(f"{layer}.layer_norm_1")
        self.mlp = Gated(blocks, f"{layer}.mlp.up_gated_layer", f"{layer}.mlp.down_layer", gate_first=False)
        self.norm2 = blocks.norm(f"{layer}.layer_norm_2")

    def __call__(self, x: torch.Tensor, batch: PackedBatch, add: Adding) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        mixed = self.attention(x, batch, add)
        attended = self.norm_attention.after(self.attention.out, mixed, x, add=add("attention.out", mixed))
        x = self.norm1.of_sum(attended, x)
        wide = self.mlp(x, add)
        return self.norm2.after(self.mlp.down, wide, x, add=add("mlp.down", wide))


class JinaV2:
    """The encoder: word embeddings (every token is of type 0; there is no position table) and layers."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        config, weights = checkpoint.config, checkpoint.weights
        blocks = Blocks(weights, eps=float(config.get("layer_norm_eps", 1e-12)), compute=compute)
        words = weights.get("embeddings.word_embeddings.weight")
        words += weights.get("embeddings.token_type_embeddings.weight")[0]
        self.words = words.to(compute.device, compute.dtype)
        self.norm = blocks.norm("embeddings.LayerNorm")
        heads = int(config["num_attention_heads"])
        bias = Alibi(heads, compute.device)
        layer: type[LayerA | LayerB] = LayerA if checkpoint.facts.variant == "A" else LayerB
        self.layers = [
            layer(blocks, f"encoder.layer.{i}", heads=heads, bias=bias) for i in range(int(config["num_hidden_layers"]))
        ]
        self.adapters = AdapterStore(checkpoint.facts.targets, compute, {task: {} for task in checkpoint.spec.tasks})

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden] in the compute type."""
        route = self.adapters.route(batch)
        x = functional.embedding(batch.ids, self.words)
        if route is not None:
            x = route.look_up_words(WORDS, TYPES, batch.ids, x)
        x = self.norm(x)
        for i, layer in enumerate(self.layers):
            x = layer(x, batch, adding(route, f"layers.{i}"))
        return x


def build(checkpoint: Checkpoint, compute: Compute) -> JinaV2:
    """Loads a v2 checkpoint of either variant."""
    return JinaV2(checkpoint, compute)
