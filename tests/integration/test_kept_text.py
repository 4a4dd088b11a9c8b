"""`table.keep_text`, and kept columns under other names: through every command that writes or compares rows."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from actors.encoders.spec import describe
from actors.errors import ConfigError
from actors.schema import INPUT_IDS
from actors.text.tokenizer import Tokenizer
from jobs.commands.search import _print
from pipeline.execute.stages.encode import EncodeStage
from pipeline.ledger.ledger import run_names
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.estimate import estimate
from pipeline.run.refresh import refresh
from pipeline.run.retry import refresh_again
from pipeline.search.search import Hit, Searcher
from pipeline.table.changes import iter_changes
from pipeline.table.diff import diff
from pipeline.table.status import status
from pipeline.table.versions import rollback
from tests.integration.conftest import Silent, make_job, rows, write_corpus, write_one

RENAMED = {"title": "heading", "lang": "language"}
CHUNKS = {"mode": "split", "max_tokens": 4}
LONG = "one two 𝄞 three. four, naïve five six\n\nseven eight nine ten. " * 3


def corpus_rows():
    source = rows(20)
    source[3]["text"] = LONG
    source[11] = {**source[11], "title": None, "text": LONG[5:90]}
    return source


def joined(row):
    return "\n\n".join(part for part in (row["title"], row["text"]) if part is not None)


def table_rows(table, version=None):
    return DeltaTable(str(table), version=version).to_pyarrow_table().to_pylist()


def assert_texts(table, source):
    """Every row has its document's text, or the part of it between its own start and end."""
    texts = {row["id"]: joined(row) for row in source}
    found: dict[str, dict[int, str]] = {}
    for row in table_rows(table):
        assert row["text"] == texts[row["id"]][row.get("start") : row.get("end")]
        found.setdefault(row["id"], {})[row.get("chunk", 0)] = row["text"]
    assert {name: "".join(part for _, part in sorted(parts.items())) for name, parts in found.items()} == texts


@pytest.fixture(params=[{"mode": "none"}, CHUNKS], ids=["documents", "chunks"])
def new_job(request, tmp_path, tiny_model):
    """Return a function that makes a job over two shards, with renamed columns and one of them as partition."""

    def make(table="table", **settings):
        defaults = {"source__keep": RENAMED, "table__partition_by": ["language"], "chunking": request.param}
        return make_job(tmp_path / "corpus", tmp_path / table, tiny_model, run__unit_rows=4, **{**defaults, **settings})

    write_corpus(tmp_path / "corpus", [corpus_rows()[:10], corpus_rows()[10:]])
    return make


def test_the_text_is_there_after_every_command(tmp_path, new_job):
    table, job, source = tmp_path / "table", new_job(table__keep_text=True, table__file_size=None), corpus_rows()
    backfill(job, Silent())
    assert_texts(table, source)
    source[3]["text"], source[4]["text"] = "short", LONG
    write_one(tmp_path / "corpus" / "part-0000.parquet", [*source[:7], *source[8:10]])
    del source[7]
    outcome = refresh(job, Silent())
    assert outcome.encoded == 2
    assert_texts(table, source)
    compact(str(table), Silent())
    assert_texts(table, source)
    write_corpus(tmp_path / "corpus", [source[5:9], source[:5] + source[9:]])  # all texts are known
    assert refresh(job, Silent()).encoded == 0
    assert_texts(table, source)
    rollback(str(table), 2)
    assert_texts(table, source)
    assert refresh(job, Silent()).encoded == 0
    assert refresh(new_job(table__keep_text=True, encoder__max_tokens=7), Silent()).published
    assert_texts(table, source)


def test_the_text_changes_neither_hashes_nor_vectors_nor_the_fingerprint(tmp_path, new_job):
    for name, keep_text in (("with", True), ("without", False)):
        backfill(new_job(name, table__keep_text=keep_text), Silent())
    with_text, without = (
        {(row["id"], row.get("chunk")): {**row, "text": None} for row in table_rows(tmp_path / name)}
        for name in ("with", "without")
    )
    assert with_text == {key: {**row, "text": None} for key, row in without.items()}
    states = [status(str(tmp_path / name)) for name in ("with", "without")]
    assert states[0].fingerprint == states[1].fingerprint
    assert states[0].lineage == states[1].lineage


