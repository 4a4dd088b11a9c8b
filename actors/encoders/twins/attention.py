"""Attention over a packed batch with gradients: rows of similar length are padded to one another.

`actors.encoders.compute.attention` is the same without gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from actors.encoders.compute.attention import RelativeBias, hankel
from actors.encoders.packed import PackedBatch


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring rows that are padded to the longest of them.

    Attributes:
        tokens: Slice of the flat token axis that holds the rows' tokens.
        rows: Number of rows.
        length: Tokens of the longest row.
        places: int64 [tokens], the place of each token among `rows * length`; None if all rows are of one length.
        mask: Added to the scores: [1 or rows, 1 or heads, 1 or length, length]; None adds nothing.
    """

    tokens: slice
    rows: int
    length: int
    places: torch.Tensor | None
    mask: torch.Tensor | None


def make_groups(
    batch: PackedBatch, weight: torch.Tensor, *, bias: RelativeBias | None = None, causal: bool = False
) -> tuple[Group, ...]:
    """Returns all rows in groups, with the masks that all layers share.

    Args:
        batch: Position of the rows.
        weight: A weight of the model. Masks have its type, or under autocast the type that products have.
        bias: Added to the scores, by distance.
        causal: `attend` is called with `causal` too, so that padding, which comes last, needs no mask.
    """
    dtype, device = weight.dtype, batch.device
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    groups = []
    for padded in batch.padded():
        full = padded.rows * padded.length == padded.tokens.stop - padded.tokens.start
        mask = None
        if bias is not None:
            # Row i of the view is for the last query but i.
            mask = hankel(bias(padded.length), padded.length).flip(1).to(dtype)[None]
        if not full and not causal:
            absent = ~padded.valid[:, None, None, :]
            if mask is None:
                mask = torch.zeros(absent.shape, dtype=dtype, device=device)
            mask = mask.masked_fill(absent, float("-inf"))
        groups.append(Group(padded.tokens, padded.rows, padded.length, None if full else padded.places, mask))
    return tuple(groups)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    groups: tuple[Group, ...],
    *,
    scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Computes the attention of each row's tokens over that row.

    Args:
        query: [tokens, heads, width].
        key: [tokens, shared, width]; head h of the query uses head `h // (heads / shared)`.
        value: As `key`.
        groups: Of `make_groups`.
        scale: Factor on the scores; None is `width ** -0.5`.
        causal: A token attends to itself and earlier tokens only. For groups without bias.

    Returns:
        [tokens, heads * width].
    """
    heads, width = query.shape[1:]
    mixed = []
    for group in groups:
        q, k, v = (_pad(x[group.tokens], group) for x in (query, key, value))
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=group.mask, is_causal=causal, scale=scale, enable_gqa=key.shape[1] != heads
        )
        flat = out.transpose(1, 2).reshape(group.rows * group.length, heads * width)
        mixed.append(flat if group.places is None else flat[group.places])
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


def _pad(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Returns [rows, heads, length, width] of [tokens, heads, width]."""
    if group.places is not None:
        x = x.new_zeros(group.rows * group.length, *x.shape[1:]).index_copy(0, group.places, x)
    return x.view(group.rows, group.length, *x.shape[1:]).transpose(1, 2)
