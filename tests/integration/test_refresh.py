"""Refresh is backfill: after any history of the source the table holds what a fresh backfill would, and only texts that
the table never saw are encoded."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from deltalake import DeltaTable

from actors.errors import CommitConflict, ConfigError, ForeignCommits, TableConflict
from pipeline.ledger.ledger import Ledger, run_names
from pipeline.reuse import spill
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from pipeline.table.diff import diff
from pipeline.table.status import status
from tests.integration.conftest import Silent, Stopping, Stops, make_job, rows, write_corpus, write_one


def stored(table):
    """(id, lang, vector, tokens, shard) of the current version, by id and shard."""
    opened = DeltaTable(str(table)).to_pyarrow_table().to_pylist()
    found = {
        (row["id"], row["_shard"]): (row["lang"], row["tokens"], row["_hash"], np.array(row["embedding"]))
        for row in opened
    }
    assert len(found) == len(opened)
    return found


def assert_same(table, fresh):
    left, right = stored(table), stored(fresh)
    assert left.keys() == right.keys()
    for key, (*plain, vector) in left.items():
        assert plain == list(right[key][:3])
        np.testing.assert_allclose(vector, right[key][3], atol=1e-3)


def test_a_missing_table_is_backfilled(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    outcome = refresh(make_job(corpus, tmp_path / "table", tiny_model), reporter)
    assert (outcome.version, outcome.rows, outcome.encoded) == (1, 20, 20)


def test_nothing_changed_makes_no_version_and_opens_no_shard(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    backfill(job, reporter)
    shard = corpus / "part-0000.parquet"
    before = shard.stat().st_atime_ns
    outcome = refresh(job, reporter)
    assert (outcome.published, outcome.version) == (False, 1)
    assert shard.stat().st_atime_ns == before
    assert DeltaTable(str(tmp_path / "table")).version() == 1


def test_only_edited_rows_are_encoded_and_others_keep_their_bits(tmp_path, tiny_model, reporter):
    source = [rows(20), rows(20, start=20), rows(20, start=40)]
    corpus = write_corpus(tmp_path / "corpus", source)
    job = make_job(corpus, tmp_path / "table", tiny_model, table__partition_by=["lang"])
    backfill(job, reporter)
    before = stored(tmp_path / "table")
    edited = [dict(row) for row in source[1]]
    edited[3]["text"] = "something new"
    del edited[7]
    edited.append({"id": "new", "title": "brand", "text": "new row", "lang": "l1"})
    write_corpus(tmp_path / "edited", [[], edited])
    shutil.move(tmp_path / "edited" / "part-0001.parquet", corpus / "part-0001.parquet")
    (corpus / "part-0002.parquet").unlink()
    outcome = refresh(job, reporter)
    assert outcome.encoded == 2
    backfill(make_job(corpus, tmp_path / "fresh", tiny_model, table__partition_by=["lang"]), reporter)
    assert_same(tmp_path / "table", tmp_path / "fresh")
    after = {key[0]: value for key, value in stored(tmp_path / "table").items()}
    for (name, _), (*_, vector) in before.items():
        if name in after and name != edited[3]["id"]:
            np.testing.assert_array_equal(after[name][3], vector)
    assert len(DeltaTable(str(tmp_path / "table"), version=1).to_pyarrow_table()) == 60


def test_kept_columns_may_have_the_names_of_grids_without_many_vectors(tmp_path, tiny_model, reporter):
    def shard(offset):
        return [[{**row, "grid_h": offset + n, "grid_w": f"w{offset}"} for n, row in enumerate(rows(4))]]

    table = tmp_path / "table"
    job = make_job(write_corpus(tmp_path / "corpus", shard(0)), table, tiny_model, source__keep=["grid_h", "grid_w"])
    backfill(job, reporter)
    write_corpus(tmp_path / "corpus", shard(10))
    assert refresh(job, reporter).encoded == 0
    kept = DeltaTable(str(table)).to_pyarrow_table(columns=["grid_h", "grid_w"]).sort_by("grid_h").to_pydict()
    assert kept == {"grid_h": [10, 11, 12, 13], "grid_w": ["w10"] * 4}
    assert diff(str(table), 1, 2).changed == 4


def test_a_corpus_that_was_only_resharded_encodes_nothing(tmp_path, tiny_model, reporter):
    everything = rows(60)
    corpus = write_corpus(tmp_path / "corpus", [everything[:30], everything[30:]])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    backfill(job, reporter)
    shutil.rmtree(corpus)
    write_corpus(corpus, [everything[k::4][::-1] for k in range(4)])
    outcome = refresh(job, reporter)
    assert (outcome.encoded, outcome.rows) == (0, 60)
    backfill(make_job(corpus, tmp_path / "fresh", tiny_model), reporter)
    assert_same(tmp_path / "table", tmp_path / "fresh")


def test_an_index_larger_than_memory_finds_the_same(tmp_path, tiny_model, reporter, monkeypatch):
    """Texts of the table and of a run that was stopped, in an index of several parts; the run over it is stopped too."""
    monkeypatch.setattr(spill, "LIMIT_ROWS", 10)
    source = rows(60)
    corpus = write_corpus(tmp_path / "corpus", [source[:30]])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    backfill(job, reporter)
    write_one(corpus / "part-0001.parquet", source[30:])
    with pytest.raises(Stops):
        refresh(job, Stopping())
    shutil.rmtree(corpus)
    write_corpus(corpus, [source[k::3][::-1] for k in range(3)])
    with pytest.raises(Stops):
        refresh(job, Stopping())
    table = str(tmp_path / "table")
    assert max(Ledger(table, run).frozen().reuse for run in run_names(table)) > 4
    outcome = refresh(job, reporter)
    assert (outcome.rows, outcome.encoded) == (60, 14)
    backfill(make_job(corpus, tmp_path / "fresh", tiny_model), reporter)
    assert_same(tmp_path / "table", tmp_path / "fresh")


def test_rows_of_other_shards_in_the_same_file_stay(tmp_path, tiny_model, reporter):
    """Small shards share a unit and so a file; when one of them goes the others must not."""
    corpus = write_corpus(tmp_path / "corpus", [rows(4, start=4 * n) for n in range(6)])
    job = make_job(corpus, tmp_path / "table", tiny_model, table__partition_by=["lang"])
    assert backfill(job, reporter).units == 2
    (corpus / "part-0001.parquet").unlink()
    outcome = refresh(job, reporter)
    assert outcome.encoded == 0
    assert {name for name, _ in stored(tmp_path / "table")} == {f"r{n}" for n in range(24) if n not in range(4, 8)}


def test_partitions_with_awkward_names_are_replaced_and_not_doubled(tmp_path, tiny_model, reporter):
    """Delta's log writes paths as URLs: a file is found, rewritten and removed by its own name."""
    names = ("a b", "100%", "%20", "é", "日本", "x/y", "..", "a=b", "~", "c#d?")
    source = [{**row, "lang": names[number % len(names)]} for number, row in enumerate(rows(40))]
    corpus = write_corpus(tmp_path / "corpus", [source[:20], source[20:]])
    job = make_job(corpus, tmp_path / "table", tiny_model, table__partition_by=["lang"])
    backfill(job, reporter)
    source[3]["text"] = "edited"
    write_corpus(corpus, [source[:20]])
    assert refresh(job, reporter).encoded == 1
    backfill(make_job(corpus, tmp_path / "fresh", tiny_model, table__partition_by=["lang"]), reporter)
    assert_same(tmp_path / "table", tmp_path / "fresh")
    write_corpus(corpus, [source[:5]])
    assert backfill(job, reporter).rows == 25
    assert len(stored(tmp_path / "table")) == 25


