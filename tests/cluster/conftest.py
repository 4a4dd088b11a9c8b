"""Fixtures of the tests whose clusters lose machines. They take minutes, and a busy machine may be too slow for Ray's own
limits, so `make test` leaves them out: `make test-cluster`."""

from __future__ import annotations

from tests.integration.conftest import tiny_model

__all__ = ["tiny_model"]  # a fixture
