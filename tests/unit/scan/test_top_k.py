"""Scans of blocks against a loop over all rows in float64."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from actors.schema import EMBEDDING, HASH, ID
from actors.vectors import VectorColumn
from actors.vectors.quantiser import round_mantissa
from pipeline.scan.block import Block
from pipeline.scan.products import Queries
from pipeline.scan.top_k import PLACE, QUERY, SCORE, count_above, merge, nearest

ROWS, BLOCK = 3_000, 450  # the last block is smaller
NO_VECTOR, NARROW, INFINITE, ZERO = 33, 44, 55, 66
TWINS = (20, 500, 600)  # rows with one vector


@dataclasses.dataclass
class Data:
    blocks: list[Block]
    ids: npt.NDArray[np.object_]
    hashes: npt.NDArray[np.object_]
    queries: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]  # [queries, rows]; -inf for a row without a vector

    @cached_property
    def orders(self) -> list[npt.NDArray[np.int64]]:
        """For each query all rows with a vector, best first, by a plain sort of all scores."""
        by_id = np.argsort(self.ids, kind="stable")
        orders = [by_id[np.argsort(-scores[by_id], kind="stable")] for scores in self.scores]
        return [order[np.isfinite(scores[order])] for order, scores in zip(orders, self.scores, strict=True)]

    def having(self, hashes: set[str]) -> npt.NDArray[np.bool_]:
        """Whether each row has one of some hashes."""
        return np.isin(self.hashes.astype(str), list(hashes))

    def without(self, query: int, hashes: set[str]) -> npt.NDArray[np.int64]:
        """The order of a query without the rows that have one of some hashes."""
        order = self.orders[query]
        return order[~self.having(hashes)[order]]


@pytest.fixture(
    scope="module",
    params=[
        (32, "float16", True),
        (384, "float32", True),
        (100, "bfloat16", True),
        (7, "float16", True),
        (64, "float16", False),
    ],
)
def data(request) -> Data:
    dim, precision, normalized = request.param
    random = np.random.default_rng(dim)
    vectors = random.normal(size=(ROWS, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if not normalized:
        vectors *= random.lognormal(sigma=1.5, size=(ROWS, 1)).astype(np.float32)
    vectors[list(TWINS)] = vectors[TWINS[0]]
    vectors[100:200] *= 3  # another tool's rows need not have length 1
    vectors = round_mantissa(vectors, precision)
    stored: list[list[float] | None] = vectors.tolist()
    stored[NO_VECTOR], stored[NARROW], stored[ZERO] = None, [1.0], [0.0] * dim
    stored[INFINITE] = [float("inf"), *[0.0] * (dim - 1)]
    ids = np.array([f"{row % 997:04d}" for row in range(ROWS)], object)
    hashes = np.array([f"h{row // 2}" for row in range(ROWS)], object)
    batch = pa.RecordBatch.from_arrays(
        [pa.array(ids), pa.array(hashes), pa.array(stored, pa.list_(pa.float32()))], [ID, HASH, EMBEDDING]
    )
    blocks = [
        Block.of(batch.slice(first, BLOCK), VectorColumn(EMBEDDING, "dense", dim, normalized=normalized), first)
        for first in range(0, ROWS, BLOCK)
    ]
    queries = random.normal(size=(50, dim)).astype(np.float32) / np.sqrt(dim, dtype=np.float32)
    queries[0] = vectors[TWINS[0]]
    exact = vectors.astype(np.float64)
    exact[ZERO] = 0
    if normalized:
        exact /= np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    scores = np.stack([(exact * query).sum(axis=1) for query in queries]).astype(np.float32)
    scores[:, [NO_VECTOR, NARROW, INFINITE]] = -np.inf
    return Data(blocks, ids, hashes, queries, scores)


def check_places(result: pa.Table, orders: list[npt.NDArray[np.int64]]) -> None:
    """The rows of a result are those of each query's order, one query after the other."""
    np.testing.assert_array_equal(result[QUERY], np.repeat(np.arange(len(orders)), list(map(len, orders))))
    np.testing.assert_array_equal(result[PLACE], np.concatenate(orders))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("k", [1, 10, 300, 20_000])
def test_the_nearest_rows_are_those_of_a_loop_with_ties_by_id(data, count, k):
    result = nearest(Queries(data.queries[:count], device="cpu"), data.blocks, k)
    orders = [order[:k] for order in data.orders[:count]]
    check_places(result, orders)
    rows = np.concatenate(orders)
    assert result[SCORE].to_pylist() == data.scores[result[QUERY].to_numpy(), rows].tolist()
    assert result[ID].to_pylist() == data.ids[rows].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 50])
def test_results_of_two_halves_merge_to_that_of_the_whole(data, count):
    queries = Queries(data.queries[:count], device="cpu")
    halves = [nearest(queries, data.blocks[half::2], 10) for half in (0, 1)]
    assert merge([*halves, nearest(queries, [], 10)], 10).equals(nearest(queries, data.blocks, 10))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 50])
