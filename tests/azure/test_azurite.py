"""Azure Blob storage, as its emulator does it: the suite, races, and what a person reads when it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from deltalake import DeltaTable

from actors import storage
from actors.errors import ConfigError, StorageError
from actors.storage import azure, s3
from pipeline.ledger.create_probe import probe_create
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table import delta_table
from pipeline.table.status import status
from pipeline.table.vacuum import vacuum
from tests.azure.servers import CONTAINER
from tests.integration.conftest import Silent, make_job, rows
from tests.stores.leaks import backfill_leaves_none, found, travelling
from tests.stores.suite import StoreSuite, options, put_corpus, stored

ROOT = Path(__file__).parents[2]


class TestAzurite(StoreSuite):
    """The suite, with listings of more than one page."""

    MANY_KEYS = 5100


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


def test_other_url_schemes_name_the_same_store(lake, tiny_model, reporter):
    """Every command by `az://`."""
    lake = lake.replace("abfs://", "az://")
    job = make_job(put_corpus(lake, rows(24), rows(24, start=24)), f"{lake}/table", tiny_model)
    assert backfill(job, reporter).rows == 48
    put_corpus(lake, rows(23), rows(24, start=24))
    assert refresh(job, reporter).version == 2
    assert compact(f"{lake}/table", reporter).rows == 47
    assert vacuum(f"{lake}/table", 0).files > 0
    assert len(stored(f"{lake}/table")) == 47
    assert Searcher(f"{lake}/table").search(["title 7"], k=1)


def test_a_large_object_is_uploaded_in_parts_and_read_back_whole(lake):
    data = bytes(range(256)) * (110 * 4096)  # 110 MiB: more than the driver puts in one request
    storage.put(f"{lake}/large", data)
    assert storage.stat(f"{lake}/large").size_bytes == len(data)
    assert storage.read(f"{lake}/large") == data
    assert storage.read(f"{lake}/large", 100_000_000, 100_000_016) == data[100_000_000:100_000_016]
    assert not storage.create(f"{lake}/large", data[:-1] + b"x")


def test_a_folder_of_a_hierarchical_account_is_no_document(lake, server):
    container, prefix = server.client().get_container_client(CONTAINER), lake.rpartition("/")[2]
    container.upload_blob(f"{prefix}/corpus/sub", b"", metadata={"hdi_isfolder": "true"})
    container.upload_blob(f"{prefix}/corpus/sub/a.txt", b"text")
    assert [shard.path for shard in storage.glob(f"{lake}/corpus").shards] == [f"{lake}/corpus/sub/a.txt"]


def test_account_and_signature_serve_both_clients(lake, server, monkeypatch, tiny_model, reporter):
    """A shared access signature with no more rights than it takes, and for this container only."""
    corpus = put_corpus(lake, rows(20))
    signature = generate_container_sas(
        server.account,
        CONTAINER,
        account_key=server.key,
        permission=ContainerSasPermissions(read=True, write=True, delete=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    connection = f"BlobEndpoint={server.endpoint};AccountName={server.account};SharedAccessSignature={signature}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    azure.forget_clients()
    probe_create(f"{lake}/probes")
    assert backfill(make_job(corpus, f"{lake}/table", tiny_model), reporter).rows == 20
    assert status(f"{lake}/table").version == 1
    assert len(stored(f"{lake}/table")) == 20
    with pytest.raises(StorageError, match="access denied") as caught:
        storage.put("abfs://another/x", b"x")
    assert "sig=" not in str(caught.value)


def test_a_run_on_ray_leaves_no_secret_anywhere(lake, server, tiny_model, tmp_path):
    backfill_leaves_none(lake, tiny_model, tmp_path, {**os.environ, **server.environment()}, [], server.key)


def test_objects_sent_to_workers_contain_no_secret(lake, server, tiny_model, monkeypatch):
    for data in travelling(lake, tiny_model, monkeypatch):
        assert not found(data, server.key)
    assert not found(repr(delta_table.open_table(f"{lake}/table")).encode(), server.key)


WRONG = "d3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmc="


def test_every_command_reports_a_wrong_key_without_repeating_it(lake, server, monkeypatch, tiny_model, reporter):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.connection(WRONG))
    azure.forget_clients()
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
        assert WRONG not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_command_line_ends_in_one_sentence(lake, server, tiny_model, tmp_path):
    job = make_job(put_corpus(lake, rows(5)), f"{lake}/table", tiny_model)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    for command in (["backfill", str(path)], ["status", f"{lake}/table"], ["doctor", str(path)]):
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *command],
            cwd=ROOT,
            env={**os.environ, "AZURE_STORAGE_CONNECTION_STRING": server.connection(WRONG)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 1, done.stderr
        said = " ".join((done.stdout + done.stderr).split())
        assert "access denied" in said
        assert "Traceback" not in said
        assert WRONG not in said


def test_an_unreachable_account_is_an_error(lake, monkeypatch):
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setattr(s3, "TABLE_RETRIES", 1)
    nowhere = "AccountName=lake;AccountKey=bm9ib2R5;BlobEndpoint=http://127.0.0.1:1/lake"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", nowhere)
    azure.forget_clients()
    for call in (storage.read, storage.glob, delta_table.open_table):
        with pytest.raises(StorageError, match="after 2 tries: nothing answers at http://127.0.0.1:1/lake. Check the"):
            call(f"{lake}/x")


@pytest.mark.parametrize("given", ["", "no connection string", "AccountName=lake;AccountKey=not*base64"])
def test_an_invalid_environment_is_an_error(lake, monkeypatch, given):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", given)
    azure.forget_clients()
    for call in (storage.read, delta_table.open_table):
        with pytest.raises((ConfigError, StorageError)) as caught:
            call(f"{lake}/x")
        assert "not*base64" not in str(caught.value)
