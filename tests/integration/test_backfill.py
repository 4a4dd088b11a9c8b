"""A backfill from files to a published table, with a real Ray, a real model and a real Delta table."""

from __future__ import annotations

import gzip
import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from actors import storage
from actors.encoders import load_encoder
from actors.errors import ConfigError, DataError, ModelError, TableConflict, TooManyQuarantined
from pipeline.execute.completion import load_complete_receipts
from pipeline.execute.inline import InlineExecutor
from pipeline.ledger.ledger import Ledger
from pipeline.run.backfill import backfill
from pipeline.search.search import Searcher
from pipeline.table import delta_table
from pipeline.table.status import status
from pipeline.table.transaction import Transaction
from tests.integration.conftest import Stopping, Stops, make_job, rows, write_corpus


def on_ray(test):
    """A test whose units go through the session's Ray; those of all others stay in this process."""
    return pytest.mark.ray(pytest.mark.usefixtures("ray_session")(test))


def stored(table):
    """Id to (lang, vector) of the current version, which must not contain an id twice."""
    frame = DeltaTable(str(table)).to_pyarrow_table().to_pylist()
    found = {row["id"]: (row["lang"], np.array(row["embedding"], dtype=np.float32)) for row in frame}
    assert len(found) == len(frame)
    return found


@on_ray
def test_every_row_is_there_once_with_its_own_vector(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(50), rows(30, start=50)])
    job = make_job(
        corpus,
        tmp_path / "table",
        tiny_model,
        table__partition_by=["lang"],
        table__precision="float32",
        run__address="local",
    )
    outcome = backfill(job, reporter)
    assert (outcome.rows_read, outcome.rows, outcome.quarantined, outcome.version) == (80, 80, 0, 1)
    assert outcome.units == len(reporter.receipts) == 6
    found = stored(tmp_path / "table")
    source = rows(80)
    assert found.keys() == {row["id"] for row in source}
    vectors = load_encoder(str(tiny_model), dtype="float32").encode([f"{r['title']}\n\n{r['text']}" for r in source])
    for row, vector in zip(source, vectors, strict=True):
        lang, there = found[row["id"]]
        assert lang == row["lang"]
        np.testing.assert_allclose(there, vector, atol=1e-5)


def test_the_same_command_again_has_nothing_to_do(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    first = backfill(job, reporter)
    again = backfill(job, reporter)
    assert first.published
    assert not again.published
    assert again.version == first.version == 1
    assert len(reporter.receipts) == first.units
    assert DeltaTable(str(tmp_path / "table")).version() == 1


def test_a_stopped_run_resumes_and_encodes_nothing_twice(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(64)])
    job = make_job(corpus, tmp_path / "table", tiny_model)

    with pytest.raises(Stops):
        backfill(job, Stopping())
    (run,) = status(str(tmp_path / "table")).runs
    assert run.version is None
    assert 1 <= run.units_done <= 4
    before = Ledger(str(tmp_path / "table"), run.run).receipts()
    outcome = backfill(job, reporter)
    assert outcome.rows == 64
    assert {receipt.unit for receipt in reporter.receipts} == set(range(4)) - set(before)
    assert len(stored(tmp_path / "table")) == 64


