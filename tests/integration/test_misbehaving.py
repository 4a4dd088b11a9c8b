"""A store that answers 409, 412, 500 and 503, is slow, cuts connections, or does the work and never says so.

Each kind of request that a run makes meets a fault; the run ends right, or stops with an error of ours and the same
command ends it. `make test-s3` puts every kind through every fault, on a real store.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import polars as pl
import pytest

from actors import storage
from actors.errors import StorageError, VectideError
from pipeline.run.backfill import backfill
from pipeline.run.estimate import estimate
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table import delta_table
from pipeline.table.status import status
from tests.integration.conftest import Silent, make_job, rows
from tests.stores.misbehaving import KINDS, Tally, expected, faults_by_turns, look, trial
from tests.stores.proxy import FAULTS, FOREVER, PASSING, Fault, Proxy, proxy
from tests.stores.suite import parquet

__all__ = ["expected", "trial"]  # fixtures


@pytest.fixture(scope="module")
def faulty(server) -> Iterator[Proxy]:
    with proxy(server) as started:
        yield started


@pytest.mark.parametrize(("faults", "turn"), [(PASSING, 0), (PASSING, 5), (FAULTS, 3)], ids=["0", "5", "all"])
def test_a_run_survives_a_fault_in_each_kind_of_request(trial, faults, turn):
    tally = Tally()
    trial.misbehave(*faults_by_turns(faults, turn))
    trial.until_it_ends(backfill, tally)
    trial.check(tally)
    assert {kind for _, kind in tally.pairs} == KINDS.keys()


@pytest.mark.parametrize("kind", ["receipt create", "commit"])
def test_a_write_whose_response_was_lost_is_found(trial, kind):
    """A create is read back, a commit is looked up in the log; neither is done twice."""
    trial.misbehave(Fault("500 done", *KINDS[kind], times=3))
    assert backfill(trial.job, Silent()).published
    trial.check(Tally())


@pytest.mark.parametrize("kind", ["receipt create", "commit"])
def test_an_unreachable_store_ends_the_run_and_readers_keep_their_version(trial, kind):
    backfill(trial.job, Silent())
    storage.put(f"{trial.lake}/corpus/part-0002.parquet", parquet(rows(2, start=90)))
    trial.misbehave(Fault("503", *KINDS[kind], times=FOREVER), Fault("503", "PUT", r"/_delta_log/0+2", times=FOREVER))
    with pytest.raises(StorageError):
        backfill(trial.job, Silent())
    trial.check(Tally())
    assert backfill(trial.job, Silent()).published
    assert look(trial.lake)[0].stored.keys() == {*trial.expected.stored, "r90", "r91"}


@pytest.mark.parametrize(
    ("kind", "what"), [("source head", "expired 400"), ("receipt create", "expired 403"), ("commit", "expired 400")]
)
def test_expired_credentials_end_the_run_and_new_ones_resume_it(trial, tmp_path, kind, what):
    profile = tmp_path / "credentials"
    keys = "[default]\naws_access_key_id = {}\naws_secret_access_key = a-secret-key-of-some-length\n"
    profile.write_text(keys.format("AKIAOLD"))
    trial.misbehave(Fault(what, times=FOREVER, signed_by="AKIAOLD", after=" ".join(KINDS[kind])))
    trial.monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    trial.monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    trial.monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    with pytest.raises(VectideError, match="the credentials have expired .ExpiredToken.. Renew them and run") as caught:
        backfill(trial.job, Silent())
    assert "\n" not in str(caught.value)
    profile.write_text(keys.format("AKIANEW"))  # and nothing else: a watch continues in the same process
    assert backfill(trial.job, Silent()).published
    trial.check(Tally())


@pytest.mark.parametrize(
    ("format_", "method"), [("parquet", "GET"), ("jsonl", "HEAD|GET"), ("csv", "GET"), ("txt", "GET")]
)
def test_one_object_without_permission_ends_each_command(trial, format_, method):
    """An object of several that answers 403 is never an empty shard; the error names it and the permission."""
    source = rows(33)
    for number, part in enumerate((source[:20], source[20:])):
        storage.put(f"{trial.lake}/denied/part-{number}.{format_}", in_format(format_, part))
    columns = {} if format_ != "txt" else {"source__text": ["text"], "source__keep": [], "source__id": None}
    job = make_job(f"{trial.lake}/denied/*.{format_}", f"{trial.lake}/table", trial.model, **columns)

    def fails_by_name(work):
        trial.misbehave(Fault("denied", method, r"/denied/part-1", times=FOREVER))
        with pytest.raises(StorageError, match=rf"/denied/part-1\.{format_}': access denied.* rights of this user"):
            work()
        trial.misbehave()

    fails_by_name(lambda: estimate(job))
    fails_by_name(lambda: backfill(job, Silent()))
    assert delta_table.open_table(f"{trial.lake}/table") is None
    done = backfill(job, Silent())
    assert done.published
    storage.put(f"{trial.lake}/denied/part-1.{format_}", in_format(format_, rows(12, start=50)))
    fails_by_name(lambda: estimate(job))
    fails_by_name(lambda: refresh(job, Silent()))
    assert status(f"{trial.lake}/table").version == 1
    assert refresh(job, Silent()).published


def in_format(format_: str, table: list[dict[str, object]]) -> bytes:
    """Rows as a file of a format."""
    if format_ == "parquet":
        return parquet(table)
    if format_ == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in table).encode()
    if format_ == "csv":
        sink = io.BytesIO()
        pl.DataFrame(table).write_csv(sink)
        return sink.getvalue()
    return "\n".join(str(row["text"]) for row in table).encode()


def test_a_read_command_on_an_unreachable_store_ends_in_one_sentence(trial):
    backfill(trial.job, Silent())
    table = f"{trial.lake}/table"
    trial.misbehave()
    searcher = Searcher(table)
    asked = {
        "data read": lambda: searcher.search(["title 3"], k=1),
        "log read": lambda: status(table),
        "receipt read": lambda: status(table),
    }
    for kind, ask in asked.items():
        trial.misbehave(Fault("503", *KINDS[kind], times=FOREVER))
        with pytest.raises(StorageError) as caught:
            ask()
        assert "\n" not in str(caught.value)
    trial.misbehave(Fault("cut within", *KINDS["receipt read"]))
    assert status(table).rows == len(trial.expected.stored)
