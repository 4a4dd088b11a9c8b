from __future__ import annotations

import sys
from inspect import signature
from types import ModuleType

import numpy as np
import pytest
import torch

from actors.encoders.alibi import Alibi
from actors.encoders.compute.attention import attend, attend_padded, attend_runs, hankel, varlen_settings
from actors.encoders.compute.slopes import attend_by_slopes, find_flash
from actors.encoders.packed import BLOCK, pack

HEADS, WIDTH = 4, 8


def uneven(length: int) -> torch.Tensor:
    """Returns a bias that is not symmetric, as T5's is not."""
    distance = torch.arange(1 - length, length, dtype=torch.float32)
    return torch.stack([torch.sin(distance * (head + 1)) for head in range(HEADS)])


def by_hand(query, key, value, lengths, *, scale, bias, causal=False):
    out, start = [], 0
    shared = HEADS // key.shape[1]
    for length in lengths:
        q, k, v = (x[start : start + length].double().transpose(0, 1) for x in (query, key, value))
        k, v = (torch.stack([x[head // shared] for head in range(HEADS)]) for x in (k, v))
        scores = q @ k.transpose(1, 2) * scale
        if causal:
            for i in range(length):
                scores[:, i, i + 1 :] = float("-inf")
        if bias is not None:
            relative = bias(length).double()
            for i in range(length):
                for j in range(length):
                    scores[:, i, j] += relative[:, j - i + length - 1]
        out.append((torch.softmax(scores, -1) @ v).transpose(0, 1).reshape(length, HEADS * WIDTH))
        start += length
    return torch.cat(out)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[7, 5, 5, 1], [3, 3], [1], [2, 6, 2, 2, 6], [17, 3, 2, 2, 1]])
@pytest.mark.parametrize("bias", [None, uneven, Alibi(HEADS, torch.device("cpu"))])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_both_implementations_attend_within_each_row(lengths, bias, scale):
    torch.manual_seed(0)
    fused = torch.randn(sum(lengths), 3, HEADS, WIDTH)
    query, key, value = fused.unbind(1)
    batch = pack(np.arange(sum(lengths)), np.array(lengths), device=torch.device("cpu"))
    expected = by_hand(query, key, value, lengths, scale=scale or WIDTH**-0.5, bias=bias).float()
    torch.testing.assert_close(attend(query, key, value, batch, scale=scale, bias=bias), expected, atol=1e-5, rtol=0)
    for slice_elements in (1, 200, 10**9):
        padded = attend_padded(query, key, value, batch, scale=scale, bias=bias, slice_elements=slice_elements)
        torch.testing.assert_close(padded, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[7, 5, 5, 1], [3, 3], [1], [2, 6, 2, 2, 6]])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [None, uneven])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_causal_attention_and_shared_heads(lengths, groups, causal, bias, scale):
    torch.manual_seed(0)
    fused = torch.randn(sum(lengths), HEADS + 2 * groups, WIDTH)
    query, key, value = fused.split([HEADS, groups, groups], 1)
    batch = pack(np.arange(sum(lengths)), np.array(lengths), device=torch.device("cpu"))
    expected = by_hand(query, key, value, lengths, scale=scale or WIDTH**-0.5, bias=bias, causal=causal).float()
    for way in (attend, attend_runs, attend_padded):
        actual = way(query, key, value, batch, scale=scale, bias=bias, causal=causal)
        assert actual.is_contiguous()
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "lengths",
    [
        [8192, *[100] * 573],
        [512, 300, 256, 255, 128, 90, 3, 1],
        [1, 512, 1, 512],
        [7] * 5,
        [4, 2, 1],
        np.arange(1, 400),
    ],
)
def test_at_most_half_of_the_padded_places_have_no_token(lengths):
    lengths = np.array(lengths)
    batch = pack(np.arange(lengths.sum()), lengths, device=torch.device("cpu"))
    groups = batch.padded()
    assert sum(group.rows * group.length for group in groups) <= 2 * lengths.sum()
    assert [group.tokens.start for group in groups] == [0, *(group.tokens.stop for group in groups[:-1])]
    assert groups[-1].tokens.stop == lengths.sum()
    for group in groups:
        assert torch.equal(group.valid.flatten().nonzero().flatten(), group.places)
    in_order = np.sort(lengths)[::-1]
    fewest = len(pack(np.arange(lengths.sum()), in_order, device=torch.device("cpu")).padded())
    assert fewest <= 1 + np.log2(lengths.max() / lengths.min())


def test_causal_attention_in_bfloat16_is_close():
    torch.manual_seed(0)
    lengths = [9, 4, 4]
    query, key, value = torch.randn(17, HEADS + 4, WIDTH).to(torch.bfloat16).split([HEADS, 2, 2], 1)
    batch = pack(np.arange(17), np.array(lengths), device=torch.device("cpu"))
    expected = by_hand(query, key, value, lengths, scale=WIDTH**-0.5, bias=None, causal=True)
    for way in (attend, attend_padded):
        actual = way(query, key, value, batch, causal=True)
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual.double(), expected, atol=0.03, rtol=0)


