"""Columns of vectors: what is stored, what can be reused, and the products of dense and of several vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from actors.errors import InvariantBroken
from actors.vectors import VectorColumn, dense, lineage_of, outputs_of

DENSE, MULTI = VectorColumn("embedding", "dense", 3), VectorColumn("other", "multi", 3)
NAN = float("nan")


def unit(rows: int, seed: int) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    normalized: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalized


def ragged(counts: list[int], seed: int = 0) -> pa.Array:
    vectors, ends = unit(sum(counts), seed).tolist(), np.cumsum(counts)
    return pa.array([vectors[end - count : end] for end, count in zip(ends, counts, strict=True)], MULTI.type)


def test_a_lineage_names_the_outputs_unless_there_is_one_dense_embedding():
    assert lineage_of([DENSE]) == {}
    assert outputs_of({"dim": 3}) == (DENSE,)
    several = (MULTI, DENSE)
    assert lineage_of(several) == {"outputs": "other multi 3, embedding dense 3"}
    assert outputs_of({"dim": 7, **lineage_of(several)}) == several


@pytest.mark.parametrize("array", [ragged([2, 0, 3, 1]), pa.array([ragged([2])[0].as_py(), None, []], MULTI.type)])
def test_lists_are_stored_with_their_nulls_and_lengths(array):
    for part in (array, array.slice(1), array.slice(0, 2), array.slice(1, 0)):
        stored = MULTI.stored(pa.chunked_array([part, part]), "float32")
        assert (stored.type, stored.to_pylist()) == (MULTI.type, [*part.to_pylist(), *part.to_pylist()])
    coarse = MULTI.stored(pa.chunked_array([array]), "bfloat16")
    bits = pa.concat_arrays([chunk.flatten().flatten() for chunk in coarse.chunks]).to_numpy().view(np.uint32)
    assert (bits & 0xFFFF == 0).all()


def test_a_matrix_is_stored_as_plain_lists():
    vectors = unit(4, 1)
    stored = DENSE.stored(pa.chunked_array([dense(vectors).slice(1)]), "float32")
    assert stored.type == DENSE.type
    np.testing.assert_array_equal(np.float32(stored.to_pylist()), vectors[1:])


def test_what_is_not_finite_is_neither_stored_nor_called_finite():
    column = pa.chunked_array([pa.array([[[1.0, 0.0, 0.0]], [[0.0, NAN, 1.0], [1.0, 0.0, 0.0]], None], MULTI.type)])
    assert MULTI.finite(column).tolist() == [True, False, True]
    with pytest.raises(InvariantBroken, match="not finite"):
        MULTI.stored(column, "float32")


def test_rows_of_several_unit_vectors_are_reused():
    good = [1.0, 0.0, 0.0]
    rows = [
        [good],
        [good, [0.6, 0.8, 0.0]],
        [],
        None,
        [good, [1.0, 0.0]],
        [good, [0.5, 0.0, 0.0]],
        [good, [NAN] * 3],
        [None],
    ]
    column = pa.chunked_array([pa.array(rows, MULTI.type)])
    assert MULTI.reusable(column).tolist() == [True, True, *[False] * 6]


def test_the_score_of_several_vectors_is_the_sum_of_the_largest_cosines():
    rows, queries = ragged([2, 0, 3, 1], 1), ragged([3, 1], 2)
    scores = MULTI.scores(queries, rows)
    for query, vectors in enumerate(queries.to_pylist()):
        for row, others in enumerate(rows.to_pylist()):
            expected = sum(max(np.dot(a, b) for b in others) for a in vectors) if others else NAN
            np.testing.assert_allclose(scores[query, row], expected, atol=1e-6)


def test_the_unit_row_of_several_vectors_is_their_normalized_mean():
    rows = ragged([2, 0, 3])
    means = [np.mean(row, axis=0) if row else np.full(3, NAN) for row in rows.to_pylist()]
    expected = [mean / np.linalg.norm(mean) for mean in means]
    np.testing.assert_allclose(MULTI.unit_rows(rows), expected, atol=1e-6)
