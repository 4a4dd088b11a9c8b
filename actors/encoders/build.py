"""Builds the model of a spec: opens the checkpoint, checks it again and calls the family's builder.

`families.detect.FAMILIES` names each builder as "module:function". The module is imported only when its family is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import pyarrow as pa
import torch

from actors.encoders import checkpoint
from actors.encoders.compute.device import Compute
from actors.encoders.families.detect import FAMILIES, detect
from actors.encoders.layout import Config, FamilyFacts, check_tensors
from actors.encoders.lora.registry import add_adapters
from actors.encoders.packed import PackedBatch
from actors.encoders.spec import ModelSpec, folder_of
from actors.encoders.weight_files import read_tensors
from actors.encoders.weights import Weights
from actors.errors import ModelError
from actors.vectors import Encoded


class Family(Protocol):
    """A loaded model of one architecture."""

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns hidden states [tokens, hidden] in the compute type; row r uses the task `batch.tasks[r]`."""
        ...


@runtime_checkable
class RowFamily(Protocol):
    """A loaded model whose input is something else than token ids, or whose output is more than one dense vector."""

    def encode_rows(self, rows: pa.Table, tasks: Sequence[str | None] | None) -> Encoded:
        """Encodes rows.

        Args:
            rows: The columns that the preparer of the model's modality made.
            tasks: One per row; None uses the spec's.
        """
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The input of a builder.

    Attributes:
        spec: The requested spec.
        folder: The checkpoint's folder on this machine.
        config: config.json.
        facts: Result of the family's layout; `facts.variant` distinguishes its published layouts.
        weights: Reader of the tensors.
    """

    spec: ModelSpec
    folder: Path
    config: Config
    facts: FamilyFacts
    weights: Weights


class Builder(Protocol):
    """Signature of `build` in a family's module."""

    def __call__(self, checkpoint: Checkpoint, compute: Compute) -> Family:
        """Loads the family."""
        ...


class LateFamily(Protocol):
    """A loaded model that can make many vectors a row. It loads the weights for them only if the spec asks for them."""

    def forward_multi(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what `forward` returns, and a vector for each token, float32 [tokens, width], not normalised."""
        ...


@runtime_checkable
class SeeingFamily(Protocol):
    """A loaded model that can take pictures besides texts, once its vision tower is loaded."""

    tower: object | None

    def see(self, checkpoint: Checkpoint, compute: Compute) -> None:
        """Loads the vision tower."""
        ...


def build_family(spec: ModelSpec, compute: Compute) -> Family:
    """Loads the model of a spec.

    Raises:
        ModelError: The checkpoint on this machine is incomplete, or is not the one that the spec describes.
    """
    with opened(spec, compute) as found:
        module, function = FAMILIES[found.facts.family][1].split(":")
        build = cast("Builder", getattr(import_module(module), function))
        family = build(found, compute)
    add_adapters(family, spec)
    return family


def open_eyes(family: Family, spec: ModelSpec, compute: Compute) -> None:
    """Loads the vision tower of a model that was built for texts, unless it is loaded.

    Raises:
        ModelError: As for `build_family`.
    """
    if isinstance(family, SeeingFamily) and family.tower is None:
        with opened(spec, compute) as found:
            family.see(found, compute)


@contextmanager
def opened(spec: ModelSpec, compute: Compute) -> Iterator[Checkpoint]:
    """Opens the checkpoint of a spec and checks it.

    Raises:
        ModelError: As for `build_family`.
    """
    folder = folder_of(spec)
    with checkpoint.understanding(folder):
        config: dict[str, Any] = checkpoint.read_json(folder / "config.json")
        _, tensors = read_tensors(folder)
        facts, named = detect(config, tensors, where=str(folder))
        facts = facts.with_outputs(spec.outputs)
        if (facts.family, facts.variant, facts.hidden) != (spec.family, spec.variant, spec.hidden):
            raise ModelError(
                f"{folder} holds family {facts.family!r} of width {facts.hidden} where the plan was made with "
                f"{spec.family!r} of width {spec.hidden}. Put the same checkpoint on every machine."
            )
        check_tensors(facts, named, where=str(folder))
        with torch.inference_mode(), Weights(folder, named, facts, compute.dtype) as weights:
            yield Checkpoint(spec, folder, config, facts, weights)
