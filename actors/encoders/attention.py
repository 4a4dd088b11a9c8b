"""Attention over a packed batch: every token sees the tokens of its own row and no other.

Chosen by device and by whether there is a bias:

- CPU: our own loop over the packed rows (`actors.kernels`); where it was not built, one `scaled_dot_product_attention` per
  run of rows of equal length, on views, without padding.
- CUDA in 16 bits without bias: one variable-length flash kernel for the whole micro-batch.
- else on CUDA (float32, a bias, an older card): rows padded to the longest, in slices that bound the memory.
  Rows of a micro-batch are of like length, so little is padded. This way runs on a CPU too, where tests hold it
  against the first.

A bias that depends only on how far apart two tokens are (ALiBi, T5) is given as one number per head and distance,
`[heads, 2 * length - 1]`, not as a `[heads, length, length]` matrix: with the queries in reverse order the matrix
`bias[h, i, j] = relative[h, i + j]` is a mere view of it with overlapping strides. So 8,192 tokens with 12 heads
cost 768 KiB instead of 3 GiB.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from actors import kernels
from actors.encoders.packed import PackedBatch, Run

# length -> float32 [heads, 2 * length - 1] on the batch's device; column `j - i + length - 1` is for key j, query i.
RelativeBias = Callable[[int], torch.Tensor]

# What one slice of padded scores with a bias may take, in elements.
_SLICE_ELEMENTS = 64 * 2**20


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PackedBatch,
    *,
    scale: float | None = None,
    bias: RelativeBias | None = None,
    approximate: bool = False,
) -> torch.Tensor:
    """Attention of each row's tokens over that row.

    Args:
        query: [tokens, heads, width]; a view of one fused projection is fine.
        key: As `query`.
        value: As `query`.
        batch: Where the rows lie.
        scale: Factor on the scores; None is `width ** -0.5`.
        bias: Added to the scores after scaling.
        approximate: float32 may be multiplied as bfloat16 where the processor can (under `int8`).

    Returns:
        [tokens, heads * width] in the type of `query`, contiguous.
    """
    if batch.device.type == "cpu":
        found = kernels.taking(query.dtype, batch.device)
        if found is not None:
            return attend_by_kernel(found, query, key, value, batch, scale=scale, bias=bias, approximate=approximate)
        return attend_runs(query, key, value, batch, scale=scale, bias=bias)
    if bias is None and _has_varlen(query):
        return _attend_varlen(query, key, value, batch, scale=scale)
    return attend_padded(query, key, value, batch, scale=scale, bias=bias)


def attend_by_kernel(
    kernel: kernels.Kernels,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PackedBatch,
    *,
    scale: float | None = None,
    bias: RelativeBias | None = None,
    approximate: bool = False,
) -> torch.Tensor:
    """The same as `attend` by our own loop: all rows at once, or, with a bias, a run at a time."""
    tokens, heads, width = query.shape
    out = torch.empty(tokens, heads * width, dtype=query.dtype)
    some = partial(kernel.attend, scale=width**-0.5 if scale is None else scale, approximate=approximate)
    if bias is None:
        some(query, key, value, batch.lengths, out=out)
        return out
    for run in batch.runs:
        q, k, v = (x[run.tokens] for x in (query, key, value))
        lengths = batch.lengths[run.row : run.row + run.rows]
        some(q, k, v, lengths, out=out[run.tokens], bias=bias(run.length))
    return out


def attend_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PackedBatch,
    *,
    scale: float | None = None,
    bias: RelativeBias | None = None,
) -> torch.Tensor:
    """The same as `attend` by torch's own attention, a run of rows at a time."""
    if len(batch.runs) == 1:
        return _attend_run(query, key, value, batch.runs[0], scale=scale, bias=bias)
    tokens, heads, width = query.shape
    out = torch.empty(tokens, heads * width, dtype=query.dtype, device=query.device)
    for run in batch.runs:
        out[run.tokens] = _attend_run(query, key, value, run, scale=scale, bias=bias)
    return out