# The variable-length kernel as torch releases have it: their keyword-only parameters, or those that may be given by name.
KERNELS = {
    "2.10": {"is_causal", "return_aux"},
    "2.11": {"return_aux", "scale", "window_size"},
    "2.12": {"return_aux", "scale", "window_size", "seqused_k", "block_table"},
    "2.13": {"return_aux", "scale", "window_size", "seqused_k", "block_table", "enable_gqa", "num_splits"},
}


@pytest.mark.slow  # the import takes seconds
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("release", KERNELS)
def test_the_gpu_kernel_of_each_torch_gets_only_parameters_that_it_has(causal, grouped, scale, release):
    settings = varlen_settings(KERNELS[release], scale=scale, causal=causal, grouped=grouped)
    if release == "2.10" and scale is not None:
        assert settings is None  # it would use another scale
        return
    assert settings is not None
    assert settings.keys() <= KERNELS[release]
    # Causal: all tokens before, none after.
    assert (settings.get("window_size") == (-1, 0) or settings.get("is_causal") is True) is causal
    assert settings.get("scale") == scale
    assert settings.get("enable_gqa", False) == (grouped and release == "2.13")
    assert varlen_settings((), scale=scale, causal=causal, grouped=grouped) is None  # before 2.10


def test_jina_v4_needs_no_padding_with_the_installed_torch():
    """The kernel runs on GPUs only, but its parameters can be checked, and the shapes of its result traced, anywhere."""
    from torch.nn.attention.varlen import varlen_attn

    settings = varlen_settings(signature(varlen_attn).parameters, scale=None, causal=True, grouped=True)
    assert settings is not None
    query, key, value = torch.empty(7, 16 + 2 * 2, 128, dtype=torch.bfloat16, device="meta").split([16, 2, 2], 1)
    offsets = torch.empty(3, dtype=torch.int32, device="meta")
    out = varlen_attn(query, key, value, offsets, offsets, 4, 4, **settings)
    assert isinstance(out, torch.Tensor)
    assert out.shape == (7, 16, 128)


def test_the_bias_matrix_is_a_view():
    relative = uneven(5)
    square = hankel(relative, 5)
    assert square.untyped_storage().data_ptr() == relative.untyped_storage().data_ptr()
    for i in range(5):
        for j in range(5):
            assert square[2, 4 - i, j] == relative[2, j - i + 4]


def test_a_batch_has_the_positions_of_its_rows():
    batch = pack(np.arange(12), np.array([4, 3, 3, 2]), device=torch.device("cpu"), tasks=["a", "b", "a", "b"])
    assert [(run.row, run.rows, run.length, run.token) for run in batch.runs] == [
        (0, 1, 4, 0),
        (1, 2, 3, 4),
        (3, 1, 2, 10),
    ]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 1]
    assert batch.offsets.tolist() == [0, 4, 7, 10, 12]
    assert batch.spread(torch.tensor([1, 2, 3, 4])).tolist() == [1] * 4 + [2] * 3 + [3] * 3 + [4] * 2
    assert batch.tasks == ("a", "b", "a", "b")


@pytest.mark.parametrize("lengths", [[300, 128, 128, 40, 2], [1], [128], [129], [3] * 100])
def test_blocks_are_paired_if_they_share_a_row(lengths):
    batch = pack(np.arange(sum(lengths)), np.array(lengths), device=torch.device("cpu"))
    rows, counts, numbers = batch.blocks()
    assert rows.tolist() == np.repeat(np.arange(len(lengths)), lengths).tolist()
    blocks = [set(block.tolist()) for block in rows.split(BLOCK)]
    for mine, count, order in zip(blocks, counts.tolist(), numbers.tolist(), strict=True):
        assert sorted(order) == list(range(len(blocks)))
        assert sorted(order[:count]) == [number for number, other in enumerate(blocks) if mine & other]


def test_flash_attention_gets_the_slopes(monkeypatch):
    """Computed by the bias that its documentation names, for queries and keys of one row."""

    def flash_attn_varlen_func(q, k, v, *ends, alibi_slopes=None):
        offsets, _, *longest = ends
        assert offsets.dtype == torch.int32
        assert offsets is ends[1]
        assert longest == [7, 7]
        rows = np.diff(offsets).tolist()
        bias = lambda n: -alibi_slopes[:, None] * torch.arange(1 - n, n).abs()  # noqa: E731
        return by_hand(q, k, v, rows, scale=WIDTH**-0.5, bias=bias).view(q.shape)

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    find_flash.cache_clear()
    bias, lengths = Alibi(HEADS, torch.device("cpu")), [7, 5, 1]
    query, key, value = torch.randn(13, 3, HEADS, WIDTH).unbind(1)
    batch = pack(np.arange(13), np.array(lengths), device=torch.device("cpu"))
    try:
        out = attend_by_slopes(query, key, value, bias.slopes, batch)
    finally:
        find_flash.cache_clear()
    torch.testing.assert_close(out.float(), attend_padded(query, key, value, batch, bias=bias), atol=1e-5, rtol=0)