def test_a_small_corpus_starts_ray_only_after_a_stop_or_on_request(tmp_path, tiny_model, reporter, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = []

    def executor_for(run):
        asked.append(run)
        return InlineExecutor()

    monkeypatch.setattr("pipeline.run.backfill.executor_for", executor_for)
    corpus = write_corpus(tmp_path / "corpus", [rows(40)])
    job = make_job(corpus, tmp_path / "table", tiny_model, run={"unit_rows": 16})
    with pytest.raises(Stops):
        backfill(job, Stopping())
    assert asked == []
    assert backfill(job, reporter).rows == 40  # a row of it may have killed the process
    assert asked == [job.run]
    for number, wish in enumerate(({"replicas": 2}, {"address": "local"}, {"gpus_per_replica": 0.5})):
        job = make_job(corpus, tmp_path / f"other-{number}", tiny_model, run=wish)
        backfill(job, reporter)
        assert asked.pop() == job.run
    monkeypatch.setattr("pipeline.plan.sample.INLINE_S", 1e-6)
    big = make_job(corpus, tmp_path / "big", tiny_model, run={})
    backfill(big, reporter)
    assert asked.pop() == big.run


def test_a_long_run_leaves_copies_of_its_receipts_and_they_count_as_well(tmp_path, tiny_model, reporter, monkeypatch):
    monkeypatch.setattr("pipeline.execute.completion.RECEIPT_BATCH_UNITS", 2)
    corpus = write_corpus(tmp_path / "corpus", [rows(80)])
    job = make_job(corpus, tmp_path / "table", tiny_model)

    with pytest.raises(Stops):
        backfill(job, Stopping(after=4))
    (run,) = status(str(tmp_path / "table")).runs
    ledger = Ledger(str(tmp_path / "table"), run.run)
    (digest,) = storage.walk(storage.join(ledger.home(), "receipt_batches"))
    assert pq.read_table(digest.path)["unit"].to_pylist() == [0, 1]
    assert ledger.done() == {0, 1, 2, 3}
    assert backfill(job, reporter).rows == 80
    assert [receipt.unit for receipt in reporter.receipts] == [4]
    assert len(stored(tmp_path / "table")) == 80


def test_a_changed_source_makes_a_new_version_that_replaces_the_rows(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    backfill(job, reporter)
    write_corpus(tmp_path / "corpus", [rows(10, start=5)])
    outcome = backfill(job, reporter)
    assert outcome.version == 2
    assert stored(tmp_path / "table").keys() == {f"r{number}" for number in range(5, 15)}
    assert len(stored_version(tmp_path / "table", 1)) == 20


def stored_version(table, version):
    return DeltaTable(str(table), version=version).to_pyarrow_table(columns=["id"]).to_pylist()


def test_vectors_of_two_settings_are_never_mixed(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    backfill(make_job(corpus, tmp_path / "table", tiny_model), reporter)
    other = make_job(corpus, tmp_path / "table", tiny_model, encoder__max_tokens=9)
    with pytest.raises(TableConflict, match="max_tokens: 64 in the table, 9 in the job"):
        backfill(other, reporter)
    assert DeltaTable(str(tmp_path / "table")).version() == 1


def test_a_job_that_keeps_other_columns_replaces_them_with_the_rows(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    backfill(make_job(corpus, tmp_path / "table", tiny_model), reporter)
    backfill(make_job(corpus, tmp_path / "table", tiny_model, source__keep=[]), reporter)
    names = [DeltaTable(str(tmp_path / "table"), version=number).schema().to_arrow().names for number in (1, 2)]
    assert set(names[0]) - set(names[1]) == {"lang"}


def test_a_changed_source_reuses_the_vectors_of_a_stopped_backfill(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(40)])
    job = make_job(corpus, tmp_path / "table", tiny_model)

    with pytest.raises(Stops):
        backfill(job, Stopping(after=2))
    write_corpus(corpus, [rows(45)])
    outcome = backfill(job, reporter)
    assert (outcome.version, outcome.rows, outcome.encoded) == (1, 45, 45 - 32)


def test_a_delta_table_of_another_tool_is_refused(tmp_path, tiny_model, reporter):
    import deltalake

    deltalake.write_deltalake(str(tmp_path / "table"), pa.table({"x": [1]}))
    corpus = write_corpus(tmp_path / "corpus", [rows(5)])
    with pytest.raises(TableConflict, match="vectide did not make"):
        backfill(make_job(corpus, tmp_path / "table", tiny_model), reporter)


def test_invalid_rows_are_quarantined_with_place_and_reason(tmp_path, tiny_model, reporter):
    good = rows(40)
    good[3] = {**good[3], "title": None, "text": None}
    good[17] = {**good[17], "title": " ", "text": "\n"}
    good[20] = {**good[20], "id": None}
    good[39] = {**good[39], "id": "r0"}
    corpus = write_corpus(tmp_path / "corpus", [good[:25], good[25:]])
    job = make_job(corpus, tmp_path / "table", tiny_model, run__max_quarantined=0.2)
    outcome = backfill(job, reporter)
    assert (outcome.rows_read, outcome.rows, outcome.quarantined) == (40, 36, 4)
    assert stored(tmp_path / "table").keys() == {f"r{n}" for n in range(40)} - {"r3", "r17", "r20", "r39"}
    (run,) = status(str(tmp_path / "table")).runs
    assert run.reasons == {"null_text": 1, "empty_text": 1, "missing_id": 1, "duplicate_id": 1}
    ledger = Ledger(str(tmp_path / "table"), run.run)
    bad = {row["reason"]: row for row in ledger.quarantine(ledger.receipts().values()).to_pylist()}
    assert bad["null_text"]["position"] == 3
    assert bad["null_text"]["shard"].endswith("part-0000.parquet")
    assert bad["duplicate_id"]["id"] == "r0"


def test_a_driver_with_receipts_from_before_the_override_publishes_no_duplicates(tmp_path, tiny_model, monkeypatch):
    """Another driver of the run quarantines the duplicates between the two reads of this one, and ends before its commit."""
    corpus = write_corpus(tmp_path / "corpus", [rows(20), rows(20, start=19)])
    job = make_job(corpus, tmp_path / "table", tiny_model, run__max_quarantined=0.1)

    def stop(*_):
        raise Stops

    def load_before_the_other(ledger):
        receipts = load_complete_receipts(ledger)
        with monkeypatch.context() as other:
            other.setattr("pipeline.run.backfill.load_complete_receipts", load_complete_receipts)
            other.setattr(Transaction, "publish", stop)
            with pytest.raises(Stops):
                backfill(job)
        return receipts

    monkeypatch.setattr("pipeline.run.backfill.load_complete_receipts", load_before_the_other)
    outcome = backfill(job)
    assert (outcome.rows_read, outcome.rows, outcome.quarantined) == (40, 39, 1)
    ids = DeltaTable(job.table.uri).to_pyarrow_table()["id"].to_pylist()
    assert sorted(ids) == sorted(f"r{number}" for number in range(39))


def test_a_driver_whose_files_another_merged_and_published_says_so(tmp_path, tiny_model, monkeypatch):
    job = make_job(write_corpus(tmp_path / "corpus", [rows(20), rows(20, start=20)]), tmp_path / "table", tiny_model)

    def load_before_the_other_publishes(ledger):
        receipts = load_complete_receipts(ledger)
        with monkeypatch.context() as other:
            other.setattr("pipeline.run.backfill.load_complete_receipts", load_complete_receipts)
            assert backfill(job).published
        return receipts

    monkeypatch.setattr("pipeline.run.backfill.load_complete_receipts", load_before_the_other_publishes)
    outcome = backfill(job)
    assert (outcome.published, outcome.version) == (False, 1)
    assert len(DeltaTable(job.table.uri).to_pyarrow_table()) == 40


def test_duplicate_ids_may_be_allowed(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(5), rows(5)])
    outcome = backfill(make_job(corpus, tmp_path / "table", tiny_model, source__unique_ids=False), reporter)
    assert outcome.rows == 10


def test_too_many_quarantined_rows_publish_nothing_and_lose_nothing(tmp_path, tiny_model, reporter):
    bad = [{**row, "title": None, "text": None} if number % 2 else row for number, row in enumerate(rows(20))]
    corpus = write_corpus(tmp_path / "corpus", [bad])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    with pytest.raises(TooManyQuarantined, match="10 of 20 rows were quarantined .10 null_text."):
        backfill(job, reporter)
    assert not DeltaTable.is_deltatable(str(tmp_path / "table"))
    encoded = len(reporter.receipts)
    allowed = make_job(corpus, tmp_path / "table", tiny_model, run__max_quarantined=0.5)
    assert backfill(allowed, reporter).rows == 10
    assert len(reporter.receipts) == encoded


def test_a_unit_of_quarantined_rows_only_writes_its_receipt(tmp_path, tiny_model, reporter):
    empty = [{**row, "title": None, "text": ""} for row in rows(16)]
    corpus = write_corpus(tmp_path / "corpus", [empty, rows(16, start=16)], row_group_size=16)
    outcome = backfill(make_job(corpus, tmp_path / "table", tiny_model, run__max_quarantined=1), reporter)
    assert (outcome.rows_read, outcome.rows, outcome.quarantined, outcome.units) == (32, 16, 16, 2)


def test_partition_values_of_any_kind_come_back(tmp_path, tiny_model, reporter):
    values = ["de", "a/b", "../../up", "100%", "ü ß", None, "a=b", "x" * 40, "quote'\""]
    corpus = write_corpus(
        tmp_path / "corpus", [[{**row, "lang": value} for row, value in zip(rows(len(values)), values, strict=True)]]
    )
    job = make_job(corpus, tmp_path / "table", tiny_model, table__partition_by=["lang"])
    backfill(job, reporter)
    expected = {f"r{number}": value for number, value in enumerate(values)}
    assert {key: lang for key, (lang, _) in stored(tmp_path / "table").items()} == expected
    frame = pl.read_delta(str(tmp_path / "table"))
    assert dict(zip(frame["id"], frame["lang"], strict=True)) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "table"}


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "txt"])
def test_every_format_gives_the_same_vectors(tmp_path, tiny_model, reporter, kind):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    source = rows(40)
    changes = {}
    if kind == "csv":
        lines = ["id,title,text,lang", *(f'{r["id"]},{r["title"]},"{r["text"]}",{r["lang"]}' for r in source)]
        (corpus / "a.csv").write_text("\n".join(lines))
    elif kind == "txt":
        for row in source:
            (corpus / f"{row['id']}.txt").write_text(f"{row['title']}\n\n{row['text']}")
        changes = {"source__id": "name", "source__text": ["text"], "source__keep": []}
    else:
        data = "\n".join(json.dumps(row) for row in source).encode()
        (corpus / f"a.{kind}").write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    outcome = backfill(make_job(corpus, tmp_path / "table", tiny_model, **changes), reporter)
    assert outcome.rows == 40
    assert outcome.units > 1
    found = DeltaTable(str(tmp_path / "table")).to_pyarrow_table().to_pylist()
    vectors = load_encoder(str(tiny_model), dtype="float32").encode([f"{r['title']}\n\n{r['text']}" for r in source])
    wanted = {row["id"]: vector for row, vector in zip(source, vectors, strict=True)}
    for row in found:
        np.testing.assert_allclose(row["embedding"], wanted[row["id"].removesuffix(".txt")], atol=1e-3)


