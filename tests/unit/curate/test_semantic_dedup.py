"""The step semantic_dedup against brute force, with vectors that stand in for those of a model."""

from __future__ import annotations

from types import SimpleNamespace

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from actors.errors import ConfigError
from pipeline.curate import embedding
from pipeline.curate.steps import clusters, semantic_dedup
from pipeline.curate.steps.base import Seen
from pipeline.curate.steps.semantic_dedup import SemanticDedup
from pipeline.execute.progress import NullReporter
from pipeline.job.curation import SemanticDedup as Settings
from pipeline.job.curation import parse_curation


def of_texts(texts):
    """A vector for each text, which is a number; negative ones have none."""
    rng = np.random.default_rng(3)
    base = rng.normal(size=(1000, 16)).astype(np.float32)
    return base[texts % 200] + 0.35 * base[texts % 1000]


@pytest.fixture
def model(monkeypatch):
    """A model of numbers in place of one of texts."""

    def embed(seen, tables, sides):
        made = {}
        for side in sides:
            rows = seen.connection.execute(f"select n, {side}::int from {seen.rows} order by n").fetchall()
            texts = sorted({text for _, text in rows if text >= 0}, key=str)
            table = pa.table([[n for n, text in rows if text >= 0]], ["n"])
            table = table.append_column("place", pa.array([texts.index(text) for _, text in rows if text >= 0]))
            seen.connection.register("given", table)
            seen.connection.execute(f"create or replace table vectors_{side} as select * from given")
            matrix = of_texts(np.array(texts, int))
            made[side] = SimpleNamespace(rows=f"vectors_{side}", vectors=matrix.__getitem__)
        return made

    monkeypatch.setattr(semantic_dedup, "embed", embed)
    tables = SimpleNamespace(spec=SimpleNamespace(model="numbers"), encoded=0)
    monkeypatch.setattr(embedding, "text_tables", lambda *_, **__: tables)


def decide(sides: dict[str, np.ndarray], **settings):
    step = SemanticDedup(Settings(model="numbers", **settings), tuple(sides))
    count = len(next(iter(sides.values())))
    columns = [np.arange(count), [f"{n:05}" for n in range(count)], *(map(str, texts) for texts in sides.values())]
    given = pa.table([pa.array(column) for column in columns], ["n", "id", *sides])
    connection = duckdb.connect(config={"threads": 1})
    connection.register("given", given)
    connection.execute("create table rows as select * from given")
    decision = step.decide(Seen(connection, "rows", tuple(sides), NullReporter(), "unused"))
    assert connection.table(decision.table).columns == ["n", *step.schema().names, "dropped"]
    return connection.execute(f"select * from {decision.table} order by n").fetchall(), decision.evidence


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("side", ["passage", "both"])
def test_rows_near_to_an_earlier_one_are_dropped_as_by_brute_force(model, monkeypatch, side, exact):
    if not exact:
        monkeypatch.setattr(clusters, "EXACT", 100)
        monkeypatch.setattr(clusters, "_LARGEST", 400)
        monkeypatch.setattr(clusters, "_MEAN", 200)
    rng = np.random.default_rng(4)
    texts = {"query": rng.integers(3, size=600), "passage": rng.integers(1000, size=600)}
    rows, evidence = decide(texts, side=side, eps=0.1)
    used = [of_texts(texts[name]).astype(np.float64) for name in texts if side in (name, "both")]
    products = np.mean([each @ each.T for each in (v / np.linalg.norm(v, axis=1, keepdims=True) for v in used)], axis=0)
    expected = np.where(np.tri(600, k=-1), products, -2).max(axis=1)
    near = {n for n in range(600) if expected[n] >= 0.9}
    assert len(near) > 15
    assert rows[0][1] is None
    dropped = {n: (similarity, copy_of) for n, similarity, copy_of, gone in rows if gone}
    assert len(near & dropped.keys()) >= (1 if exact else 0.9) * len(near)
    assert not dropped.keys() - near
    for n, (similarity, copy_of) in dropped.items():
        assert int(copy_of) < n
        assert similarity == pytest.approx(products[n, int(copy_of)], abs=1e-5)
    if exact:
        assert [row[1] for row in rows[1:]] == pytest.approx(expected[1:].tolist(), abs=1e-5)
        assert evidence["clusters"] == 1


def test_copies_have_a_cosine_of_1_and_rows_without_a_vector_are_left_alone(model):
    rows, evidence = decide({"text": np.array([7, -1, 8, 7, -1, 7])}, eps=0.0)
    assert [(row[0], row[2], row[3]) for row in rows] == [
        (0, None, False),
        (2, None, False),
        (3, "00000", True),
        (5, "00000", True),
    ]
    assert [row[1] for row in rows][2:] == [1.0, 1.0]
    assert (evidence["texts"], evidence["without_vector"]) == (2, 2)
    assert decide({"text": np.array([-1])})[0] == []


def test_a_view_takes_a_larger_eps_alone(model):
    before = Settings(model="m", eps=0.1).model_dump(mode="json")
    assert SemanticDedup(Settings(model="m", eps=0.3), ("text",)).view(before) == "semantic_similarity >= 0.7::double"
    for other in (Settings(model="m", eps=0.05), Settings(model="other", eps=0.3)):
        with pytest.raises(ConfigError, match="larger eps"):
            SemanticDedup(other, ("text",)).view(before)


def test_the_model_is_that_of_consistency_unless_it_is_named():
    steps = [{"consistency": {"model": "a", "encoder": {"max_tokens": 64}}}, {"semantic_dedup": {}}]
    job = {"pairs": {"uri": "pairs"}, "steps": steps, "table": {"uri": "table"}}
    assert parse_curation(job).steps[1].semantic_dedup == Settings(model="a", encoder={"max_tokens": 64})
    steps[1] = {"semantic_dedup": {"model": "b"}}
    assert parse_curation(job).steps[1].semantic_dedup == Settings(model="b")
    del steps[0]
    steps[0] = {"semantic_dedup": {}}
    with pytest.raises(ConfigError, match="needs a model"):
        parse_curation(job)
