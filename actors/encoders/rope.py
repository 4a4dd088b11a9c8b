"""Rotary positions on packed tokens: query and key are turned by an angle that grows with the place in the row.

Used by families with RoPE. The two halves of a head are turned against each other (the first number with the one
half a head further on), as transformers does. Angles are float32 whatever the model computes in: at a place in the
thousands bfloat16 could not tell neighbours apart.
"""

from __future__ import annotations

import torch

from actors import kernels
from actors.encoders.compute.device import Compute
from actors.encoders.packed import PackedBatch


class Rope:
    """Cosines and sines by place, kept for the longest row seen.

    Args:
        width: Of one head, even.
        theta: Base of the frequencies.
        compute: Device.
    """

    def __init__(self, width: int, theta: float, *, compute: Compute) -> None:
        steps = torch.arange(0, width, 2, dtype=torch.float32, device=compute.device) / width
        self._frequencies = 1.0 / theta**steps
        self._table = self._angles(512)

    def angles(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of every token, float32 [tokens, width / 2] each; the same for all layers."""
        if batch.max_length > self._table.shape[1]:
            self._table = self._angles(2 * batch.max_length)
        cos, sin = self._table[:, batch.positions()]
        return cos, sin

    def _angles(self, length: int) -> torch.Tensor:
        places = torch.arange(length, dtype=torch.float32, device=self._frequencies.device)
        angles = places[:, None] * self._frequencies
        return torch.stack([angles.cos(), angles.sin()])


def apply_rotary_(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turns queries and keys in place.

    Args:
        x: [tokens, heads, width]; heads of a token side by side, tokens at any stride.
        angles: As `Rope.angles` gives them.
    """
    cos, sin = angles
    kernel = kernels.kernels_for(x.dtype, x.device)
    if kernel is not None:
        return kernel.apply_rotary_(x, cos, sin)
    cos, sin = cos[:, None], sin[:, None]
    first, second = x.chunk(2, dim=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    first.copy_(turned[0])
    second.copy_(turned[1])
    return x