def test_without_an_id_column_ids_come_from_place(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(3)])
    backfill(make_job(corpus, tmp_path / "table", tiny_model, source__id=None), reporter)
    assert stored(tmp_path / "table").keys() == {f"part-0000.parquet:{number}" for number in range(3)}


def test_equal_texts_have_equal_vectors(tmp_path, tiny_model, reporter):
    same = [{**row, "title": "same", "text": "text"} for row in rows(12)]
    corpus = write_corpus(tmp_path / "corpus", [same], row_group_size=12)
    backfill(make_job(corpus, tmp_path / "table", tiny_model), reporter)
    vectors = [vector for _, vector in stored(tmp_path / "table").values()]
    assert len(vectors) == 12
    assert all((vector == vectors[0]).all() for vector in vectors)


def test_files_carry_their_lineage_and_plain_types(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(5)])
    backfill(make_job(corpus, tmp_path / "table", tiny_model), reporter)
    table = DeltaTable(str(tmp_path / "table"))
    (path,) = table.file_uris()
    footer = pq.read_metadata(path)
    lineage = json.loads(footer.metadata[b"vectide"])
    embedding_spec = delta_table.embedding_spec_of(table)
    assert embedding_spec is not None
    assert lineage == embedding_spec.lineage
    assert lineage["model"] == str(tiny_model)
    assert b"ARROW:schema" not in footer.metadata
    assert pl.read_delta(str(tmp_path / "table"))["embedding"].dtype == pl.List(pl.Float32)


