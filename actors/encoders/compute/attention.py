"""Attention over a packed batch. A token attends to the tokens of its own row only; if causal, not to later ones.

Neighbouring heads of the query may share a head of key and value. The implementation is chosen by device and arguments:

- CPU: our own loop over the packed rows (`actors.kernels`). If the kernels were not built: one
  `scaled_dot_product_attention` per run of rows of equal length, on views, without padding.
- CUDA in 16 bits without bias: one variable-length flash kernel for the whole micro-batch.
- CUDA in 16 bits with ALiBi, if `fused.fuses`: a kernel that computes the bias from slopes (`compute.slopes`).
- CUDA otherwise (float32, a bias, an older GPU): rows padded to the longest of their group, in slices that bound the
  memory. The shortest row of a group has at least half as many tokens, so at most half of the places are padding: a token
  budget need not know about it. This implementation runs on a CPU too, where tests compare it with the first.

A bias that depends only on the distance of two tokens (ALiBi, T5) is passed as one number per head and distance,
`[heads, 2 * length - 1]`, not as a `[heads, length, length]` matrix: with the queries in reverse order the matrix
`bias[h, i, j] = relative[h, i + j]` is a view of it with overlapping strides. So 8,192 tokens with 12 heads take 768 KiB
instead of 3 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from torch.nn import functional

from actors import kernels
from actors.encoders.alibi import Alibi
from actors.encoders.compute.fused import fuses
from actors.encoders.compute.slopes import attend_by_slopes
from actors.encoders.packed import PackedBatch, Padded, Run

# length -> float32 [heads, 2 * length - 1] on the batch's device; column `j - i + length - 1` is for key j, query i.
RelativeBias = Callable[[int], torch.Tensor]

# Largest number of elements in one slice of padded scores with a bias.
_SLICE_ELEMENTS = 64 * 2**20
# Types that flash kernels take.
_HALF = (torch.bfloat16, torch.float16)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PackedBatch,
    *,
    scale: float | None = None,
    bias: RelativeBias | None = None,
    causal: bool = False,
    approximate: bool = False,
) -> torch.Tensor:
    """Computes the attention of each row's tokens over that row.

    Args:
        query: [tokens, heads, width]; may be a view of one fused projection.
        key: [tokens, groups, width]; head h of the query uses group `h // (heads / groups)`. With as many groups as heads
            this is ordinary attention.
        value: As `key`.
        batch: Position of the rows.
        scale: Factor on the scores; None is `width ** -0.5`.
        bias: Added to the scores after scaling.
        causal: A token attends to itself and earlier tokens only.
        approximate: float32 may be multiplied as bfloat16 if the processor supports it (used with `int8`).

    Returns:
        [tokens, heads * width] in the type of `query`, contiguous.
    """
    if batch.device.type == "cpu":
        kernel = kernels.kernels_for(query.dtype, batch.device)
        way = attend_runs if kernel is None else partial(attend_by_kernel, kernel, approximate=approximate)
        return way(query, key, value, batch, scale=scale, bias=bias, causal=causal)
    grouped = key.shape[1] != query.shape[1]
    plain = scale is None and not causal and not grouped
    if isinstance(bias, Alibi) and plain and fuses(batch.device) and _has_varlen(query):
        return attend_by_slopes(query, key, value, bias.slopes, batch)
    settings = varlen_settings(_varlen_parameters(), scale=scale, causal=causal, grouped=grouped)
    if bias is None and settings is not None and _has_varlen(query):
        return _attend_varlen(query, key, value, batch, settings)
    return attend_padded(query, key, value, batch, scale=scale, bias=bias, causal=causal)


def attend_by_kernel(
    kernel: kernels.Kernels,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PackedBatch,
    *,
    scale: float | None = None,
    bias: RelativeBias | None = None,
    causal: bool = False,
    approximate: bool = False,
) -> torch.Tensor:
    """Computes `attend` with our own loop: all rows at once, or, with a bias, one run at a time."""
    tokens, heads, width = query.shape
    out = torch.empty(tokens, heads * width, dtype=query.dtype)
    scale = width**-0.5 if scale is None else scale
    attend_rows = partial(kernel.attend, scale=scale, causal=causal, approximate=approximate)
    if bias is None:
        attend_rows(query, key, value, batch.lengths, out=out)
        return out
    for run in batch.runs:
        q, k, v = (x[run.tokens] for x in (query, key, value))
        lengths = batch.lengths[run.row : run.row + run.rows]
        attend_rows(q, k, v, lengths, out=out[run.tokens], bias=bias(run.length))
    return out


def attend_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PackedBatch,
    *,
    scale: float | None = None,
    bias: RelativeBias | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Computes `attend` with torch's attention, one run of rows at a time."""
    if causal and bias is not None:
        bias, causal = _make_causal(bias), False
    attend_rows = partial(_attend_run, scale=scale, bias=bias, causal=causal)
    if len(batch.runs) == 1:
        return attend_rows(query, key, value, batch.runs[0])
    tokens, heads, width = query.shape
    out = torch.empty(tokens, heads * width, dtype=query.dtype, device=query.device)
    for run in batch.runs:
        out[run.tokens] = attend_rows(query, key, value, run)
    return out


