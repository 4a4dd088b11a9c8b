"""Rotary positions (RoPE) on packed tokens with gradients. `actors.encoders.rope` is the same without gradients."""

from __future__ import annotations

import torch

from actors.encoders.packed import PackedBatch

Angles = tuple[torch.Tensor, torch.Tensor]


def angles(batch: PackedBatch, width: int, theta: float) -> Angles:
    """Returns cosines and sines of every token, float32 [tokens, 1, width / 2] each, the same for all layers.

    Args:
        batch: Positions of the tokens.
        width: Width of one head, even.
        theta: Base of the frequencies.
    """
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=batch.device) / width
    turned = (batch.positions[:, None] * (1.0 / theta**steps))[:, None]
    return turned.cos(), turned.sin()


def rotate(x: torch.Tensor, by: Angles) -> torch.Tensor:
    """Rotates element i of each head [tokens, heads, width] together with element i + width / 2, as transformers does."""
    cos, sin = by
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
