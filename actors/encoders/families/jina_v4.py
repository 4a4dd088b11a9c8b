"""jina-embeddings-v4: the language model of Qwen2.5-VL with one LoRA adapter per kind of task, packed.

Pre-norm layers with RMS norms, causal attention in which several heads of the query share one of key and value, rotary
positions, and a gated MLP. Products that share an input are one product. The residual stream is float32 whatever the
compute type: a few of Qwen's states reach thousands, and bfloat16 would lose small additions to them. Adapters are kept
beside the base weights (`adapters`), so a micro-batch can mix rows of all tasks, unless an encoder has one task
(`AdapterStore.merge`). It can mix texts and pictures too: a picture's tokens have the states of the vision tower
(`jina_v4_vision`) instead of words.

For many vectors a row, the projector maps the state of each token. It computes in float32, and has a LoRA of each adapter.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from actors.encoders.build import Checkpoint
from actors.encoders.compute.attention import attend
from actors.encoders.compute.device import Compute
from actors.encoders.compute.linear import Linear, RmsNorm, swiglu
from actors.encoders.families import jina_v4_layout as names
from actors.encoders.families.jina_v4_vision import Tower, build_tower
from actors.encoders.layout import Config
from actors.encoders.lora.store import Adapter, AdapterStore, Route, adding, load_adapter
from actors.encoders.packed import PackedBatch
from actors.encoders.rope import Rope, apply_rotary_
from actors.encoders.weights import Weights


class Layer:
    """One layer; `name` is its name in adapters."""

    def __init__(self, weights: Weights, i: int, *, text: Config, compute: Compute) -> None:
        eps = float(text.get("rms_norm_eps", 1e-6))

        def linear(ours: str) -> Linear:
            parts = names.linears(text, i)[ours]
            bias = weights.stack(*(f"{name}.bias" for name in parts)) if ours == "qkv" else None
            return Linear(weights.stack(*(f"{name}.weight" for name in parts)), bias, compute=compute)

        self.name = f"layers.{i}"
        self.heads, self.groups, self.width = names.head_sizes(text)
        self.int8 = compute.int8
        self.qkv, self.out, self.gate_up, self.down = (linear(ours) for ours in ("qkv", "out", "gate_up", "down"))
        self.norm1, self.norm2 = (
            RmsNorm(weights.get(f"{name}.weight"), eps, compute=compute) for name in names.norm_names(i)
        )

    def __call__(
        self,
        x: torch.Tensor,
        last: torch.Tensor | None,
        batch: PackedBatch,
        angles: tuple[torch.Tensor, torch.Tensor],
        route: Route | None,
    ) -> torch.Tensor:
        """Adds the previous layer's result and that of attention to float32 [tokens, hidden] in place; returns the MLP's."""
        add = adding(route, self.name)
        normed = self.norm1.of_sum_(x, last)
        qkv = self.qkv(normed, add("qkv", normed)).view(len(x), -1, self.width)
        apply_rotary_(qkv[:, : self.heads + self.groups], angles)
        query, key, value = torch.split(qkv, [self.heads, self.groups, self.groups], dim=1)
        mixed = attend(query, key, value, batch, causal=True, approximate=self.int8)
        normed = self.norm2.of_sum_(x, self.out(mixed, add("out", mixed)))
        gated = swiglu(self.gate_up(normed, add("gate_up", normed)))
        return self.down(gated, add("down", gated))


class JinaV4:
    """The encoder: word embeddings, layers and adapters."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        text, weights = names.text_config(checkpoint.config), checkpoint.weights
        self.words = weights.get(f"{names.WORDS}.weight").to(compute.device, compute.dtype)
        self.layers = [Layer(weights, i, text=text, compute=compute) for i in range(int(text["num_hidden_layers"]))]
        self.norm = RmsNorm(weights.get("norm.weight"), float(text.get("rms_norm_eps", 1e-6)), compute=compute)
        *_, width = names.head_sizes(text)
        sections = names.rope_sections(text) if checkpoint.facts.tower else ()
        self.rope = Rope(width, names.rope_theta(text), compute=compute, sections=sections)
        self.adapters = AdapterStore(checkpoint.facts.targets, compute, _load_published(checkpoint, compute))
        self.tower: Tower | None = None
        self.projector: Linear | None = None
        if checkpoint.spec.makes("multi"):
            weight, bias = (weights.under(f"{names.PROJECTOR}.").get(kind) for kind in ("weight", "bias"))
            self.projector = Linear(weight, bias, compute=Compute(compute.device, torch.float32))

    def see(self, checkpoint: Checkpoint, compute: Compute) -> None:
        """Loads the vision tower, which a model for texts does without."""
        self.tower = build_tower(checkpoint, compute)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden] in the compute type."""
        return self._states(batch, self.adapters.route(batch))

    def forward_multi(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `actors.encoders.build.LateFamily`."""
        if self.projector is None:
            raise RuntimeError("the projector was not loaded, because the spec asks for one vector a row")
        route = self.adapters.route(batch)
        hidden = self._states(batch, route)
        x = hidden.float()
        vectors = self.projector(x)
        return hidden, vectors if route is None else route.add("projector", x, vectors)

    def _states(self, batch: PackedBatch, route: Route | None) -> torch.Tensor:
        x = functional.embedding(batch.ids, self.words)
        if route is not None:
            x = route.look_up(names.WORDS, batch.ids, x)
        x = x.float()
        if batch.pictures is not None:
            if self.tower is None:
                raise RuntimeError("the vision tower was not loaded, because the spec is one for texts")
            x.index_copy_(0, batch.pictures.places, self.tower(batch.pictures).float())
        angles = self.rope.angles(batch)
        last = None
        for layer in self.layers:
            last = layer(x, last, batch, angles, route)
        return self.norm.of_sum_(x, last)


def build(checkpoint: Checkpoint, compute: Compute) -> JinaV4:
    """Loads a v4 checkpoint of any layout, with its adapters, and with its vision tower if the spec takes pictures."""
    model = JinaV4(checkpoint, compute)
    if checkpoint.spec.modality == "page":
        model.see(checkpoint, compute)
    return model


def _load_published(checkpoint: Checkpoint, compute: Compute) -> dict[str, Adapter]:
    """Returns the checkpoint's own adapters by task. The tasks of a merged checkpoint have empty adapters."""
    facts = checkpoint.facts
    loaded = {name: load_adapter(facts.adapter(checkpoint.folder, name), compute=compute) for name in facts.adapters}
    return {task: loaded.get(names.adapter_of(task), {}) for task in facts.tasks}
