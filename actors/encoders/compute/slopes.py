"""Attention with ALiBi on a GPU, from one slope a head instead of a matrix of biases (`compute.attention` has the others).

The kernel computes each bias from the distance of the two tokens. It is that of the package flash-attn, if it is installed,
else torch's `flex_attention` over the packed batch as one row: a mask keeps tokens of other rows out, and blocks of 128
tokens that share no row are not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from actors.encoders.compute.fused import fused
from actors.encoders.packed import BLOCK, PackedBatch


def attend_by_slopes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slopes: torch.Tensor,
    batch: PackedBatch,
) -> torch.Tensor:
    """Computes the attention of each row's tokens over that row, with the bias `-slope * distance`.

    Args:
        query: [tokens, heads, width] in 16 bits.
        key: As `query`.
        value: As `query`.
        slopes: float32 [heads].
        batch: Position of the rows.

    Returns:
        [tokens, heads * width], contiguous.
    """
    flash = find_flash()
    if flash is None:
        return _attend_in_blocks(query, key, value, slopes, batch.blocks())
    offsets, longest = batch.offsets, batch.max_length
    out: torch.Tensor = flash(query, key, value, offsets, offsets, longest, longest, alibi_slopes=slopes)
    return out.reshape(len(query), -1)


@cache
def find_flash() -> Callable[..., Any] | None:
    """Returns flash-attn's function for packed rows, or None if no release that takes slopes is installed."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    function: Callable[..., Any] = flash_attn_varlen_func
    return function if "alibi_slopes" in signature(function).parameters else None


@fused
def _attend_in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slopes: torch.Tensor,
    blocks: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    tokens = len(query)
    rows, counts, numbers = blocks

    def biased(score: torch.Tensor, _: torch.Tensor, head: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> Any:
        return score - slopes[head] * (i - j).abs()

    def same_row(_: torch.Tensor, __: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return rows[i] == rows[j]

    mask = BlockMask.from_kv_blocks(
        counts[None, None],
        numbers[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=same_row,
        seq_lengths=(tokens, tokens),
    )
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    out: Any = flex_attention(q, k, v, score_mod=biased, block_mask=mask)
    return out[0].transpose(0, 1).reshape(tokens, -1)  # type: ignore[no-any-return]
