"""Real stores as a test starts, kills and ends them; the work is done by the scripts in the folders beside this file."""

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
# Two test processes look for ports at the same time: each has a range of its own.
_FIRST_PORT = 18100 + 2000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4)
_PORTS = range(_FIRST_PORT, _FIRST_PORT + 2000, 50)
_WAIT_S = 10


def _free_port() -> int:
    """The first of a block of ports, of which the first few are free."""
    for port in _PORTS:
        with contextlib.ExitStack() as opened:
            try:
                for number in range(4):
                    opened.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            except OSError:
                continue
            return port
    raise RuntimeError("no free ports for a store")


class _Store:
    """Daemons that a script starts in a folder of their own, which goes away with them.

    Args:
        kind: Folder of the script.
        daemons: Their names, in the order in which they are ended.
        access_key: Of the one user.
    """

    def __init__(self, kind: str, daemons: tuple[str, ...], access_key: str) -> None:
        self._start = _HERE / kind / "start.sh"
        self._daemons = daemons
        self.folder = Path(tempfile.mkdtemp(prefix=f"vt-{kind}-"))  # short: it contains unix sockets
        port = _free_port()
        self.server = Server(f"http://127.0.0.1:{port}", access_key, f"keep-hidden-{secrets.token_hex(16)}")
        self._environment = {
            **os.environ,
            "S3_PORT": str(port),
            "S3_ACCESS_KEY": access_key,
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
        for name in self._daemons:
            self._kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _script(self, *arguments: str) -> None:
        command = [str(self._start), str(self.folder), *arguments]
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
        while _state(pid) != "Z" and time.monotonic() < deadline:
            time.sleep(0.02)
        file.unlink()


class Ceph(_Store):
    """One monitor, one object daemon, one S3 gateway: a store that keeps its promises."""

    def __init__(self) -> None:
        super().__init__("ceph", ("gateway", "osd", "mon"), f"AKIA{secrets.token_hex(8).upper()}")

    def kill_gateway(self) -> None:
        """Nobody answers from here on, in the middle of whatever was asked."""
        self._kill("gateway")

    def start_gateway(self) -> None:
        """It answers again, on the same data."""
        self._script("gateway")
        self.server.make_bucket()


class Swift(_Store):
    """OpenStack's store with its S3 layer: one that answers an exclusive create right in sequence, and wrong in a race."""

    def __init__(self) -> None:
        super().__init__("swift", ("proxy", "object", "container", "account"), "tests:tests")


def _state(pid: int) -> str:
    """The letter that the kernel gives a process; Z for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "Z"
