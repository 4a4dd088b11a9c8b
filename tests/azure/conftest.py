"""Azurite for the tests of this folder, started once."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from actors.storage import azure
from tests.azure.servers import CONTAINER, Server, azurite
from tests.integration.conftest import reporter, tiny_model

__all__ = ["reporter", "tiny_model"]  # fixtures


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with azurite() as started:
        yield started


@pytest.fixture
def lake(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty folder on the server, with the environment to reach it."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    azure.forget_clients()
    yield f"abfs://{CONTAINER}/{secrets.token_hex(4)}"
    azure.forget_clients()
