"""A backfill as a Ray job: a real head with its dashboard on this machine, the Jobs API, and the job's own exit code."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from deltalake import DeltaTable

from actors.errors import ConfigError
from pipeline.submit import PACKAGES, stage, submit
from tests.integration.conftest import make_job, rows, write_corpus

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    """A cluster of its own: a head node with a dashboard, ended by its own processes."""
    port, gcs, folder = free_port(), free_port(), tmp_path_factory.mktemp("ray")
    options = ["--head", "--block", "--num-cpus=2", f"--port={gcs}", "--node-ip-address=127.0.0.1"]
    options += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    options += ["--object-store-memory=200000000", "--disable-usage-stats", f"--ray-client-server-port={free_port()}"]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    head = subprocess.Popen(
        [RAY, "start", *options], env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port, head)
        yield f"http://127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(timeout=60)


def wait_for(port: int, head: subprocess.Popen[bytes]) -> None:
    import time
    import urllib.request

    for _ in range(240):
        assert head.poll() is None, "the head node ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the dashboard did not come up")


def test_a_submitted_job_does_what_a_local_one_does(dashboard, tmp_path, tiny_model):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    out = io.StringIO()
    assert submit(job, dashboard, out) == 0
    assert "published version 1" in out.getvalue()
    assert out.getvalue().rstrip().endswith("succeeded")
    assert DeltaTable(str(tmp_path / "table")).count() == 20
    again = io.StringIO()
    assert submit(job, dashboard, again) == 0
    assert "nothing left to do" in again.getvalue()
    wrong = make_job("/nowhere/*.parquet", tmp_path / "table", tiny_model)
    failed = io.StringIO()
    assert submit(wrong, dashboard, failed) == 2
    assert "matches no file" in failed.getvalue()


def test_no_dashboard_is_said_in_one_sentence(tmp_path, tiny_model):
    job = make_job(tmp_path, tmp_path / "table", tiny_model)
    with pytest.raises(ConfigError, match="no Ray dashboard answers there"):
        submit(job, f"http://127.0.0.1:{free_port()}", io.StringIO())


def test_what_is_uploaded_is_the_packages_and_the_job_with_absolute_places(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-value")
    folder = tmp_path / "staged"
    folder.mkdir()
    stage(make_job("corpus/*.parquet", "table", tiny_model), folder)
    assert {path.name for path in folder.iterdir()} == {*PACKAGES, "job.yaml"}
    document = yaml.safe_load((folder / "job.yaml").read_text())
    assert document["source"]["uri"] == f"{tmp_path}/corpus/*.parquet"
    assert document["table"]["uri"] == f"{tmp_path}/table"
    assert document["run"]["address"] == "auto"
    assert not list(folder.rglob("__pycache__"))
    assert "a-secret-value" not in "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
