"""Clusters of vectors, and the nearest earlier vector within one.

Vectors are rounded to whole numbers of 8 bits for the clustering, and products and sums of these are exact. So clusters do
not depend on the number of threads or on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from actors.vectors import Floats, Ints

EXACT = 20_000  # vectors up to which there is one cluster
_LARGEST, _MEAN = 5_000, 2_500  # vectors of a cluster
_MOST = 512  # clusters of one pass
_SAMPLE = 64  # vectors for each cluster that k-means sees
_ROUNDS = 10
_BLOCK = 512
_READ = 1 << 14

Read = Callable[[Ints], Floats]


def clusters(count: int, read: Read, seed: int) -> Iterator[Ints]:
    """Yield the numbers of the vectors of each cluster, ascending; each number is in one cluster.

    Args:
        count: Number of vectors.
        read: Returns the vectors with some numbers.
        seed: Of the first centroids.
    """
    waiting = [(np.arange(count), EXACT)] if count else []
    while waiting:
        rows, largest = waiting.pop()
        parts = [rows] if len(rows) <= largest else _split(rows, read, np.random.default_rng([seed, rows[0]]))
        if len(parts) == 1:  # it is small, or its vectors are all alike
            yield rows
        else:
            waiting += [(part, _LARGEST) for part in reversed(parts)]


def unit(vectors: Floats) -> Floats:
    """Return vectors of length 1; one of length 0 stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(lengths, np.float32(1e-12))
    return unit


def nearest_before(vectors: Floats) -> tuple[np.ndarray[Any, np.dtype[np.float64]], Ints]:
    """Return the largest cosine of each vector with one before it, to six decimals, and the place of that one.

    The first vector has NaN and -1.

    Args:
        vectors: Vectors of length 1.
    """
    places = np.full(len(vectors), -1)
    for start in range(0, len(vectors), _BLOCK):
        stop = min(start + _BLOCK, len(vectors))
        scores = vectors[start:stop] @ vectors[:stop].T
        scores[:, start:][np.triu_indices(stop - start)] = -np.inf
        places[start:stop] = scores.argmax(axis=1)
    cosines = np.full(len(vectors), np.nan)
    places[:1] = -1
    cosines[1:] = np.einsum("rd,rd->r", vectors[1:], vectors[places[1:]], dtype=np.float64)
    return np.round(cosines, 6), places


def _split(rows: Ints, read: Read, rng: np.random.Generator) -> list[Ints]:
    count = min(-(-len(rows) // _MEAN), _MOST)
    sample = np.sort(rng.choice(rows, min(len(rows), _SAMPLE * count), replace=False))
    whole = _whole(read(sample))
    centroids = whole[np.sort(rng.choice(len(whole), count, replace=False))]
    for _ in range(_ROUNDS):
        labels = _nearest(whole, centroids)
        order = np.argsort(labels, kind="stable")
        found, starts = np.unique(labels[order], return_index=True)
        centroids[found] = _whole(np.add.reduceat(whole[order], starts))
    parts = (rows[first : first + _READ] for first in range(0, len(rows), _READ))
    labels = np.concatenate([_nearest(_whole(read(part)), centroids) for part in parts])
    return [rows[labels == label] for label in np.unique(labels)]


def _whole(vectors: Floats) -> Floats:
    """Return vectors as whole numbers up to 127, in a type in which their products are exact."""
    largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12)
    kind = np.float32 if vectors.shape[1] * 127**2 < 1 << 24 else np.float64
    whole: Floats = np.rint(vectors / largest * 127).astype(kind)
    return whole


def _nearest(whole: Floats, centroids: Floats) -> Ints:
    norms = np.sqrt(np.square(centroids).sum(axis=1))
    nearest: Ints = ((whole @ centroids.T) / np.maximum(norms, 1)).argmax(axis=1)
    return nearest
