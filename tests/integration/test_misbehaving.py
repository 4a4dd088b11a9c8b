"""A store that answers 409, 412, 500 and 503, is slow, cuts connections, or does the work and never says so.

Each kind of request that a run makes meets a fault; the run ends right, or stops with an error of ours and the same
command ends it. `make test-s3` puts every kind through every fault, on a real store.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from actors import storage
from actors.errors import StorageError, VectideError
from pipeline.run.backfill import backfill
from pipeline.search.search import Searcher
from pipeline.table.status import status
from tests.integration.conftest import Silent, rows
from tests.stores.misbehaving import KINDS, Tally, expected, faults_by_turns, look, trial
from tests.stores.proxy import FAULTS, FOREVER, PASSING, Fault, Proxy, proxy
from tests.stores.suite import parquet

__all__ = ["expected", "trial"]  # fixtures


@pytest.fixture(scope="module")
def faulty(server) -> Iterator[Proxy]:
    with proxy(server) as started:
        yield started


@pytest.mark.parametrize(("faults", "turn"), [(PASSING, 0), (PASSING, 5), (FAULTS, 3)], ids=["0", "5", "all"])
def test_every_kind_of_request_meets_a_fault(trial, faults, turn):
    tally = Tally()
    trial.misbehave(*faults_by_turns(faults, turn))
    trial.until_it_ends(backfill, tally)
    trial.check(tally)
    assert {kind for _, kind in tally.pairs} == KINDS.keys()


@pytest.mark.parametrize("kind", ["receipt create", "commit"])
def test_what_landed_without_a_word_is_found(trial, kind):
    """A create is read back, a commit is looked up in the log; neither is done twice."""
    trial.misbehave(Fault("500 done", *KINDS[kind], times=3))
    assert backfill(trial.job, Silent()).published
    trial.check(Tally())


@pytest.mark.parametrize("kind", ["receipt create", "commit"])
def test_a_store_that_stays_away_ends_the_run_and_readers_keep_what_they_have(trial, kind):
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
def test_credentials_that_expire_end_the_run_in_one_sentence_and_new_ones_go_on(trial, tmp_path, kind, what):
    profile = tmp_path / "credentials"
    keys = "[default]\naws_access_key_id = {}\naws_secret_access_key = a-secret-key-of-some-length\n"
    profile.write_text(keys.format("AKIAOLD"))
    trial.misbehave(Fault(what, times=FOREVER, signed_by="AKIAOLD", after=" ".join(KINDS[kind])))
    trial.monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    trial.monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    trial.monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    with pytest.raises(VectideError, match="the credentials have expired .ExpiredToken.. Renew them and run") as told:
        backfill(trial.job, Silent())
    assert "\n" not in str(told.value)
    profile.write_text(keys.format("AKIANEW"))  # and nothing else: a watch goes on in the same process
    assert backfill(trial.job, Silent()).published
    trial.check(Tally())


def test_a_question_to_a_store_that_is_away_ends_in_one_sentence(trial):
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
        with pytest.raises(StorageError) as told:
            ask()
        assert "\n" not in str(told.value)
    trial.misbehave(Fault("cut within", *KINDS["receipt read"]))
    assert status(table).rows == len(trial.expected.stored)
