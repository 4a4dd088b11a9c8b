"""The C kernels against torch in float64, for every instruction set of this processor; attention is beside its callers."""

from __future__ import annotations

import itertools
import platform
import re
import shutil
import sysconfig
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors import kernels
from actors.encoders import rope
from actors.encoders.compute.device import find_compute
from actors.encoders.compute.int8 import IntegerProduct, round_states
from actors.encoders.compute.linear import LayerNorm, Linear, gelu_
from actors.kernels.parallel import parallel_for

KERNELS = kernels.available()
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.02}


def types(kernel: kernels.Kernels) -> list[torch.dtype]:
    return [dtype for dtype in TOLERANCE if kernel.takes(dtype)]


def has_compiler() -> bool:
    configured = (sysconfig.get_config_var("CC") or "cc").split()[0]
    return any(map(shutil.which, (configured, "cc", "gcc", "clang")))


def sets_of_this_processor() -> list[str]:
    """Instruction sets of this processor, as the kernel of the operating system lists them."""
    if platform.machine() != "x86_64":
        return []
    listed = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = set(listed[1].split()) if listed else set[str]()
    needed = {
        "avx2": {"avx2", "fma"},
        "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
        "avx512_bf16": {"avx512_bf16"},
    }
    return list(itertools.takewhile(lambda name: needed[name] <= flags, needed))


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C compiler: kernels are optional")


@needs_compiler
def test_every_instruction_set_of_this_processor_has_its_kernels():
    assert [kernel.name for kernel in KERNELS] == sets_of_this_processor()


@needs_compiler
@pytest.mark.parametrize("name", get_args(kernels.InstructionSet))
def test_the_module_has_each_kernel_of_each_instruction_set(name):
    """A kernel that this processor cannot run must be there for another one."""
    if platform.machine() == "x86_64":
        library = kernels._library()
        assert library is not None, "vectide_kernels is not built: `make setup`"
        assert kernels.Kernels(library, name).name == name


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("hidden", [1, 7, 16, 33, 384, 1000])
def test_layer_norm(kernel, hidden):
    torch.manual_seed(0)
    weight, bias = torch.randn(2, hidden).unbind(0)
    for dtype in types(kernel):
        x = (torch.randn(5, hidden) * 3 + 10).to(dtype)
        result = kernel.norm(x, weight, bias, 1e-6)
        expected = torch.nn.functional.layer_norm(x.double(), (hidden,), weight.double(), bias.double(), 1e-6)
        assert result.dtype == dtype
        torch.testing.assert_close(
            result.double(), expected, atol=TOLERANCE[dtype], rtol=1e-2 if dtype != torch.float32 else 1e-5
        )


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("width", [2, 10, 64, 128])
def test_rotary_changes_only_the_given_heads(kernel, width):
    torch.manual_seed(0)
    cos, sin = torch.rand(2, 7, width // 2).unbind(0)
    for dtype in types(kernel):
        x = torch.randn(7, 5, width).to(dtype)
        first, second = x[:, :3].double().chunk(2, dim=2)
        c, s = cos.double()[:, None], sin.double()[:, None]
        expected = torch.cat([first * c - second * s, second * c + first * s], dim=2)
        values = x[:, 3:].clone()
        kernel.apply_rotary_(x[:, :3], cos, sin)
        torch.testing.assert_close(
            x[:, :3].double(), expected, atol=1e-6, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6
        )
        assert torch.equal(x[:, 3:], values)


def test_rotary_without_kernels_gives_the_same_result(monkeypatch):
    angles = (torch.rand(4, 6), torch.rand(4, 6))
    x = torch.randn(4, 3, 12)
    with_kernels = rope.apply_rotary_(x.clone(), angles)
    monkeypatch.setattr(kernels, "kernels_for", lambda dtype, device: None)
    torch.testing.assert_close(rope.apply_rotary_(x.clone(), angles), with_kernels)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("hidden", [7, 40, 384])
def test_layer_norm_of_a_row_does_not_depend_on_other_rows(kernel, hidden):
    torch.manual_seed(0)
    weight, bias = torch.randn(2, hidden).unbind(0)
    for dtype in types(kernel):
        x, residual = torch.randn(2, 11, hidden).to(dtype).unbind(0)
        together = kernel.norm(x, weight, bias, 1e-6, residual)
        alone = [kernel.norm(x[i : i + 1], weight, bias, 1e-6, residual[i : i + 1]) for i in range(len(x))]
        assert torch.equal(together, torch.cat(alone))


def test_layer_norm_module_accepts_float64_and_returns_float32():
    norm = LayerNorm(torch.ones(8), torch.zeros(8), 0.0, compute=find_compute("float32", "cpu"))
    result = norm(torch.arange(16.0).view(2, 8).double())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.std(1, correction=0), torch.ones(2))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.sampled_from([1e-20, 1.0, 1e20]))
