"""Exact nearest rows, of batches and of vectors in memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.schema import EMBEDDING, ID
from actors.vectors import VectorColumn, dense
from pipeline.scan.neighbours import nearest_rows
from pipeline.scan.top_k import scan_top_k


def unit(rows: int, seed: int) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    vectors = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    normalized: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalized


def batch_of(vectors: npt.NDArray[np.float32], first: int) -> pa.RecordBatch:
    ids = [f"{first + row:03d}" for row in range(len(vectors))]
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    return pa.RecordBatch.from_arrays([pa.array(ids), column], [ID, EMBEDDING])


def test_a_scan_in_batches_finds_the_nearest_rows_of_all():
    vectors, queries = unit(100, 1), unit(3, 2)
    batches = [batch_of(vectors[:40], 0), batch_of(vectors[:0], 0), batch_of(vectors[40:], 40)]
    scores = queries @ vectors.T
    for query, rows in enumerate(scan_top_k(dense(queries), batches, 5, VectorColumn(EMBEDDING, "dense", 8))):
        expected = np.argsort(-scores[query])[:5]
        assert [values[ID] for _, values in rows] == [f"{row:03d}" for row in expected]
        np.testing.assert_allclose([score for score, _ in rows], scores[query, expected], atol=1e-6)


def test_a_row_without_a_vector_of_this_width_is_not_a_number():
    column = pa.array([[3.0, 4.0], None, [1.0]], pa.list_(pa.float32()))
    vectors = VectorColumn(EMBEDDING, "dense", 2).unit_rows(column)
    np.testing.assert_allclose(vectors[0], [0.6, 0.8], atol=1e-7)
    assert np.isnan(vectors[1:]).all()


def test_a_row_is_not_its_own_neighbour():
    vectors = unit(50, 3)
    sample = np.array([4, 0, 49])
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    expected = np.argsort(-scores[sample], axis=1)[:, :6]
    np.testing.assert_array_equal(np.sort(nearest_rows(vectors, sample, 6)), np.sort(expected))
