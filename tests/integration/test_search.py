"""Search of a table: from the cache and without it, new versions, files of questions, on Ray."""

from __future__ import annotations

import datetime as dt
import decimal
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from actors.errors import ConfigError, DataError, StorageError
from jobs.cli import main
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.refresh import refresh
from pipeline.search.questions import search_file
from pipeline.search.search import QUESTION, RANK, SCORE, Searcher
from pipeline.table.vacuum import vacuum
from tests.integration.conftest import Silent, make_job, rows, write_corpus, write_one

QUESTIONS = ["text number 7", "text number 23", "title 4"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VECTIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a command and returns its exit code and output."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["vectide", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus", [rows(20), rows(20, start=20)])


@pytest.fixture
def job(cache, corpus, tmp_path, tiny_model):
    job = make_job(corpus, tmp_path / "table", tiny_model, table__partition_by=["lang"])
    backfill(job)
    return job


def by_loop(searcher: Searcher, question: str, k: int, keep=lambda row: True) -> list[tuple[str, float]]:
    """The nearest rows by a sort of all scores in float64."""
    table = DeltaTable(searcher.url).to_pyarrow_table().to_pylist()
    query = searcher.encoder.encode([question])[0].astype(np.float64)
    scored = []
    for row in filter(keep, table):
        vector = np.array(row["embedding"], np.float64)
        scored.append((row["id"], float(np.float32(vector @ query / np.linalg.norm(vector)))))
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k]


def pairs(hits) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in hits]


def test_the_hits_are_those_of_a_loop_with_and_without_the_cache(cache, job):
    for size in ("1GiB", "1GiB", None):  # fills the cache, reads it, does without
        searcher = Searcher(job.table.uri, cache_size=size)
        for question, hits in zip(QUESTIONS, searcher.search(QUESTIONS, k=7), strict=True):
            assert [hit.id for hit in hits] == [row_id for row_id, _ in by_loop(searcher, question, 7)]
            assert [hit.score for hit in hits] == pytest.approx([score for _, score in by_loop(searcher, question, 7)])
            assert set(hits[0].columns) == {"lang", "tokens", "_shard"}
        assert searcher.cache_problem is None
    assert len(list(cache.iterdir())) == len(DeltaTable(job.table.uri).file_uris())


@pytest.mark.parametrize("cached", [True, False])
def test_a_condition_selects_rows_and_opens_no_file_of_other_partitions(cache, job, cached):
    size = "1GiB" if cached else None
    searcher = Searcher(job.table.uri, cache_size=size)
    hits = searcher.search(["text number 7"], k=50, where="lang = 'l1' AND id > 'r2'")[0]
    expected = by_loop(searcher, "text number 7", 50, lambda row: row["lang"] == "l1" and row["id"] > "r2")
    assert [hit.id for hit in hits] == [row_id for row_id, _ in expected]
    files = [uri for uri in DeltaTable(job.table.uri).file_uris() if "lang=l1" in uri]
    assert len(list(cache.iterdir()) if cache.exists() else []) == (len(files) if cached else 0)
    assert searcher.search(["text"], where="lang = 'none'") == [[]]


