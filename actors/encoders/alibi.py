"""ALiBi: a bias on attention that falls with distance, `-slope[head] * |i - j|`, instead of positions.

Built in float32: bfloat16 keeps only 897 different distances of 8,192. Given as one number per head and distance,
so that it costs 2 * length numbers a head and not length ** 2 (see `attention`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from actors.encoders.compute.attention import RelativeBias


def slopes(heads: int) -> list[float]:
    """Slope of each head, in the order the models were trained with.

    For a power of two: 2^-(8/heads), 2^-(2*8/heads), ... Else those of the power of two below, followed by every
    other slope of the power of two above, from its first. So 12 heads have 2^-1 ... 2^-8, then 2^-0.5, 2^-1.5,
    2^-2.5, 2^-3.5.
    """
    below = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    rest = [2.0 ** (-8 * (i + 1) / (2 * below)) for i in range(0, 2 * (heads - below), 2)]
    return first + rest


def alibi(heads: int, device: torch.device) -> RelativeBias:
    """The bias as `attention.attend` takes it; the last few lengths are kept, as all layers of a batch ask for one."""
    steepness = torch.tensor(slopes(heads), dtype=torch.float32, device=device)[:, None]

    @lru_cache(maxsize=64)
    def bias(length: int) -> torch.Tensor:
        distance = torch.arange(1 - length, length, dtype=torch.float32, device=device).abs()
        return -steepness * distance

    return bias
