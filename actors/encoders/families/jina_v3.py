"""jina-embeddings-v3: XLM-RoBERTa with rotary positions and one LoRA adapter per task, packed.

Post-norm layers with exact GELU. Adapters change the embeddings and every linear layer. They are kept beside the
base weights (`adapters`), so a micro-batch can mix rows of all tasks, unless an encoder has one task (`AdapterStore.merge`).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from actors.encoders.build import Checkpoint
from actors.encoders.compute.attention import attend
from actors.encoders.compute.device import Compute
from actors.encoders.compute.linear import LayerNorm, Linear, gelu_
from actors.encoders.families import jina_v3_layout as names
from actors.encoders.lora.store import Adapter, AdapterStore, Factors, Route, adding, factors, load_adapter
from actors.encoders.packed import PackedBatch
from actors.encoders.rope import Rope, apply_rotary_


class Parts:
    """Builds the layers of a model from a checkpoint of any of its layouts."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        self.weights = checkpoint.weights
        self.variant = checkpoint.facts.variant
        self.compute = compute
        self._eps = float(checkpoint.config.get("layer_norm_eps", 1e-5))

    def table(self, name: str) -> torch.Tensor:
        """Returns an embedding's rows, float32."""
        return self.weights.get(names.weight_name(self.variant, name))

    def linear(self, modules: tuple[str, ...]) -> Linear:
        """Builds one product for one or several layers that share their input."""
        weight = self.weights.stack(*(names.weight_name(self.variant, module) for module in modules))
        bias = self.weights.stack(*(f"{module}.bias" for module in modules))
        return Linear(weight, bias, compute=self.compute)

    def norm(self, name: str) -> LayerNorm:
        """Builds a layer norm."""
        weight, bias = self.weights.get(f"{name}.weight"), self.weights.get(f"{name}.bias")
        return LayerNorm(weight, bias, self._eps, compute=self.compute)


class Layer:
    """One layer; `name` is its name in adapters."""

    def __init__(self, parts: Parts, i: int, *, heads: int) -> None:
        linears = {ours: parts.linear(theirs) for ours, theirs in names.linear_names(parts.variant, i).items()}
        self.name = f"layers.{i}"
        self.heads, self.int8 = heads, parts.compute.int8
        self.qkv, self.out, self.up, self.down = (linears[ours] for ours in ("qkv", "out", "up", "down"))
        self.norm1, self.norm2 = (parts.norm(name) for name in names.norm_names(parts.variant, i))

    def __call__(
        self,
        x: torch.Tensor,
        batch: PackedBatch,
        angles: tuple[torch.Tensor, torch.Tensor],
        route: Route | None,
    ) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden]."""
        add = adding(route, self.name)
        qkv = self.qkv(x, add("qkv", x)).view(len(x), 3 * self.heads, -1)
        apply_rotary_(qkv[:, : 2 * self.heads], angles)
        query, key, value = torch.split(qkv, self.heads, dim=1)
        mixed = attend(query, key, value, batch, approximate=self.int8)
        x = self.norm1.after(self.out, mixed, x, add=add("out", mixed))
        # GELU follows the adapter's addition, so it cannot be fused into the product.
        wide = gelu_(self.up(x, add("up", x)))
        return self.norm2.after(self.down, wide, x, add=add("down", wide))


class JinaV3:
    """The encoder: embeddings, layers, and adapters if the model has some."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        config = checkpoint.config
        parts = Parts(checkpoint, compute)
        # Every token is of type 0, so the row of type 0 is added to the word table at load.
        words = parts.table(names.WORDS)
        words += parts.table(names.TYPES)[0]
        self.words = words.to(compute.device, compute.dtype)
        self.norm = parts.norm(names.embedding_norm(parts.variant))
        heads = int(config["num_attention_heads"])
        self.rope = Rope(checkpoint.facts.hidden // heads, names.rope_theta(config), compute=compute)
        self.layers = [Layer(parts, i, heads=heads) for i in range(int(config["num_hidden_layers"]))]
        self.adapters: AdapterStore | None = None
        if targets := checkpoint.facts.targets:
            self.adapters = AdapterStore(targets, compute, _load_published(checkpoint, compute))

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden] in the compute type."""
        route = None if self.adapters is None else self.adapters.route(batch)
        x = functional.embedding(batch.ids, self.words)
        if route is not None:
            x = route.look_up_words(names.WORDS, names.TYPES, batch.ids, x)
        x = self.norm(x)
        angles = self.rope.angles(batch)
        for layer in self.layers:
            x = layer(x, batch, angles, route)
        return x


def build(checkpoint: Checkpoint, compute: Compute) -> JinaV3:
    """Loads a v3 checkpoint of any layout, with its adapters."""
    return JinaV3(checkpoint, compute)


def _load_published(checkpoint: Checkpoint, compute: Compute) -> dict[str, Adapter]:
    """Returns the checkpoint's own adapters by task."""
    facts = checkpoint.facts
    if facts.variant != "hub":
        return {task: load_adapter(facts.adapter(checkpoint.folder, task), compute=compute) for task in facts.adapters}
    scale = float(checkpoint.config.get("lora_alpha", 1)) / int(checkpoint.config["lora_rank"])
    adapters: dict[str, dict[str, Factors]] = {task: {} for task in facts.tasks}

    def put(ours: str, theirs: str, *, embedding: bool) -> None:
        downs, ups = (checkpoint.weights.get(f"{theirs}.{factor}") for factor in (names.DOWN, names.UP))
        for task, down, up in zip(facts.tasks, downs, ups, strict=True):
            pair = (down, up.T) if embedding else (down, up)
            adapters[task][ours] = factors(pair, scale=scale, compute=compute)

    for table in (names.WORDS, names.TYPES):
        put(table, table, embedding=True)
    for i in range(int(checkpoint.config["num_hidden_layers"])):
        for ours, (theirs,) in names.linear_names("hub", i).items():
            put(f"layers.{i}.{ours}", theirs, embedding=False)
    return dict(adapters)
