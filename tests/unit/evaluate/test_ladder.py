"""Rungs of a ladder: fewer dimensions, smaller types."""

from __future__ import annotations

import numpy as np
import pytest

from actors.errors import ConfigError
from pipeline.evaluate.ladder import Rung, rungs

VECTORS = np.random.default_rng(1).normal(size=(50, 24)).astype(np.float32)


def cosines(rung):
    """Cosine of each vector, as a query, with itself as it is stored."""
    exact = VECTORS[:, : rung.dim] / np.linalg.norm(VECTORS[:, : rung.dim], axis=1, keepdims=True)
    stored = rung.stored(VECTORS)
    assert np.linalg.norm(stored, axis=1) == pytest.approx(np.ones(50), abs=1e-6)
    return np.einsum("ij,ij->i", exact, stored)


def test_each_type_loses_what_its_bits_cannot_hold():
    losses = {name: 1 - cosines(Rung(16, name)).mean() for name in ("float32", "float16", "bfloat16", "int8", "binary")}
    assert losses["float32"] < 1e-7
    assert losses["float16"] < 1e-6 < losses["bfloat16"] < 1e-5 < losses["int8"] < 1e-4
    assert 0.1 < losses["binary"] < 0.3
    assert [Rung(16, name).bytes_per_vector for name in losses] == [64, 32, 32, 16, 2]


def test_binary_compares_bits_with_bits():
    rung = Rung(24, "binary")
    scores = rung.queries(VECTORS) @ rung.stored(VECTORS).T
    differing = ((VECTORS[:, None] > 0) != (VECTORS[None] > 0)).mean(axis=2)
    assert scores == pytest.approx(1 - 2 * differing, abs=1e-6)


def test_rungs_begin_with_the_largest_vectors():
    assert [rung.label for rung in rungs(24, [8, 24, 8], ["int8", "float32"])] == [
        *["24 x float32", "24 x int8", "8 x float32", "8 x int8"]
    ]
    assert [rung.label for rung in rungs(24, None, ["binary"])] == ["24 x binary"]
    assert rungs(24, None, None) == ()
    with pytest.raises(ConfigError, match="--dims 25: the vectors have 24 dimensions"):
        rungs(24, [8, 25], None)
    with pytest.raises(ConfigError, match="--precision 'int4' is not known; give some of float32,float16,"):
        rungs(24, None, ["int4"])
