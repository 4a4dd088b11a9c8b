"""A real S3 store: the whole suite, wrong credentials, races, and the gateway killed in the middle of runs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from deltalake import DeltaTable

from actors import storage
from actors.errors import StorageError
from pipeline.run.backfill import backfill
from pipeline.search.search import Searcher
from pipeline.table import delta_table
from pipeline.table.status import status
from tests.integration.conftest import Silent, make_job, rows
from tests.stores.server import Server, forget_clients, keys, subprocess_environment
from tests.stores.suite import S3Suite, options, parquet, put_corpus, stored

ROOT = Path(__file__).parents[2]


class TestCeph(S3Suite):
    """The suite, with listings of three pages."""

    MANY_KEYS = 2_001


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


def test_a_large_object_is_uploaded_in_parts_and_read_back_whole(lake, server):
    data = bytes(range(256)) * (110 * 4096)  # 110 MiB: more than the driver puts in one request
    storage.put(f"{lake}/large", data)
    assert storage.stat(f"{lake}/large").size_bytes == len(data)
    assert storage.read(f"{lake}/large") == data
    assert storage.read(f"{lake}/large", 100_000_000, 100_000_016) == data[100_000_000:100_000_016]
    assert not storage.create(f"{lake}/large", data[:-1] + b"x")
    assert storage.create(f"{lake}/another", data)
    assert storage.read(f"{lake}/another") == data
    assert "Uploads" not in server.client().list_multipart_uploads(Bucket="tests")


@pytest.fixture(params=["secret", "key"])
def wrong(request, lake, monkeypatch, server):
    """The lake's URL, with credentials that the store does not accept, and what of them must not be repeated."""
    secret = "a-secret-that-is-not-the-right-one"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    if request.param == "key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
    forget_clients()
    return lake, secret


def test_every_command_reports_wrong_credentials_without_repeating_them(wrong, tiny_model, reporter):
    lake, secret = wrong
    calls = (
        storage.read,
        storage.stat,
        storage.glob,
        storage.folders,
        lambda url: list(storage.walk(url)),
        lambda url: storage.put(url, b"x"),
        lambda url: storage.create(url, b"x"),
        delta_table.open_table,
        status,
        Searcher,
        lambda url: backfill(make_job(f"{url}/*.parquet", f"{url}/table", tiny_model), reporter),
    )
    for call in calls:
        with pytest.raises(StorageError, match="access denied.*Check the credentials in the environment") as caught:
            call(f"{lake}/x")
        assert secret not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_command_line_ends_in_one_sentence(lake, server, tiny_model, tmp_path):
    job = make_job(put_corpus(lake, rows(5)), f"{lake}/table", tiny_model)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    wrong = Server(server.endpoint, server.access_key, "a-secret-that-is-not-the-right-one")
    for command in (["backfill", str(path)], ["status", f"{lake}/table"], ["doctor", str(path)]):
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *command],
            cwd=ROOT,
            env=subprocess_environment(wrong),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 1, done.stderr
        said = " ".join((done.stdout + done.stderr).split())
        assert "access denied" in said
        assert "Traceback" not in said
        assert wrong.secret_key not in said


def test_the_rights_in_the_docs_are_enough(lake, server, tiny_model, reporter, monkeypatch):
    """A user who has no bucket and no rights but those of the policy in docs/guarantees.md."""
    text = (ROOT / "docs" / "guarantees.md").read_text()
    statements = json.loads(text.partition("```json")[2].partition("```")[0])["Statement"]
    client = server.client()
    for bucket in ("corpus", "lake"):
        client.create_bucket(Bucket=bucket)
        limited = [_limited_to(bucket, statement) for statement in statements]
        policy = {"Version": "2012-10-17", "Statement": [statement for statement in limited if statement["Resource"]]}
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    client.put_object(Bucket="corpus", Key="a.parquet", Body=parquet(rows(20)))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "limited")
    forget_clients()
    with pytest.raises(StorageError, match="access denied"):
        storage.put("s3://corpus/b.parquet", b"x")
    with pytest.raises(StorageError, match="access denied"):
        storage.read(f"{lake}/x")
    job = make_job("s3://corpus/*.parquet", "s3://lake/table", tiny_model)
    assert backfill(job, reporter).version == 1
    client.put_object(Bucket="corpus", Key="a.parquet", Body=parquet(rows(21)))
    assert backfill(job, reporter).version == 2
    assert len(stored("s3://lake/table")) == 21
    assert Searcher("s3://lake/table").search(["title 7"], k=1)
    assert status("s3://lake/table").version == 2


