"""Fixtures of the tests whose clusters lose nodes.

`make test` skips these tests, because they take minutes, and a busy machine may be too slow for Ray's timeouts. Run them
with `make test-cluster`.
"""

from __future__ import annotations

from tests.integration.conftest import tiny_model

__all__ = ["tiny_model"]  # a fixture