def test_search_finds_a_text_by_itself_and_filters(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(60)])
    backfill(make_job(corpus, tmp_path / "table", tiny_model, table__partition_by=["lang"]), reporter)
    searcher = Searcher(str(tmp_path / "table"))
    first, second = searcher.search(["title 7\n\ntext number 7", "title 41\n\ntext number 41"], k=3)
    assert (first[0].id, second[0].id) == ("r7", "r41")
    assert first[0].score == pytest.approx(1.0, abs=1e-3)
    assert first[0].score >= first[1].score >= first[2].score
    (elsewhere,) = searcher.search(["title 7\n\ntext number 7"], k=50, where="lang = 'l2' and id <> 'r2'")
    assert {hit.columns["lang"] for hit in elsewhere} == {"l2"}
    assert len(elsewhere) == 19
    with pytest.raises(ConfigError, match="nosuch"):
        searcher.search(["x"], where="nosuch = 1")


def test_search_refuses_another_model_than_the_tables(tmp_path, tiny_model, reporter):
    from tests.checkpoints.bert import write_bert

    corpus = write_corpus(tmp_path / "corpus", [rows(5)])
    backfill(make_job(corpus, tmp_path / "table", tiny_model), reporter)
    other = write_bert(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="weights_sha256 differ"):
        Searcher(str(tmp_path / "table"), model=str(other))
    moved = write_bert(tmp_path / "moved")
    assert Searcher(str(tmp_path / "table"), model=str(moved)).search(["title 1"], k=1)


