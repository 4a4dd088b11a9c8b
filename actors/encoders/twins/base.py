"""The base of the twins: a torch module that maps packed tokens to token states, with the names of its checkpoint.

A twin has no dropout: a cached gradient is that of an uncached step, and a resumed training repeats every number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from actors.encoders.build import Checkpoint
from actors.encoders.layout import Config, FamilyFacts
from actors.encoders.packed import PackedBatch, pack
from actors.encoders.spec import ModelSpec
from actors.encoders.weights import Weights


class Twin(nn.Module):
    """A model as a torch module. Its state dict has the names of the checkpoint's tensors, without `facts.prefix`.

    Args:
        checkpoint: Config and facts; no tensor is read from it.

    Attributes:
        spec: The model.
        facts: Result of the family's layout.
        config: config.json.
        folder: The checkpoint's folder on this machine.
        copies: Regular expression of tensors in the file that are copies of one in the state dict.
    """

    spec: ModelSpec
    facts: FamilyFacts
    config: Config
    folder: Path
    copies = ""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.spec, self.facts = checkpoint.spec, checkpoint.facts
        self.config, self.folder = checkpoint.config, checkpoint.folder

    def read(self, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the name and the value of each tensor of the state dict, float32 on the CPU."""
        return ((name, weights.get(name)) for name in self.state_dict())

    def parts_of(self, module: str) -> tuple[str, ...]:
        """Returns the modules of transformers' class whose rows, one after another, are those of a module of the twin."""
        return (module,)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns token states [tokens, hidden]."""
        raise NotImplementedError

    def multi(self, states: torch.Tensor) -> torch.Tensor:
        """Maps token states to the vectors of late interaction [tokens, width], for a spec that makes them; not normalised."""
        raise NotImplementedError


def pool(twin: Twin, states: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Pools token states into one vector per row, as the model's encoder does (see `actors.encoders.pooling`).

    Args:
        twin: The model, whose spec names the pooling.
        states: [tokens, hidden].
        batch: Position of the rows.

    Returns:
        [rows, hidden], not normalised; float32, or float64 if the states are.
    """
    states = states if states.dtype == torch.float64 else states.float()
    if twin.spec.pooling == "cls":
        return states[batch.offsets[:-1].long()]
    if twin.spec.pooling == "last":
        return states[batch.offsets[1:].long() - 1]
    return torch.segment_reduce(states, "mean", lengths=batch.row_lengths.long(), axis=0, unsafe=True)


def pack_padded(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, tasks: Sequence[str | None] | None = None
) -> PackedBatch:
    """Packs padded rows, in their order; best sorted by length (see `PackedBatch.padded`).

    Args:
        input_ids: int64 [rows, length].
        attention_mask: int64 [rows, length], 0 where a place has no token; each row has a token.
        tasks: One per row.
    """
    valid = attention_mask.bool()
    lengths = valid.sum(1).cpu().numpy()
    return pack(input_ids[valid].cpu().numpy(), lengths, device=input_ids.device, tasks=tasks)


def project(x: torch.Tensor, *layers: nn.Module) -> tuple[torch.Tensor, ...]:
    """Applies linear layers of one shape to the same input [tokens, hidden].

    Layers without an adapter are one product, which is faster than one for each.
    """
    plain = [layer for layer in layers if type(layer) is nn.Linear]
    if len(plain) < len(layers):
        return tuple(layer(x) for layer in layers)
    biases: list[torch.Tensor] = [layer.bias for layer in plain if layer.bias is not None]  # type: ignore[redundant-expr]
    joined = torch.cat([layer.weight for layer in plain]), torch.cat(biases) if biases else None
    return functional.linear(x, *joined).chunk(len(layers), dim=-1)