def test_round_states_matches_torch(kernel, seed, width, size):
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(seed)) * size
    result, scale, offset = kernel.round_states(x)
    expected, expected_scale, expected_offset = round_states(x)
    # An intermediate rounding may go the other way.
    assert (result.int() - expected.int()).abs().max() <= 1
    torch.testing.assert_close(scale, expected_scale.squeeze(1))
    torch.testing.assert_close(offset, expected_offset.squeeze(1))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("width", [3, 16, 40, 384])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_finish_matches_torch(kernel, width, gelu, with_bias, with_residual):
    torch.manual_seed(0)
    y, residual = torch.randn(2, 6, width).unbind(0)
    scale, offset = torch.randn(2, 6).unbind(0)
    sums, bias = torch.randn(2, width).unbind(0)
    expected = y.double() * scale[:, None] + offset[:, None] * sums
    expected += bias if with_bias else 0
    expected += residual if with_residual else 0
    result = kernel.finish(
        y.clone(),
        scale,
        offset,
        sums,
        bias=bias if with_bias else None,
        residual=residual if with_residual else None,
        gelu=gelu,
    )
    expected = torch.nn.functional.gelu(expected) if gelu else expected
    torch.testing.assert_close(result.double(), expected, atol=1e-4 if gelu else 1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_gelu_of_large_values_is_identity_or_zero(kernel):
    x = torch.tensor([[-30.0, -8.0, -4.25, 0.0, 4.25, 8.0, 30.0, float("nan")]])
    one, zeros = torch.ones(1), torch.zeros(8)
    result = kernel.finish(x.clone(), one, one, zeros, bias=None, residual=None, gelu=True)[0]
    torch.testing.assert_close(result[:7], torch.nn.functional.gelu(x[0, :7]), atol=5e-4, rtol=0)
    assert result[7].isnan()


def test_int8_products_with_and_without_kernels_agree():
    torch.manual_seed(0)
    x, residual = torch.randn(20, 64) * 2, torch.randn(20, 48)
    product = IntegerProduct(torch.randn(48, 64), torch.randn(48))
    for gelu in (False, True):
        torch.testing.assert_close(
            product(x, residual, gelu=gelu), product.unfused(x, residual, gelu=gelu), atol=0.1, rtol=0
        )
    torch.testing.assert_close(product(x.T.contiguous().T), product.unfused(x), atol=0.1, rtol=0)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_parallel_for_covers_the_range_once_on_any_number_of_threads(threads, count):
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    done: list[int] = []
    try:
        for step in (None, 1, 3):
            parallel_for(lambda first, last: done.extend(range(first, last)), count, step)
    finally:
        torch.set_num_threads(threads_before)
    assert sorted(done) == sorted(list(range(count)) * 3)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_layer_norm_does_not_round_the_sum_with_the_residual(kernel):
    torch.manual_seed(0)
    weight, bias = torch.ones(40), torch.zeros(40)
    for dtype in types(kernel):
        x, residual = (torch.randn(2, 9, 40) * 5).to(dtype).unbind(0)
        result = kernel.norm(x, weight, bias, 1e-6, residual)
        expected = torch.nn.functional.layer_norm(x.double() + residual.double(), (40,), eps=1e-6)
        torch.testing.assert_close(
            result.double(), expected, atol=1e-5, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_is_exact_within_the_precision_of_the_type(dtype):
    x = torch.linspace(-9, 9, 1001).to(dtype)
    expected = torch.nn.functional.gelu(x.double())
    result = gelu_(x.clone())
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, atol=1.2e-4, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6)


def test_layer_norm_after_a_product_is_the_norm_of_the_sum():
    torch.manual_seed(0)
    weight, bias = torch.randn(24, 16), torch.randn(24)
    x, residual = torch.randn(7, 16), torch.randn(7, 24)
    exact = torch.nn.functional.layer_norm(x @ weight.T + bias + residual, (24,), eps=1e-6)
    for precision, atol in (("float32", 1e-5), ("int8", 0.1)):
        compute = find_compute(precision, "cpu")
        norm = LayerNorm(torch.ones(24), torch.zeros(24), 1e-6, compute=compute)
        result = norm.after(Linear(weight, bias, compute=compute), x, residual)
        torch.testing.assert_close(result, exact, atol=atol, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("dim", [1, 7, 8, 31, 32, 63, 64, 100, 384, 1024])
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_products_of_rows_with_one_vector(kernel, dim, rows):
    torch.manual_seed(dim)
    vectors, query, factors = torch.randn(rows, dim).bfloat16(), torch.randn(dim), torch.rand(rows)
    expected = (vectors.double() @ query.double()) * factors.double()
    out = torch.empty(rows)
    kernel.products(vectors, query, factors, out)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-4)


def pairs(found) -> list[tuple[int, int, float]]:
    query, row, value = found
    return sorted(zip(query.tolist(), row.tolist(), value.tolist(), strict=True))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 63, 64, 1000])
