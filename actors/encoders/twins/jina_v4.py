"""The twin of `families.jina_v4` for texts: the language model of Qwen2.5-VL, and the projector of its token vectors.

Pictures are not trained on, so the vision tower is not in it. The adapters of its tasks are not in it either.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from actors.encoders.build import Checkpoint
from actors.encoders.families import jina_v4_layout as names
from actors.encoders.layout import Config
from actors.encoders.packed import PackedBatch
from actors.encoders.twins.attention import Group, attend, make_groups
from actors.encoders.twins.base import Twin
from actors.encoders.twins.rotary import Angles, angles, rotate
from actors.encoders.weights import Weights

_LANGUAGE = "language_model."


class RmsNorm(nn.RMSNorm):
    """RMS norm whose input may be wider than its weight; the result has the type of the weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises [tokens, hidden] by a mean square in the input's type."""
        return functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(self.weight.dtype)


class JinaV4Layer(nn.Module):
    """One pre-norm layer with causal attention, in which several heads of the query share one of key and value."""

    def __init__(self, text: Config) -> None:
        super().__init__()
        self.heads, self.groups, self.width = names.head_sizes(text)
        sizes = {name: size for parts in names.linears(text, 0).values() for name, size in parts.items()}

        def linears(owner: str) -> nn.ModuleDict:
            stem = f"layers.0.{owner}."
            return nn.ModuleDict(
                {
                    name.removeprefix(stem): nn.Linear(
                        inputs, outputs, bias=name.endswith(("q_proj", "k_proj", "v_proj"))
                    )
                    for name, (outputs, inputs) in sizes.items()
                    if name.startswith(stem)
                }
            )

        hidden, eps = int(text["hidden_size"]), float(text.get("rms_norm_eps", 1e-6))
        self.self_attn, self.mlp = linears("self_attn"), linears("mlp")
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(hidden, eps), RmsNorm(hidden, eps)

    def forward(self, x: torch.Tensor, groups: tuple[Group, ...], turned: Angles) -> torch.Tensor:
        """Maps [tokens, hidden] to [tokens, hidden], float32 or wider."""
        normed = self.input_layernorm(x)
        query, key, value = (self.self_attn[f"{name}_proj"](normed).unflatten(-1, (-1, self.width)) for name in "qkv")
        mixed = attend(rotate(query, turned), rotate(key, turned), value, groups, causal=True)
        x = x + self.self_attn["o_proj"](mixed)
        normed = self.post_attention_layernorm(x)
        gated = functional.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed)
        states: torch.Tensor = x + self.mlp["down_proj"](gated)
        return states


class LanguageModel(nn.Module):
    """Word table, layers and a norm. The residual stream is float32 or wider: a few of Qwen's states reach thousands."""

    def __init__(self, text: Config) -> None:
        super().__init__()
        hidden = int(text["hidden_size"])
        *_, self.width = names.head_sizes(text)
        self.theta = names.rope_theta(text)
        self.embed_tokens = nn.Embedding(int(text["vocab_size"]), hidden)
        self.layers = nn.ModuleList(JinaV4Layer(text) for _ in range(int(text["num_hidden_layers"])))
        self.norm = RmsNorm(hidden, float(text.get("rms_norm_eps", 1e-6)))

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden]."""
        words = self.embed_tokens(batch.ids)
        x = words.to(torch.promote_types(words.dtype, torch.float32))
        groups, turned = make_groups(batch, words, causal=True), angles(batch, self.width, self.theta)
        for layer in self.layers:
            x = layer(x, groups, turned)
        states: torch.Tensor = self.norm(x)
        return states


class JinaV4Twin(Twin):
    """The language model, and the projector if the spec asks for many vectors a row."""

    multi_vector_projector: nn.Linear

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.language_model = LanguageModel(names.text_config(checkpoint.config))
        if checkpoint.spec.makes("multi"):
            self.multi_vector_projector = nn.Linear(self.facts.hidden, self.facts.multi_dim)

    def read(self, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Twin.read`."""
        for name in self.state_dict():
            inside = name.startswith(_LANGUAGE)
            yield name, (weights if inside else weights.under("")).get(name.removeprefix(_LANGUAGE))

    def parts_of(self, module: str) -> tuple[str, ...]:
        """See `Twin.parts_of`."""
        return (f"model.{module}" if module.startswith(_LANGUAGE) else module,)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden]."""
        states: torch.Tensor = self.language_model(batch)
        return states

    def multi(self, states: torch.Tensor) -> torch.Tensor:
        """Returns a vector for each token, [tokens, width], not normalised."""
        vectors: torch.Tensor = self.multi_vector_projector(states)
        return vectors
