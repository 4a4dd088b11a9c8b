"""Google Cloud Storage's XML API, put in front of an emulator that has only the JSON API whole.

The client inside `deltalake` speaks the XML API, gcsfs the JSON API. The emulator refuses a plain PUT of the first, so every
request is translated into the second: one store alone decides which create succeeds. The trade-off: the XML API here is
this file's reading of its reference (cloud.google.com/storage/docs/xml-api) and not Google's.
"""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape

_JSON_API = ("/storage/", "/upload/", "/download/", "/b/", "/batch/")
_HOP = {"connection", "transfer-encoding", "content-length", "date", "server", "keep-alive"}
_GENERATION = "x-goog-if-generation-match"


class _Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behind: int  # port of the emulator

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_GET  # noqa: N815  (http.server's names)

    def _serve(self) -> None:
        body = self._body()
        if self.path.startswith(_JSON_API):
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            status, answered, data = self._ask(self.command, self.path, body, headers)
            self._answer(status, answered, data)
            return
        place = urllib.parse.urlsplit(self.path)
        bucket, _, name = place.path.lstrip("/").partition("/")
        name = urllib.parse.unquote(name)
        query = dict(urllib.parse.parse_qsl(place.query, keep_blank_values=True))
        if not name:
            self._list(bucket, query)
        elif self.command == "PUT" and not query:
            self._put(bucket, name, body)
        elif self.command in ("GET", "HEAD"):
            self._get(bucket, name)
        elif self.command == "DELETE":
            status, _, data = self._ask("DELETE", _object(bucket, name))
            self._answer(status, {}, data)
        else:
            self._answer(501, {}, f"{self.command} {self.path} is not said in the JSON API here".encode())

    def _put(self, bucket: str, name: str, body: bytes) -> None:
        parameters = {"uploadType": "multipart"}
        if (generation := self.headers.get(_GENERATION)) is not None:
            parameters["ifGenerationMatch"] = generation
        mark = secrets.token_hex(16)
        kind = self.headers.get("content-type", "application/octet-stream")
        head = f"--{mark}\r\nContent-Type: application/json\r\n\r\n{json.dumps({'name': name})}\r\n"
        data = f"{head}--{mark}\r\nContent-Type: {kind}\r\n\r\n".encode() + body + f"\r\n--{mark}--\r\n".encode()
        path = f"/upload/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(parameters)}"
        status, _, answer = self._ask("POST", path, data, {"content-type": f"multipart/related; boundary={mark}"})
        if status != 200:
            self._answer(status, {}, answer)
            return
        made = json.loads(answer)
        self._answer(200, {"ETag": f'"{made["etag"]}"', "x-goog-generation": str(made["generation"])}, b"")

    def _get(self, bucket: str, name: str) -> None:
        wanted = {name: self.headers[name] for name in ("range",) if name in self.headers}
        status, answered, data = self._ask("GET", f"{_object(bucket, name)}?alt=media", b"", wanted)
        self._answer(status, answered, data)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        asked = {key: query[key] for key in ("prefix", "delimiter") if query.get(key)}
        after = query.get("start-after", "")
        if after:
            asked["startOffset"] = after
        prefixes: list[str] = []
        objects: list[dict[str, Any]] = []
        while True:
            path = f"/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(asked)}"
            status, _, data = self._ask("GET", path)
            if status != 200:
                self._answer(status, {}, data)
                return
            page = json.loads(data)
            prefixes += page.get("prefixes", [])
            objects += [item for item in page.get("items", []) if item["name"] > after]
            if not page.get("nextPageToken"):
                break
            asked["pageToken"] = page["nextPageToken"]
        parts = [
            f"<Contents><Key>{escape(item['name'])}</Key><LastModified>{item['updated']}</LastModified>"
            f"<Size>{item['size']}</Size><ETag>{escape(item['etag'])}</ETag></Contents>"
            for item in objects
        ] + [f"<CommonPrefixes><Prefix>{escape(prefix)}</Prefix></CommonPrefixes>" for prefix in prefixes]
        text = f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>{"".join(parts)}</ListBucketResult>'
        self._answer(200, {"Content-Type": "application/xml"}, text.encode())

    def _ask(
        self, command: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """What the emulator answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        try:
            connection.request(command, path, body, headers or {})
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
            if command == "HEAD":
                kept["Content-Length"] = answer.headers.get("content-length", "0")
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        if "Last-Modified" not in headers:
            self.send_header("Last-Modified", format_datetime(datetime.now().astimezone()))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


def _object(bucket: str, name: str) -> str:
    return f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def front(behind: int) -> Iterator[int]:
    """A front for the emulator on this port; its own port."""
    server = _Server(("127.0.0.1", 0), type("Front", (_Front,), {"behind": behind}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