def test_rows_of_excluded_hashes_are_not_returned(data, count):
    excluded = [{*data.hashes[data.orders[query][:7]], "other"} for query in range(count)]
    result = nearest(Queries(data.queries[:count], device="cpu"), data.blocks, 10, exclude=excluded)
    check_places(result, [data.without(query, hashes)[:10] for query, hashes in enumerate(excluded)])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("rank", [0, 30, 1500])
def test_rows_above_a_score_are_counted_strictly(data, count, rank):
    queries = Queries(data.queries[:count], device="cpu")
    thresholds = np.array([data.scores[query, data.orders[query][rank]] for query in range(count)], np.float32)
    above = [data.scores[query] > thresholds[query] for query in range(count)]
    np.testing.assert_array_equal(count_above(queries, data.blocks, thresholds), [rows.sum() for rows in above])
    ignored = [{*data.hashes[data.orders[query][:7]], "other"} for query in range(count)]
    expected = [(above[query] & ~data.having(ignored[query])).sum() for query in range(count)]
    np.testing.assert_array_equal(count_above(queries, data.blocks, thresholds, ignore=ignored), expected)
    for most in (1, 25, 1400):
        found = count_above(queries, data.blocks, thresholds, ignore=ignored, most=most)
        np.testing.assert_array_equal(found, np.minimum(expected, most))


def test_without_kernels_the_result_is_the_same(data, monkeypatch):
    expected = nearest(Queries(data.queries[:3], device="cpu"), data.blocks, 10)
    monkeypatch.setattr("actors.kernels.find", lambda: None)
    assert nearest(Queries(data.queries[:3], device="cpu"), data.blocks, 10).equals(expected)


def test_an_approximate_score_is_within_its_margin(data):
    for count in (1, 50):
        queries = Queries(data.queries[:count], device="cpu")
        for block in data.blocks:
            scores, margins = queries.approximate(block, 0, block.rows.num_rows), queries.margins(block)
            exact = data.scores[:count, block.first : block.first + block.rows.num_rows]
            found = scores.float().numpy()
            np.testing.assert_array_equal(np.isfinite(found), np.isfinite(exact))
            rows = np.isfinite(exact).all(axis=0)
            assert (np.abs(found[:, rows] - exact[:, rows]) <= margins[:, None]).all()


@pytest.mark.parametrize("count", [1, 50])
def test_exact_scores_after_each_block_give_the_same_rows(data, count, monkeypatch):
    expected = nearest(Queries(data.queries[:count], device="cpu"), data.blocks, 10)
    monkeypatch.setattr("pipeline.scan.top_k._MOST_BYTES", 0)
    monkeypatch.setattr("pipeline.scan.top_k._MOST", 0)
    assert nearest(Queries(data.queries[:count], device="cpu"), data.blocks, 10).equals(expected)


@pytest.mark.parametrize("count", [1, 9])
def test_a_hash_of_more_rows_than_k_is_left_out(count):
    """The rows of an excluded hash may be more than the hashes that are excluded."""
    vectors = np.eye(8, dtype=np.float32)[[0] * 3000 + [1] * 20]
    ids, hashes = [f"{row:04d}" for row in range(3020)], ["same"] * 3000 + ["other"] * 20
    columns = [pa.array(ids), pa.array(hashes), pa.array(list(vectors), pa.list_(pa.float32()))]
    block = Block.of(pa.RecordBatch.from_arrays(columns, [ID, HASH, EMBEDDING]), VectorColumn(EMBEDDING, "dense", 8), 0)
    queries = Queries(np.tile(np.array([0.9, 0.1, *[0] * 6], np.float32), (count, 1)), device="cpu")
    result = nearest(queries, [block], 5, exclude=[{"same"}] * count)
    check_places(result, [np.arange(3000, 3005)] * count)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 9])
def test_equal_rows_are_ordered_by_id(count):
    rows = 30_000
    vectors = np.ones((rows, 4), np.float32)
    ids = [f"{(row * 7919) % rows:06d}" for row in range(rows)]
    batch = pa.RecordBatch.from_arrays(
        [pa.array(ids), pa.array(list(vectors), pa.list_(pa.float32()))], [ID, EMBEDDING]
    )
    blocks = [Block.of(batch.slice(at, 9000), VectorColumn(EMBEDDING, "dense", 4), at) for at in range(0, rows, 9000)]
    result = nearest(Queries(vectors[:count], device="cpu"), blocks, 6)
    assert result[ID].to_pylist() == [f"{number:06d}" for number in range(6)] * count


def test_no_blocks_give_no_rows():
    assert nearest(Queries(np.ones((2, 4), np.float32), device="cpu"), [], 3).num_rows == 0
