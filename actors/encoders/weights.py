"""Weights of a checkpoint as float32 tensors, read one by one from safetensors.

Used by the families' builders. Files in float16 or bfloat16 are widened here, so that what a family does with a
weight (fusing, packing, merging an adapter) never starts from a narrowed value.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open

from actors.encoders.layout import FamilyFacts, Tensors


class Weights:
    """Reader of one checkpoint's tensors; a context manager, because it holds files open.

    Args:
        folder: Where the files are.
        tensors: The index made from their headers.
        facts: The family's facts; `facts.prefix` is put before each name.
    """

    def __init__(self, folder: Path, tensors: Tensors, facts: FamilyFacts) -> None:
        self._folder = folder
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
        """The tensor called `name` (without the prefix), float32 on the CPU."""
        file = self._tensors[self._prefix + name].file
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(str(self._folder / file), framework="pt"))
        tensor: torch.Tensor = self._open[file].get_tensor(self._prefix + name)
        return tensor.to(torch.float32)

    def stack(self, *names: str) -> torch.Tensor:
        """Several tensors joined along their first axis (such as query, key and value into one matrix)."""
        return torch.cat([self.get(name) for name in names])
