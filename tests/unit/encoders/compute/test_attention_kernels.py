"""Attention in C against torch in float64, for every instruction set of this processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actors import kernels
from actors.encoders.compute.attention import attend, attend_by_kernel, attend_runs
from actors.encoders.packed import pack

KERNELS = kernels.available()
# Rows that end before, at and after a tile of 6, a block of 12, a register of 8 or 16, and a pair of registers.
LENGTHS = [1, 2, 5, 6, 7, 11, 12, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 250]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.02}


def types(kernel: kernels.Kernels) -> list[torch.dtype]:
    return [dtype for dtype in TOLERANCE if kernel.takes(dtype)]


def exact_attention(query, key, value, lengths, *, scale, bias=None, causal=False):
    share = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(share, dim=1) for x in (key, value))
    out = []
    for q, k, v in zip(*(torch.split(x.double(), lengths) for x in (query, key, value)), strict=True):
        scores = torch.einsum("ihd,jhd->hij", q, k) * scale
        position = torch.arange(len(q))
        if causal:
            scores[:, position[None] > position[:, None]] = float("-inf")
        if bias is not None:
            scores += bias.double()[:, position[None] - position[:, None] + len(q) - 1]
        out.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1))
    return torch.cat(out)


def states(tokens: int, heads: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return grouped_states(tokens, heads, heads, width, dtype)


def grouped_states(tokens: int, heads: int, groups: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Query, key and value as views of one product, as models have them."""
    together = torch.randn(tokens, heads + 2 * groups, width).mul(1.5).to(dtype)
    return torch.split(together, [heads, groups, groups], dim=1)


def attended(kernel, query, key, value, lengths, **settings) -> torch.Tensor:
    out = torch.full((len(query), query.shape[1] * query.shape[2]), float("nan"), dtype=query.dtype)
    kernel.attend(query, key, value, np.array(lengths), out=out, **settings)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(("heads", "width"), [(12, 32), (2, 64), (3, 48), (1, 128), (2, 20), (3, 7), (1, 2), (2, 256)])