def test_a_source_that_returns_to_an_earlier_state_makes_a_new_version(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(10)])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    backfill(job, reporter)
    kept = tmp_path / "kept"
    shutil.copytree(corpus, kept, copy_function=shutil.copy2)
    write_corpus(corpus, [rows(3)])
    assert refresh(job, reporter).version == 2
    shutil.copy2(kept / "part-0000.parquet", corpus / "part-0000.parquet")
    outcome = refresh(job, reporter)
    assert (outcome.version, outcome.encoded) == (3, 7)
    assert len(stored(tmp_path / "table")) == 10


def test_other_text_columns_read_everything_again(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(10)])
    backfill(make_job(corpus, tmp_path / "table", tiny_model), reporter)
    job = make_job(corpus, tmp_path / "table", tiny_model, source__text=["title"])
    assert refresh(job, reporter).encoded == 10
    backfill(make_job(corpus, tmp_path / "fresh", tiny_model, source__text=["title"]), reporter)
    assert_same(tmp_path / "table", tmp_path / "fresh")


def test_a_quarantined_duplicate_returns_when_the_first_row_is_deleted(tmp_path, tiny_model, reporter):
    first, second = rows(10), rows(10, start=5)
    corpus = write_corpus(tmp_path / "corpus", [first, second])
    job = make_job(corpus, tmp_path / "table", tiny_model, run__max_quarantined=0.5)
    assert backfill(job, reporter).quarantined == 5
    write_corpus(tmp_path / "corpus", [first[:7]])
    refresh(job, reporter)
    backfill(make_job(corpus, tmp_path / "fresh", tiny_model, run__max_quarantined=0.5), reporter)
    assert_same(tmp_path / "table", tmp_path / "fresh")


