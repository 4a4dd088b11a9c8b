"""Azurite, Microsoft's own emulator of Azure Blob storage, as a server of this machine; `install.sh` brings it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from azure.core.exceptions import AzureError
from azure.storage.blob import BlobServiceClient

CONTAINER = "tests"
WAIT_S = 60
_PROGRAM = Path(__file__).parents[2] / ".venvs/azure/node_modules/azurite/dist/src/blob/main.js"


@dataclass(frozen=True, slots=True)
class Server:
    """What a test knows of it."""

    port: int
    account: str
    key: str

    @property
    def endpoint(self) -> str:
        """Where it answers; the account is part of the path."""
        return f"http://127.0.0.1:{self.port}/{self.account}"

    def connection(self, key: str | None = None) -> str:
        """The connection string, of this key or of another one."""
        return f"AccountName={self.account};AccountKey={key or self.key};BlobEndpoint={self.endpoint}"

    def environment(self) -> dict[str, str]:
        """What a process needs to work on it."""
        return {"AZURE_STORAGE_CONNECTION_STRING": self.connection(), "NO_PROXY": "127.0.0.1,localhost"}

    def client(self) -> BlobServiceClient:
        """A plain client, to arrange and to look with other eyes than the code under test."""
        return BlobServiceClient.from_connection_string(self.connection(), retry_total=0)

    def keys(self, url: str) -> list[str]:
        """Every name below a URL."""
        container, _, prefix = url.partition("://")[2].partition("/")
        return list(self.client().get_container_client(container).list_blob_names(name_starts_with=prefix))

    def put_many(self, names: list[str]) -> str:
        """Put small objects of these names into a container of their own, and say where."""
        container = self.client().create_container("many")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: container.upload_blob(f"keys/{name}", b"x"), names))
        return "abfs://many/keys"


@contextmanager
def azurite() -> Iterator[Server]:
    """A server until the end of the block, with an account of its own and everything in memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A key is base64; this one is of letters that are the same as text.
    server = Server(port, "lake", secrets.token_hex(32))
    command = [
        "node",
        str(_PROGRAM),
        "--inMemoryPersistence",
        "--silent",
        "--disableTelemetry",
        "--blobPort",
        str(port),
    ]
    command += ["--skipApiVersionCheck", "--disableProductStyleUrl"]  # a client may be newer than it
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PATH": os.environ["PATH"], "AZURITE_ACCOUNTS": f"{server.account}:{server.key}"}
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, env=environment) as process:
            try:
                _wait(server)
                yield server
            finally:
                process.kill()


def _wait(server: Server) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            server.client().create_container(CONTAINER)
            return
        except AzureError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
