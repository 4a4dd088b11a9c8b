"""Tests of whole jobs with the Jina families: tasks by row, shorter vectors, the query side, refused settings."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from actors.encoders import load_encoder
from actors.errors import ConfigError
from pipeline.ledger.ledger import Ledger
from pipeline.run.backfill import backfill
from pipeline.search.search import Searcher
from tests.checkpoints.jina_v1 import write_jina_v1
from tests.checkpoints.jina_v2 import write_jina_v2
from tests.checkpoints.jina_v3 import write_jina_v3
from tests.checkpoints.jina_v4 import write_jina_v4
from tests.integration.conftest import make_job, rows, write_corpus

TASKS = ["retrieval.passage", "text-matching", None, "separation"]


def vectors_of(table):
    stored_rows = DeltaTable(str(table)).to_pyarrow_table(columns=["id", "embedding"]).to_pylist()
    return {row["id"]: np.array(row["embedding"], dtype=np.float32) for row in stored_rows}


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    return write_jina_v3(tmp_path_factory.mktemp("v3"))


def test_each_row_has_its_own_task(tmp_path, v3, reporter):
    source = [{**row, "task": TASKS[number % 4]} for number, row in enumerate(rows(24))]
    source[5]["task"] = "code"
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    pq.write_table(pa.Table.from_pylist(source), corpus / "a.parquet")
    job = make_job(
        corpus,
        tmp_path / "table",
        v3,
        source__task_column="task",
        encoder__task="classification",
        encoder__dim=16,
        run__max_quarantined=0.1,
    )
    outcome = backfill(job, reporter)
    assert (outcome.rows, outcome.quarantined) == (23, 1)
    ledger = Ledger(outcome.table, outcome.run)
    (quarantined,) = ledger.quarantine(ledger.receipts().values()).to_pylist()
    assert (quarantined["id"], quarantined["reason"], quarantined["position"]) == ("r5", "unknown_task", 5)
    stored = vectors_of(tmp_path / "table")
    encoder = load_encoder(str(v3), dim=16, dtype="float32")
    for row in source:
        if row["id"] == "r5":
            continue
        task = str(row["task"] or "classification")
        (expected,) = encoder.encode([f"{row['title']}\n\n{row['text']}"], task=task)
        np.testing.assert_allclose(stored[str(row["id"])], expected, atol=1e-3)


@pytest.mark.parametrize("write", [write_jina_v3, write_jina_v4])
def test_search_uses_the_query_task(tmp_path, reporter, write):
    model = write(tmp_path / "model")
    corpus = write_corpus(tmp_path / "corpus", [rows(12)])
    backfill(make_job(corpus, tmp_path / "table", model, encoder__task="retrieval.passage"), reporter)
    searcher = Searcher(str(tmp_path / "table"))
    assert searcher.spec.task == "retrieval.query"
    (hits,) = searcher.search(["text number 3"], k=12)
    (query,) = load_encoder(str(model), task="retrieval.query", dtype="float32").encode(["text number 3"])
    stored = vectors_of(tmp_path / "table")
    for hit in hits:
        assert hit.score == pytest.approx(float(query @ stored[hit.id]), abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder__dim": 20}, "dim 20: .* was trained for dims 8, 16, 32"),
        ({"encoder__task": "code"}, "has no task 'code'"),
    ],
)
def test_untrained_dims_and_tasks_of_v3_are_refused(tmp_path, v3, reporter, changes, message):
    corpus = write_corpus(tmp_path / "corpus", [rows(2)])
    with pytest.raises(ConfigError, match=message):
        backfill(make_job(corpus, tmp_path / "table", v3, **changes), reporter)


def test_v4_requires_a_task_and_uses_the_tasks_of_rows(tmp_path, reporter):
    model = write_jina_v4(tmp_path / "model")
    tasks = ["code.passage", "text-matching", None, "retrieval.query"]
    source = [{**row, "task": tasks[number % 4]} for number, row in enumerate(rows(12))]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    pq.write_table(pa.Table.from_pylist(source), corpus / "a.parquet")
    settings = {"source__task_column": "task", "encoder__dim": 16}
    with pytest.raises(ConfigError, match="needs a task, which chooses its adapter"):
        backfill(make_job(corpus, tmp_path / "table", model, **settings), reporter)
    job = make_job(corpus, tmp_path / "table", model, encoder__task="retrieval.passage", **settings)
    assert backfill(job, reporter).rows == 12
    stored = vectors_of(tmp_path / "table")
    encoder = load_encoder(str(model), dim=16, dtype="float32", task="retrieval.passage")
    for row in source:
        task = None if row["task"] is None else str(row["task"])
        (expected,) = encoder.encode([f"{row['title']}\n\n{row['text']}"], task=task)
        np.testing.assert_allclose(stored[str(row["id"])], expected, atol=1e-3)


@pytest.mark.parametrize("write", [write_jina_v1, write_jina_v2])
def test_v1_and_v2_run_whole_jobs_and_refuse_shorter_vectors(tmp_path, reporter, write):
    model = write(tmp_path / "model")
    corpus = write_corpus(tmp_path / "corpus", [rows(12)])
    job = make_job(corpus, tmp_path / "table", model)
    assert backfill(job, reporter).rows == 12
    vectors = load_encoder(str(model), dtype="float32").encode([f"{r['title']}\n\n{r['text']}" for r in rows(12)])
    stored = vectors_of(tmp_path / "table")
    for number, vector in enumerate(vectors):
        np.testing.assert_allclose(stored[f"r{number}"], vector, atol=1e-3)
    with pytest.raises(ConfigError, match="not trained for shorter vectors"):
        backfill(make_job(corpus, tmp_path / "other", model, encoder__dim=16), reporter)
    allowed = make_job(corpus, tmp_path / "other", model, encoder__dim=16, encoder__allow_untrained_dim=True)
    assert backfill(allowed, reporter).rows == 12
    with pytest.raises(ConfigError, match="has no tasks"):
        backfill(make_job(corpus, tmp_path / "third", model, source__task_column="lang"), reporter)


def test_texts_over_the_limit_are_truncated_and_counted(tmp_path, tiny_model, reporter):
    long = [{**row, "text": "word " * 100} if number < 3 else row for number, row in enumerate(rows(10))]
    corpus = write_corpus(tmp_path / "corpus", [long])
    outcome = backfill(make_job(corpus, tmp_path / "table", tiny_model), reporter)
    assert (outcome.rows, outcome.truncated) == (10, 3)
