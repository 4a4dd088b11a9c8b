"""fake-gcs-server for the tests of this folder, started once."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from actors.storage import gcs
from tests.gcs.servers import BUCKET, Server, fake_gcs
from tests.integration.conftest import reporter, tiny_model

__all__ = ["reporter", "tiny_model"]  # fixtures


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with fake_gcs() as started:
        yield started


@pytest.fixture
def lake(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty folder on the server, with the environment to reach it."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    gcs.forget_clients()
    yield f"gs://{BUCKET}/{secrets.token_hex(4)}"
    gcs.forget_clients()
