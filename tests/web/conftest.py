"""A browser for the tests of this folder, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import tiny_model
from tests.web.browser import Browser

__all__ = ["tiny_model"]  # a fixture


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()
