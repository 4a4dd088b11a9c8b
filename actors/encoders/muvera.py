"""Encodes the vectors of late interaction as one vector, for models without a dense one.

The encoding is MUVERA's, a fixed dimensional encoding (Dhulipala and others, "MUVERA: Multi-Vector Retrieval via Fixed
Dimensional Encodings", arXiv 2405.19504, section 2). The product of a query's encoding with a text's estimates
their MaxSim: the sum, over the query's vectors, of the largest product with one of the text's. In each of several
repetitions, random planes cut the space into buckets. A query has the sum of its vectors in a bucket there, a text the
mean, or in an empty bucket the vector whose bucket is nearest. Each bucket is projected by random signs. A query's encoding
is divided by the number of repetitions, so that the product has the size of MaxSim. Encodings do not have unit length.

The planes and signs are those of NumPy's `RandomState`, whose numbers will not change in any version (NEP 19). `LINEAGE`
names all choices.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from actors.vectors import Floats, Ints

# One of the shapes that the paper found to be best for their size.
REPETITIONS, PLANES, WIDTH = 20, 5, 8
SEED = 42
BUCKETS = 1 << PLANES
DIM = REPETITIONS * BUCKETS * WIDTH
LINEAGE = f"muvera, {REPETITIONS} x 2^{PLANES} x {WIDTH}, RandomState({SEED})"


def encode(vectors: Floats, *, query: bool) -> Floats:
    """Return the encoding of the vectors of one row, float32 [DIM].

    Args:
        vectors: float32 [n, width], of unit length; n is 1 or more.
        query: The row is a query, and otherwise a text.
    """
    planes, signs = _random(vectors.shape[1])
    sides = (vectors @ planes).reshape(-1, REPETITIONS, PLANES) > 0
    # Of each repetition and vector: the bucket, numbered through all repetitions.
    buckets = np.packbits(sides, axis=2, bitorder="little")[:, :, 0].T + BUCKETS * np.arange(REPETITIONS)[:, None]
    flat = buckets.reshape(-1)
    projected = (vectors @ signs).reshape(-1, REPETITIONS, WIDTH).swapaxes(0, 1).reshape(-1, WIDTH)
    sums = np.stack([np.bincount(flat, column, REPETITIONS * BUCKETS) for column in projected.T], axis=1)
    if query:
        return (sums / REPETITIONS).astype(np.float32).reshape(-1)
    counts = np.bincount(flat, minlength=REPETITIONS * BUCKETS)
    encoded = sums / np.maximum(counts, 1)[:, None]
    empty = np.flatnonzero(counts == 0)
    encoded[empty] = projected[len(vectors) * (empty // BUCKETS) + _nearest(flat, len(vectors))[empty]]
    return encoded.astype(np.float32).reshape(-1)


def _nearest(buckets: Ints, count: int) -> Ints:
    """Return the number of the vector that is nearest to each bucket of all repetitions, the first of several.

    The distance is the number of planes between two buckets. Each pass lets a bucket take over what the bucket on the
    other side of one plane knows, so after all passes each knows the nearest of its repetition.

    Args:
        buckets: The bucket of each repetition and vector.
        count: Number of vectors.
    """
    # The distance times `count`, plus the vector's number: the smallest is the first of the nearest.
    keys = np.full(REPETITIONS * BUCKETS, count * (PLANES + 1))
    numbers = np.tile(np.arange(count), REPETITIONS)
    keys[buckets[::-1]] = numbers[::-1]  # of several vectors in a bucket, the first is written last
    every = np.arange(len(keys))
    for plane in range(PLANES):
        keys = np.minimum(keys, keys[every ^ (1 << plane)] + count)
    return keys % count


@lru_cache
def _random(width: int) -> tuple[Floats, Floats]:
    """Return the normals of the planes, float32 [width, repetitions * planes], and the signs, scaled."""
    random = np.random.RandomState(SEED)  # the streams of a Generator may change with NumPy's version
    planes = random.standard_normal((width, REPETITIONS * PLANES)).astype(np.float32)
    signs = 2 * random.randint(0, 2, (width, REPETITIONS * WIDTH)) - 1
    return planes, (signs / np.sqrt(WIDTH)).astype(np.float32)