@pytest.fixture
def typed(cache, tmp_path, tiny_model) -> str:
    """Return a table with columns of many types, partitioned by an awkward value and null."""
    count = 12
    days = [dt.date(2026, 1, 1) + dt.timedelta(days=number) for number in range(count)]
    source = pa.table(
        {
            "id": [f"r{number:02d}" for number in range(count)],
            "text": [f"text {number}" for number in range(count)],
            "f": pa.array(range(count), pa.float64()),
            "day": days,
            "ts": pa.array([dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC) for day in days]),
            "dec": pa.array([decimal.Decimal(f"{number}.50") for number in range(count)], pa.decimal128(10, 2)),
            "flag": [number % 2 == 0 for number in range(count)],
            "p": ["a é%2" if number % 2 == 0 else None for number in range(count)],
        }
    )
    (tmp_path / "typed").mkdir()
    pq.write_table(source, tmp_path / "typed" / "a.parquet")
    keep = ["f", "day", "ts", "dec", "flag", "p"]
    changes = {"source__keep": keep, "source__text": "text", "table__partition_by": ["p"]}
    job = make_job(tmp_path / "typed", tmp_path / "typed-table", tiny_model, **changes)
    backfill(job)
    return str(job.table.uri)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("f > 3", range(4, 12)),
        ("f BETWEEN 2 AND 3", [2, 3]),
        ("day >= '2026-01-09'", range(8, 12)),
        ("ts < '2026-01-03T00:00:00Z'", [0, 1]),
        ("dec = 1.50", [1]),
        ("flag", [0, 2, 4, 6, 8, 10]),
        ("p = 'a é%2'", [0, 2, 4, 6, 8, 10]),
        ("p IS NULL AND f > 8", [9, 11]),
    ],
)
def test_a_condition_on_any_type_finds_the_rows_of_a_loop(typed, cache, where, expected, cached):
    """The log has no ranges of most of these types."""
    searcher = Searcher(typed, cache_size="1GiB" if cached else None)
    found = sorted(hit.id for hit in searcher.search(["text"], k=50, where=where)[0])
    assert found == [f"r{number:02d}" for number in expected]
    assert searcher.cache_problem is None
    files = len(DeltaTable(typed).file_uris())
    assert len(list(cache.iterdir()) if cache.exists() else []) == (
        0 if not cached else 1 if where.startswith("p ") else files
    )


def test_a_searcher_sees_a_new_version_after_refresh(job, corpus):
    searcher, fixed = Searcher(job.table.uri), Searcher(job.table.uri, version=1)
    before = pairs(searcher.search(QUESTIONS, k=5)[0])
    assert not searcher.refresh()
    write_one(corpus / "part-0002.parquet", [{**rows(1)[0], "id": "new", "title": "text", "text": "number 7"}])
    refresh(job)
    assert pairs(searcher.search(QUESTIONS, k=5)[0]) == before
    encoder = searcher.encoder
    assert searcher.refresh()
    assert searcher.version == 2
    assert searcher.encoder is encoder
    assert "new" in [hit.id for hit in searcher.search(QUESTIONS, k=41)[0]]
    assert not fixed.refresh()
    assert fixed.version == 1
    assert pairs(fixed.search(QUESTIONS, k=5)[0]) == before


def test_rows_that_another_tool_appends_are_found_after_refresh(job):
    searcher = Searcher(job.table.uri)
    before = searcher.search(QUESTIONS, k=50)
    added = DeltaTable(job.table.uri).to_pyarrow_table().slice(0, 3)
    vectors = pa.array([added["embedding"][0].as_py(), None, [0.5]], pa.list_(pa.float32()))
    added = added.set_column(added.column_names.index("embedding"), "embedding", vectors)
    write_deltalake(
        job.table.uri, added.set_column(added.column_names.index("id"), "id", pa.array(["x", "y", "z"])), mode="append"
    )
    assert searcher.search(QUESTIONS, k=50) == before
    assert searcher.refresh()
    hits = searcher.search(QUESTIONS, k=50)
    assert sorted({hit.id for hit in hits[0]} - {hit.id for hit in before[0]}) == ["x"]  # the others have no vector
    assert Searcher(job.table.uri, cache_size=None).search(QUESTIONS, k=50) == hits


