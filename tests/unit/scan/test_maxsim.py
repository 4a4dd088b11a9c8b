"""MaxSim: scores of a loop and of sentence-transformers, whatever the shapes, the blocks and the threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from sentence_transformers.util import maxsim

from actors.schema import ID
from actors.vectors import VectorColumn
from pipeline.scan.maxsim import LateQueries, Rows, nearest
from pipeline.scan.top_k import PLACE, QUERY, SCORE

DIM = 16
LISTS = VectorColumn("m", "multi", DIM)
FORMS = [LISTS, LISTS.stored_as("int8", "blob"), LISTS.stored_as("float16", "blob"), LISTS.stored_as("int8", "list")]


def ragged(counts: list[int], seed: int) -> list[npt.NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    parts = [random.normal(size=(count, DIM)).astype(np.float32) for count in counts]
    return [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]


def lists(rows: list[npt.NDArray[np.float32]]) -> pa.Array:
    return pa.array([row.tolist() for row in rows], LISTS.type)


def stored(rows: list[npt.NDArray[np.float32]], form: VectorColumn) -> pa.Array:
    return form.stored(pa.chunked_array([lists(rows)]), "float32").combine_chunks()


def unit(column: VectorColumn, documents: pa.Array) -> list[npt.NDArray[np.float64]]:
    """Return the vectors of each row, normalized in float64."""
    stored, counts = column.values(documents)
    vectors = stored.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.split(vectors, np.cumsum(counts)[:-1])


def by_loop(queries: list[npt.NDArray[np.float32]], rows: list[npt.NDArray[np.float64]]) -> list[list[float]]:
    vectors, offsets = LISTS.ragged(lists(queries))
    made = np.split(vectors.astype(np.float64), offsets[1:-1])
    return [[sum(max(float(a @ b) for b in row) for a in query) for row in rows] for query in made]


@pytest.fixture(autouse=True, params=[True, False])
def _with_and_without_kernels(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr("actors.kernels.find", lambda: None)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_scores_are_those_of_a_loop_and_of_sentence_transformers(form, monkeypatch):
    monkeypatch.setattr("pipeline.scan.maxsim._BLOCK_BYTES", 500)
    monkeypatch.setattr("pipeline.scan.maxsim._QUERY_VECTORS", 6)
    queries, documents = ragged([3, 1, 5, 2], 0), stored(ragged([4, 1, 7, 9, 2, 30, 1, 5], 1), form)
    rows = unit(form, documents)
    late = LateQueries(lists(queries), form)
    for part, of_part in ((documents, rows), (documents.slice(2, 5), rows[2:7])):
        scores = late.scores(part)
        np.testing.assert_array_equal(late.scores([part.slice(row, 1) for row in range(len(part))]), scores)
        theirs = maxsim([torch.tensor(query) for query in queries], [torch.tensor(row).float() for row in of_part])
        np.testing.assert_allclose(scores, theirs, atol=1e-5)
        expected = by_loop(queries, of_part)
        assert (np.abs(scores - expected) <= late.margins[:, None]).all()
        query, row = np.divmod(np.arange(scores.size), len(of_part))
        np.testing.assert_array_equal(late.exact(part, query, row), np.array(expected, np.float32).ravel())


def test_a_row_without_a_positive_cosine_is_scored_and_one_without_vectors_is_last():
    query = ragged([2], 3)
    away = [-query[0].mean(axis=0, keepdims=True), np.full((1, DIM), np.nan, np.float32)]
    documents = pa.array([[], away[0].tolist(), None, away[1].tolist()], LISTS.type)
    scores = LateQueries(lists(query), LISTS).scores(documents)[0]
    assert -2 < scores[1] < 0
    assert np.isneginf(scores[[0, 2, 3]]).all()
    best = nearest(LateQueries(lists(query), LISTS), [rows_of(documents)], 9)
    assert best[PLACE].to_pylist() == [1]
    assert np.isneginf(LateQueries(lists(query), LISTS).scores(documents.slice(2, 1))).all()
    blobs = pa.array([None, b"", bytes(DIM + 1), bytes(DIM)], pa.binary())
    for given in (blobs, [blobs.slice(row, 1) for row in range(4)]):
        assert LateQueries(lists(query), FORMS[1]).scores(given)[0].tolist() == [-np.inf, -np.inf, -np.inf, 0]


def rows_of(documents: pa.Array, first: int = 0, wanted: Any = None) -> Rows:
    places = np.arange(first, first + len(documents))
    return Rows(pa.record_batch({ID: [f"r{place:03d}" for place in places]}), places, documents, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_nearest_rows_are_those_of_a_loop_with_ties_by_id(k, threads, monkeypatch):
    """Half of the rows are copies of others, and stand in other blocks."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("pipeline.scan.maxsim._BLOCK_BYTES", 700)
    form, queries = FORMS[1], ragged([4, 2, 6], 5)
    some = ragged([1 + number % 9 for number in range(25)], 6)
    documents = stored([*some, *some[::-1]], form)
    scores = np.array(by_loop(queries, unit(form, documents)), np.float32)
    late = LateQueries(lists(queries), form)
    wanted = np.random.default_rng(7).random(scores.shape) < 0.5
    for chosen in (None, wanted):
        parts = [
            rows_of(documents.slice(first, 10), first, None if chosen is None else chosen[:, first : first + 10])
            for first in range(0, 50, 10)
        ]
        best = nearest(late, parts, k)
        for number, of_query in enumerate(scores):
            rows = [row for row in range(50) if chosen is None or chosen[number, row]]
            expected = sorted(rows, key=lambda row: (-of_query[row], row))[:k]
            mine = best.filter(pa.compute.equal(best[QUERY], number))
            assert mine[PLACE].to_pylist() == expected
            assert mine[SCORE].to_pylist() == of_query[expected].tolist()


def test_no_rows_give_no_result():
    assert nearest(LateQueries(lists(ragged([2], 0)), LISTS), [], 3).num_rows == 0
    assert LateQueries(lists(ragged([2], 0)), LISTS).scores(lists([])).shape == (1, 0)
