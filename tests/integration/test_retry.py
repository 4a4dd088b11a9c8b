"""Rows set aside are tried again after a fix: only they are encoded, and the table is what it would have been."""

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
    """An encoder that raises on every text with a `q` of its own, until it is mended."""
    marker = Tokenizer(describe(str(tiny_model))).tokenize(["q"]).ids[0].as_py()[1]
    vectors = EncodeStage._vectors

    class Encoder:
        def __init__(self):
            self.mended = False
            self.tried: list[int] = []  # how many rows each call had, once it was mended

    encoder = Encoder()

    def raising(self, texts):
        ids = texts.column(INPUT_IDS).combine_chunks()
        if not encoder.mended and marker in ids.flatten().to_pylist():
            raise RuntimeError("the library is broken")
        if encoder.mended:
            encoder.tried.append(len(ids))
        return vectors(self, texts)

    monkeypatch.setattr(EncodeStage, "_vectors", raising)
    return encoder


def shards():
    """Three shards of 16 rows; two rows of the first and one of the third are not for a broken encoder, and one row of
    the second and of the third has no text."""
    made = [rows(16, start=start) for start in (0, 16, 32)]
    for shard, row in ((0, 3), (0, 9), (2, 5)):
        made[shard][row]["text"] = "q"
    for shard, row in ((1, 2), (2, 7)):
        made[shard][row] |= {"title": None, "text": None}
    return made


def stored(table):
    found = DeltaTable(str(table)).to_pyarrow_table().to_pylist()
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row["embedding"] for row in found}


def aside(table):
    return {row.id: row.reason for row in quarantine(str(table)).rows}


@pytest.fixture
def job(tmp_path, tiny_model):
    return make_job(
        write_corpus(tmp_path / "corpus", shards()), tmp_path / "table", tiny_model, run__max_quarantined=0.2
    )


def whole(job, tmp_path, reporter):
    """What one backfill makes of the source as it is now."""
    other = job.model_copy(update={"table": job.table.model_copy(update={"uri": str(tmp_path / "whole")})})
    backfill(other, reporter)
    return stored(tmp_path / "whole")


@pytest.mark.parametrize("again", [backfill_again, refresh_again])
def test_rows_that_go_well_now_come_in_and_nothing_else_is_encoded(job, tmp_path, reporter, broken, again):
    first = backfill(job, reporter)
    assert (first.rows, first.quarantined) == (43, 5)
    before = stored(tmp_path / "table")
    assert backfill(job, reporter).published is False
    broken.mended = True
    outcome = again(job, reporter)
    assert (outcome.version, outcome.published, sum(broken.tried)) == (2, True, 3)
    after = stored(tmp_path / "table")
    assert {name: after[name] for name in before} == before  # bit for bit
    assert after.keys() == whole(job, tmp_path, reporter).keys()
    assert aside(tmp_path / "table") == {"r18": "null_text", "r39": "null_text"}
    # There is nothing left to try: no further version.
    last = again(job, reporter)
    assert (last.published, last.version) == (False, 2)


def test_rows_that_still_fail_stay_aside_and_each_call_is_one_attempt(job, tmp_path, reporter, broken):
    backfill(job, reporter)
    before, bad = stored(tmp_path / "table"), aside(tmp_path / "table")
    for version in (2, 3):
        assert backfill_again(job, reporter).version == version
        assert (stored(tmp_path / "table"), aside(tmp_path / "table")) == (before, bad)
    assert refresh(job, reporter).published is False  # who does not ask for it tries nothing again


def test_a_retry_reads_what_changed_too(job, tmp_path, reporter, broken):
    backfill(job, reporter)
    changed = rows(16, start=16)
    changed[0]["text"] = "quite another text"
    write_one(tmp_path / "corpus" / "part-0001.parquet", changed)
    broken.mended = True
    outcome = refresh_again(job, reporter)
    assert (outcome.version, aside(tmp_path / "table")) == (2, {"r39": "null_text"})
    assert stored(tmp_path / "table").keys() == whole(job, tmp_path, reporter).keys()


@pytest.mark.parametrize("again", [backfill_again, refresh_again])
def test_a_run_that_set_too_much_aside_is_tried_again_and_published(job, tmp_path, reporter, broken, again):
    strict = job.model_copy(update={"run": job.run.model_copy(update={"max_quarantined": 0.05})})
    for _ in range(2):  # the same command does not try again by itself
        with pytest.raises(TooManyQuarantined, match="--retry-quarantined"):
            backfill(strict, reporter)
    assert len(run_names(str(tmp_path / "table"))) == 1
    with pytest.raises(TooManyQuarantined):
        again(strict, reporter)
    assert len(run_names(str(tmp_path / "table"))) == 2
    broken.mended = True
    outcome = again(strict, reporter)
    assert (outcome.version, outcome.rows, outcome.quarantined, sum(broken.tried)) == (1, 46, 2, 3)
    assert stored(tmp_path / "table").keys() == whole(job, tmp_path, reporter).keys()


def test_a_retry_that_was_stopped_goes_on(job, tmp_path, reporter, broken, monkeypatch):
    backfill(job, reporter)
    broken.mended = True

    class Stopped(Exception):
        pass

    def stop(receipt):
        raise Stopped

    monkeypatch.setattr(reporter, "finished_unit", stop)
    with pytest.raises(Stopped):
        backfill_again(job, reporter)
    monkeypatch.undo()
    known = set(run_names(str(tmp_path / "table")))
    assert backfill_again(job, reporter).version == 2
    assert set(run_names(str(tmp_path / "table"))) == known
    assert stored(tmp_path / "table").keys() == whole(job, tmp_path, reporter).keys()
