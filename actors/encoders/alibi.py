"""ALiBi: a bias on attention scores, `-slope[head] * |i - j|`, used instead of positions.

Built in float32: of 8,192 distances bfloat16 represents only 897. Stored as one number per head and distance, which
takes 2 * length numbers per head instead of length ** 2 (see `compute.attention`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch


def slopes(heads: int) -> list[float]:
    """Returns the slope of each head, in the order that the models were trained with.

    For a power of two: 2^-(8/heads), 2^-(2*8/heads), ... For other numbers: the slopes of the power of two below,
    followed by every other slope of the power of two above, starting with its first. So 12 heads have 2^-1 ... 2^-8,
    then 2^-0.5, 2^-1.5, 2^-2.5, 2^-3.5.
    """
    below = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    rest = [2.0 ** (-8 * (i + 1) / (2 * below)) for i in range(0, 2 * (heads - below), 2)]
    return first + rest


class Alibi:
    """The bias as `attention.attend` takes it, with a cache of 64 lengths: all layers of a batch use the same.

    Args:
        heads: Number of heads.
        device: Device of the bias.

    Attributes:
        slopes: float32 [heads].
    """

    def __init__(self, heads: int, device: torch.device) -> None:
        self.slopes = torch.tensor(slopes(heads), dtype=torch.float32, device=device)
        self._cached = lru_cache(maxsize=64)(self._build)

    def __call__(self, length: int) -> torch.Tensor:
        """Returns the bias for rows of `length` tokens, float32 [heads, 2 * length - 1]."""
        return self._cached(length)

    def _build(self, length: int) -> torch.Tensor:
        distance = torch.arange(1 - length, length, dtype=torch.float32, device=self.slopes.device).abs()
        return -self.slopes[:, None] * distance
