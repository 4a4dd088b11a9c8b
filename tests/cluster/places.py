"""Networks for the nodes of a test: a network namespace for each, or the loopback of this machine for all.

Namespaces need root and iproute2. A bridge connects them, and taking a link down disconnects a running node. Without
namespaces the processes of the node are stopped instead (SIGSTOP), which looks the same to the cluster.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tests.integration.test_kill import descendants


@dataclass(frozen=True)
class Place:
    """Network of one node.

    Attributes:
        address: IP address of the node.
        inside: Prefix of a command to run it in the namespace.
        link: Name of the bridge's end of the node's link, or None.
    """

    address: str
    inside: tuple[str, ...] = ()
    link: str | None = None

    def cut(self, node: subprocess.Popen[bytes]) -> None:
        """Disconnect the node."""
        self._set(node, "down", signal.SIGSTOP)

    def heal(self, node: subprocess.Popen[bytes]) -> None:
        """Connect the node again."""
        self._set(node, "up", signal.SIGCONT)

    def _set(self, node: subprocess.Popen[bytes], state: str, fallback: signal.Signals) -> None:
        if self.link is not None:
            ip("link", "set", self.link, state)
            return
        for pid in descendants(node.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, fallback)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def namespaces() -> bool:
    """Return True if this process can create network namespaces and links to them."""
    if shutil.which("ip") is None:
        return False
    try:
        with wired(1):
            return True
    except subprocess.CalledProcessError:
        return False


@contextmanager
def wired(count: int) -> Iterator[list[Place]]:
    """Create `count` namespaces; yield the place of the head, which is this machine's network, and theirs."""
    tag, net = f"vt{secrets.token_hex(3)}", f"198.18.{secrets.randbelow(256)}"  # a range that no network uses
    bridge = f"{tag}br"
    places = [Place(f"{net}.1")]
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("address", "add", f"{net}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for number in range(count):
            name, link = f"{tag}n{number}", f"{tag}w{number}"
            ip("netns", "add", name)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", link, "master", bridge, "up")
            ip("-n", name, "address", "add", f"{net}.{number + 2}/24", "dev", "eth0")
            for each in ("lo", "eth0"):
                ip("-n", name, "link", "set", each, "up")
            places.append(Place(f"{net}.{number + 2}", ("ip", "netns", "exec", name), link))
        yield places
    finally:
        cleanup = [("link", "del", f"{tag}w{number}") for number in range(count)]
        cleanup += [("netns", "del", f"{tag}n{number}") for number in range(count)]
        for words in (*cleanup, ("link", "del", bridge)):
            with suppress(subprocess.CalledProcessError):
                ip(*words)


@contextmanager
def stand(count: int) -> Iterator[list[Place]]:
    """Yield the place of the head and `count` others: namespaces if this machine allows them, else loopback."""
    if not namespaces():
        yield [Place("127.0.0.1") for _ in range(count + 1)]
        return
    with wired(count) as places:
        yield places
