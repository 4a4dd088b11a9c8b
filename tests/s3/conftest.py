"""A real S3 store for the tests of this folder: Ceph's gateway, started once and ended by its own process ids."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import reporter, tiny_model
from tests.s3.servers import Ceph
from tests.stores.server import Server, lake

__all__ = ["lake", "reporter", "tiny_model"]  # fixtures


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """The store, with the means to kill it."""
    with Ceph() as started:
        yield started


@pytest.fixture
def server(ceph: Ceph) -> Server:
    """What a client knows of it."""
    return ceph.server