def test_attention_of_rows_of_any_length_in_heads_of_any_width(kernel, heads, width):
    torch.manual_seed(0)
    for dtype in types(kernel):
        query, key, value = states(sum(LENGTHS), heads, width, dtype)
        result = attended(kernel, query, key, value, LENGTHS, scale=width**-0.5)
        assert result.dtype == dtype
        expected = exact_attention(query, key, value, LENGTHS, scale=width**-0.5)
        torch.testing.assert_close(result.double(), expected, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(("heads", "groups"), [(3, 3), (4, 2), (7, 1), (16, 2)])
@pytest.mark.parametrize("width", [32, 64, 80, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_to_earlier_tokens_and_of_heads_that_share_a_key(kernel, heads, groups, width, causal):
    torch.manual_seed(0)
    lengths = [1, 2, 63, 64, 65, 513, 3]
    for dtype in types(kernel):
        query, key, value = grouped_states(sum(lengths), heads, groups, width, dtype)
        result = attended(kernel, query, key, value, lengths, scale=width**-0.5, causal=causal)
        expected = exact_attention(query, key, value, lengths, scale=width**-0.5, causal=causal)
        # Few keys average out no rounding of their weights, and results are as large as values.
        rtol = 2**-8 if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(result.double(), expected, atol=TOLERANCE[dtype], rtol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("length", [1, 7, 16, 100, 511, 512, 513, 1030])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_a_bias_and_more_keys_than_a_block(kernel, length, causal):
    torch.manual_seed(0)
    wider = torch.randn(2, 2 * length + 9) * 3  # the bias is a view of a larger tensor, as that of T5
    bias = wider[:, 5 : 5 + 2 * length - 1]
    for dtype in types(kernel):
        query, key, value = states(2 * length, 2, 32, dtype)
        settings = {"scale": 0.2, "bias": bias, "causal": causal}
        result = attended(kernel, query, key, value, [length, length], **settings)
        expected = exact_attention(query, key, value, [length, length], **settings)
        torch.testing.assert_close(result.double(), expected, atol=2 * TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_attention_is_stable_for_scores_of_very_different_size(kernel):
    """The largest score is the last, so all sums before it become negligible, and none may overflow."""
    query = torch.ones(600, 1, 16)
    key = torch.linspace(-400, 400, 600)[:, None, None].expand(600, 1, 16).contiguous()
    value = torch.arange(600.0)[:, None, None].expand(600, 1, 16).contiguous()
    result = attended(kernel, query, key, value, [600], scale=1.0)
    torch.testing.assert_close(result, torch.full((600, 16), 599.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_nan_affects_only_its_row_and_head(kernel):
    query, key, value = states(40, 2, 32, torch.float32)
    key[3, 1, 7] = float("nan")
    result = attended(kernel, query, key, value, [20, 20], scale=1.0)
    assert result[:20, 32:].isnan().all()
    assert result[20:].isfinite().all()
    assert result[:, :32].isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_huge_key_or_a_nan_does_not_affect_earlier_tokens_if_attention_is_causal(kernel):
    torch.manual_seed(0)
    query, key, value = grouped_states(90, 6, 2, 32, torch.float32)
    expected = exact_attention(query, key, value, [70, 20], scale=1.0, causal=True).float()
    key[50, 0], key[60, 1, 7] = 1e4 * query[3, 1], float("nan")
    result = attended(kernel, query, key, value, [70, 20], scale=1.0, causal=True).view(90, 2, 96)
    assert result[60:70, 1].isnan().all()
    expected = expected.view(90, 2, 96)
    for tokens, group in (slice(50), 0), (slice(60), 1), (slice(70, 90), slice(2)):
        torch.testing.assert_close(result[tokens, group], expected[tokens, group], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_attention_accepts_any_strides_of_tokens_and_heads(kernel):
    fused = torch.randn(30, 3, 4, 16)
    query, key, value = fused[:, 0].contiguous(), fused[:, 1], torch.randn(30, 16, 4).transpose(1, 2)
    result = attended(kernel, query, key, value, [30], scale=0.5)
    torch.testing.assert_close(result, exact_attention(query, key, value, [30], scale=0.5).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_float32_is_multiplied_as_bfloat16_only_if_approximate_is_set(kernel):
    query, key, value = states(50, 2, 32, torch.float32)
    expected = exact_attention(query, key, value, [50], scale=0.2).float()
    result = attended(kernel, query, key, value, [50], scale=0.2, approximate=True)
    error = (result - expected).abs().max()
    assert error < 0.1
    assert (error > 1e-5) == (kernel.name == "avx512_bf16")


def test_all_attention_paths_on_a_cpu_agree():
    torch.manual_seed(0)
    lengths = np.array([9, 9, 4])
    batch = pack(np.arange(22), lengths, device=torch.device("cpu"))
    query, key, value = states(22, 4, 8, torch.float32)
    for bias in (None, lambda length: torch.sin(torch.arange(8.0 * length - 4).view(4, -1))):
        expected = attend_runs(query, key, value, batch, bias=bias)
        torch.testing.assert_close(attend(query, key, value, batch, bias=bias), expected, atol=1e-5, rtol=0)
        for kernel in KERNELS:
            result = attend_by_kernel(kernel, query, key, value, batch, bias=bias)
            torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(("groups", "causal"), [(10, False), (2, True)])
def test_attention_on_several_threads_equals_that_on_one(kernel, groups, causal):
    threads_before = torch.get_num_threads()
    query, key, value = grouped_states(64, 10, groups, 16, torch.float32)
    torch.set_num_threads(1)
    single_threaded = attended(kernel, query, key, value, [40, 24], scale=1.0, causal=causal)
    torch.set_num_threads(3)
    try:
        result = attended(kernel, query, key, value, [40, 24], scale=1.0, causal=causal)
    finally:
        torch.set_num_threads(threads_before)
    assert torch.equal(result, single_threaded)
