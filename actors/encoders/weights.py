"""Weights of a checkpoint as float32 tensors, read one by one from safetensors.

Used by the families' builders. Files in float16 or bfloat16 are widened here, so that what a family does with a
weight (fusing, packing, merging an adapter) never starts from a narrowed value.

Each tensor is checked as it is read: one with a NaN or an infinity, or that has one in the type that is computed in, would
make every vector NaN. The check is one pass for the least and the greatest value (docs/models.md has what it costs).
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open

from actors.encoders.layout import FamilyFacts, Tensors
from actors.errors import ModelError


class Weights:
    """Reader of one checkpoint's tensors; a context manager, because it holds files open.

    Args:
        folder: Where the files are.
        tensors: The index made from their headers.
        facts: The family's facts; `facts.prefix` is put before each name.
        dtype: What the family computes in.
    """

    def __init__(self, folder: Path, tensors: Tensors, facts: FamilyFacts, dtype: torch.dtype) -> None:
        self._folder = folder
        self._dtype = dtype
        self._tensors = tensors
        self._prefix = facts.prefix
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._open.clear()

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def get(self, name: str) -> torch.Tensor:
        """The tensor called `name` (without the prefix), float32 on the CPU.

        Raises:
            ModelError: It has a value that is not finite, or is not in the type that is computed in.
        """
        info = self._tensors[self._prefix + name]
        if info.file not in self._open:
            self._open[info.file] = self._stack.enter_context(safe_open(str(self._folder / info.file), framework="pt"))
        stored = info.name or self._prefix + name
        tensor: torch.Tensor = self._open[info.file].get_tensor(stored).to(torch.float32)
        check_finite(tensor, self._dtype, name=stored, where=self._folder / info.file)
        return tensor

    def stack(self, *names: str) -> torch.Tensor:
        """Several tensors joined along their first axis (such as query, key and value into one matrix)."""
        return torch.cat([self.get(name) for name in names])


def check_finite(tensor: torch.Tensor, dtype: torch.dtype, *, name: str, where: Path) -> None:
    """Raises unless every value of a weight is finite, and stays so in the type that is computed in.

    Args:
        tensor: float32 of any shape.
        dtype: The type that it is brought to.
        name: Of the tensor, for messages.
        where: The file that has it.

    Raises:
        ModelError: Names the tensor, the file and how many values.
    """
    if not tensor.numel():
        return
    # Rounding keeps the order of values, so the ends tell of all; a NaN makes both of them NaN.
    ends = torch.stack(torch.aminmax(tensor))
    if bool(torch.isfinite(ends).all()) and bool(torch.isfinite(ends.to(dtype)).all()):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        said = f"has values in {name!r} that are not finite: {bad} of {tensor.numel()} are NaN or infinite"
    else:
        most, kind = float(tensor.abs().max()), str(dtype).removeprefix("torch.")
        said = f"has values in {name!r} up to {most:.3g}, which are not finite in {kind}"
    raise ModelError(
        f"{where} {said}. Every vector would be spoilt. Fetch it again, or take one from another step of its training."
    )
