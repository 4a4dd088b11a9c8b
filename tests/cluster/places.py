"""Where the nodes of a test stand: each in a network namespace of its own, or all on this machine's loopback.

Namespaces need root and iproute2. They hang on a bridge, and a link that is taken down cuts off a node that lives on. Where
there are none a node that is to be out of reach stands still instead (SIGSTOP), which its cluster cannot tell from a cut.
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
    """Where one node stands.

    Attributes:
        address: Of the node.
        inside: What stands before a command to run it there.
        link: The bridge's end of its wire, if it has one.
    """

    address: str
    inside: tuple[str, ...] = ()
    link: str | None = None

    def cut(self, node: subprocess.Popen[bytes]) -> None:
        """Nothing reaches the node any more, and it reaches nobody."""
        self._set(node, "down", signal.SIGSTOP)

    def heal(self, node: subprocess.Popen[bytes]) -> None:
        """It is back."""
        self._set(node, "up", signal.SIGCONT)

    def _set(self, node: subprocess.Popen[bytes], state: str, stand_in: signal.Signals) -> None:
        if self.link is not None:
            ip("link", "set", self.link, state)
            return
        for pid in descendants(node.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, stand_in)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def namespaces() -> bool:
    """Whether this process may make network namespaces with wires into them."""
    if shutil.which("ip") is None:
        return False
    try:
        with wired(1):
            return True
    except subprocess.CalledProcessError:
        return False


@contextmanager
def wired(count: int) -> Iterator[list[Place]]:
    """The head's place, which is this machine's own network, and so many others."""
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
        gone = [("link", "del", f"{tag}w{number}") for number in range(count)]
        gone += [("netns", "del", f"{tag}n{number}") for number in range(count)]
        for words in (*gone, ("link", "del", bridge)):
            with suppress(subprocess.CalledProcessError):
                ip(*words)


@contextmanager
def stand(count: int) -> Iterator[list[Place]]:
    """The head's place and `count` others, of the better kind that this machine allows."""
    if not namespaces():
        yield [Place("127.0.0.1") for _ in range(count + 1)]
        return
    with wired(count) as places:
        yield places
