"""Attention over a packed batch: every token sees the tokens of its own row and no other, or, where it is causal, those of
them that are not behind it. Neighbouring heads of the query may share a head of key and value.

Chosen by device and by what is asked for:

- CPU: our own loop over the packed rows (`actors.kernels`); where it was not built, and where attention is causal or heads
  are shared, one `scaled_dot_product_attention` per run of rows of equal length, on views, without padding.
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
from functools import cache, partial
from inspect import signature
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
    causal: bool = False,
    approximate: bool = False,
) -> torch.Tensor:
    """Attention of each row's tokens over that row.

    Args:
        query: [tokens, heads, width]; a view of one fused projection is fine.
        key: [tokens, groups, width], of which head h of the query takes number `h // (heads / groups)`; as many groups as
            heads is the usual attention.
        value: As `key`.
        batch: Where the rows lie.
        scale: Factor on the scores; None is `width ** -0.5`.
        bias: Added to the scores after scaling.
        causal: A token sees itself and those before it, and none behind it.
        approximate: float32 may be multiplied as bfloat16 where the processor can (under `int8`).

    Returns:
        [tokens, heads * width] in the type of `query`, contiguous.
    """
    grouped = key.shape[1] != query.shape[1]
    if batch.device.type == "cpu":
        found = None if causal or grouped else kernels.kernels_for(query.dtype, batch.device)
        if found is not None:
            return attend_by_kernel(found, query, key, value, batch, scale=scale, bias=bias, approximate=approximate)
        return attend_runs(query, key, value, batch, scale=scale, bias=bias, causal=causal)
    settings = varlen_settings(scale=scale, causal=causal, grouped=grouped)
    if bias is None and _has_varlen(query, settings):
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
    causal: bool = False,
) -> torch.Tensor:
    """The same as `attend` by torch's own attention, a run of rows at a time."""
    if causal and bias is not None:
        bias, causal = _backward(bias), False
    some = partial(_attend_run, scale=scale, bias=bias, causal=causal)
    if len(batch.runs) == 1:
        return some(query, key, value, batch.runs[0])
    tokens, heads, width = query.shape
    out = torch.empty(tokens, heads * width, dtype=query.dtype, device=query.device)
    for run in batch.runs:
        out[run.tokens] = some(query, key, value, run)
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
        # Reversed queries make the bias a view, see the module's docstring.
        mask = hankel(bias(run.length), run.length).unsqueeze(0)
        out = product(q.flip(2), k, v, attn_mask=mask).flip(2)
    return out.transpose(1, 2).reshape(run.rows * run.length, heads * width)


def hankel(relative: torch.Tensor, length: int) -> torch.Tensor:
    """[heads, 2 * length - 1] to a view [heads, length, length] whose row i is for query `length - 1 - i`."""
    return relative.as_strided((relative.shape[0], length, length), (relative.stride(0), 1, 1))


def _backward(bias: RelativeBias) -> RelativeBias:
    """A bias that also hides every key behind its query."""

    def hiding(length: int) -> torch.Tensor:
        relative = bias(length).clone()
        relative[:, length:] = float("-inf")
        return relative

    return hiding


def varlen_settings(*, scale: float | None, causal: bool, grouped: bool) -> dict[str, Any]:
    """What torch's variable-length kernel must be told beyond what it does by itself."""
    settings: dict[str, Any] = {}
    if scale is not None:
        settings["scale"] = scale
    if causal:
        settings["window_size"] = (-1, 0)
    if grouped:
        settings["enable_gqa"] = True
    return settings


@cache
def _varlen_knows() -> frozenset[str]:
    """Names of its settings in the torch that is here; none where there is no such kernel."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(signature(varlen_attn).parameters)


def _has_varlen(query: torch.Tensor, settings: dict[str, Any]) -> bool:
    if query.dtype not in (torch.bfloat16, torch.float16) or query.shape[2] % 8 or query.shape[2] > 256:
        return False
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        return False
    # Older releases have no such kernel, or one that takes less: those that lack a setting would compute something else.
    return bool(_varlen_knows()) and settings.keys() <= _varlen_knows()


def _attend_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: PackedBatch, settings: dict[str, Any]
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    offsets, longest = batch.offsets(), batch.max_length
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
    """The same as `attend`, on rows padded to the longest; right on every device.

    Args:
        query: [tokens, heads, width].
        key: [tokens, groups, width].
        value: As `key`.
        batch: Where the rows lie.
        scale: Factor on the scores; None is `width ** -0.5`.
        bias: Added to the scores after scaling.
        causal: As for `attend`.
        slice_elements: Bound on the elements of a materialised bias; only speed depends on it.
    """
    if causal and bias is not None:
        bias, causal = _backward(bias), False
    _, heads, width = query.shape
    rows, longest = batch.rows, batch.max_length
    place = batch.spread(torch.arange(rows, device=batch.device) * longest) + batch.positions()

    def pad(x: torch.Tensor) -> torch.Tensor:
        full = x.new_zeros(rows * longest, heads, width)
        full[place] = x
        return full.view(rows, longest, heads, width).transpose(1, 2)

    if key.shape[1] != heads:
        # Kernels for float32 know no shared heads; torch would fall back to one that keeps all scores in memory.
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    q, k, v = pad(query), pad(key), pad(value)
    # Every row has a token, so no query is left without a key: nothing here can become NaN.
    seen = torch.arange(longest, device=batch.device) < batch.row_lengths()[:, None]
    if causal:
        # Padding stands behind a row's own tokens, so none of them sees it, and no mask has to be made.
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    elif bias is None:
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