def _attend_run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    run: Run,
    *,
    scale: float | None,
    bias: RelativeBias | None,
) -> torch.Tensor:
    heads, width = query.shape[1:]
    shape = (run.rows, run.length, heads, width)
    q, k, v = (x[run.tokens].view(shape).transpose(1, 2) for x in (query, key, value))
    if bias is None:
        out = functional.scaled_dot_product_attention(q, k, v, scale=scale)
    else:
        # Reversed queries make the bias a view, see the module's docstring.
        mask = hankel(bias(run.length), run.length).unsqueeze(0)
        out = functional.scaled_dot_product_attention(q.flip(2), k, v, attn_mask=mask, scale=scale).flip(2)
    return out.transpose(1, 2).reshape(run.rows * run.length, heads * width)


def hankel(relative: torch.Tensor, length: int) -> torch.Tensor:
    """[heads, 2 * length - 1] to a view [heads, length, length] whose row i is for query `length - 1 - i`."""
    return relative.as_strided((relative.shape[0], length, length), (relative.stride(0), 1, 1))


def _has_varlen(query: torch.Tensor) -> bool:
    if query.dtype not in (torch.bfloat16, torch.float16) or query.shape[2] % 8 or query.shape[2] > 256:
        return False
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        return False
    try:
        from torch.nn.attention import varlen  # noqa: F401
    except ImportError:
        return False
    return True


def _attend_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: PackedBatch, *, scale: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    offsets, longest = batch.offsets(), batch.max_length
    # Older releases take no scale; none is needed for the usual one.
    kernel: Callable[..., Any] = varlen_attn if scale is None else partial(varlen_attn, scale=scale)
    out: torch.Tensor = kernel(query, key, value, offsets, offsets, longest, longest)
    return out.reshape(query.shape[0], -1)


def attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PackedBatch,
    *,
    scale: float | None = None,
    bias: RelativeBias | None = None,
    slice_elements: int = _SLICE_ELEMENTS,
) -> torch.Tensor:
    """The same as `attend`, on rows padded to the longest; right on every device.

    Args:
        query: [tokens, heads, width].
        key: As `query`.
        value: As `query`.
        batch: Where the rows lie.
        scale: Factor on the scores; None is `width ** -0.5`.
        bias: Added to the scores after scaling.
        slice_elements: Bound on the elements of a materialised bias; only speed depends on it.
    """
    _, heads, width = query.shape
    rows, longest = batch.rows, batch.max_length
    place = batch.spread(torch.arange(rows, device=batch.device) * longest) + batch.positions()

    def pad(x: torch.Tensor) -> torch.Tensor:
        full = x.new_zeros(rows * longest, heads, width)
        full[place] = x
        return full.view(rows, longest, heads, width).transpose(1, 2)

    q, k, v = pad(query), pad(key), pad(value)
    # Every row has a token, so no query is left without a key: nothing here can become NaN.
    seen = torch.arange(longest, device=batch.device) < batch.row_lengths()[:, None]
    if bias is None:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :], scale=scale)
    else:
        out = torch.empty_like(q)
        relative = bias(longest)
        per_query = rows * heads * longest
        step = max(1, slice_elements // per_query)
        columns = torch.arange(longest, device=batch.device)
        for start in range(0, longest, step):
            stop = min(start + step, longest)
            distance = columns[None, :] - columns[start:stop, None] + (longest - 1)
            mask = relative[:, distance].unsqueeze(0).masked_fill(~seen[:, None, None, :], float("-inf"))
            out[:, :, start:stop] = functional.scaled_dot_product_attention(
                q[:, :, start:stop], k, v, attn_mask=mask.to(q.dtype), scale=scale
            )
    return out.transpose(1, 2).reshape(rows * longest, heads * width)[place]
