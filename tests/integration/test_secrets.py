"""Credentials stay in the environment: not in the table, the ledger, a pickle, a log, or a message.

The backfill runs as a person runs it, a command with a Ray of its own on S3; so this is also the test that workers find
their credentials by themselves.
"""

from __future__ import annotations

import base64
import io
import pickle
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import delta, executor
from pipeline.executor import InlineExecutor
from pipeline.run import backfill
from pipeline.stages import to_block
from tests.integration.conftest import make_job, rows
from tests.stores.server import keys, subprocess_environment
from tests.stores.suite import put_corpus, stored

ROOT = Path(__file__).parents[2]
TOKEN = "session-token-that-nobody-may-see-f3a9c1"


def spellings(secret: str) -> Iterator[bytes]:
    """A secret as it is, and as it would be inside a URL, in base64, and in UTF-16."""
    yield secret.encode()
    yield urllib.parse.quote(secret, safe="").encode()
    yield base64.b64encode(secret.encode()).rstrip(b"=")
    yield secret.encode("utf-16-le")


def found(data: bytes, *secrets: str) -> bool:
    return any(spelling in data for secret in secrets for spelling in spellings(secret))


def test_the_search_finds_each_spelling():
    for spelling in spellings("keep/me+hidden"):
        assert found(b"\x00 " + spelling + b" \xff", "keep/me+hidden")
    assert not found(b"keep me hidden", "keep/me+hidden")


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where a Ray keeps its logs and sockets; short, for the sockets."""
    folder = Path(tempfile.mkdtemp(prefix="vt-ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
def test_a_run_on_ray_leaves_no_secret_anywhere(lake, server, tiny_model, tmp_path, ray_folder):
    table = f"{lake}/table"
    job = make_job(
        put_corpus(lake, rows(40), [*rows(8, start=40), {"id": None, "title": "no id", "text": "x", "lang": "l0"}]),
        table,
        tiny_model,
        table__partition_by=["lang"],
        run__address="local",
        run__max_quarantined=0.5,
    )
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "backfill", str(path)],
        cwd=ROOT,
        env=subprocess_environment(server, AWS_SESSION_TOKEN=TOKEN, RAY_TMPDIR=str(ray_folder)),
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(stored(table)) == 48
    assert not found(done.stdout + done.stderr, server.secret_key, TOKEN)

    written = keys(server, table)
    kinds = ("/_delta_log/", "/run.json", "/plan.parquet", "/receipts/", "/quarantine/", "/data/")
    assert all(any(kind in key for key in written) for kind in kinds), written
    for key in written:
        data = server.client().get_object(Bucket="tests", Key=key)["Body"].read()
        assert not found(data, server.secret_key, server.access_key, TOKEN), key
        if key.endswith(".parquet"):  # what is packed inside it too
            file = pq.ParquetFile(io.BytesIO(data))
            inside = repr((file.metadata.metadata, file.read().to_pylist())).encode()
            assert not found(inside, server.secret_key, server.access_key, TOKEN), key

    logs = [log for log in ray_folder.rglob("*") if log.is_file() and not log.is_symlink()]
    assert len(logs) > 5
    for log in logs:
        assert not found(log.read_bytes(), server.secret_key, TOKEN), log


def test_what_travels_to_workers_holds_no_secret(lake, server, tiny_model, reporter, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    travelling: list[bytes] = []

    class Watched(InlineExecutor):
        def run(self, units, spec):
            units = list(units)
            travelling.append(pickle.dumps(spec))
            travelling.extend(pickle.dumps(unit) for unit in units)
            travelling.extend(pickle.dumps(to_block(unit)) for unit in units)
            for outcome in super().run(units, spec):
                travelling.append(pickle.dumps(outcome))
                yield outcome

    monkeypatch.setattr(executor, "InlineExecutor", Watched)
    backfill(make_job(put_corpus(lake, rows(40)), f"{lake}/table", tiny_model), reporter)
    assert len(travelling) > 6
    for data in travelling:
        assert not found(data, server.secret_key, server.access_key, TOKEN)
    # The one place that does hold them is made for each opening of a table, and is not kept.
    options = delta.storage_options(f"{lake}/table")
    assert options is not None
    assert found(pickle.dumps(options), server.secret_key)
    assert not found(repr(delta.open_table(f"{lake}/table")).encode(), server.secret_key, TOKEN)


@pytest.mark.parametrize("place", ["source.uri", "table.uri"])
@pytest.mark.parametrize("command", ["backfill", "plan", "doctor"])
def test_a_command_refuses_a_url_with_credentials_and_does_not_repeat_them(tmp_path, tiny_model, place, command):
    secret = "wJalrXUtnFEMI/K7MDENG"
    job = make_job(tmp_path / "corpus", tmp_path / "table", tiny_model).model_dump(mode="json", exclude_none=True)
    section, _, name = place.partition(".")
    job[section][name] = f"s3://AKIAEXAMPLE:{secret}@lake/x"
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    done = subprocess.run(
        [sys.executable, "-m", "jobs", command, str(path)], cwd=ROOT, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert place.encode() in done.stderr
    assert b"has credentials in it" in b" ".join(done.stderr.split())
    assert not found(done.stdout + done.stderr, secret)


@pytest.mark.parametrize("command", [["status"], ["search", "a question"]])
def test_a_table_named_by_such_a_url_is_refused_too(command):
    name, *rest = command
    done = subprocess.run(
        [sys.executable, "-m", "jobs", name, "s3://AKIAEXAMPLE:hush-hush-hush@lake/x", *rest],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert b"has credentials in it" in b" ".join(done.stderr.split())
    assert not found(done.stdout + done.stderr, "hush-hush-hush")