def test_a_truncated_parquet_file_is_named_before_any_encoding(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(20), rows(20, start=20)])
    broken = corpus / "part-0001.parquet"
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"part-0001.parquet"):
        backfill(make_job(corpus, tmp_path / "table", tiny_model), reporter)
    # The released table lock and the report, and nothing else: no plan, no data, no table.
    assert {path.name for path in (tmp_path / "table" / "_vectide").iterdir()} == {"lock", "runs"}
    assert [path.name for path in tmp_path.glob("table/_vectide/runs/*/*")] == ["report.json"]
    assert {path.name for path in (tmp_path / "table").iterdir()} == {"_vectide"}


@on_ray
def test_a_file_damaged_inside_fails_its_unit_and_keeps_the_others(tmp_path, tiny_model, reporter):
    # Beyond the head, which planning has a look at.
    corpus = write_corpus(tmp_path / "corpus", [rows(16), rows(96, start=16)], row_group_size=16)
    broken = corpus / "part-0001.parquet"
    data = bytearray(broken.read_bytes())
    start = pq.read_metadata(broken).row_group(5).column(0).data_page_offset
    data[start : start + 240] = b"\xff" * 240
    broken.write_bytes(bytes(data))
    job = make_job(corpus, tmp_path / "table", tiny_model, source__text=["text"], run__address="local")
    with pytest.raises(DataError, match=r"unit 6 of 7 failed: .*part-0001.parquet.*The other units are kept"):
        backfill(job, reporter)
    assert len(reporter.receipts) == 6
    assert not DeltaTable.is_deltatable(str(tmp_path / "table"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source__uri": "/nowhere/*.parquet"}, "matches no file"),
        ({"source__text": ["titel"]}, "did you mean 'title'"),
        ({"encoder__model": "/nowhere/model"}, "/nowhere/model"),
        ({"encoder__dim": 7}, "dim 7"),
        ({"encoder__max_tokens": 100_000}, "max_tokens 100000"),
        ({"encoder__task": "retrieval.query"}, "has no task"),
    ],
)
def test_invalid_jobs_end_before_the_first_unit(tmp_path, tiny_model, reporter, changes, message):
    corpus = write_corpus(tmp_path / "corpus", [rows(5)])
    with pytest.raises(ConfigError, match=message):
        backfill(make_job(changes.pop("source__uri", corpus), tmp_path / "table", tiny_model, **changes), reporter)
    assert reporter.receipts == []


@on_ray
def test_too_many_requested_gpus_are_refused_before_the_plan(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(5)])
    job = make_job(corpus, tmp_path / "table", tiny_model, run__gpus_per_replica=1, run__address="local")
    with pytest.raises(ConfigError, match="do not fit: the cluster has 0 GPUs"):
        backfill(job, reporter)
    # The released table lock and the report, and nothing else: no plan, no data, no table.
    assert {path.name for path in (tmp_path / "table" / "_vectide").iterdir()} == {"lock", "runs"}
    assert [path.name for path in tmp_path.glob("table/_vectide/runs/*/*")] == ["report.json"]
    assert {path.name for path in (tmp_path / "table").iterdir()} == {"_vectide"}
