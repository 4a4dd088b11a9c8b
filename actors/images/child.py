"""Child process that decodes pictures and pages for a `DecodePool`: one request at a time, over its pipes.

A frame is two lengths, a header as JSON and a body. What comes back is never unpickled: the files are not trusted, and a
library that they break into has only this process. It imports the standard library, numpy, Pillow and pypdfium2.
"""

from __future__ import annotations

import json
import os
import resource
import select
import struct
import sys
import threading
from contextlib import suppress
from typing import Any, BinaryIO

from actors.images.decode import Picture, decode_picture
from actors.images.errors import UnfitPicture
from actors.images.pdf import PdfDocument
from actors.images.settings import PictureSettings

MEMORY_BYTES = 2 << 30  # the largest picture that is decoded takes a third of it

_LENGTHS = struct.Struct("<QQ")
_PARENT_CHECK_MS = 5000


def write_frame(stream: BinaryIO, header: dict[str, Any], body: bytes = b"") -> None:
    """Write one message."""
    text = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(text), len(body)) + text)
    stream.write(body)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one message; None if the other side has ended."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header_bytes, body_bytes = _LENGTHS.unpack(lengths)
    header, body = stream.read(header_bytes), stream.read(body_bytes)
    return (json.loads(header), body) if len(header) + len(body) == header_bytes + body_bytes else None


class _Child:
    """Answers requests; keeps the last PDF open."""

    def __init__(self) -> None:
        self._pdf: PdfDocument | UnfitPicture = UnfitPicture("bad_pdf", "none is open")
        self._number = -1

    def answer(self, request: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Return header and body of the answer to a request."""
        try:
            if request["do"] == "boxes":
                return {"boxes": self._opened(request).boxes()}, b""
            settings = PictureSettings(**request["settings"])
            if request["do"] == "decode":
                return _answer_of(decode_picture(body, settings))
            return _answer_of(self._opened(request).render(request["page"], settings, text=request["text"]))
        except UnfitPicture as error:
            return {"reason": error.reason, "error": error.error}, b""
        except Exception as error:  # noqa: BLE001  (such as MemoryError; this process can go on)
            reason = "bad_picture" if request["do"] == "decode" else "bad_page"
            return {"reason": reason, "error": f"{type(error).__name__}: {error}"}, b""

    def _opened(self, request: dict[str, Any]) -> PdfDocument:
        """The PDF of a request, opened once for all requests in a row."""
        if self._number != request["pdf"]:
            if isinstance(self._pdf, PdfDocument):
                self._pdf.close()
            self._number = request["pdf"]
            try:
                self._pdf = PdfDocument(request["path"])
            except UnfitPicture as error:  # kept, so that it is not opened again for each page
                self._pdf = error
            except Exception as error:  # noqa: BLE001  (such as FileNotFoundError)
                self._pdf = UnfitPicture("bad_pdf", f"{type(error).__name__}: {error}")
        if isinstance(self._pdf, UnfitPicture):
            raise self._pdf
        return self._pdf


def _answer_of(picture: Picture) -> tuple[dict[str, Any], bytes]:
    return {"frames": picture.frames, "notes": picture.notes, "text": picture.text}, picture.pixels


def _end_with(parent: int) -> None:
    """End this process when its parent ends, even if a page is being rendered."""
    poll = select.poll()
    poll.register(0, 0)  # only the end of the pipe
    while not any(event & select.POLLHUP for _, event in poll.poll(_PARENT_CHECK_MS)) and os.getppid() == parent:
        pass
    os._exit(0)


def main() -> None:
    """Answer the requests on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # libraries that print do not mix with the answers
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if memory runs out, this process ends and not its parent
    import pypdfium2  # noqa: F401  (imports before the first request are not in its time)
    from PIL import Image  # noqa: F401

    write_frame(answers, {"ready": True})
    os.dup2(nothing, 2)  # warnings of libtiff and others
    child = _Child()
    while (request := read_frame(sys.stdin.buffer)) is not None:
        header, body = child.answer(*request)
        write_frame(answers, header, body)


if __name__ == "__main__":
    main()
