"""A store that misbehaves: a real or a mocked one behind a proxy that does wrong what a test tells it to.

Both clients of a run, fsspec's driver and the object store inside `deltalake`, follow `AWS_ENDPOINT_URL`, so both are
hit. The proxy itself is proxy_server.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from actors import storage
from actors.storage import s3
from tests.stores.proxy_server import ANSWERS, CONNECTIONS, CONTROL
from tests.stores.server import Server, forget_clients

FAULTS = (*ANSWERS, *CONNECTIONS)
# Those that another try, or a look at what is there, makes good.
PASSING = ("409", "412 done", "500", "500 done", "503", *CONNECTIONS)
FOREVER = 1 << 30
_SCRIPT = Path(__file__).with_name("proxy_server.py")
_ANSWER_S = 0.5


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of a script.

    Attributes:
        what: One of `FAULTS`.
        method: Of the requests that it is for; a regular expression, as is `target`.
        target: Found anywhere in path and query, which are compared without percent signs.
        first: The first of these requests that is hit, from 1.
        times: How many in a row are hit.
        signed_by: The access key that signed them; empty for any.
        after: The fault begins with the first request of this method and target; empty for at once.
    """

    what: str
    method: str = ".*"
    target: str = ""
    first: int = 1
    times: int = 1
    signed_by: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class Proxy:
    """What a test knows of the proxy.

    Attributes:
        server: The store as its clients see it.
        behind: The one that does the work.
    """

    server: Server
    behind: Server

    def play(self, *faults: Fault) -> None:
        """Follow a new script, and forget what was seen."""
        waits = {"silent_s": 3 * _ANSWER_S, "slow_s": _ANSWER_S / 4}
        self._control("PUT", json.dumps({"faults": [asdict(fault) for fault in faults], **waits}).encode())

    def seen(self) -> list[tuple[str, str]]:
        """Method and target of each request since then."""
        return [tuple(request) for request in self._control("GET")["seen"]]

    def injected(self) -> list[tuple[str, str, str]]:
        """What went wrong since then, with the method and target of the request."""
        return [tuple(hit) for hit in self._control("GET")["injected"]]

    def _control(self, method: str, data: bytes | None = None) -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"{self.server.endpoint}{CONTROL}", data, method=method)
        with opener.open(request, timeout=30) as answer:
            return dict(json.loads(answer.read()))


@contextmanager
def proxy(behind: Server) -> Iterator[Proxy]:
    """A proxy until the end of the block."""
    command = [sys.executable, str(_SCRIPT), behind.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
            yield Proxy(Server(endpoint, behind.access_key, behind.secret_key), behind)
        finally:
            process.kill()


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients wait as they do, but milliseconds where it would be seconds. The number of tries stays."""
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.002)
    monkeypatch.setattr(storage, "LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(s3, "TABLE_FIRST_WAIT_MS", 2)
    monkeypatch.setattr(s3, "TABLE_LONGEST_WAIT_MS", 20)
    monkeypatch.setattr(s3, "ANSWER_S", _ANSWER_S)
    # The driver waits up to a second between its tries, which has no setting.
    monkeypatch.setattr(s3, "DRIVER_TRIES", 1)
    forget_clients()
