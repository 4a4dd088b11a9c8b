"""Pictures behind URLs, for `source.fetch`.

A row may name any URL, so that a corpus of strangers could make this machine read what only it can reach. Addresses that
are not public are refused unless the job lists the host. The address that is checked is the address that is connected
to, so that a name cannot change its address in between, and every redirect is checked again.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from actors.images.errors import UnfitPicture

MAX_BYTES = 50_000_000
TIMEOUT_S = 30.0  # for redirects, retries and the content together

_MAX_REDIRECTS = 3
_TRIES = 3
_FIRST_PAUSE_S = 0.5
_CHUNK_BYTES = 1 << 18
_SAFE = "%/?:@!$&'()*+,;=-._~[]"  # written as they are in a URL; other characters are escaped
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADERS = {"User-Agent": "vectide", "Accept": "image/*, application/pdf", "Accept-Encoding": "identity"}


class _Refused(Exception):
    """The URL gives nothing; trying again is of no use."""


class _Busy(Exception):
    """The server may answer later."""

    def __init__(self, error: str, pause_s: float = 0.0) -> None:
        super().__init__(error)
        self.pause_s = pause_s


def fetch(url: str, allowed: bool | frozenset[str]) -> bytes:  # noqa: FBT001  (the value of `source.fetch`)
    """Return the content behind a URL.

    Args:
        url: An http or https URL.
        allowed: `source.fetch`: True for all hosts with public addresses; or the names of the only hosts that are asked,
            whose addresses may be private.

    Raises:
        UnfitPicture: there is no content, or it may not be fetched.
    """
    deadline = time.monotonic() + TIMEOUT_S
    pause_s, problem = _FIRST_PAUSE_S, ""
    for attempt in range(1, _TRIES + 1):
        try:
            return _follow(url, allowed, deadline)
        except _Refused as error:
            problem = str(error)
            break
        except (_Busy, OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
            wait_s = max(pause_s, getattr(error, "pause_s", 0.0))
        if time.monotonic() >= deadline:
            problem = f"took longer than {TIMEOUT_S:g} s"
        if attempt == _TRIES or time.monotonic() + wait_s >= deadline:
            break
        time.sleep(wait_s)
        pause_s *= 2
    raise UnfitPicture("fetch_failed", f"{_named(url)}: {problem}")


def _named(url: str) -> str:
    """The URL without what may be secret: user, password, query."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:300]
    except ValueError:
        return "the URL"


def _follow(url: str, allowed: bool | frozenset[str], deadline: float) -> bytes:  # noqa: FBT001
    """The content behind a URL and its redirects."""
    for _ in range(_MAX_REDIRECTS + 1):
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise _Refused(str(error)) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _Refused(f"only http and https URLs with a host are fetched, not {_named(url)}")
        connected = _connect(parts.hostname, port, allowed, deadline)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connected = context.wrap_socket(connected, server_hostname=parts.hostname, do_handshake_on_connect=False)
        timer = threading.Timer(deadline - time.monotonic(), _shut, [connected])
        timer.daemon = True  # a server that sends a byte now and then never runs into the timeout of a socket
        timer.start()
        try:
            answer = _get(parts, port, connected)
        finally:
            timer.cancel()
            connected.close()
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise _Refused(f"more than {_MAX_REDIRECTS} redirects")


def _connect(host: str, port: int, allowed: bool | frozenset[str], deadline: float) -> socket.socket:  # noqa: FBT001
    """A connection to an address of the host that is allowed."""
    if not allowed:
        raise _Refused("`source.fetch` is off")
    listed = isinstance(allowed, frozenset)
    if isinstance(allowed, frozenset) and host not in {name.lower() for name in allowed}:
        raise _Refused(f"the host {host} is not listed in `source.fetch`")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _Busy(f"the name {host} has no address: {error}") from None
    failure: Exception | None = None
    for family, kind, protocol, _, address in found:
        if not (listed or is_public(str(address[0]))):
            failure = failure or _Refused(
                f"{host} has the address {address[0]}, which is not public; list the host in `source.fetch` to allow it"
            )
            continue
        connected = socket.socket(family, kind, protocol)
        try:
            connected.settimeout(max(deadline - time.monotonic(), 0.001))
            connected.connect(address)
            return connected
        except OSError as error:
            connected.close()
            failure = _Busy(f"no connection to {host}: {error}")
    raise failure or _Busy(f"the name {host} has no address")


def is_public(address: str) -> bool:
    """Tell whether an IP address can be reached by everybody; one of IPv4 within one of IPv6 counts."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            ip = embedded
    return ip.is_global and not ip.is_multicast


def _shut(connected: socket.socket) -> None:
    """End a connection from another thread, under the encryption."""
    with suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _get(parts: SplitResult, port: int, connected: socket.socket) -> bytes | str:
    """The content of one URL, or the URL that it redirects to."""
    secure = isinstance(connected, ssl.SSLSocket)
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(str(parts.hostname), port)
    connection.sock = connected  # it would look the name up once more
    try:
        if isinstance(connected, ssl.SSLSocket):
            connected.do_handshake()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", quote(target, safe=_SAFE), headers=_HEADERS)
        response = connection.getresponse()
        words = f"the server answered {response.status} {response.reason}"
        if response.status in (301, 302, 303, 307, 308) and response.headers.get("Location"):
            return quote(response.headers["Location"].encode("latin-1", "replace"), safe=_SAFE)
        if response.status == 429 or response.status >= 500:
            after = response.headers.get("Retry-After", "")
            raise _Busy(words, float(after) if after.isdecimal() else 0.0)
        if response.status != 200:
            raise _Refused(words)
        content = bytearray()
        while chunk := response.read(_CHUNK_BYTES):
            content += chunk
            if len(content) + (response.length or 0) > MAX_BYTES:
                raise _Refused(f"larger than {MAX_BYTES // 10**6} MB")
        if response.length:
            raise _Busy(f"the connection ended {response.length} bytes too early")
        return bytes(content)
    finally:
        connection.close()
