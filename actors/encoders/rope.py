"""Rotary position embeddings (RoPE) on packed tokens: query and key are rotated by an angle proportional to the position.

Element i of a head is rotated together with element i + width / 2, as transformers does. Angles are float32 whatever the
model's compute type: bfloat16 cannot distinguish neighbouring positions in the thousands.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from actors import kernels
from actors.encoders.compute.device import Compute
from actors.encoders.compute.fused import fused
from actors.encoders.packed import PackedBatch


class Rope:
    """Table of cosines and sines by position, extended when a longer row comes.

    Args:
        width: Width of one head, even.
        theta: Base of the frequencies.
        sections: Numbers of frequencies that turn by a token's time, row and column, for batches with pictures.
        compute: Device of the table.
    """

    def __init__(self, width: int, theta: float, *, compute: Compute, sections: Sequence[int] = ()) -> None:
        self._sections = list(sections)
        steps = torch.arange(0, width, 2, dtype=torch.float32, device=compute.device) / width
        self._frequencies = 1.0 / theta**steps
        self._table = self._angles(512)

    def angles(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns cosines and sines of every token, float32 [tokens, width / 2] each; the same for all layers."""
        if batch.max_length > self._table.shape[1]:
            self._table = self._angles(2 * batch.max_length)
        if batch.pictures is None:
            cos, sin = self._table[:, batch.positions]
            return cos, sin
        # No position of a picture's row is beyond its number of tokens.
        parts = zip(torch.split(self._table, self._sections, dim=2), batch.pictures.positions, strict=True)
        cos, sin = torch.cat([part[:, positions] for part, positions in parts], dim=2)
        return cos, sin

    def _angles(self, length: int) -> torch.Tensor:
        positions = torch.arange(length, dtype=torch.float32, device=self._frequencies.device)
        angles = positions[:, None] * self._frequencies
        return torch.stack([angles.cos(), angles.sin()])


def apply_rotary_(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates queries and keys in place.

    Args:
        x: [tokens, heads, width]; the heads of a token are contiguous, tokens have any stride.
        angles: As `Rope.angles` returns them.
    """
    cos, sin = angles
    kernel = kernels.kernels_for(x.dtype, x.device)
    if kernel is not None:
        return kernel.apply_rotary_(x, cos, sin)
    return _rotate_(x, cos, sin)


@fused
def _rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos[:, None], sin[:, None]
    first, second = x.chunk(2, dim=-1)
    rotated = first * cos - second * sin, second * cos + first * sin
    first.copy_(rotated[0])
    second.copy_(rotated[1])
    return x
