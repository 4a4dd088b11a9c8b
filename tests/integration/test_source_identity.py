"""Which shards a refresh reads: by tags, by hashes of bytes, and where there is no tag; and columns made of folders."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from actors.errors import ConfigError, SourceChanged
from actors.storage import content_tags, identity
from pipeline.run import estimate as estimates
from pipeline.run.backfill import backfill
from pipeline.run.estimate import FolderColumn, estimate
from pipeline.run.refresh import refresh
from tests.integration.conftest import Silent, Stopping, Stops, make_job, rows, write_one


def write_all(corpus: Path) -> None:
    for number in range(3):
        write_one(corpus / f"p{number}.parquet", rows(20, start=20 * number))


def came_to(outcome) -> tuple[bool, int, int]:
    return outcome.published, outcome.encoded, outcome.rows_read


def put_in_place(path: Path, shard: list[dict[str, object]]) -> None:
    """As `rsync -t` does: another file under the same name, with the mtime of the first."""
    stamp = path.stat()
    write_one(path, shard)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def test_a_shard_put_in_place_with_its_mtime_and_size_is_read(tmp_path, tiny_model):
    corpus = tmp_path / "corpus"
    write_all(corpus)
    job = make_job(corpus, tmp_path / "table", tiny_model, table__file_size=None)
    backfill(job, Silent())
    size_bytes = (corpus / "p1.parquet").stat().st_size
    put_in_place(corpus / "p1.parquet", [{**row, "text": str(row["text"]).upper()} for row in rows(20, start=20)])
    assert (corpus / "p1.parquet").stat().st_size == size_bytes
    assert came_to(refresh(job, Silent())) == (True, 20, 20)
    assert came_to(refresh(job, Silent())) == (False, 0, 0)
    (corpus / "p0.parquet").chmod(0o600)  # changes the ctime: read again, and nothing encoded
    assert came_to(refresh(job, Silent())) == (True, 0, 20)


def test_with_hashes_a_touched_shard_is_not_read_and_a_changed_one_is(tmp_path, tiny_model):
    corpus = tmp_path / "corpus"
    write_all(corpus)
    job = make_job(corpus, tmp_path / "table", tiny_model, table__file_size=None, source__verify="content")
    reporter = Silent()
    backfill(job, reporter)
    assert any(step.startswith("hashing ") for step in reporter.steps)
    for path in corpus.iterdir():
        os.utime(path)
    assert came_to(refresh(job, Silent())) == (False, 0, 0)
    put_in_place(corpus / "p1.parquet", rows(20, start=200))
    assert came_to(refresh(job, Silent())) == (True, 20, 20)
    by_tag = make_job(corpus, tmp_path / "table", tiny_model, table__file_size=None)
    assert refresh(by_tag, Silent()).rows_read == 0  # the listing of the run before has the tags too


def test_a_stopped_run_resumes_without_hashing_touched_shards_twice(tmp_path, tiny_model, monkeypatch):
    corpus = tmp_path / "corpus"
    write_all(corpus)
    job = make_job(corpus, tmp_path / "table", tiny_model, table__file_size=None, source__verify="content")
    with pytest.raises(Stops):
        backfill(job, Stopping(2))
    for path in corpus.iterdir():
        os.utime(path)
    hashed: list[str] = []
    real = content_tags.content_hash

    def noted(shard, *more):
        hashed.append(shard.path)
        return real(shard, *more)

    monkeypatch.setattr(content_tags, "content_hash", noted)
    reporter = Silent()
    assert backfill(job, reporter).rows == 60
    assert reporter.start is not None
    assert reporter.start.units_done == 2
    assert len(hashed) == 3


class _Touching(Silent):
    """Touches every shard of a corpus, or changes a byte of it, once a unit is done."""

    def __init__(self, corpus: Path, *, change: bool) -> None:
        super().__init__()
        self._corpus, self._change = corpus, change

    def finished_unit(self, receipt):
        super().finished_unit(receipt)
        if len(self.receipts) > 1:
            return
        for path in self._corpus.iterdir():
            if self._change:
                data = bytearray(path.read_bytes())
                data[5] ^= 1
                path.write_bytes(data)
            os.utime(path)


def test_a_change_in_the_middle_of_a_run_is_noticed_with_hashes_too(tmp_path, tiny_model):
    corpus = tmp_path / "corpus"
    write_all(corpus)
    job = make_job(corpus, tmp_path / "table", tiny_model, table__file_size=None, source__verify="content")
    assert backfill(job, _Touching(corpus, change=False)).rows == 60
    job = make_job(corpus, tmp_path / "other", tiny_model, source__verify="content")
    with pytest.raises(SourceChanged, match="changed since the run was planned"):
        backfill(job, _Touching(corpus, change=True))


def test_an_object_without_a_tag_counts_as_changed_and_is_reported(tmp_path, tiny_model, monkeypatch):
    corpus = tmp_path / "corpus"
    write_all(corpus)
    monkeypatch.setattr(identity, "local_tag", lambda _: "")
    job = make_job(corpus, tmp_path / "table", tiny_model, table__file_size=None)
    reporter = Silent()
    backfill(job, reporter)
    reports = [step for step in reporter.steps if "3 of 3 objects have no tag" in step]
    assert reports
    assert estimate(job, tokens_per_s=1.0).untagged == 3
    assert came_to(backfill(job, Silent())) == (False, 0, 0)
    put_in_place(corpus / "p1.parquet", [{**row, "text": str(row["text"]).upper()} for row in rows(20, start=20)])
    assert came_to(refresh(job, Silent())) == (True, 20, 60)
    assert came_to(refresh(job, Silent())) == (True, 0, 60)


def test_plan_reports_the_bytes_to_hash_and_hashes_little(tmp_path, tiny_model, monkeypatch):
    corpus = tmp_path / "corpus"
    write_all(corpus)
    job = make_job(corpus, tmp_path / "table", tiny_model, table__file_size=None, source__verify="content")
    backfill(job, Silent())
    known = estimate(job, tokens_per_s=1.0)
    assert known.hash_bytes == known.source_bytes > 0
    assert (known.units_done, bool(known.run)) == (known.units, True)
    monkeypatch.setattr(estimates, "HASHED_BYTES", 10)
    monkeypatch.setattr(content_tags, "content_hash", None)
    unknown = estimate(job, tokens_per_s=1.0)
    assert (unknown.hash_bytes, unknown.units_done, unknown.run) == (known.hash_bytes, 0, "")


def test_folders_become_columns_of_the_table(tmp_path, tiny_model):
    corpus, table = tmp_path / "corpus", tmp_path / "table"
    for number, lang in enumerate(("de", "a%2Fb", "__HIVE_DEFAULT_PARTITION__")):
        shard = pa.Table.from_pylist(rows(4, start=4 * number)).drop(["lang"])
        (corpus / f"lang={lang}/year={2020 + number}").mkdir(parents=True)
        pq.write_table(shard, corpus / f"lang={lang}/year={2020 + number}/p.parquet")
    keep = {"source__keep": ["lang", "year"], "table__partition_by": ["lang"]}
    with pytest.raises(ConfigError, match=r"set source\.hive: true"):
        backfill(make_job(corpus, table, tiny_model, **keep), Silent())
    job = make_job(corpus, table, tiny_model, source__hive=True, **keep)
    assert estimate(job, tokens_per_s=1.0).hive == (
        FolderColumn("lang", "text", 2, 3, "kept"),
        FolderColumn("year", "int64", 3, 3, "kept"),
    )
    backfill(job, Silent())
    found = DeltaTable(str(table)).to_pyarrow_table(columns=["lang", "year"])
    assert found.schema.types == [pa.string(), pa.int64()]
    assert {(row["lang"], row["year"]) for row in found.to_pylist()} == {("de", 2020), ("a/b", 2021), (None, 2022)}

    # Only what changed is read, and it has none of the folders: null, as in a backfill.
    pq.write_table(pa.Table.from_pylist(rows(4, start=40)).drop(["lang"]), corpus / "p.parquet")
    assert came_to(refresh(job, Silent())) == (True, 4, 4)

    # A value that is no whole number makes the column text, as in a backfill of today: all is read, and only what is new
    # is encoded.
    (corpus / "lang=de/year=new").mkdir()
    pq.write_table(pa.Table.from_pylist(rows(4, start=60)).drop(["lang"]), corpus / "lang=de/year=new/p.parquet")
    outcome = refresh(job, Silent())
    assert (outcome.published, outcome.rows, outcome.encoded) == (True, 20, 4)
    found = DeltaTable(str(table)).to_pyarrow_table(columns=["lang", "year"])
    assert found.schema.types == [pa.string(), pa.string()]
    assert {row["year"] for row in found.to_pylist()} == {"2020", "2021", "2022", "new", None}


def test_another_vectide_table_is_refused_as_a_source(tmp_path, tiny_model):
    write_all(tmp_path / "corpus")
    backfill(make_job(tmp_path / "corpus", tmp_path / "table", tiny_model), Silent())
    for source in ("table", "table/data", "table/data/*/*.parquet"):
        with pytest.raises(ConfigError, match=r"the Delta Lake table '.*/table', .*polars\.scan_delta"):
            backfill(make_job(tmp_path / source, tmp_path / "other", tiny_model), Silent())
