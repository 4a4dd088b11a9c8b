"""Ceph as a test starts, kills and ends it; the work is done by the scripts beside this file."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.stores.server import Server

_HERE = Path(__file__).parent
_DAEMONS = ("gateway", "osd", "mon")
_PORTS = range(18100, 28000, 50)
_WAIT_S = 10


def _free_port() -> int:
    """The first of a block of ports of which the gateway's own and the monitor's are free."""
    for port in _PORTS:
        with contextlib.ExitStack() as opened:
            try:
                for number in range(3):
                    found = opened.enter_context(socket.socket())
                    found.bind(("127.0.0.1", port + number))
            except OSError:
                continue
            return port
    raise RuntimeError("no free ports for Ceph")


class Ceph:
    """One monitor, one object daemon, one S3 gateway, in a folder that goes away with it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vt-ceph-"))  # short: it holds unix sockets
        port = _free_port()
        self.server = Server(
            f"http://127.0.0.1:{port}", f"AKIA{secrets.token_hex(8).upper()}", f"keep-hidden-{secrets.token_hex(16)}"
        )
        self._environment = {
            **os.environ,
            "S3_PORT": str(port),
            "S3_ACCESS_KEY": self.server.access_key,
            "S3_SECRET_KEY": self.server.secret_key,
        }

    def __enter__(self) -> Self:
        try:
            self._script()
            self.server.make_bucket()
        except BaseException:
            for log in self.folder.glob("log/*.log"):
                print(f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-5:], sep="\n")
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in _DAEMONS:
            self._kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _script(self, *arguments: str) -> None:
        command = [str(_HERE / "start.sh"), str(self.folder), *arguments]
        subprocess.run(command, env=self._environment, check=True, timeout=180, stdin=subprocess.DEVNULL)

    def _kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        file = self.folder / f"{name}.pid"
        if not file.exists():
            return
        pid = int(file.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _WAIT_S
        while Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        file.unlink()

    def kill_gateway(self) -> None:
        """Nobody answers from here on, in the middle of whatever was asked."""
        self._kill("gateway")

    def start_gateway(self, *, wait: bool = True) -> None:
        """It answers again, on the same data."""
        self._script("gateway")
        if wait:
            self.server.make_bucket()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "Z"
