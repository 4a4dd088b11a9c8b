"""Retry of quarantined rows after a fix: only they are encoded, and the table equals that of a new backfill."""

from __future__ import annotations

import pytest
from deltalake import DeltaTable

from actors.encoders.spec import describe
from actors.errors import TooManyQuarantined
from actors.schema import INPUT_IDS
from actors.text.tokenizer import Tokenizer
from pipeline.execute.stages.encode import EncodeStage
from pipeline.ledger.ledger import run_names
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from pipeline.run.retry import backfill_again, refresh_again
from pipeline.table.quarantine import quarantine
from tests.integration.conftest import make_job, rows, write_corpus, write_one


@pytest.fixture
def broken(tiny_model, monkeypatch):
    """An encoder that raises on every text with the word `q`, until it is fixed."""
    marker = Tokenizer(describe(str(tiny_model))).tokenize(["q"]).ids[0].as_py()[1]
    vectors = EncodeStage._vectors

    class Encoder:
        def __init__(self):
            self.fixed = False
            self.rows_per_call: list[int] = []  # of the calls after the fix

    encoder = Encoder()

    def raising(self, texts):
        ids = texts.column(INPUT_IDS).combine_chunks()
        if not encoder.fixed and marker in ids.flatten().to_pylist():
            raise RuntimeError("the library is broken")
        if encoder.fixed:
            encoder.rows_per_call.append(len(ids))
        return vectors(self, texts)

    monkeypatch.setattr(EncodeStage, "_vectors", raising)
    return encoder


def shards():
    """Three shards of 16 rows.

    The broken encoder raises on two rows of the first and one of the third. One row of the second and one of the third
    have no text.
    """
    contents = [rows(16, start=start) for start in (0, 16, 32)]
    for shard, row in ((0, 3), (0, 9), (2, 5)):
        contents[shard][row]["text"] = "q"
    for shard, row in ((1, 2), (2, 7)):
        contents[shard][row] |= {"title": None, "text": None}
    return contents


def stored(table):
    table_rows = DeltaTable(str(table)).to_pyarrow_table().to_pylist()
    assert len({row["id"] for row in table_rows}) == len(table_rows)
    return {row["id"]: row["embedding"] for row in table_rows}


def reasons(table):
    return {row.id: row.reason for row in quarantine(str(table)).rows}


@pytest.fixture
def job(tmp_path, tiny_model):
    return make_job(
        write_corpus(tmp_path / "corpus", shards()), tmp_path / "table", tiny_model, run__max_quarantined=0.2
    )


def new_backfill(job, tmp_path, reporter):
    """Return the rows of a new table from the current source."""
    other = job.model_copy(update={"table": job.table.model_copy(update={"uri": str(tmp_path / "new")})})
    backfill(other, reporter)
    return stored(tmp_path / "new")


@pytest.mark.parametrize("retry", [backfill_again, refresh_again])
def test_a_retry_adds_rows_that_succeed_and_encodes_no_others(job, tmp_path, reporter, broken, retry):
    first = backfill(job, reporter)
    assert (first.rows, first.quarantined) == (43, 5)
    before = stored(tmp_path / "table")
    assert backfill(job, reporter).published is False
    broken.fixed = True
    outcome = retry(job, reporter)
    assert (outcome.version, outcome.published, sum(broken.rows_per_call)) == (2, True, 3)
    after = stored(tmp_path / "table")
    assert {name: after[name] for name in before} == before  # bit for bit
    assert after.keys() == new_backfill(job, tmp_path, reporter).keys()
    assert reasons(tmp_path / "table") == {"r18": "null_text", "r39": "null_text"}
    # No rows are left to retry, so there is no new version.
    last = retry(job, reporter)
    assert (last.published, last.version) == (False, 2)


def test_rows_that_fail_again_stay_quarantined(job, tmp_path, reporter, broken):
    backfill(job, reporter)
    stored_before, reasons_before = stored(tmp_path / "table"), reasons(tmp_path / "table")
    for version in (2, 3):
        assert backfill_again(job, reporter).version == version
        assert (stored(tmp_path / "table"), reasons(tmp_path / "table")) == (stored_before, reasons_before)
    assert refresh(job, reporter).published is False  # a refresh without the option retries nothing


def test_a_retry_also_reads_changed_shards(job, tmp_path, reporter, broken):
    backfill(job, reporter)
    changed = rows(16, start=16)
    changed[0]["text"] = "a new text"
    write_one(tmp_path / "corpus" / "part-0001.parquet", changed)
    broken.fixed = True
    outcome = refresh_again(job, reporter)
    assert (outcome.version, reasons(tmp_path / "table")) == (2, {"r39": "null_text"})
    assert stored(tmp_path / "table").keys() == new_backfill(job, tmp_path, reporter).keys()


@pytest.mark.parametrize("retry", [backfill_again, refresh_again])
def test_a_run_with_too_many_quarantined_rows_is_retried_and_published(job, tmp_path, reporter, broken, retry):
    strict = job.model_copy(update={"run": job.run.model_copy(update={"max_quarantined": 0.05})})
    for _ in range(2):  # the same command does not retry by itself
        with pytest.raises(TooManyQuarantined, match="--retry-quarantined"):
            backfill(strict, reporter)
    assert len(run_names(str(tmp_path / "table"))) == 1
    with pytest.raises(TooManyQuarantined):
        retry(strict, reporter)
    assert len(run_names(str(tmp_path / "table"))) == 2
    broken.fixed = True
    outcome = retry(strict, reporter)
    assert (outcome.version, outcome.rows, outcome.quarantined, sum(broken.rows_per_call)) == (1, 46, 2, 3)
    assert stored(tmp_path / "table").keys() == new_backfill(job, tmp_path, reporter).keys()


def test_a_stopped_retry_resumes(job, tmp_path, reporter, broken, monkeypatch):
    backfill(job, reporter)
    broken.fixed = True

    class Stopped(Exception):
        pass

    def stop(receipt):
        raise Stopped

    monkeypatch.setattr(reporter, "finished_unit", stop)
    with pytest.raises(Stopped):
        backfill_again(job, reporter)
    monkeypatch.undo()
    names_before = set(run_names(str(tmp_path / "table")))
    assert backfill_again(job, reporter).version == 2
    assert set(run_names(str(tmp_path / "table"))) == names_before
    assert stored(tmp_path / "table").keys() == new_backfill(job, tmp_path, reporter).keys()
