"""The quantiser, against an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from actors.vectors.quantiser import quantise, round_mantissa

BITS = {"float16": 10, "bfloat16": 7}
floats = st.floats(width=32, min_value=-1.0, max_value=1.0, allow_nan=False)


def expected_rounding(value: float, bits: int) -> float:
    """Return the nearest multiple of the last place, ties to even, by the definition."""
    if value == 0:
        return value
    exponent = max(np.frexp(np.float64(value))[1], -125)
    step = np.ldexp(1.0, int(exponent) - 1 - bits)
    return float(np.round(value / step) * step)  # numpy rounds halves to even


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@given(values=hnp.arrays(np.float32, 16, elements=floats))
def test_rounding_is_to_nearest_even(precision, values):
    normal = values[(np.abs(values) > 1e-30) | (values == 0)]
    expected = np.array([expected_rounding(float(value), BITS[precision]) for value in normal], dtype=np.float32)
    np.testing.assert_array_equal(round_mantissa(normal, precision), expected)


@given(values=hnp.arrays(np.float32, 16, elements=floats))
def test_float32_is_unchanged_and_rounding_is_idempotent(values):
    assert round_mantissa(values, "float32") is values
    once = round_mantissa(values, "float16")
    np.testing.assert_array_equal(round_mantissa(once, "float16"), once)


def test_small_values_keep_their_precision_unlike_in_float16():
    value = np.array([3.1e-7], dtype=np.float32)
    assert abs(round_mantissa(value, "float16")[0] / value[0] - 1) < 2**-11
    assert abs(float(value.astype(np.float16)[0]) / float(value[0]) - 1) > 0.03


def test_bfloat16_rounding_equals_that_of_torch():
    import torch

    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    expected = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    np.testing.assert_array_equal(round_mantissa(values, "bfloat16"), expected)


def test_int8_is_127_times_a_vector_by_its_largest_number_ties_to_even():
    vectors = np.random.default_rng(0).normal(size=(5000, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stored = quantise(vectors, "int8")
    assert stored.dtype == np.int8
    exact = 127 * vectors.astype(np.float64) / np.abs(vectors).max(axis=1, keepdims=True)
    near_tie = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < 1e-4
    np.testing.assert_array_equal(stored[~near_tie], np.round(exact)[~near_tie])
    assert np.abs(stored).max(axis=1).tolist() == [127] * 5000
    read = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    cosines = np.einsum("ij,ij->i", read, vectors)
    assert (cosines.min() > 0.9998, cosines.mean() > 0.99996) == (True, True)
    np.testing.assert_array_equal(quantise(read.astype(np.float32), "int8"), stored)
    ties = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5], [0] * 6], np.float32)
    assert quantise(ties, "int8").tolist() == [[127, 0, 2, 2, 0, -2], [0] * 6]


def test_float16_is_rounded_to_nearest_even_and_float32_is_kept():
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    half = quantise(vectors, "float16")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half.astype(np.float32), round_mantissa(vectors, "float16"))
    assert quantise(vectors, "float32") is vectors
