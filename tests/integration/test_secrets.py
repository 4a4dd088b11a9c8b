"""Credentials stay in the environment: not in the table, the ledger, a pickle, a log, or a message.

The backfill runs as a person runs it, a command with a Ray of its own on S3; so this is also the test that workers find
their credentials by themselves.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.table import delta_table
from tests.integration.conftest import make_job
from tests.stores.leaks import backfill_leaves_none, found, spellings, travelling
from tests.stores.server import subprocess_environment

ROOT = Path(__file__).parents[2]
TOKEN = "session-token-that-nobody-may-see-f3a9c1"


def test_the_secret_scanner_finds_each_encoding():
    for spelling in spellings("keep/me+hidden"):
        assert found(b"\x00 " + spelling + b" \xff", "keep/me+hidden")
    assert not found(b"keep me hidden", "keep/me+hidden")


@pytest.mark.ray
def test_a_run_on_ray_leaves_no_secret_anywhere(lake, server, tiny_model, tmp_path):
    environment = subprocess_environment(server, AWS_SESSION_TOKEN=TOKEN)
    backfill_leaves_none(lake, tiny_model, tmp_path, environment, [server.access_key], server.secret_key, TOKEN)


def test_objects_sent_to_workers_contain_no_secret(lake, server, tiny_model, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    for data in travelling(lake, tiny_model, monkeypatch):
        assert not found(data, server.secret_key, server.access_key, TOKEN)
    # The one object that does contain them is made for each opening of a table and not stored.
    options = delta_table.storage_options(f"{lake}/table")
    assert options is not None
    assert found(pickle.dumps(options), server.secret_key)
    assert not found(repr(delta_table.open_table(f"{lake}/table")).encode(), server.secret_key, TOKEN)


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
