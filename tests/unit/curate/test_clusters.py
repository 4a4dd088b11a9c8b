"""Clusters of vectors, and the nearest earlier vector, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.curate.steps import clusters as module
from pipeline.curate.steps.clusters import clusters, nearest_before, unit


def some_vectors(count: int, groups: int, dim: int = 64) -> np.ndarray:
    """Vectors around some centres, in random order."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(groups, dim))
    return (centres[rng.integers(groups, size=count)] + 0.2 * rng.normal(size=(count, dim))).astype(np.float32)


def test_the_nearest_earlier_vector_is_that_of_brute_force():
    vectors = some_vectors(1300, 40) * np.random.default_rng(2).uniform(0.5, 2, (1300, 1)).astype(np.float32)
    vectors[700] = vectors[3]
    true = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    products = np.where(np.tri(1300, k=-1), true @ true.T, -2)
    similarity, places = nearest_before(unit(vectors))
    assert places[0] == -1
    assert np.isnan(similarity[0])
    assert (places[1:] == products[1:].argmax(axis=1)).all()
    assert similarity[1:] == pytest.approx(products[1:].max(axis=1), abs=2e-6)
    assert (similarity[700], places[700]) == (1, 3)
    assert all(len(each) == 0 for each in nearest_before(vectors[:0]))


@pytest.mark.slow
def test_few_vectors_are_one_cluster_and_many_are_split_with_near_ones_together(monkeypatch):
    vectors = some_vectors(3000, 100)
    assert [each.tolist() for each in clusters(3000, vectors.__getitem__, 0)] == [list(range(3000))]
    monkeypatch.setattr(module, "EXACT", 1000)
    monkeypatch.setattr(module, "_LARGEST", 400)
    monkeypatch.setattr(module, "_MEAN", 200)
    found = list(clusters(3000, vectors.__getitem__, 0))
    assert sorted(np.concatenate(found).tolist()) == list(range(3000))
    assert max(map(len, found)) <= 400
    assert all((np.diff(each) > 0).all() for each in found)
    again = list(clusters(3000, vectors.__getitem__, 0))
    assert all((a == b).all() for a, b in zip(found, again, strict=True))
    of_all, in_clusters = nearest_before(unit(vectors))[0], np.full(3000, np.nan)
    for each in found:
        in_clusters[each] = nearest_before(unit(vectors[each]))[0]
    near = of_all >= 0.9
    assert near.sum() > 1000
    assert (in_clusters[near] >= 0.9).mean() >= 0.95


def test_vectors_that_are_all_alike_stay_one_cluster_and_no_vectors_are_none(monkeypatch):
    monkeypatch.setattr(module, "EXACT", 10)
    monkeypatch.setattr(module, "_LARGEST", 10)
    monkeypatch.setattr(module, "_MEAN", 5)
    for alike in (np.ones((50, 8), np.float32), np.zeros((50, 8), np.float32)):
        assert [len(each) for each in clusters(50, alike.__getitem__, 0)] == [50]
    assert list(clusters(0, np.ones((0, 8), np.float32).__getitem__, 0)) == []
