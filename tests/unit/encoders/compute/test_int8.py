"""Tests of products of 8-bit integers: exact as integers, close to floats, independent of the other rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.encoders import describe, load_encoder
from actors.encoders.compute import int8
from actors.encoders.compute.device import find_compute
from actors.encoders.compute.int8 import IntegerProduct, multiply, pack, round_states, round_weights, zero_points
from actors.encoders.encoder import Encoder
from actors.errors import ConfigError
from tests.checkpoints import SENTENCES, write_jina_v1, write_jina_v2, write_jina_v3, write_jina_v4

TEXTS = [*SENTENCES, "", "x", "two words", SENTENCES[1] * 30, "word " * 300]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 70), st.sampled_from([0.0, 1e-30, 1.0, 1e30]))
def test_no_pair_of_weights_can_overflow_sixteen_bits(seed, outputs, inputs, size):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) ** 3 * size
    rounded, scales = round_weights(weight)
    sizes = rounded.abs().int()
    assert sizes.max() <= 127
    pairs = torch.nn.functional.pad(sizes, (0, inputs % 2)).unflatten(1, (-1, 2)).sum(2)
    assert pairs.max() <= 128
    assert (rounded * scales[:, None] - weight).abs().le(scales[:, None] * 0.502).all()


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 384, 384), (7, 1536, 384), (300, 64, 1152), (5, 31, 3)])
def test_the_product_is_exact_in_integers_at_the_largest_values(rows, inputs, outputs):
    weight = round_weights(torch.randn(outputs, inputs))[0]
    even = inputs // 2 * 2
    weight[0, :even:2], weight[0, 1:even:2] = 127, 1
    weight[1, :even], weight[2, :even] = 64, -64
    states = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8)
    states[0] = 255
    actual = multiply(states, pack(weight), torch.ones(outputs), zero_points(outputs))
    assert torch.equal(actual.double(), states.double() @ weight.double().T)


@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="the rule is for x86's way of adding pairs")
def test_eight_bit_weights_without_the_pair_limit_overflow_without_vnni():
    """Sums up to 255 * 254 overflow on AVX2; on a processor with VNNI they are exact."""
    weight = torch.full((16, 64), 127, dtype=torch.int8)
    states = torch.full((4, 64), 255, dtype=torch.uint8)
    actual = multiply(states, pack(weight), torch.ones(16), zero_points(16))
    exact = float(255 * 127 * 64)
    has_vnni = bool(torch.cpu._is_vnni_supported())
    assert (actual == exact).all() == has_vnni


@given(st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_rounded_states_are_within_half_a_step(seed, middle, spread):
    x = torch.rand(9, 50, generator=torch.Generator().manual_seed(seed)) * spread + middle
    states, scale, offset = round_states(x)
    assert ((states.float() * scale + offset - x).abs() <= scale * 0.51 + abs(middle) * 1e-6 + 1e-6).all()


def test_an_integer_product_is_close_to_the_float_product():
    torch.manual_seed(0)
    weight, bias, x = torch.randn(1152, 384) * 0.05, torch.randn(1152), torch.randn(64, 384) * 3 + 1
    exact = x @ weight.T + bias
    error = IntegerProduct(weight, bias)(x) - exact
    assert error.norm() / exact.norm() < 0.015
    torch.testing.assert_close(IntegerProduct(weight, None)(x), IntegerProduct(weight, bias)(x) - bias)


@pytest.mark.parametrize("row", [[0.0] * 8, [3.5] * 8, [1e-30] * 8, [1e-30] + [0.0] * 7, [-1e30] + [1e30] * 7])
def test_constant_tiny_and_huge_rows(row):
    x, weight = torch.tensor([row, [1.0] * 8]), torch.ones(16, 8)
    exact = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(IntegerProduct(weight, None)(x), exact, rtol=0.02, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_nonfinite_value_stays_in_its_row_and_stays_nonfinite(bad):
    x = torch.randn(3, 16)
    x[1, 5] = bad
    y = IntegerProduct(torch.randn(32, 16), None)(x)
    assert y[[0, 2]].isfinite().all()
    assert not y[1].isfinite().any()


@pytest.mark.slow
def test_int8_vectors_and_ranking_of_the_real_model_are_close(minilm):
    exact, actual = (load_encoder(str(minilm), dtype=dtype).encode(TEXTS) for dtype in ("float32", "int8"))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, atol=1e-5)
    cosines = (exact * actual).sum(1)
    assert cosines.min() >= 0.99
    assert cosines.max() < 0.999999  # the arithmetic did change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "task"),
    [
        (write_jina_v1, None),
        (write_jina_v2, None),
        (write_jina_v3, None),
        (write_jina_v3, "separation"),
        (write_jina_v4, "retrieval.passage"),
    ],
)
def test_every_family_supports_int8(tmp_path, write, task):
    folder = str(write(tmp_path / "model"))
    exact, actual = (load_encoder(folder, dtype=dtype, task=task).encode(TEXTS) for dtype in ("float32", "int8"))
    assert 0.97 <= (exact * actual).sum(1).min() < 0.999999


@pytest.mark.slow
def test_other_rows_and_order_change_no_vector(minilm):
    """With one scale per micro-batch, the largest state of one text would change the rounding of the others."""
    encoder = load_encoder(str(minilm), dtype="int8")
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    # A product with other rows may differ in its last bit, and a state between two integers may then round the other way.
    assert (encoder.encode(TEXTS) * alone).sum(1).min() >= 0.9995


def test_int8_is_a_separate_embedding_spec_and_refuses_a_gpu(minilm):
    assert describe(str(minilm), dtype="int8").lineage() != describe(str(minilm)).lineage()
    assert find_compute("int8").device.type == "cpu"
    with pytest.raises(ConfigError, match="int8 is for CPUs"):
        find_compute("int8", "cuda") if torch.cuda.is_available() else _with_a_fake_gpu()


def _with_a_fake_gpu() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        find_compute("int8", "cuda")


@pytest.mark.parametrize("wrong", ["values", "absent"])
def test_a_processor_without_exact_integer_products_is_refused(minilm, monkeypatch, wrong):
    def broken(*arguments):
        if wrong == "absent":
            raise NotImplementedError("no kernel")
        return multiply(*arguments).add_(1)

    monkeypatch.setattr(int8, "multiply", broken)
    int8.check_integers.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"int8.*(not exact|not there).*use dtype auto"):
            Encoder(describe(str(minilm), dtype="int8"))
    finally:
        int8.check_integers.cache_clear()
