"""The fence around tests/unit: no Ray, no network, no waiting. What needs one of them belongs to tests/integration."""

from __future__ import annotations

import socket
import sys
import time
from typing import NoReturn

import pytest


def _forbidden(*args: object, **kwargs: object) -> NoReturn:
    raise AssertionError("tests/unit uses no Ray, no sockets and no sleeping: move this test to tests/integration")


@pytest.fixture(autouse=True)
def fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes them raise. A test of a retry puts its own `time.sleep` in place, and asserts what it was asked for."""
    monkeypatch.setattr(time, "sleep", _forbidden)
    # Not the constructor: an event loop makes a pair of sockets for itself, and that reaches nobody.
    for way_out in ("bind", "connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, way_out, _forbidden)
    if ray := sys.modules.get("ray"):  # importing it here would cost every run its two seconds
        monkeypatch.setattr(ray, "init", _forbidden)
