"""`vectide submit` against a real Ray head on this machine: the Jobs API, the token, and the job's exit code."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from deltalake import DeltaTable

from actors.errors import ConfigError
from pipeline.cluster.submit import PACKAGES, _client, job_name, stage, submit
from tests.integration.conftest import make_job, rows, write_corpus
from tests.integration.test_kill import kill_tree

pytestmark = pytest.mark.ray

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


TOKEN = "a-token-of-the-test-cluster"


@dataclass
class Head:
    url: str
    gcs: str
    env: dict[str, str]
    process: subprocess.Popen[bytes]


@contextmanager
def started_head(folder: Path, address: str = "127.0.0.1", **settings: str) -> Iterator[Head]:
    """Start a Ray head with a dashboard that requires a token; kill it at the end. `settings` are settings of Ray."""
    port, gcs = free_port(), free_port()
    options = ["--head", "--block", "--num-cpus=2", f"--port={gcs}", f"--node-ip-address={address}"]
    options += ["--include-dashboard=true", f"--dashboard-host={address}", f"--dashboard-port={port}"]
    options += ["--object-store-memory=200000000", "--disable-usage-stats", f"--ray-client-server-port={free_port()}"]
    options += [
        f"--dashboard-agent-listen-port={free_port()}"
    ]  # the default port may be in use by another Ray on this machine
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    # Ray notices a lost node after 4 s instead of 15 s, and one that does not answer after 20 s instead of 90 s.
    times = {"initial_delay_ms": "0", "period_ms": "500", "timeout_ms": "2000", "failure_threshold": "8"}
    env |= {f"RAY_health_check_{name}": value for name, value in times.items()}
    env |= {f"RAY_{name}": value for name, value in settings.items()}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # a job runs the `python` of the node
    head = subprocess.Popen(
        [RAY, "start", *options], env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(f"http://{address}:{port}", head)
        yield Head(f"http://{address}:{port}", f"{address}:{gcs}", env, head)
    finally:
        kill_tree(head)  # a clean stop of Ray takes half a minute


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with started_head(tmp_path_factory.mktemp("ray")) as started:
        yield started


@pytest.fixture
def dashboard(head):
    return head.url


@pytest.fixture
def token(monkeypatch, tmp_path):
    """Put the token into a file, and leave RAY_AUTH_MODE unset, as on a user's machine."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))


def wait_for(url: str, head: subprocess.Popen[bytes]) -> None:
    import urllib.error
    import urllib.request

    for _ in range(240):
        assert head.poll() is None, "the head node ended"
        try:
            with urllib.request.urlopen(f"{url}/api/version", timeout=5):
                return
        except urllib.error.HTTPError:  # the dashboard answers, and requires the token
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the dashboard did not come up")


def test_a_submitted_job_has_the_result_of_a_local_one(dashboard, token, tmp_path, tiny_model):
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
    names = [re.findall(r"submitted (vectide-backfill-[0-9a-f]{12})-(\d)", log.getvalue())[0] for log in (out, again)]
    assert names == [(names[0][0], "1"), (names[0][0], "2")]
    wrong = make_job("/nowhere/*.parquet", tmp_path / "table", tiny_model)
    failed = io.StringIO()
    assert submit(wrong, dashboard, failed) == 2
    assert "matches no file" in failed.getvalue()


def test_a_second_submit_follows_the_first_and_metadata_has_no_secret(
    dashboard, token, tmp_path, tiny_model, monkeypatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-value")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://user:a-secret-value@store")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    job = make_job(write_corpus(tmp_path / "corpus", [rows(20)]), tmp_path / "table", tiny_model)
    first, second = io.StringIO(), io.StringIO()
    assert submit(job, dashboard, first, command="refresh", detach=True) == 0
    assert "the same command without --detach follows it" in first.getvalue()
    (name,) = re.findall(r"submitted (\S+) to", first.getvalue())
    assert submit(job, dashboard, second, command="refresh") == 0
    assert second.getvalue().startswith(f"{name} already runs at {dashboard}")
    assert "published version 1" in second.getvalue()
    jobs = [details for details in _client(dashboard).list_jobs() if details.submission_id == name]
    assert len(jobs) == 1
    assert "eu-west-1" in str(jobs[0])
    assert "a-secret-value" not in str(jobs[0])
    assert TOKEN not in str(jobs[0])


@pytest.mark.parametrize(("token", "reason"), [("", "there is none on this machine"), ("wrong", "is wrong")])
def test_a_missing_or_wrong_token_is_reported_with_the_fix(dashboard, tmp_path, monkeypatch, token, reason):
    job = make_job(tmp_path, tmp_path / "table", tmp_path)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(ConfigError, match=f"requires the cluster's token, and .*{reason}.* RAY_AUTH_TOKEN"):
        submit(job, dashboard, io.StringIO())
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH .* cannot be read"):
        submit(job, dashboard, io.StringIO())


def test_a_missing_dashboard_is_reported(tmp_path, tiny_model):
    job = make_job(tmp_path, tmp_path / "table", tiny_model)
    with pytest.raises(ConfigError, match="no Ray dashboard answers there"):
        submit(job, f"http://127.0.0.1:{free_port()}", io.StringIO())


def test_an_adapter_of_this_machine_is_not_submitted(tmp_path, tiny_model):
    adapters = {"legal": str(tmp_path)}
    job = make_job(tmp_path, tmp_path / "table", tiny_model, encoder__adapters=adapters, encoder__task="legal")
    with pytest.raises(ConfigError, match=f"encoder.adapters.legal is '{tmp_path}', a folder of this machine"):
        submit(job, f"http://127.0.0.1:{free_port()}", io.StringIO())


def test_the_upload_has_the_packages_and_the_job_with_absolute_paths(tmp_path, tiny_model, monkeypatch):
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


def test_the_name_of_a_job_depends_on_the_job_and_the_command(tmp_path, tiny_model):
    def name(command: str, **changes: object) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return job_name(stage(make_job("/corpus", "/table", tiny_model, **changes), folder), command)

    assert name("refresh") == name("refresh")
    assert len({name("refresh"), name("backfill"), name("refresh", encoder__max_tokens=9)}) == 3