def test_quarantined_duplicates_are_not_encoded_again(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(spill, "LIMIT_ROWS", 10)  # the index has several parts
    others = [{**row, "text": f"{row['text']} again"} for row in rows(20)]
    corpus = write_corpus(tmp_path / "corpus", [rows(20), others[:9], [*others[4:], *others[4:6]]])
    settings = {"run__max_quarantined": 0.9, "run__unit_rows": 6}
    backfill(make_job(corpus, tmp_path / "table", tiny_model, **settings), Silent())

    def check(encoded: int, **changes: object) -> None:
        everything = {**settings, **changes}
        outcome = refresh(make_job(corpus, tmp_path / "table", tiny_model, **everything), Silent())
        assert (outcome.published, outcome.encoded) == (True, encoded)
        shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
        fresh = backfill(make_job(corpus, tmp_path / "fresh", tiny_model, **everything), Silent())
        assert_same(tmp_path / "table", tmp_path / "fresh")
        assert outcome.quarantined == fresh.quarantined == 27

    check(0, table__keep_text=True)
    write_one(corpus / "part-0003.parquet", rows(3, start=50))
    check(3)
    write_one(corpus / "part-0004.parquet", rows(2, start=60))
    check(2)
    write_one(corpus / "part-0000.parquet", [{**row, "text": f"{row['text']} edited"} for row in rows(20)])
    assert refresh(make_job(corpus, tmp_path / "table", tiny_model, **settings), Silent()).encoded > 20
    write_one(corpus / "part-0000.parquet", rows(5))
    refresh(make_job(corpus, tmp_path / "table", tiny_model, **settings), Silent())
    shutil.rmtree(tmp_path / "fresh")
    backfill(make_job(corpus, tmp_path / "fresh", tiny_model, **settings), Silent())
    assert_same(tmp_path / "table", tmp_path / "fresh")


def test_an_earlier_shard_takes_an_id_from_a_file_that_stays(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(3), rows(20, start=10)])
    job = make_job(corpus, tmp_path / "table", tiny_model, run__max_quarantined=0.5)
    backfill(job, reporter)
    write_corpus(tmp_path / "corpus", [[*rows(3), {**rows(1, start=12)[0], "text": "taken"}]])
    outcome = refresh(job, reporter)
    assert (outcome.encoded, outcome.quarantined) == (1, 1)
    backfill(make_job(corpus, tmp_path / "fresh", tiny_model, run__max_quarantined=0.5), reporter)
    assert_same(tmp_path / "table", tmp_path / "fresh")