def test_an_open_searcher_outlives_a_compact_and_a_vacuum(job, corpus):
    searcher, uncached = Searcher(job.table.uri), Searcher(job.table.uri, cache_size=None)
    before = searcher.search(QUESTIONS, k=50)
    write_one(corpus / "part-0002.parquet", rows(20, start=40))
    refresh(job)
    compact(job.table.uri, Silent())
    vacuum(job.table.uri, 0)
    assert searcher.search(QUESTIONS, k=50) == before
    with pytest.raises(StorageError, match="not found"):
        uncached.search(QUESTIONS, k=50)
    assert searcher.refresh()
    assert uncached.refresh()
    assert len(searcher.search(QUESTIONS, k=100)[0]) == 60
    assert uncached.search(QUESTIONS, k=100) == searcher.search(QUESTIONS, k=100)


def test_a_table_without_rows_gives_no_hits(job, tmp_path):
    DeltaTable(job.table.uri).delete()
    searcher = Searcher(job.table.uri)
    assert searcher.search(QUESTIONS) == [[], [], []]
    pq.write_table(pa.table({"text": QUESTIONS}), tmp_path / "questions.parquet")
    assert search_file(searcher, str(tmp_path / "questions.parquet"), str(tmp_path / "out.parquet"), k=3) == 0
    assert pq.read_table(tmp_path / "out.parquet").column_names[:4] == ["question", "rank", "score", "id"]


def test_an_entry_of_the_cache_that_is_cut_off_is_read_from_the_table(cache, job):
    expected = Searcher(job.table.uri).search(QUESTIONS, k=5)
    for entry in cache.iterdir():
        entry.write_bytes(entry.read_bytes()[:-9])
    assert Searcher(job.table.uri).search(QUESTIONS, k=5) == expected


def test_a_file_of_questions_becomes_a_file_of_hits(job, tmp_path, run):
    questions, out = tmp_path / "questions.parquet", tmp_path / "hits.parquet"
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": QUESTIONS}), questions)
    code, printed = run("search", job.table.uri, "--questions", questions, "--out", out, "-k", 4)
    assert code == 0, printed
    assert f"wrote 12 hits to {out}" in printed
    hits = pq.read_table(out)
    assert hits.column_names[:4] == ["question", "rank", "score", "id"]
    expected = Searcher(job.table.uri).search(QUESTIONS, k=4)
    for name, question_hits in zip("abc", expected, strict=True):
        mine = hits.filter(pc.equal(hits["question"], name))
        assert mine["rank"].to_pylist() == [1, 2, 3, 4]
        assert list(zip(mine["id"].to_pylist(), mine["score"].to_pylist(), strict=True)) == pairs(question_hits)


def test_many_questions_take_several_passes(job, monkeypatch):
    monkeypatch.setattr("pipeline.search.search._QUERIES", 2)
    progress: list[tuple[int, int]] = []
    hits = Searcher(job.table.uri).search_table(
        QUESTIONS, k=3, report=lambda done, total: progress.append((done, total))
    )
    assert hits[QUESTION].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert hits[RANK].to_pylist() == [1, 2, 3] * 3
    monkeypatch.undo()
    assert hits.equals(Searcher(job.table.uri).search_table(QUESTIONS, k=3))
    assert progress[-1] == (80, 80)
    assert hits[SCORE].type == pa.float32()


@pytest.mark.parametrize(
    ("table", "error", "why"),
    [
        (pa.table({"question": ["a"]}), ConfigError, "has no column 'text', only question"),
        (pa.table({"text": pa.array(["a", None])}), DataError, "with 1 nulls"),
        (pa.table({"text": [1]}), DataError, "is int64"),
        (pa.table([["a"], ["b"]], ["text", "text"]), ConfigError, "has 2 columns 'text'"),
        (pa.table([["a"], ["b"], ["c"]], ["text", "id", "id"]), ConfigError, "has 2 columns 'id'"),
        (pa.table({"text": ["a", " "]}), ConfigError, "is empty or only white space"),
    ],
)
def test_a_file_of_bad_questions_is_refused(job, tmp_path, table, error, why):
    pq.write_table(table, tmp_path / "questions.parquet")
    with pytest.raises(error, match=why):
        search_file(Searcher(job.table.uri), str(tmp_path / "questions.parquet"), str(tmp_path / "out.parquet"), k=3)
    assert not (tmp_path / "out.parquet").exists()


