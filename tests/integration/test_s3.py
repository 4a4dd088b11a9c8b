"""S3 from end to end, on a mock that pip installs. `make test-s3` puts a real store through the same suite."""

from __future__ import annotations

import pytest

from actors import storage
from actors.errors import StorageError
from actors.storage import s3
from pipeline.table import delta_table
from tests.stores.server import forget_clients
from tests.stores.suite import S3Suite


class TestMoto(S3Suite):
    """The suite."""

    MANY_KEYS = 250  # three pages


def test_missing_credentials_are_an_error(lake, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    forget_clients()
    for call in (storage.read, storage.glob, delta_table.open_table):
        with pytest.raises(StorageError, match="no credentials were found. Set AWS_ACCESS_KEY_ID"):
            call(f"{lake}/x")


def test_a_missing_profile_is_an_error(lake, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    forget_clients()
    for call in (storage.read, delta_table.open_table):
        with pytest.raises(StorageError, match="nobody"):
            call(f"{lake}/x")


def test_an_unreachable_endpoint_is_an_error(lake, monkeypatch):
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setattr(s3, "TABLE_RETRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    forget_clients()
    for call in (storage.read, storage.glob, delta_table.open_table):
        with pytest.raises(StorageError, match="after 2 tries: nothing answers at http://127.0.0.1:1. Check the net"):
            call(f"{lake}/x")
