"""Exact neighbours among vectors in memory."""

from __future__ import annotations

import numpy as np

from pipeline.scan.neighbours import nearest_rows


def test_a_row_is_not_its_own_neighbour():
    vectors = np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sample = np.array([4, 0, 49])
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    expected = np.argsort(-scores[sample], axis=1)[:, :6]
    np.testing.assert_array_equal(np.sort(nearest_rows(vectors[sample] @ vectors.T, sample, 6)), np.sort(expected))