def test_scores_that_reach_their_threshold_are_selected(kernel, dtype, rows):
    torch.manual_seed(rows)
    scores = torch.randn(5, rows).to(dtype)
    scores[2] = -torch.inf
    lowest = torch.tensor([-torch.inf, 0.5, 0.0, float(scores[3, -1]), torch.inf])
    query, row = (scores.float() >= lowest.unsqueeze(1)).nonzero(as_tuple=True)
    assert pairs(kernel.select(scores, lowest)) == pairs((query, row, scores[query, row].float()))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("dim", [1, 7, 8, 33, 384])
@pytest.mark.parametrize(("queries", "rows"), [(1, 1), (6, 16), (7, 33), (30, 1000)])
def test_pairs_whose_product_reaches_its_threshold_are_found(kernel, dim, queries, rows):
    torch.manual_seed(dim)
    vectors, many, factors = torch.randn(rows, dim).bfloat16(), torch.randn(queries, dim), torch.rand(rows)
    scores = (many.double() @ vectors.double().T) * factors.double()
    lowest = scores.median(dim=1).values.float() + 1e-3
    lowest[0] = -1e30
    factors[0] = torch.nan  # a row without a vector
    scores[:, 0] = torch.nan
    found = kernel.search(vectors, factors, kernel.packed(many), lowest)
    query, row, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
    torch.testing.assert_close(torch.from_numpy(value).double(), scores[query, row], rtol=1e-5, atol=1e-4)
    expected = {tuple(pair) for pair in (scores >= lowest.unsqueeze(1)).nonzero().tolist()}
    unclear = {tuple(pair) for pair in ((scores - lowest.unsqueeze(1)).abs() < 1e-4).nonzero().tolist()}
    assert expected ^ set(zip(query.tolist(), row.tolist(), strict=True)) <= unclear
    assert len(query) == len({*zip(query.tolist(), row.tolist(), strict=True)})


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(("dim", "queries"), [(16, 1), (128, 20), (64, 13)])
def test_the_largest_cosines_with_the_vectors_of_a_row(kernel, dim, queries):
    random = np.random.default_rng(dim)
    counts = np.array([1, 0, 16, 17, 15, 33, 0, 200])
    vectors = random.integers(-127, 128, (int(counts.sum()), dim), np.int8)
    vectors[1] = 0  # of no direction, as the quantiser makes of zeros
    many = torch.nn.functional.normalize(torch.from_numpy(random.standard_normal((queries, dim), np.float32)))
    firsts = np.cumsum(counts) - counts
    found = kernel.maxsim(vectors.ctypes.data + firsts * dim, counts, kernel.packed(many))[:, :queries]
    units = torch.nn.functional.normalize(torch.from_numpy(vectors).double())
    cosines = (many.double() @ units.T).numpy()
    for row, (first, count) in enumerate(zip(firsts, counts, strict=True)):
        expected = cosines[:, first : first + count].max(axis=1, initial=-np.inf)
        np.testing.assert_allclose(found[row], expected, atol=1e-6)