def test_a_stopped_refresh_resumes(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(60)])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    backfill(job, reporter)
    write_corpus(corpus, [[{**row, "text": f"{row['text']} edited"} for row in rows(60)]])

    with pytest.raises(Stops):
        refresh(job, Stopping(after=2))
    assert len(stored(tmp_path / "table")) == 60
    assert DeltaTable(str(tmp_path / "table")).version() == 1
    reporter = Silent()
    outcome = refresh(job, reporter)
    assert (outcome.version, outcome.rows, len(reporter.receipts)) == (2, 60, outcome.units - 2)
    backfill(make_job(corpus, tmp_path / "fresh", tiny_model), reporter)
    assert_same(tmp_path / "table", tmp_path / "fresh")


def test_a_commit_in_between_is_not_overwritten(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    backfill(job, reporter)
    write_corpus(corpus, [rows(21)])

    class Meanwhile(Silent):
        def step(self, text):
            if text == "publishing":  # somebody with another tool, which does not know the table lock
                DeltaTable(str(tmp_path / "table")).delete("id = 'r3'")

    with pytest.raises(CommitConflict, match="another writer changed"):
        refresh(job, Meanwhile())
    assert len(stored(tmp_path / "table")) == 19
    with pytest.raises(ForeignCommits, match="version 2 by DELETE"):
        refresh(job, reporter)
    restoring = make_job(corpus, tmp_path / "table", tiny_model, table__foreign_commits="restore")
    assert refresh(restoring, reporter).rows == 21
    assert len(stored(tmp_path / "table")) == 21


def test_a_second_run_of_the_table_is_refused_and_names_the_first(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    backfill(job, reporter)
    write_corpus(corpus, [rows(21)])

    class Meanwhile(Silent):
        def step(self, text):
            if text == "publishing":
                write_corpus(corpus, [rows(5)])
                with pytest.raises(TableConflict, match="vectide refresh .run "):
                    refresh(job, Silent())

    assert refresh(job, Meanwhile()).rows == 21
    assert refresh(job, reporter).rows == 5


def test_quarantined_rows_of_unchanged_shards_are_still_counted(tmp_path, tiny_model, reporter):
    bad: list[dict[str, object]] = [*rows(19), {"id": "bad", "title": None, "text": None, "lang": "l0"}]
    corpus = write_corpus(tmp_path / "corpus", [bad, rows(20, start=30)])
    job = make_job(corpus, tmp_path / "table", tiny_model, run__max_quarantined=0.05)
    backfill(job, reporter)
    (corpus / "part-0001.parquet").unlink()
    refresh(job, reporter)
    run = next(state for state in status(str(tmp_path / "table")).runs if state.version == 2)
    ledger = Ledger(str(tmp_path / "table"), run.run)
    assert ledger.quarantine(ledger.receipts().values())["id"].to_pylist() == ["bad"]


def test_a_table_is_not_embedded_into_itself(tmp_path, tiny_model, reporter):
    """A glob that reaches the table's own files would make each refresh larger than the one before."""
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    narrow = make_job(corpus, corpus / "table", tiny_model, source__uri=f"{corpus}/*.parquet")
    for make_table in (False, True):  # the first run is refused as the second would be
        for pattern in ("/**/*.parquet", "/*", "/", ""):
            job = make_job(corpus, corpus / "table", tiny_model, source__uri=f"{corpus}{pattern}")
            for run in (refresh, backfill):
                with pytest.raises(
                    ConfigError, match="/corpus/table/data/.* where the table keeps its own files: narrow source.uri"
                ):
                    run(job, reporter)
        if not make_table:
            backfill(narrow, reporter)
    refresh(narrow, reporter)
    assert len(stored(corpus / "table")) == 20
