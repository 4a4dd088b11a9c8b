"""Re-embedding with another model or setting: built beside the current version, checked, and published by one commit."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from actors.errors import ConfigError, GateClosed, TableConflict
from pipeline.ledger.ledger import run_names
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table import delta_table
from pipeline.table.versions import rollback, versions
from tests.checkpoints.bert import write_bert
from tests.integration.conftest import Silent, Stopping, Stops, make_job, rows, write_corpus
from tests.integration.test_refresh import assert_same


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus", [rows(30), rows(20, start=30)])


@pytest.fixture
def first(tmp_path, corpus, tiny_model, reporter):
    """The job that version 1 was published with."""
    job = make_job(corpus, tmp_path / "table", tiny_model, table__partition_by=["lang"])
    backfill(job, reporter)
    return job


def second(job, **generation):
    """The same job with another setting that changes vectors."""
    encoder = job.encoder.model_copy(update={"max_tokens": 5})
    return job.model_copy(update={"encoder": encoder, "generation": job.generation.model_copy(update=generation)})


def embedding_spec(table, version=None):
    found = delta_table.embedding_spec_of(DeltaTable(str(table), version=version))
    assert found is not None
    return found


def test_a_backfill_does_not_mix_embedding_specs_and_names_the_fix(first, reporter):
    with pytest.raises(
        TableConflict, match="max_tokens: 64 in the table, 5 in the job.*`vectide refresh` re-embeds beside the current"
    ):
        backfill(second(first), reporter)


def test_readers_see_the_old_vectors_until_one_commit(tmp_path, corpus, tiny_model, first):
    table = tmp_path / "table"

    class Watching(Silent):
        def step(self, text):
            super().step(text)
            assert DeltaTable(str(table)).version() == 1
            assert embedding_spec(table).lineage["max_tokens"] == 64

    reporter = Watching()
    outcome = refresh(second(first), reporter)
    assert "publishing" in reporter.steps
    assert (outcome.version, outcome.rows, outcome.encoded, outcome.published) == (2, 50, 50, True)
    assert [embedding_spec(table, number).lineage["max_tokens"] for number in (1, 2)] == [64, 5]
    fresh = make_job(corpus, tmp_path / "fresh", tiny_model, table__partition_by=["lang"], encoder__max_tokens=5)
    backfill(fresh, Silent())
    assert_same(table, tmp_path / "fresh")
    # Each version is searched with the model that made it.
    assert [Searcher(str(table), version=number).spec.max_tokens for number in (1, 2)] == [64, 5]
    assert len(DeltaTable(str(table), version=1).to_pyarrow_table()) == 50


def test_an_unpublished_re_embedding_is_published_later_without_encoding(tmp_path, first, reporter):
    staged = refresh(second(first, publish=False), reporter)
    assert (staged.staged, staged.published, staged.encoded, staged.rows) == (True, False, 50, 50)
    assert DeltaTable(str(tmp_path / "table")).version() == 1
    reporter = Silent()
    outcome = refresh(second(first), reporter)
    assert (outcome.version, outcome.rows, reporter.receipts) == (2, 50, [])


def test_a_changed_source_reuses_the_vectors_of_a_stopped_re_embedding(tmp_path, corpus, first, reporter):
    refresh(second(first, publish=False), reporter)
    write_corpus(corpus, [rows(30), rows(25, start=30)])
    assert refresh(first, reporter).encoded == 5  # the first generation is kept true meanwhile
    outcome = refresh(second(first), reporter)
    assert (outcome.version, outcome.rows, outcome.encoded) == (3, 55, 5)


def test_a_re_embedding_with_other_columns_is_published_with_them(tmp_path, corpus, tiny_model, first, reporter):
    job = make_job(
        corpus,
        tmp_path / "table",
        tiny_model,
        table__partition_by=["lang"],
        source__keep=["lang", "title"],
        chunking={"mode": "split", "max_tokens": 4},
        encoder__max_tokens=9,
    )
    refresh(job, reporter)
    names = DeltaTable(str(tmp_path / "table")).to_pyarrow_table().column_names
    assert {"chunk", "start", "end", "title"} <= set(names)
    assert "chunk" not in DeltaTable(str(tmp_path / "table"), version=1).to_pyarrow_table().column_names


def test_only_other_columns_encode_nothing(tmp_path, corpus, tiny_model, first, reporter):
    job = make_job(corpus, tmp_path / "table", tiny_model, table__partition_by=["lang"], source__keep=["lang", "title"])
    outcome = refresh(job, reporter)
    assert (outcome.version, outcome.encoded, outcome.rows) == (2, 0, 50)
    titles = DeltaTable(str(tmp_path / "table")).to_pyarrow_table(columns=["id", "title"]).to_pylist()
    assert {row["id"]: row["title"] for row in titles} == {f"r{n}": f"title {n}" for n in range(50)}


def test_other_partitions_are_refused(tmp_path, corpus, tiny_model, first, reporter):
    with pytest.raises(TableConflict, match=r"partitioned by \['lang'\], and this job by \[\]"):
        refresh(make_job(corpus, tmp_path / "table", tiny_model, encoder__max_tokens=9), reporter)


def test_the_gate_refuses_a_re_embedding_with_other_neighbours(tmp_path, first, reporter):
    other = write_bert(tmp_path / "other", seed=7)
    encoder = first.encoder.model_copy(update={"model": str(other)})
    strict = first.generation.model_copy(update={"min_agreement": 0.999})
    job = first.model_copy(update={"encoder": encoder, "generation": strict})
    with pytest.raises(GateClosed, match=r"agrees with the old one on 0\.\d+ .* readers stay on version 1"):
        refresh(job, reporter)
    assert DeltaTable(str(tmp_path / "table")).version() == 1
    lenient = first.generation.model_copy(update={"min_agreement": 0.0})
    reporter = Silent()
    outcome = refresh(job.model_copy(update={"generation": lenient}), reporter)
    assert (outcome.version, reporter.receipts) == (2, [])
    assert outcome.checks[0].startswith("agreement of 10 neighbours 0.")


@pytest.mark.parametrize(("count", "neighbours"), [(7, 3), (2, 0)])
def test_the_gate_compares_less_than_all_of_a_few_documents(tmp_path, tiny_model, reporter, count, neighbours):
    few = make_job(write_corpus(tmp_path / "few", [rows(count)]), tmp_path / "table", tiny_model)
    backfill(few, reporter)
    encoder = few.encoder.model_copy(update={"model": str(write_bert(tmp_path / "other", seed=7))})
    generation = few.generation.model_copy(update={"min_agreement": 0.0})
    checks = refresh(few.model_copy(update={"encoder": encoder, "generation": generation}), reporter).checks
    if neighbours:
        assert checks[0].startswith(f"agreement of {neighbours} neighbours 0.")
    else:
        assert checks == ("no agreement of neighbours, because there are 2 documents",)


def test_a_re_embedding_with_equal_neighbours_passes_a_strict_gate(tmp_path, corpus, tiny_model, first, reporter):
    same_but_name = second(first, min_agreement=1.0)
    same_but_name = same_but_name.model_copy(
        update={"encoder": first.encoder.model_copy(update={"max_tokens": 63})}  # no text is that long
    )
    assert refresh(same_but_name, reporter).checks == ("agreement of 10 neighbours 1.000 on 50 documents",)


def judged(folder, relevant):
    """Queries that are the texts of rows 0 to 9, and which row each should find."""
    pq.write_table(
        pa.table({"id": [f"q{n}" for n in range(10)], "text": [f"title {n}\n\ntext number {n}" for n in range(10)]}),
        folder / "queries.parquet",
    )
    pq.write_table(
        pa.table({"query": [f"q{n}" for n in range(10)], "doc": [relevant(n) for n in range(10)]}),
        folder / "qrels.parquet",
    )
    return {"queries": str(folder / "queries.parquet"), "judgements": str(folder / "qrels.parquet")}


def test_the_gate_refuses_a_re_embedding_with_a_worse_ranking(tmp_path, first, reporter):
    places = judged(tmp_path, lambda n: f"r{n}")
    # Cut at three tokens all texts are nearly the same: the rows are not found any more.
    worse = second(first, **places).model_copy(update={"encoder": first.encoder.model_copy(update={"max_tokens": 3})})
    expected = r"nDCG@10 of the re-embedding is 0\.\d+ on 10 queries, and that of the current version (1\.0000|0\.9\d+)"
    with pytest.raises(GateClosed, match=expected):
        refresh(worse, reporter)
    alike = first.model_copy(
        update={
            "encoder": first.encoder.model_copy(update={"max_tokens": 63}),
            "generation": second(first, **places).generation,
        }
    )
    (check,) = refresh(alike, reporter).checks
    assert "on 10 queries (difference +0.0000, 95 % interval +0.0000 to +0.0000, p 1.0000 by paired bootstrap)" in check


def test_missing_judgements_are_named(tmp_path, first, reporter):
    places = judged(tmp_path, lambda n: f"r{n}")
    job = second(first, **{**places, "queries": str(tmp_path / "none.parquet")})
    runs = run_names(first.table.uri)
    with pytest.raises(ConfigError, match=r"generation.queries names .*none.parquet', which does not exist"):
        refresh(job, reporter)
    assert run_names(first.table.uri) == runs  # before anything was encoded for them


def test_a_rollback_undoes_a_re_embedding_and_a_refresh_repeats_it_for_free(tmp_path, first, reporter):
    table = str(tmp_path / "table")
    before = Searcher(table).search(["title 3"], k=5)
    refresh(second(first), reporter)
    done = rollback(table, 1)
    assert (done.version, done.restored, done.rows) == (3, 1, 50)
    assert Searcher(table).search(["title 3"], k=5) == before
    assert refresh(first, reporter).published is False
    again = refresh(second(first), reporter)
    assert (again.version, again.encoded, again.rows) == (4, 0, 50)
    assert [(version.number, version.operation, version.rows) for version in versions(table)] == [
        (4, "generation", 50),
        (3, "rollback", 50),
        (2, "generation", 50),
        (1, "backfill", 50),
        (0, "CREATE TABLE", None),
    ]


def test_an_interrupted_re_embedding_resumes(tmp_path, first):
    with pytest.raises(Stops):
        refresh(second(first), Stopping(after=2))
    assert DeltaTable(str(tmp_path / "table")).version() == 1
    reporter = Silent()
    outcome = refresh(second(first), reporter)
    assert (outcome.version, outcome.rows, len(reporter.receipts)) == (2, 50, outcome.units - 2)
