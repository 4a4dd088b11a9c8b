"""From a spec to a family that computes: opens the checkpoint, checks it again, calls the family's builder.

A builder is named by its module's path and imported when needed, so a family costs nothing until it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from actors.encoders import checkpoint
from actors.encoders.compute.device import Compute
from actors.encoders.families.detect import detect
from actors.encoders.layout import Config, FamilyFacts, check_tensors
from actors.encoders.lora.registry import add_adapters
from actors.encoders.packed import PackedBatch
from actors.encoders.spec import ModelSpec, folder_of
from actors.encoders.weight_files import read_tensors
from actors.encoders.weights import Weights
from actors.errors import ModelError

# family -> module with `build(checkpoint, compute) -> Family`.
BUILDERS: dict[str, str] = {
    "bert": "actors.encoders.families.bert",
    "jina_v1": "actors.encoders.families.jina_v1",
    "jina_v2": "actors.encoders.families.jina_v2",
    "jina_v3": "actors.encoders.families.jina_v3",
    "jina_v4": "actors.encoders.families.jina_v4",
}


class Family(Protocol):
    """A model of some architecture, loaded."""

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states [tokens, hidden] in the compute type; row r uses the task `batch.tasks[r]`."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a builder builds from.

    Attributes:
        spec: The spec asked for.
        folder: The checkpoint's folder on this machine.
        config: config.json.
        facts: What the family's layout found; `facts.variant` tells its published layouts apart.
        weights: Reader of the tensors.
    """

    spec: ModelSpec
    folder: Path
    config: Config
    facts: FamilyFacts
    weights: Weights


class Builder(Protocol):
    """What a family's module offers as `build`."""

    def __call__(self, checkpoint: Checkpoint, compute: Compute) -> Family:
        """Loads the family."""
        ...


def build_family(spec: ModelSpec, compute: Compute) -> Family:
    """Loads the model of a spec.

    Raises:
        ModelError: The checkpoint on this machine is incomplete, or not the one the spec was made of.
    """
    folder = folder_of(spec)
    with checkpoint.understanding(folder):
        config: dict[str, Any] = checkpoint.read_json(folder / "config.json")
        _, tensors = read_tensors(folder)
        facts, named = detect(config, tensors, where=str(folder))
        if (facts.family, facts.variant, facts.hidden) != (spec.family, spec.variant, spec.hidden):
            raise ModelError(
                f"{folder} holds family {facts.family!r} of width {facts.hidden} where the plan was made with "
                f"{spec.family!r} of width {spec.hidden}. Put the same checkpoint on every machine."
            )
        check_tensors(facts, named, where=str(folder))
        build = cast("Builder", import_module(BUILDERS[facts.family]).build)
        with torch.inference_mode(), Weights(folder, named, facts, compute.dtype) as weights:
            family = build(Checkpoint(spec, folder, config, facts, weights), compute)
    add_adapters(family, spec)
    return family