def _limited_to(bucket: str, statement: dict[str, Any]) -> dict[str, Any]:
    """A statement for the user `limited`, with the resources of one bucket."""
    resources = [name for name in statement["Resource"] if name.split(":::")[1].split("/")[0] == bucket]
    return {**statement, "Principal": {"AWS": ["arn:aws:iam:::user/limited"]}, "Resource": resources}


class Breaking(Silent):
    """Kills the gateway after some units, or when a step begins; starts it again after a while, or not."""

    def __init__(self, ceph, *, after=None, step=None, back_after_s=None):
        super().__init__()
        self.ceph, self.after, self.at_step, self.back_after_s = ceph, after, step, back_after_s
        self.timer: threading.Timer | None = None

    def finished_unit(self, receipt):
        super().finished_unit(receipt)
        if len(self.receipts) == self.after:
            self._kill()

    def step(self, text):
        super().step(text)
        if text == self.at_step:
            self._kill()

    def _kill(self):
        self.ceph.kill_gateway()
        if self.back_after_s is not None:
            self.timer = threading.Timer(self.back_after_s, self.ceph.start_gateway)
            self.timer.start()

    def wait(self):
        assert self.timer is not None, "the gateway was not killed"
        self.timer.join()


@pytest.fixture
def restarted(ceph):
    """The gateway is up again for the next test, whatever became of this one."""
    yield
    ceph.kill_gateway()
    ceph.start_gateway()


@pytest.mark.usefixtures("restarted")
def test_a_run_survives_a_temporary_outage_of_the_gateway(lake, ceph, tiny_model):
    job = make_job(put_corpus(lake, rows(96)), f"{lake}/table", tiny_model)
    breaking = Breaking(ceph, after=2, back_after_s=2)
    outcome = backfill(job, breaking)
    breaking.wait()
    assert (outcome.rows, outcome.published) == (96, True)
    assert len(stored(f"{lake}/table")) == 96


@pytest.mark.usefixtures("restarted")
def test_a_lasting_outage_ends_the_run_and_the_same_command_completes_it(lake, ceph, tiny_model, reporter, monkeypatch):
    job = make_job(put_corpus(lake, rows(96)), f"{lake}/table", tiny_model)
    with monkeypatch.context() as retry_options:
        retry_options.setattr(storage, "ATTEMPTS", 2)
        with pytest.raises(StorageError, match="nothing answers at"):
            backfill(job, Breaking(ceph, after=2))
    ceph.start_gateway()
    assert status(f"{lake}/table").version is None
    outcome = backfill(job, reporter)
    assert (outcome.rows, outcome.published) == (96, True)
    assert reporter.start is not None
    assert reporter.start.units_done >= 2
    assert len(stored(f"{lake}/table")) == 96


@pytest.mark.usefixtures("restarted")
def test_a_gateway_killed_before_the_commit(lake, ceph, tiny_model, reporter):
    job = make_job(put_corpus(lake, rows(32)), f"{lake}/table", tiny_model)
    breaking = Breaking(ceph, step="publishing", back_after_s=1)
    try:
        outcome = backfill(job, breaking)
    finally:
        breaking.wait()
    assert (outcome.version, outcome.published) == (1, True)
    assert not backfill(job, reporter).published
    assert len(stored(f"{lake}/table")) == 32
    commits = [key for key in keys(ceph.server, f"{lake}/table/_delta_log") if key.endswith(".json")]
    assert len(commits) == 2