def test_switching_it_writes_every_row_and_encodes_none(tmp_path, new_job):
    table, off, on = tmp_path / "table", new_job(), new_job(table__keep_text=True)
    backfill(off, Silent())
    assert "text" not in table_rows(table)[0]
    assert on.table.keep_text
    outcome = refresh(on, Silent())
    assert (outcome.encoded, outcome.rows_read, outcome.published) == (0, 20, True)
    assert_texts(table, corpus_rows())
    assert not refresh(on, Silent()).published
    every = len(table_rows(table))
    found = diff(str(table), 1, 2)
    assert (found.added, found.changed, found.removed) == (0, every, 0)
    assert refresh(off, Silent()).encoded == 0
    assert "text" not in table_rows(table)[0]
    rollback(str(table), 2)
    assert_texts(table, corpus_rows())


def test_plan_counts_the_text_in_the_output(new_job):
    sizes = [estimate(new_job(table__keep_text=keep), tokens_per_s=1.0).output_bytes for keep in (False, True)]
    assert sizes[0] < sizes[1] < sizes[0] + sum(len(joined(row).encode()) for row in corpus_rows())


def test_search_returns_the_text_of_each_hit(tmp_path, new_job):
    backfill(new_job(table__keep_text=True), Silent())
    source = {row["id"]: joined(row) for row in corpus_rows()}
    hits = Searcher(str(tmp_path / "table")).search(["text number 5", LONG], k=4)
    for hit in [hit for found in hits for hit in found]:
        assert hit.columns["text"] == source[hit.id][hit.columns.get("start") : hit.columns.get("end")]
        assert "__filename" not in hit.columns
    found = Searcher(str(tmp_path / "table")).search(["x"], k=9, where="text LIKE '%𝄞%'")[0]
    assert {hit.id for hit in found} == {"r3", "r11"}


def test_search_prints_the_first_200_characters(capsys):
    text = "".join(f"{number:04d}" for number in range(90))
    _print([Hit("a", 0.5, {"text": text, "url": text, "tokens": 3})])
    printed = capsys.readouterr()
    assert f"            text: {text[:199]}…\n" in printed.out
    assert f"            url: {text[:159]}…\n" in printed.out
    assert printed.err == ""


# ------------------------------------------------------------------------------------------------------- renamed columns


def kept_of(table, version=None):
    return {row["id"]: (row["heading"], row["language"]) for row in table_rows(table, version)}


def test_renamed_columns_work_with_every_command(tmp_path, new_job):
    table, job, source = tmp_path / "table", new_job(table__file_size=None), corpus_rows()
    backfill(job, Silent())
    assert kept_of(table) == {row["id"]: (row["title"], row["lang"]) for row in source}
    source[2]["lang"] = "l0" if source[2]["lang"] != "l0" else "l1"
    write_one(tmp_path / "corpus" / "part-0000.parquet", source[:10])
    assert refresh(job, Silent()).encoded == 0
    assert kept_of(table) == {row["id"]: (row["title"], row["lang"]) for row in source}
    found = diff(str(table), 1, 2)
    assert (found.added, found.removed) == (0, 0)
    assert found.changed == len([row for row in table_rows(table) if row["id"] == "r2"])
    upserts = [row for change in iter_changes(str(table), 1) for row in change.upserts.to_pylist()]
    assert {(row["id"], row["language"]) for row in upserts} == {("r2", source[2]["lang"])}
    compact(str(table), Silent())
    assert kept_of(table) == kept_of(table, 2)
    rollback(str(table), 1)
    assert kept_of(table) == kept_of(table, 1)
    assert refresh(job, Silent()).encoded == 0
    assert kept_of(table) == kept_of(table, 2)


def test_another_name_of_a_column_writes_every_row_and_encodes_none(tmp_path, new_job):
    table = tmp_path / "table"
    backfill(new_job(), Silent())
    outcome = refresh(new_job(source__keep={**RENAMED, "title": "topic"}), Silent())
    assert (outcome.encoded, outcome.published) == (0, True)
    assert "heading" not in table_rows(table)[0]
    assert {row["id"]: row["topic"] for row in table_rows(table)} == {row["id"]: row["title"] for row in corpus_rows()}
    found = diff(str(table), 1, 2)
    with_title = [row for row in table_rows(table) if row["topic"] is not None]
    assert (found.added, found.changed, found.removed) == (0, len(with_title), 0)