def test_questions_may_be_text_of_any_encoding(job, tmp_path):
    searcher = Searcher(job.table.uri)
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"text": pa.array(QUESTIONS, kind)}), tmp_path / "questions.parquet")
        search_file(searcher, str(tmp_path / "questions.parquet"), str(tmp_path / "new" / "out.parquet"), k=3)
        hits = pq.read_table(tmp_path / "new" / "out.parquet")
        expected = searcher.search_table(QUESTIONS, k=3)
        assert hits["question"].equals(expected[QUESTION])
        assert hits["id"].equals(expected["id"])


def test_stored_columns_named_as_those_of_hits_are_renamed(cache, tmp_path, tiny_model):
    source = {name: ["a", "b"] for name in ("id", "text", "question", "table_question", "rank")}
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table(source), tmp_path / "corpus" / "a.parquet")
    keep = ["question", "table_question", "rank"]
    job = make_job(tmp_path / "corpus", tmp_path / "table", tiny_model, source__keep=keep, source__text="text")
    backfill(job)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "questions.parquet")
    search_file(Searcher(job.table.uri), str(tmp_path / "questions.parquet"), str(tmp_path / "out.parquet"), k=3)
    names = pq.read_table(tmp_path / "out.parquet").column_names
    assert names[:3] == ["question", "rank", "score"]
    assert {"table_table_question", "table_question", "table_rank"} < set(names)
    assert len(names) == len(set(names))


def test_places_that_cannot_be_used_are_refused_before_the_scan(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Searcher, "search_table", None)  # no row is read
    pq.write_table(pa.table({"text": QUESTIONS}), "questions.parquet")
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "text.parquet").write_text("text")
    searcher = Searcher(job.table.uri)
    for questions, out, why in (
        ("", "out.parquet", "--questions is empty; name a Parquet file"),
        (".", "out.parquet", "--questions names '.', which is a folder"),
        ("questions.parquet/a", "out.parquet", "which does not exist"),
        ("text.parquet", "out.parquet", "'text.parquet' is not a Parquet file"),
        ("questions.parquet", "", "--out '' does not end in .parquet"),
        ("questions.parquet", ".", "--out '.' does not end in .parquet"),
        ("questions.parquet", "folder.parquet", "--out 'folder.parquet' is a folder"),
        ("questions.parquet", "text.parquet/a/b.parquet", "text.parquet' is a file; name another place"),
        ("questions.parquet", "./questions.parquet", "is the file that is read"),
    ):
        with pytest.raises((ConfigError, DataError), match=re.escape(why)):
            search_file(searcher, questions, out, k=3)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "give one QUESTION, or --image, or a file"),
        (["question", "--questions", "q.parquet", "--out", "o.parquet"], "give one QUESTION, or --image, or a file"),
        (["--questions", "q.parquet"], "--questions and --out go together"),
        (["question", "--out", "o.parquet"], "--questions and --out go together"),
        (["--questions", "q.parquet", "--out", "o.parquet"], "does not exist"),
        (["question", "--cache-size", "many"], "the cache size 'many' must be a size"),
    ],
)
def test_options_that_do_not_fit_are_refused(job, arguments, why, run):
    code, printed = run("search", job.table.uri, *arguments)
    assert code == 2
    assert why in printed


@pytest.mark.ray
def test_a_scan_on_ray_returns_the_same_hits(ray_session, job):
    expected = Searcher(job.table.uri).search(QUESTIONS, k=6)
    assert Searcher(job.table.uri, address="local").search(QUESTIONS, k=6) == expected
    where = "lang <> 'l0'"
    found = Searcher(job.table.uri, address="local", cache_size=None).search(QUESTIONS, k=50, where=where)
    assert found == Searcher(job.table.uri).search(QUESTIONS, k=50, where=where)
