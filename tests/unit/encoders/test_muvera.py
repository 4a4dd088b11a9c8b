"""MUVERA's encoding: a plain loop from the paper's definition, and what its products estimate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from actors.encoders.muvera import BUCKETS, DIM, PLANES, REPETITIONS, SEED, WIDTH, encode

Floats = npt.NDArray[np.float32]
WIDE = 24


def unit(count: int, seed: int, width: int = WIDE) -> Floats:
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    normalized: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalized


def by_definition(vectors: Floats, *, query: bool) -> list[float]:
    """Section 2 of the paper, number by number: the partition, its sums or means, empty parts, the projection."""
    random = np.random.RandomState(SEED)
    normals = random.standard_normal((vectors.shape[1], REPETITIONS * PLANES)).astype(np.float32)
    signs = 2 * random.randint(0, 2, (vectors.shape[1], REPETITIONS * WIDTH)) - 1
    encoded: list[float] = []
    for r in range(REPETITIONS):
        parts = []
        for vector in vectors:
            bits = [float(vector @ normals[:, r * PLANES + plane]) > 0 for plane in range(PLANES)]
            parts.append(sum(1 << plane for plane, bit in enumerate(bits) if bit))
        for bucket in range(BUCKETS):
            here = [vector for vector, part in zip(vectors, parts, strict=True) if part == bucket]
            if query:
                center = sum(here, np.zeros(vectors.shape[1])) / REPETITIONS
            elif here:
                center = sum(here, np.zeros(vectors.shape[1])) / len(here)
            else:
                distances = [(part ^ bucket).bit_count() for part in parts]
                center = vectors[distances.index(min(distances))]
            encoded += [float(center @ signs[:, r * WIDTH + column]) / WIDTH**0.5 for column in range(WIDTH)]
    return encoded


@pytest.mark.parametrize("query", [True, False])
@pytest.mark.parametrize("count", [1, 2, 7, 90])
def test_the_encoding_is_that_of_the_paper(query, count):
    vectors = unit(count, seed=count)
    encoded = encode(vectors, query=query)
    assert encoded.dtype == np.float32
    assert encoded.shape == (DIM,)
    np.testing.assert_allclose(encoded, by_definition(vectors, query=query), atol=1e-5)


def test_a_product_of_encodings_estimates_maxsim():
    """Each text is noise around the vectors of one of eight topics, and each topic is a query."""
    topics = [unit(32, seed) for seed in range(8)]
    texts = [center + (0.02 + 0.06 * noise) * unit(32, 100 + noise) for center in topics for noise in range(4)]
    texts = [text / np.linalg.norm(text, axis=1, keepdims=True) for text in texts]
    exact = np.array([[(topic @ text.T).max(axis=1).sum() for text in texts] for topic in topics])
    encoded = np.stack([encode(text, query=False) for text in texts])
    estimated = np.stack([encode(topic, query=True) for topic in topics]) @ encoded.T
    assert np.corrcoef(exact.ravel(), estimated.ravel())[0, 1] > 0.9
    # The mean of a bucket is at most as near as its nearest vector, so an estimate is low rather than high.
    assert (estimated < 1.05 * exact).all()
    own = np.repeat(np.eye(8, dtype=bool), 4, axis=1)
    assert (estimated[own] > 0.45 * exact[own]).all()
    assert estimated[own].min() > 2 * estimated[~own].max()


def test_the_numbers_of_the_encoding_do_not_change():
    """Tables keep encodings, so another generator or another order of its numbers would need another name in the lineage."""
    text, query = (encode(np.eye(3, 8, dtype=np.float32), query=query) * WIDTH**0.5 for query in (False, True))
    assert text[:: DIM // 8].round(4).tolist() == [1, 1, 1, 1, 1, -1, 1, 1]
    assert (query * REPETITIONS)[:: DIM // 8].round(4).tolist() == [1, 0, 0, 0, 0, -1, 0, 0]
    assert text.sum() == pytest.approx(-223)
