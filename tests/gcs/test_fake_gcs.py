"""Google Cloud Storage, as an emulator does it: the suite, races, and what a person reads when it is not there."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from deltalake import DeltaTable

from actors import storage
from actors.errors import StorageError
from actors.storage import gcs
from pipeline.ledger.create_probe import probe_create
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.refresh import refresh
from pipeline.table import delta_table
from pipeline.table.vacuum import vacuum
from tests.integration.conftest import Silent, make_job, rows
from tests.stores.leaks import backfill_leaves_none
from tests.stores.suite import StoreSuite, options, put_corpus, stored


class TestFakeGcs(StoreSuite):
    """The suite, with listings of more than one page."""

    MANY_KEYS = 2100


def test_one_of_32_concurrent_creates_succeeds_in_every_round(lake):
    for number in range(20):
        url, gate = f"{lake}/races/{number}", threading.Barrier(32)

        def race(racer: int, url: str = url, gate: threading.Barrier = gate) -> bool:
            gate.wait()
            return storage.create(url, b"%d" % racer)

        with ThreadPoolExecutor(32) as pool:
            won = list(pool.map(race, range(32)))
        assert sum(won) == 1
        assert storage.read(url) == b"%d" % won.index(True)


def test_two_drivers_of_one_job_publish_once(lake, tiny_model):
    job = make_job(put_corpus(lake, rows(48)), f"{lake}/table", tiny_model)

    def drive(_: int) -> object:
        try:
            return backfill(job, Silent())
        except Exception as error:  # noqa: BLE001  (a driver may be refused; it must not publish twice)
            return error

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(drive, range(2)))
    backfill(job, Silent())
    assert len(stored(f"{lake}/table")) == 48, ended
    assert DeltaTable(f"{lake}/table", storage_options=options(f"{lake}/table")).version() == 1


def test_every_command_accepts_gcs_urls(lake, tiny_model, reporter):
    lake = lake.replace("gs://", "gcs://")
    job = make_job(put_corpus(lake, rows(24), rows(24, start=24)), f"{lake}/table", tiny_model)
    probe_create(f"{lake}/probes")
    assert backfill(job, reporter).rows == 48
    put_corpus(lake, rows(23), rows(24, start=24))
    assert refresh(job, reporter).version == 2
    assert compact(f"{lake}/table", reporter).rows == 47
    assert vacuum(f"{lake}/table", 0).files > 0
    assert len(stored(storage.absolute(f"{lake}/table"))) == 47  # `deltalake` by itself reads `gs://` only


def test_ray_workers_reach_the_store_by_environment_variables(lake, server, tiny_model, tmp_path):
    backfill_leaves_none(
        lake, tiny_model, tmp_path, {**os.environ, **server.environment()}, [], "no secret: nobody asks"
    )


def test_an_unreachable_store_is_an_error(lake, monkeypatch):
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setattr(gcs, "TRIES", 1)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    gcs.forget_clients()
    for call in (storage.read, delta_table.open_table):
        with pytest.raises(StorageError, match="nothing answers|cannot be reached|127.0.0.1:1") as caught:
            call(f"{lake}/x")
        assert "\n" not in str(caught.value)
