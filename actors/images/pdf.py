"""Pages of PDFs: sizes, pixels and text layers, by pypdfium2, which is imported on use.

PDFium is not thread-safe, not even with two documents, and a malformed file may crash it: pipelines call this module in
child processes (`actors.images.workers`). Pages count from 1. All that is opened is closed.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from actors.images.decode import Picture
from actors.images.errors import UnfitPicture
from actors.images.page_tree import Content, page_tree
from actors.images.pixels import fit, resized
from actors.images.settings import PictureSettings
from actors.looks import HEAD_BYTES, kind_of, look_of

Box = tuple[float, float]  # height and width in points, as a viewer shows the page
PdfSource = str | bytes  # a local path, or the content

_MAX_SCALE = 200 / 72  # 200 dpi
_OVERSIZE = 2.0  # a page is rendered with at most twice the height and width that the model gets
_NO_PASSWORD = (4, 5)  # PDFium: a password is needed, or an unknown kind of encryption
_MAX_MISSING = 10  # for each page, and ten more: a file may say that it has a million pages, and have three
_MAX_GROWTH_BYTES = 64 << 20  # PDFium keeps what it has read, such as scans, until the file is closed
_SOFT_HYPHEN = "\ufffe"  # PDFium gives it for a hyphen at the end of a line


class PdfDocument:
    """Open PDF; a context manager.

    Args:
        source: The file.

    Raises:
        UnfitPicture: PDFium cannot open it.
    """

    def __init__(self, source: PdfSource) -> None:
        logging.getLogger("pypdfium2").setLevel(logging.CRITICAL)  # it warns of forms that it does not know
        self._source = source
        with _content_of(source) as content:
            head = content[:HEAD_BYTES]
        if kind_of(head) != "pdf":
            raise UnfitPicture("bad_pdf", f"the file is {look_of(head)}, not a PDF")
        self._open()

    def _open(self) -> None:
        self._pdf = _opened(self._source)
        self._resident_bytes = _resident_bytes()

    @cached_property
    def pages(self) -> int:
        """Number of pages, some of which may be missing. Reads the whole file once."""
        with _content_of(self._source) as content:
            tree = page_tree(content)
            if tree and tree.pages > len(self._pdf):  # PDFium believes the file, and would lose the others
                self.close()
                self._source = tree.without_counts(content)
                self._open()
        return max(len(self._pdf), tree.pages if tree else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._pdf.close()

    def boxes(self) -> list[Box | None]:
        """Return the size of each page; None where PDFium finds no page. Renders nothing."""
        boxes = [self._box(page) for page in range(1, self.pages + 1)]
        last = max((page for page, box in enumerate(boxes, 1) if box), default=0)
        return boxes[: _MAX_MISSING * (last + 10)]

    def _box(self, page: int) -> Box | None:
        import pypdfium2

        try:
            width, height = self._pdf.get_page_size(page - 1)
        except pypdfium2.PdfiumError:
            return None
        return height, width

    def render(self, page: int, settings: PictureSettings, *, text: bool = False) -> Picture:
        """Return a page as a viewer shows it, resized, with the values of forms and without hidden layers.

        Args:
            page: Its number, from 1.
            settings: Size of the result.
            text: Read the text layer too.

        Raises:
            UnfitPicture: the page cannot be loaded, or has no area.
        """
        from PIL import Image

        with self._loaded(page) as loaded:
            box = (loaded.get_height(), loaded.get_width())
            resized(*drawn_size(box, settings), settings)  # refuses its shape before memory is allocated
            bitmap = loaded.render(scale=_scale(box, settings), prefer_bgrx=True)
            with closing(bitmap):
                size = (bitmap.width, bitmap.height)
                image = Image.frombuffer("RGB", size, bitmap.buffer, "raw", "BGRX", bitmap.stride, 1)
                return Picture(fit(image, settings), text=_text_of(loaded) if text else None)

    @contextmanager
    def _loaded(self, page: int) -> Iterator[Any]:
        import pypdfium2

        if _resident_bytes() > self._resident_bytes + _MAX_GROWTH_BYTES:
            self.close()
            self._open()
        if page > len(self._pdf):
            _ = self.pages  # counts them, which may open the file anew
        try:
            loaded = self._pdf[page - 1]
        except pypdfium2.PdfiumError:
            raise UnfitPicture("bad_page", f"page {page} is damaged or missing") from None
        with closing(loaded):
            yield loaded


def _opened(source: PdfSource) -> Any:
    """The PDF as pypdfium2 opens it, ready to draw forms."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(source)
    except pypdfium2.PdfiumError as error:
        # For a PDF without pages the code is that of the last PDF that failed.
        with _content_of(source) as content:
            locked = error.err_code in _NO_PASSWORD and content.find(b"/Encrypt") >= 0
        if locked:
            raise UnfitPicture("encrypted", "the PDF is encrypted and needs a password") from None
        raise UnfitPicture("bad_pdf", "the PDF is damaged, or has no pages") from None
    with suppress(pypdfium2.PdfiumError):
        pdf.init_forms()  # before the first page is loaded; without it the values of forms are not drawn
    return pdf


def _resident_bytes() -> int:
    """Memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


@contextmanager
def _content_of(source: PdfSource) -> Iterator[Content]:
    """The bytes of a file, which are not all read into memory."""
    if isinstance(source, bytes):
        yield source
    elif os.path.getsize(source) == 0:
        yield b""
    else:
        with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def drawn_size(box: Box, settings: PictureSettings) -> tuple[int, int]:
    """Return height and width in pixels that a page is rendered with, before `resized`.

    Raises:
        UnfitPicture: the page has no area.
    """
    scale = _scale(box, settings)
    return math.ceil(box[0] * scale), math.ceil(box[1] * scale)


def _scale(box: Box, settings: PictureSettings) -> float:
    """Pixels per point."""
    area = box[0] * box[1]
    if not (min(box) > 0 and math.isfinite(area)):
        raise UnfitPicture("bad_shape", f"a page of {box[1]:g} x {box[0]:g} points has no area")
    return min(_MAX_SCALE, _OVERSIZE * math.sqrt(settings.max_pixels / area))


def _text_of(loaded: Any) -> str:
    """Text on the visible part of a page."""
    with closing(loaded.get_textpage()) as text:
        found: str = text.get_text_bounded()
    return found.replace("\r\n", "\n").replace(_SOFT_HYPHEN, "").replace("\0", "")
