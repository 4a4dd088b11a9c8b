"""Pictures behind URLs: which hosts are asked, and what a server that fails or lies gives."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from actors.images import fetch as fetching
from actors.images.errors import UnfitPicture
from actors.images.fetch import fetch, is_public

LISTED = frozenset({"127.0.0.1"})


class Server(ThreadingHTTPServer):
    """A server whose paths say what it answers; it notes what it was asked."""

    asked: list[str]
    hosts: list[str | None]
    pages: dict[str, Any]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.hosts.append(self.headers["Host"])
        page = self.server.pages.get(self.path, (404, {}, b"gone"))
        status, headers, body = page(self) if callable(page) else page
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with Server(("127.0.0.1", 0), Handler) as made:
        made.asked, made.hosts, made.pages = [], [], {"/picture": (200, {}, b"picture")}
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def url(server: Server, path: str, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{server.server_port}{path}"


def refused(address: str, allowed: bool | frozenset[str] = LISTED) -> str:
    with pytest.raises(UnfitPicture) as caught:
        fetch(address, allowed)
    assert caught.value.reason == "fetch_failed"
    return caught.value.error


def test_content_is_fetched_with_the_path_and_query_of_the_url(server):
    server.pages["/a%20b/%C3%A9?x=1&y=%20"] = (200, {}, b"found")
    assert fetch(url(server, "/picture"), LISTED) == b"picture"
    assert fetch(url(server, "/a b/é?x=1&y=%20#part"), LISTED) == b"found"
    assert server.hosts == [f"127.0.0.1:{server.server_port}"] * 2


def test_addresses_that_are_not_public_are_refused_unless_listed(server):
    assert "not public" in refused(url(server, "/picture"), True)
    assert "not public" in refused(url(server, "/picture", "localhost"), True)
    assert "off" in refused(url(server, "/picture"), False)
    assert "not listed" in refused(url(server, "/picture", "localhost"))
    assert "not public" in refused("http://[::1]:1/picture", True)
    assert server.asked == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1",
     "fe80::1%eth0", "fc00::1", "::", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::169.254.169.254"],
)  # fmt: skip
def test_an_address_within_a_network_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_an_address_of_the_internet_is_public(address):
    assert is_public(address)


def test_the_address_that_is_checked_is_the_one_that_is_connected_to(server, monkeypatch):
    """A name that has a public address first, and one of this machine when it is looked up again."""
    answers = iter(["8.8.8.8", "127.0.0.1", "127.0.0.1"])
    asked = []

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    connected = []

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", connect)
    assert "127.0.0.1, which is not public" in refused("http://rebound.example/picture", True)
    assert connected == ["8.8.8.8"]
    assert asked == ["rebound.example"] * 2


def test_redirects_are_followed_three_times_and_checked_each_time(server):
    for step in range(5):
        server.pages[f"/{step}"] = (302, {"Location": f"/{step + 1}"}, b"")
    server.pages["/5"] = (200, {}, b"end")
    assert fetch(url(server, "/2"), LISTED) == b"end"
    assert "more than 3 redirects" in refused(url(server, "/1"))
    server.pages["/elsewhere"] = (301, {"Location": url(server, "/picture", "localhost")}, b"")
    server.pages["/file"] = (301, {"Location": "file:///etc/passwd"}, b"")
    server.asked.clear()
    assert "localhost is not listed" in refused(url(server, "/elsewhere"))
    assert "only http and https" in refused(url(server, "/file"))
    assert server.asked == ["/elsewhere", "/file"]


def test_a_server_that_is_busy_is_asked_again(server):
    answers = [(503, {}, b""), (429, {"Retry-After": "1"}, b""), (200, {}, b"at last")]
    server.pages["/busy"] = lambda handler: answers.pop(0)
    assert fetch(url(server, "/busy"), LISTED) == b"at last"
    server.pages["/broken"] = (500, {}, b"")
    assert "500 Internal Server Error" in refused(url(server, "/broken"))
    assert server.asked.count("/broken") == 3
    server.pages["/later"] = (503, {"Retry-After": "3600"}, b"")
    assert "503" in refused(url(server, "/later"))
    assert server.asked.count("/later") == 1  # an hour is more time than there is


def test_what_is_not_there_is_asked_for_once_and_secrets_are_not_told(server):
    error = refused(url(server, "/gone?signature=secret", "user:password@127.0.0.1"))
    assert "404" in error
    assert "secret" not in error
    assert "password" not in error
    assert url(server, "/gone:") in error  # with the port
    assert server.asked == ["/gone?signature=secret"]


def test_content_that_is_too_large_or_cut_is_refused(server, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_BYTES", 1_000_000)
    server.pages["/large"] = (200, {}, bytes(1_000_001))
    server.pages["/says-large"] = (200, {"Content-Length": "999999999999"}, b"small")
    server.pages["/chunked"] = (
        200,
        {"Transfer-Encoding": "chunked"},
        b"f4241\r\n" + bytes(1_000_001) + b"\r\n0\r\n\r\n",
    )
    server.pages["/cut"] = lambda handler: (200, {"Content-Length": "10", "Connection": "close"}, b"half")
    for path in ("/large", "/says-large", "/chunked"):
        assert "larger than 1 MB" in refused(url(server, path))
    assert "too early" in refused(url(server, "/cut"))


def test_a_slow_server_is_left_when_the_time_is_over(server, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT_S", 0.3)
    left = threading.Event()

    def drip(handler: Handler) -> Any:
        """Send a header that never ends, byte by byte."""
        try:
            while not left.wait(0.01):
                handler.wfile.write(b"x")
        except OSError:
            pass
        return 200, {}, b""

    server.pages["/slow"] = drip
    assert "longer than 0.3 s" in refused(url(server, "/slow"))
    left.set()


@pytest.mark.parametrize(
    "address", ["ftp://example.com/a", "file:///etc/passwd", "http://", "/a/path", "http://[::1/", "http://a:99999/"]
)
def test_what_is_no_url_of_the_web_is_refused(address):
    refused(address, True)


def test_a_host_without_an_address_is_named(monkeypatch):
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror("unknown")

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert "nowhere.example has no address" in refused("http://nowhere.example/", True)