@pytest.mark.parametrize("keep", [{"lang": "language", "title": "heading"}, ["title", "lang"]])
def test_another_order_of_kept_columns_changes_nothing_for_later_refreshes(tmp_path, new_job, keep):
    first = dict(reversed(keep.items())) if isinstance(keep, dict) else keep[::-1]
    columns: dict[str, object] = {"table__partition_by": [], "table__file_size": None}
    backfill(new_job(source__keep=first, **columns), Silent())
    job = new_job(source__keep=keep, **columns)
    refresh(job, Silent())
    for last in (9, 8):
        write_one(tmp_path / "corpus" / "part-0000.parquet", corpus_rows()[:last])
        outcome = refresh(job, Silent())
        assert (outcome.published, outcome.encoded) == (True, 0)
        assert outcome.rows_read < 20
    assert {row["id"] for row in table_rows(tmp_path / "table")} == {row["id"] for row in corpus_rows()} - {"r8", "r9"}


def test_a_mapping_that_changes_no_name_is_the_same_job(tmp_path, new_job):
    backfill(new_job(source__keep=["title", "lang"], table__partition_by=["lang"]), Silent())
    same = new_job(source__keep={"title": "title", "lang": "lang"}, table__partition_by=["lang"])
    assert not refresh(same, Silent()).published
    assert len(run_names(str(tmp_path / "table"))) == 1


def test_source_columns_named_like_the_readers_own_are_kept_under_other_names(tmp_path, tiny_model):
    columns = {"id": ["a", "b"], "text": ["one", "two"], "_text": ["x", None], "_hash": [1, 2], "page": [7, 8]}
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table({**columns, "embedding": [[1.0], [2.0]]}), tmp_path / "corpus" / "a.parquet")
    keep = {
        "_text": "underscored",
        "_hash": "checksum",
        "id": "source_id",
        "embedding": "old_vector",
        "page": "page_no",
    }
    job = make_job(
        *(tmp_path / "corpus", tmp_path / "table", tiny_model),
        source__text=["text"],
        source__keep=keep,
        table__keep_text=True,
    )
    backfill(job, Silent())
    found = sorted(table_rows(tmp_path / "table"), key=lambda row: row["id"])
    assert [row["text"] for row in found] == ["one", "two"]
    assert [[row[name] for name in keep.values()] for row in found] == [
        ["x", 1, "a", [1.0], 7],
        [None, 2, "b", [2.0], 8],
    ]
    assert len({len(row["_hash"]) for row in found}) == 1
    reserved = job.model_copy(update={"source": job.source.model_copy(update={"keep": {"_shard": "path"}})})
    with pytest.raises(ConfigError, match="'_shard' is reserved for the readers. Rename that column in the source"):
        backfill(reserved, Silent())


def test_a_wider_type_of_a_renamed_column_is_found(tmp_path, tiny_model):
    def write(name, start, kind):
        columns = {"id": [f"{start}", f"{start + 1}"], "text": [f"a{start}", "b"], "page": pa.array([start, 1], kind)}
        pq.write_table(pa.table(columns), tmp_path / "corpus" / name)

    (tmp_path / "corpus").mkdir()
    write("a.parquet", 0, pa.int32())
    write("b.parquet", 2, pa.int32())
    keep = {"page": "page_no"}
    settings = {"source__text": ["text"], "source__keep": keep, "run__unit_rows": 2, "table__file_size": None}
    job = make_job(tmp_path / "corpus", tmp_path / "table", tiny_model, **settings)
    backfill(job, Silent())
    write("b.parquet", 4, pa.int32())
    assert refresh(job, Silent()).rows_read == 2
    write("b.parquet", 6, pa.int64())
    assert refresh(job, Silent()).rows_read == 4
    assert {row["page_no"] for row in table_rows(tmp_path / "table")} == {0, 1, 6}


def test_a_retried_row_has_its_text_and_renamed_columns(tmp_path, new_job, tiny_model, monkeypatch):
    marker = Tokenizer(describe(str(tiny_model))).tokenize(["q"]).ids[0].as_py()[1]
    vectors, broken = EncodeStage._vectors, [True]

    def raising(self, texts):
        if broken[0] and marker in texts.column(INPUT_IDS).combine_chunks().flatten().to_pylist():
            raise RuntimeError("the library is broken")
        return vectors(self, texts)

    monkeypatch.setattr(EncodeStage, "_vectors", raising)
    source = corpus_rows()
    source[6] |= {"title": None, "text": "q"}
    write_one(tmp_path / "corpus" / "part-0000.parquet", source[:10])
    job = new_job(table__keep_text=True, run__max_quarantined=0.5)
    assert backfill(job, Silent()).quarantined == 1
    broken[0] = False
    assert refresh_again(job, Silent()).encoded == 1
    assert_texts(tmp_path / "table", source)
    assert kept_of(tmp_path / "table")["r6"] == (None, source[6]["lang"])
