"""The step `consistency` against loops, with vectors that are made up."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from actors.errors import ConfigError
from actors.vectors import VectorColumn
from actors.vectors.quantiser import round_mantissa
from pipeline.curate import embedding
from pipeline.curate.embedding import SideVectors
from pipeline.curate.steps import consistency
from pipeline.curate.steps.base import Seen
from pipeline.curate.steps.consistency import Consistency, Curve, shuffled
from pipeline.execute.progress import NullReporter
from pipeline.job import curation
from pipeline.job.config import Run

ROWS, DIM = 700, 24
HUB, NO_VECTOR = range(100, 130), 5  # rows with one passage; a row whose query is blank
COPY = 200  # its passage is that of row 201 in capitals, so the key is the same and the vector another


@dataclasses.dataclass
class Pairs:
    seen: Seen
    queries: npt.NDArray[np.float32]
    passages: npt.NDArray[np.float32]
    keys: list[int]
    sources: list[str]

    def decide(self, **settings) -> tuple[dict[int, tuple[Any, ...]], dict[str, Any]]:
        """Return rank, score, top_k and verdict by row, and the evidence."""
        decision = step(**settings).decide(self.seen)
        names = "n, rank_in_pool, score, top_k, dropped"
        rows = self.seen.connection.execute(f"select {names} from {decision.table}").fetchall()
        return {row[0]: row[1:] for row in rows}, decision.evidence


def step(**settings) -> Consistency:
    return Consistency(curation.Consistency(model="made-up", **settings), ("query", "passage"))


def unit(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    of_length_1: npt.NDArray[Any] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return of_length_1


@pytest.fixture
def pairs(monkeypatch) -> Pairs:
    random = np.random.default_rng(3)
    passages = unit(random.normal(size=(ROWS, DIM)))
    passages[list(HUB)] = passages[HUB[0]]
    queries = unit(passages + random.normal(size=(ROWS, DIM)) * 0.25)
    passages, queries = (round_mantissa(side.astype(np.float32), "bfloat16") for side in (passages, queries))
    texts = [f"passage {HUB[0] if row in HUB else row}" for row in range(ROWS)]
    texts[COPY] = texts[COPY + 1].upper()
    (raw,) = step().measure([pa.array([""]), pa.array(texts)]).columns
    connection = duckdb.connect()
    rows = {
        "n": range(ROWS),
        "id": [f"id {row:04}" for row in range(ROWS)],
        "source": ["odd" if row % 2 else "it's even" for row in range(ROWS)],
        consistency.KEY: raw,
    }
    connection.register("incoming", pa.table({name: pa.array(values) for name, values in rows.items()}))
    connection.execute("create table seen as select * from incoming")
    column = VectorColumn("embedding", "dense", DIM)
    vectors = {}
    for side, of_side in (("query", queries), ("passage", passages)):
        places = random.permutation(ROWS)  # rows and vectors have different orders
        table = pa.table({"n": np.argsort(places), "place": np.arange(ROWS)})
        connection.register(
            "incoming", table.filter(pa.array((side != "query") | (table["n"].to_numpy() != NO_VECTOR)))
        )
        connection.execute(f"create table vectors_of_{side} as select * from incoming")
        vectors[side] = SideVectors(f"vectors_of_{side}", column, iter(np.split(of_side[np.argsort(places)], 7)))
    made_up = SimpleNamespace(spec=SimpleNamespace(model="made-up"), encoded=0)
    monkeypatch.setattr(embedding, "text_tables", lambda *_, **__: made_up)
    monkeypatch.setattr(consistency, "embed", lambda *_: vectors)
    seen = Seen(connection, "seen", ("query", "passage"), NullReporter(), "unused", Run(address="inline"))
    return Pairs(seen, queries, passages, raw.to_pylist(), list(rows["source"]))


def drawn_pool(pairs: Pairs, size: int, rows: list[int]) -> list[int]:
    """Rows whose passages are the pool: of each key the first by hash, and of these the first ones."""
    query = "select n, md5_number_lower('pool 0 ' || id) as drawn from seen order by drawn"
    order = [n for n, _ in pairs.seen.connection.execute(query).fetchall() if n in rows and n != NO_VECTOR]
    firsts: dict[int, int] = {}
    for row in order:
        firsts.setdefault(pairs.keys[row], row)
    return list(firsts.values())[:size]


def ranks(pairs: Pairs, pool: list[int], rows: list[int]) -> dict[int, int]:
    """The ranks by a loop over the pool."""
    exact = unit(pairs.passages.astype(np.float64))
    found = {}
    for row in rows:
        query = unit(pairs.queries[row : row + 1])[0]
        scores = (exact * query).sum(axis=1).astype(np.float32)
        found[row] = sum(scores[other] > scores[row] for other in pool if pairs.keys[other] != pairs.keys[row])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("pool", [1_000_000, 150])
def test_ranks_are_those_of_a_loop_over_the_pool(pairs, pool):
    decided, evidence = pairs.decide(pool=pool, top_k=2)
    rows = [row for row in range(ROWS) if row != NO_VECTOR]
    of_loop = ranks(pairs, drawn_pool(pairs, pool, rows), rows)
    assert {row: rank for row, (rank, *_) in decided.items()} == of_loop
    assert [verdict for *_, verdict in decided.values()] == [rank >= 2 for rank, *_ in decided.values()]
    assert 5 < sum(verdict for *_, verdict in decided.values()) < ROWS / 2
    assert evidence["pairs_without_vector"] == 1
    (only,) = evidence["pools"]
    assert (only["passages"], only["pairs"], only["top_k"]) == (min(pool, ROWS - len(HUB) + 1 - 1 - 1), ROWS - 1, 2)


@pytest.mark.slow
def test_a_pool_of_each_source_is_compared_with_its_own_pairs(pairs):
    decided, evidence = pairs.decide(top_k=3, per_source=True)
    for name in ("odd", "it's even"):
        rows = [row for row in range(ROWS) if pairs.sources[row] == name and row != NO_VECTOR]
        of_loop = ranks(pairs, drawn_pool(pairs, ROWS, rows), rows)
        assert {row: decided[row][0] for row in rows} == of_loop
    assert {pool["source"] for pool in evidence["pools"]} == {"odd", "it's even"}


def test_ranks_above_the_largest_are_stored_as_that_one(pairs, monkeypatch):
    exact, _ = pairs.decide(top_k=2)
    monkeypatch.setattr(consistency, "_RANKS", 4)
    capped, evidence = pairs.decide(top_k=2)
    assert {row: each[0] for row, each in capped.items()} == {row: min(each[0], 4) for row, each in exact.items()}
    assert evidence["pools"][0]["largest_stored_rank"] == 4


@pytest.mark.slow
def test_auto_takes_the_best_k_and_finds_shuffled_pairs(pairs):
    places = dict(pairs.seen.connection.execute("select n, place from vectors_of_passage").fetchall())
    wrong = list(range(300, 370))
    for row, other in zip(wrong, np.roll(wrong, 1), strict=True):
        run = pairs.seen.connection.execute
        run("update vectors_of_passage set place = ? where n = ?", [places[other], row])
        run(f"update seen set {consistency.KEY} = ? where n = ?", [pairs.keys[other], row])
    decided, evidence = pairs.decide()
    dropped = {row for row, (*_, verdict) in decided.items() if verdict}
    assert len(dropped.intersection(wrong)) >= 0.9 * len(wrong)
    assert len(dropped.difference(wrong)) <= 0.1 * (ROWS - len(wrong))
    (only,) = evidence["pools"]
    assert only["top_k"] == only["best_top_k"] > 1
    assert abs(only["seem_shuffled"] - 0.1) < 0.03
    assert next(point["good_lost"] for point in evidence["curve"] if point["k"] == only["top_k"]) < 0.1
    assert pairs.decide() == (decided, evidence)


@pytest.mark.parametrize("wrong", [0.0, 0.3])
def test_the_best_k_loses_as_many_as_it_misses(wrong):
    random = np.random.default_rng(1)
    bad = random.integers(0, 500, 1000)
    good = np.minimum(random.geometric(0.03, 1000) - 1, 499)
    mixed = np.concatenate([good[: int(1000 * (1 - wrong))], random.integers(0, 500, int(1000 * wrong))])
    curve = Curve(mixed, bad)
    assert abs(curve.wrong - wrong) < 0.05
    points = [curve.point(k) for k in range(1, 501)]
    best = next(point["k"] for point in points if point["good_lost"] <= 1 - point["found"])
    assert curve.best() == best
    assert 50 < best < 90
    assert points[best - 1]["found"] == np.mean(bad >= best).round(4)
    assert points[best - 1]["lost"] == np.mean(mixed >= best).round(4)
    assert abs(points[best - 1]["good_lost"] - np.mean(good >= best)) < 0.05


@pytest.mark.parametrize(
    ("good", "bad", "k"),
    [([0, 4], [2, 9], 5), ([0, 0], [1, 9], 1), ([3, 3], [], None), ([3, 8], [3, 8], None), ([9], [2], None)],
)
def test_the_smallest_k_counts_and_ranks_that_tell_nothing_have_none(good, bad, k):
    assert Curve(np.array(good), np.array(bad, int)).best() == k


def test_a_shuffled_pair_has_the_passage_of_another():
    keys = [1, 1, 1, 2, 3, 4, 4]
    count = len(keys)
    table = pa.table({"n": range(count), "query": range(count), "passage": range(10, 10 + count), "key": keys})
    rows = shuffled(table)
    assert rows["query"].to_pylist() == list(range(count))
    assert all(
        keys[query] != key for query, key in zip(rows["query"].to_pylist(), rows["key"].to_pylist(), strict=True)
    )
    assert [keys[passage - 10] for passage in rows["passage"].to_pylist()] == rows["key"].to_pylist()
    assert shuffled(table.slice(0, 3)).num_rows == 0


@pytest.mark.parametrize("alike", [True, False])
def test_few_pairs_are_kept_and_the_evidence_says_why(pairs, alike):
    run = pairs.seen.connection.execute
    run(f"delete from seen where n not in ({'100, 101' if alike else '7'})")
    decided, evidence = pairs.decide()
    assert [verdict for *_, verdict in decided.values()] == [False] * (2 if alike else 1)
    assert "top_k: auto drops nothing" in evidence["notes"][0]


def test_no_pair_with_vectors_is_no_error(pairs):
    pairs.seen.connection.execute("delete from seen where n <> 5")
    assert pairs.decide()[0] == {}


@pytest.mark.parametrize(
    ("before", "now", "allowed"),
    [
        ({"top_k": 5}, {"top_k": 2}, True),
        ({"top_k": "auto"}, {"top_k": 2}, True),
        ({"top_k": 2}, {"top_k": 5}, False),
        ({"top_k": 5}, {"top_k": "auto"}, False),
        ({"top_k": 5, "pool": 9}, {"top_k": 2, "pool": 10}, False),
    ],
)
def test_a_view_has_a_stricter_top_k_and_nothing_else(before, now, allowed):
    stored = step(**before).settings.model_dump(mode="json")
    if allowed:
        assert step(**now).view(stored) == "rank_in_pool >= least(2, top_k)"
    else:
        with pytest.raises(ConfigError, match="a view can have a number for top_k"):
            step(**now).view(stored)
