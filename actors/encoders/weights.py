"""Reads the weights of a checkpoint from safetensors, one by one, as float32 tensors.

Used by the families' builders. Weights in float16 or bfloat16 are converted to float32 here, so that fusing, packing and
merging never start from values rounded to the compute type.

Each tensor is checked as it is read: one with a NaN or an infinity, or with a value that overflows the compute type, would
make every vector NaN. The check is one pass for the smallest and the largest value (its cost is in docs/models.md).
"""

from __future__ import annotations

from contextlib import ExitStack
from copy import copy
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open

from actors.encoders.layout import FamilyFacts, Tensors
from actors.errors import ModelError


class Weights:
    """Reader of one checkpoint's tensors. A context manager, because it keeps files open.

    Args:
        folder: Folder of the files.
        tensors: The index of their headers.
        facts: The family's facts; `facts.prefix` is put before each name.
        dtype: The family's compute type.
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

    def under(self, prefix: str) -> Weights:
        """Returns a reader of the tensors with another prefix in the same open files."""
        other = copy(self)
        other._prefix = prefix  # noqa: SLF001
        return other

    def get(self, name: str) -> torch.Tensor:
        """Returns the tensor `name` (without the prefix), float32 on the CPU.

        Raises:
            ModelError: A value is not finite, as stored or in the compute type.
        """
        info = self._tensors[self._prefix + name]
        if info.file not in self._open:
            self._open[info.file] = self._stack.enter_context(safe_open(str(self._folder / info.file), framework="pt"))
        stored = info.name or self._prefix + name
        tensor: torch.Tensor = self._open[info.file].get_tensor(stored).to(torch.float32)
        check_finite(tensor, self._dtype, name=stored, where=self._folder / info.file)
        return tensor

    def stack(self, *names: str) -> torch.Tensor:
        """Returns tensors concatenated along their first axis (such as query, key and value as one matrix)."""
        return torch.cat([self.get(name) for name in names])


def check_finite(tensor: torch.Tensor, dtype: torch.dtype, *, name: str, where: Path) -> None:
    """Raises unless every value of a weight is finite, also in the compute type.

    Args:
        tensor: float32 of any shape.
        dtype: The compute type.
        name: Name of the tensor in messages.
        where: The file that contains it.

    Raises:
        ModelError: Names the tensor, the file and the number of values.
    """
    if not tensor.numel():
        return
    # Rounding keeps the order of values, so checking the extremes is enough; a NaN makes both of them NaN.
    ends = torch.stack(torch.aminmax(tensor))
    if bool(torch.isfinite(ends).all()) and bool(torch.isfinite(ends.to(dtype)).all()):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        fault = f"has values in {name!r} that are not finite: {bad} of {tensor.numel()} are NaN or infinite"
    else:
        most, kind = float(tensor.abs().max()), str(dtype).removeprefix("torch.")
        fault = f"has values in {name!r} up to {most:.3g}, which are not finite in {kind}"
    raise ModelError(
        f"{where} {fault}. Every vector would be spoilt. Fetch it again, or take one from another step of its training."
    )
