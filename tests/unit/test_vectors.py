"""Columns of vectors: what is stored and read again, what can be reused, and the products of dense and several vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pytest

from actors.errors import ConfigError, InvariantBroken
from actors.vectors import VectorColumn, dense, lineage_of, outputs_of, vectors_of

DENSE, MULTI = VectorColumn("embedding", "dense", 3), VectorColumn("other", "multi", 3)
FORMS = [
    MULTI.stored_as(precision, layout) for precision in ("int8", "float16", "float32") for layout in ("blob", "list")
]
FORM = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.precision}-{form.layout}")
ENCODING = VectorColumn("embedding", "dense", 3, normalized=False)
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
    several = (MULTI, DENSE, ENCODING)
    assert lineage_of(several) == {"outputs": "other multi 3, embedding dense 3, embedding dense 3 unnormalized"}
    assert outputs_of({"dim": 7, **lineage_of(several)}) == several
    assert outputs_of({"dim": 7, **lineage_of([ENCODING])}) == (ENCODING,)
    assert [column.single for column in several] == [False, True, False]
    stored = (MULTI.stored_as("int8", "blob"), DENSE)
    assert outputs_of({"dim": 3, **lineage_of(stored), "multi_stored": "int8 blob"}) == stored


@pytest.mark.parametrize("array", [ragged([2, 0, 3, 1]), pa.array([ragged([2])[0].as_py(), None, []], MULTI.type)])
def test_lists_are_stored_with_their_nulls_and_lengths(array):
    for part in (array, array.slice(1), array.slice(0, 2), array.slice(1, 0)):
        stored = MULTI.stored(pa.chunked_array([part, part]), "float32")
        assert (stored.type, stored.to_pylist()) == (MULTI.type, [*part.to_pylist(), *part.to_pylist()])
    coarse = MULTI.stored_as("float16", "list").stored(pa.chunked_array([array]), "float32")
    bits = pa.concat_arrays([chunk.flatten().flatten() for chunk in coarse.chunks]).to_numpy().view(np.uint32)
    assert (bits & 0x1FFF == 0).all()


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


def test_dense_vectors_of_any_length_are_reused_if_they_are_not_normalized():
    rows = [[3.0, 4.0, 0.0], [1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0] * 3, [1.0, NAN, 0.0], [1.0, 2.0], None]
    column = pa.chunked_array([pa.array(rows, DENSE.type)])
    assert ENCODING.reusable(column).tolist() == [True, True, True, False, False, False, False]
    assert DENSE.reusable(column).tolist() == [False, False, True, False, False, False, False]


def test_the_unit_row_of_several_vectors_is_their_normalized_mean():
    rows = ragged([2, 0, 3])
    means = [np.mean(row, axis=0) if row else np.full(3, NAN) for row in rows.to_pylist()]
    expected = [mean / np.linalg.norm(mean) for mean in means]
    np.testing.assert_allclose(MULTI.unit_rows(rows), expected, atol=1e-6)


@FORM
def test_every_form_is_read_as_the_unit_vectors_that_were_stored(form):
    made = ragged([2, 0, 3, 1], 4)
    for array in (
        made,
        made.slice(1, 2),
        made.slice(3),
        made.slice(0, 0),
        pa.array([None, made[0].as_py()], MULTI.type),
    ):
        stored = form.stored(pa.chunked_array([array, array]), "float32")
        assert (stored.type, stored.null_count) == (form.type, 2 * array.null_count)
        assert form.stored(stored, "float32").equals(stored)
        lengths = [None if row is None else len(row) for row in array.to_pylist()]
        assert form.counts(stored).to_pylist() == [*lengths, *lengths]
        assert form.reusable(stored).tolist() == [bool(length) for length in [*lengths, *lengths]]
        assert form.finite(stored).all()
        vectors, offsets = form.ragged(stored.combine_chunks())
        assert np.diff(offsets).tolist() == [length or 0 for length in [*lengths, *lengths]]
        expected = [vector for row in array.to_pylist() for vector in row or []]
        np.testing.assert_allclose(vectors, np.reshape([*expected, *expected], (-1, 3)), atol=0.006)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        again = form.stored(pa.chunked_array([_lists(vectors, offsets)]), "float32").combine_chunks()
        if form.precision == "int8" and len(array) and not array.null_count:  # to read and store again changes no byte
            assert again.equals(stored.combine_chunks())


def _lists(vectors: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array([part.tolist() for part in np.split(vectors, offsets[1:-1])], MULTI.type)


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (FORMS[0], b"\x7f\x00"),  # no whole number of vectors
        (FORMS[0], b"\x00\x00\x00"),
        (FORMS[0], b"\x80\x7f\x00"),  # -128, which the quantiser does not make
        (FORMS[0], b"\x7e\x00\x00"),
        (FORMS[1], [[127, 0]]),
        (FORMS[1], [[127, 0, None]]),
        (FORMS[2], np.array([1, 0, np.nan], np.float16).tobytes()),
        (FORMS[2], np.array([0.5, 0, 0], np.float16).tobytes()),
        (FORMS[4], np.array([np.inf, 0, 0], np.float32).tobytes()),
        (FORMS[4], b""),
    ],
)
def test_values_of_another_form_are_not_reused_and_never_nan(form, value):
    good = form.stored(pa.chunked_array([ragged([2])]), "float32")[0].as_py()
    column = pa.array([good, value, good], form.type)
    assert form.reusable(pa.chunked_array([column])).tolist() == [True, False, True]
    vectors, offsets = form.ragged(column)
    assert np.diff(offsets)[[0, 2]].tolist() == [2, 2]
    assert offsets[-1] == len(vectors)
    assert np.isfinite(vectors).all()


def test_blobs_become_arrays_from_each_library():
    form = MULTI.stored_as("int8", "blob")
    column = form.stored(pa.chunked_array([ragged([2, 0, 3]), ragged([1], 1)]), "float32")
    expected, offsets = form.ragged(column.combine_chunks())
    for values in (column, column.combine_chunks(), pl.from_arrow(column), column.to_pandas(), column.to_pylist()):
        vectors = vectors_of(values, dim=3)
        assert [len(row) for row in vectors] == np.diff(offsets).tolist() == [2, 0, 3, 1]
        np.testing.assert_array_equal(np.concatenate(vectors), expected)
    assert [row.shape for row in vectors_of([None, b""], dim=3)] == [(0, 3), (0, 3)]
    assert vectors_of([], dim=3) == []
    with pytest.raises(
        ConfigError, match=r"row 2 has 9 bytes, which is no whole number of float16 vectors of 3 numbers"
    ):
        vectors_of(column, dim=3, precision="float16")
    with pytest.raises(ConfigError, match=r"does not hold blobs .* A table of layout list has lists of numbers"):
        vectors_of(pa.array([[1.0]]))
    with pytest.raises(ConfigError, match="does not hold blobs .*not iterable"):
        vectors_of(None)
    with pytest.raises(ConfigError, match="dim is 0; it must be a whole number of 1 or more"):
        vectors_of(column, dim=0)
    with pytest.raises(ConfigError, match="precision is 'int4'; it must be one of int8, float16, float32"):
        vectors_of(column, dim=3, precision="int4")  # type: ignore[arg-type]
