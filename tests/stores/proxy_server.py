"""A proxy in front of an S3 server that does wrong what a script tells it to. See proxy.py, which starts it.

A process of its own, and nothing but the standard library: `deltalake` keeps Python's lock in some of its calls, so a
proxy inside the process under test would never come to answer. Paths, queries and headers pass as they are, so that
signatures stay right. The trade-off: an answer is read whole before it is passed on, fine for the small objects of tests.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTROL = "/-/"  # no bucket has this name
_PER_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"}
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close is a reset

# What can go wrong. `done` means that the request landed in the store before it did.
ANSWERS = {
    "409": (409, "ConditionalRequestConflict"),
    "412": (412, "PreconditionFailed"),
    "412 done": (412, "PreconditionFailed"),
    "500": (500, "InternalError"),
    "500 done": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "denied": (403, "AccessDenied"),
    "expired 400": (400, "ExpiredToken"),
    "expired 403": (403, "ExpiredToken"),
}
CONNECTIONS = ("cut", "cut done", "cut within", "slow", "silent done")


@dataclass(slots=True)
class Script:
    """The faults to inject, and the requests since they were set.

    Attributes:
        faults: As `proxy.Fault`, each with the number of requests `met` so far.
        seen: Method and target of each request.
        injected: What went wrong, and the same.
    """

    silent_s: float = 1.0
    slow_s: float = 0.1
    faults: list[dict[str, Any]] = field(default_factory=list)
    seen: list[list[str]] = field(default_factory=list)
    injected: list[list[str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set_faults(self, document: dict[str, Any]) -> None:
        """Replace the faults and forget earlier requests."""
        with self.lock:
            self.faults = [{**fault, "met": 0} for fault in document["faults"]]
            self.silent_s, self.slow_s = document["silent_s"], document["slow_s"]
            self.seen, self.injected = [], []

    def take(self, method: str, target: str, signed: str) -> str | None:
        """Record a request and return its fault. Of several faults the first counts."""
        with self.lock:
            self.seen.append([method, target])
            hit: str | None = None
            for fault in self.faults:
                verb, _, where = fault["after"].partition(" ")
                if where and verb == method and re.search(where, target):
                    fault["after"] = ""
                if (
                    not fault["after"]
                    and re.fullmatch(fault["method"], method)
                    and re.search(fault["target"], target)
                    and fault["signed_by"] in signed
                ):
                    fault["met"] += 1
                    if hit is None and fault["first"] <= fault["met"] < fault["first"] + fault["times"]:
                        hit = fault["what"]
            if hit is not None:
                self.injected.append([hit, method, target])
            return hit


@dataclass(slots=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    length: int


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, script: Script, behind: str, *arguments: Any) -> None:
        self.script = script
        self.behind = behind
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def handle_one_request(self) -> None:
        """One request; whatever becomes of it ends its connection and nothing else."""
        try:
            super().handle_one_request()
        except (OSError, ValueError, http.client.HTTPException):
            self.close_connection = True

    def do_GET(self) -> None:
        """Every method."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith(CONTROL):
            self._control(body)
            return
        what = self.script.take(self.command, urllib.parse.unquote(self.path), self.headers.get("Authorization") or "")
        if what == "cut":
            self._reset()
            return
        if what == "slow":
            time.sleep(self.script.slow_s)
        if what in ANSWERS and not what.endswith("done"):
            self._send(_error(*ANSWERS[what]))
            return
        answer = self._ask(body)
        if what in ANSWERS:
            self._send(_error(*ANSWERS[what]))
        elif what == "cut done":
            self._reset()
        elif what == "silent done":
            time.sleep(self.script.silent_s)
            self._reset()
        elif what == "cut within":
            self._send_half(answer)
        else:
            self._send(answer)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815  (the base class looks for these names)

    def _control(self, body: bytes) -> None:
        if self.command == "PUT":
            self.script.set_faults(json.loads(body))
        with self.script.lock:
            data = json.dumps({"seen": self.script.seen, "injected": self.script.injected}).encode()
        self._send(_Answer(200, [], data, len(data)))

    def _ask(self, body: bytes) -> _Answer:
        """What the server behind says."""
        connection = http.client.HTTPConnection(self.behind.removeprefix("http://"), timeout=120)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _PER_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
            headers = [item for item in response.getheaders() if item[0].lower() not in {*_PER_HOP, "content-length"}]
            return _Answer(response.status, headers, data, int(response.getheader("Content-Length") or len(data)))
        finally:
            connection.close()

    def _head(self, answer: _Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(answer.length))

    def _send(self, answer: _Answer) -> None:
        self._head(answer)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else answer.body)

    def _send_half(self, answer: _Answer) -> None:
        """Half of the body; of an answer without one, headers without an end."""
        self._head(answer)
        if self.command != "HEAD" and answer.body:
            self.end_headers()
            self.wfile.write(answer.body[: len(answer.body) // 2])
        else:
            self.flush_headers()
        self.close_connection = True

    def _reset(self) -> None:
        """End the connection without a word."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close_connection = True


class _Listening(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        """Close at once: an orderly end, as the base class makes one first, would not be a cut connection."""
        self.close_request(request)


def _error(status: int, code: str) -> _Answer:
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()
    )
    return _Answer(status, [("Content-Type", "application/xml")], body, len(body))


if __name__ == "__main__":
    listening = _Listening(("127.0.0.1", 0), partial(_Handler, Script(), sys.argv[1]))
    print(listening.server_port, flush=True)
    listening.serve_forever()