def _attend_run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    run: Run,
    *,
    scale: float | None,
    bias: RelativeBias | None,
    causal: bool,
) -> torch.Tensor:
    heads, width = query.shape[1:]
    q, k, v = (x[run.tokens].view(run.rows, run.length, -1, width).transpose(1, 2) for x in (query, key, value))
    product = partial(functional.scaled_dot_product_attention, scale=scale, enable_gqa=k.shape[1] != heads)
    if bias is None:
        out = product(q, k, v, is_causal=causal)
    else:
        # With reversed queries the bias is a view; see the module's docstring.
        mask = hankel(bias(run.length), run.length).unsqueeze(0)
        out = product(q.flip(2), k, v, attn_mask=mask).flip(2)
    return out.transpose(1, 2).reshape(run.rows * run.length, heads * width)


def hankel(relative: torch.Tensor, length: int) -> torch.Tensor:
    """Returns a view [heads, length, length] of [heads, 2 * length - 1]; its row i is for query `length - 1 - i`."""
    return relative.as_strided((relative.shape[0], length, length), (relative.stride(0), 1, 1))


def _make_causal(bias: RelativeBias) -> RelativeBias:
    """Returns a bias that also masks every key after its query."""

    def causal_bias(length: int) -> torch.Tensor:
        relative = bias(length).clone()
        relative[:, length:] = float("-inf")
        return relative

    return causal_bias


def varlen_settings(
    known: Collection[str], *, scale: float | None, causal: bool, grouped: bool
) -> dict[str, Any] | None:
    """Returns the arguments of torch's variable-length kernel that differ from its defaults, or None if it lacks one.

    torch 2.10 has `is_causal` instead of `window_size`, and no `scale`. Up to 2.12 there is no `enable_gqa`: shared heads
    are passed as they are. Older releases have no such kernel.

    Args:
        known: Names of the kernel's parameters in the installed torch; empty if there is no such kernel.
        scale: As for `attend`.
        causal: As for `attend`.
        grouped: Heads of the query share heads of key and value.
    """
    settings: dict[str, Any] = {}
    if scale is not None:
        settings["scale"] = scale
    if causal:
        settings |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if grouped and "enable_gqa" in known:
        settings["enable_gqa"] = True
    return settings if known and settings.keys() <= set(known) else None


@cache
def _varlen_parameters() -> frozenset[str]:
    """Returns the parameter names of the kernel in the installed torch; none if there is no such kernel."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(signature(varlen_attn).parameters)


def _has_varlen(query: torch.Tensor) -> bool:
    """Returns True if the GPU and the form of the heads suit the variable-length kernel."""
    if query.dtype not in _HALF or query.shape[2] % 8 or query.shape[2] > 256:
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _attend_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: PackedBatch, settings: dict[str, Any]
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    offsets, longest = batch.offsets, batch.max_length
    kernel: Callable[..., Any] = varlen_attn
    out: torch.Tensor = kernel(query, key, value, offsets, offsets, longest, longest, **settings)
    return out.reshape(query.shape[0], -1)


def attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PackedBatch,
    *,
    scale: float | None = None,
    bias: RelativeBias | None = None,
    causal: bool = False,
    slice_elements: int = _SLICE_ELEMENTS,
) -> torch.Tensor:
    """Computes `attend` on rows padded to similar lengths; correct on every device.

    Args:
        query: [tokens, heads, width].
        key: [tokens, groups, width].
        value: As `key`.
        batch: Position of the rows.
        scale: Factor on the scores; None is `width ** -0.5`.
        bias: Added to the scores after scaling.
        causal: As for `attend`.
        slice_elements: Largest number of elements of a materialised bias; affects only speed.
    """
    if causal and bias is not None:
        bias, causal = _make_causal(bias), False
    tokens, heads, width = query.shape
    attend_group = partial(_attend_group, scale=scale, bias=bias, causal=causal, slice_elements=slice_elements)
    out = torch.empty(tokens, heads * width, dtype=query.dtype, device=query.device)
    for group in batch.padded():
        q, k, v = (x[group.tokens] for x in (query, key, value))
        out[group.tokens] = attend_group(q, k, v, group)
    return out


def _attend_group(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: Padded,
    *,
    scale: float | None,
    bias: RelativeBias | None,
    causal: bool,
    slice_elements: int,
) -> torch.Tensor:
    heads, width = query.shape[1:]
    rows, longest = group.rows, group.length

    def pad(x: torch.Tensor) -> torch.Tensor:
        full = x.new_zeros(rows * longest, x.shape[1], width)
        full[group.places] = x
        return full.view(rows, longest, -1, width).transpose(1, 2)

    shared = key.shape[1] != heads
    if shared and not (causal and query.dtype in _HALF):
        # Kernels for float32 or with a mask have no shared heads; torch would take one that keeps all scores in memory.
        shared = False
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    q, k, v = pad(query), pad(key), pad(value)
    # Every row has a token, so every query has a key and no result becomes NaN.
    valid = group.valid[:, None, None, :]
    if causal:
        # Padding comes after a row's own tokens, so causal attention excludes it without a mask.
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=shared)
    elif bias is None:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=valid, scale=scale)
    else:
        out = torch.empty_like(q)
        relative = bias(longest)
        per_query = rows * heads * longest
        step = max(1, slice_elements // per_query)
        columns = torch.arange(longest, device=query.device)
        for start in range(0, longest, step):
            stop = min(start + step, longest)
            distance = columns[None, :] - columns[start:stop, None] + (longest - 1)
            mask = relative[:, distance].unsqueeze(0).masked_fill(~valid, float("-inf"))
            out[:, :, start:stop] = functional.scaled_dot_product_attention(
                q[:, :, start:stop], k, v, attn_mask=mask.to(q.dtype), scale=scale
            )
    return out.transpose(1, 2).reshape(rows * longest, heads * width)[group.places]
