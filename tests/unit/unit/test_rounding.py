"""Rounding of stored vectors, against an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from actors.unit.rounding import round_mantissa

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
