"""Pages of PDFs: sizes, pixels and text layers, by pypdfium2, which is imported on use.

PDFium is not thread-safe, not even with two documents, and a malformed file may crash it: pipelines call this module in
child processes (`actors.images.workers`). Pages count from 1. All that is opened is closed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import TracebackType
from typing import Any, BinaryIO, Self

from actors.images.decode import Picture
from actors.images.errors import UnfitPicture
from actors.images.pixels import fit, resized
from actors.images.settings import PictureSettings

Box = tuple[float, float]  # height and width in points, as a viewer shows the page
PdfSource = str | bytes | BinaryIO  # a local path, the content, or an open file

_MAX_SCALE = 200 / 72  # 200 dpi
_OVERSIZE = 2.0  # a page is rendered with at most twice the height and width that the model gets
_NO_PASSWORD = (4, 5)  # PDFium: a password is needed, or an unknown kind of encryption
_SOFT_HYPHEN = "\ufffe"  # PDFium gives it for a hyphen at the end of a line


class PdfDocument:
    """Open PDF; a context manager.

    Args:
        source: The file.

    Raises:
        UnfitPicture: PDFium cannot open it.
    """

    def __init__(self, source: PdfSource) -> None:
        import pypdfium2

        logging.getLogger("pypdfium2").setLevel(logging.CRITICAL)  # it warns of forms that it does not know
        if source == b"":
            raise UnfitPicture("bad_pdf", "the file is empty")
        try:
            self._pdf = pypdfium2.PdfDocument(source)
        except pypdfium2.PdfiumError as error:
            if error.err_code in _NO_PASSWORD:
                raise UnfitPicture("encrypted", "the PDF is encrypted and needs a password") from None
            raise UnfitPicture("bad_pdf", f"not a whole PDF, or one without pages: {error}") from None
        try:
            self._pdf.init_forms()  # before the first page is loaded; without it the values of forms are not drawn
            self.pages = len(self._pdf)
        except BaseException:
            self.close()
            raise

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
        return [self._box(page) for page in range(1, self.pages + 1)]

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
            bitmap = loaded.render(scale=_scale(box, settings), rev_byteorder=True, prefer_bgrx=True)
            with closing(bitmap):
                size = (bitmap.width, bitmap.height)
                image = Image.frombuffer("RGBX", size, bitmap.buffer, "raw", "RGBX", bitmap.stride, 1)
                return Picture(fit(image, settings), text=_text_of(loaded) if text else None)

    def text(self, page: int) -> str:
        """Return the text layer of a page, from 1, or an empty text.

        Raises:
            UnfitPicture: the page cannot be loaded.
        """
        with self._loaded(page) as loaded:
            return _text_of(loaded)

    @contextmanager
    def _loaded(self, page: int) -> Iterator[Any]:
        import pypdfium2

        try:
            loaded = self._pdf[page - 1]
        except pypdfium2.PdfiumError:
            raise UnfitPicture("bad_page", f"page {page} of {self.pages} is damaged or missing") from None
        with closing(loaded):
            yield loaded


def page_count(source: PdfSource) -> int:
    """Return the number of pages of a PDF."""
    with PdfDocument(source) as pdf:
        return pdf.pages


def page_boxes(source: PdfSource) -> list[Box | None]:
    """Return the size of each page of a PDF; see `PdfDocument.boxes`."""
    with PdfDocument(source) as pdf:
        return pdf.boxes()


def render(source: PdfSource, page: int, settings: PictureSettings) -> Picture:
    """Return a page of a PDF, from 1; see `PdfDocument.render`."""
    with PdfDocument(source) as pdf:
        return pdf.render(page, settings)


def page_text(source: PdfSource, page: int) -> str:
    """Return the text layer of a page of a PDF, from 1."""
    with PdfDocument(source) as pdf:
        return pdf.text(page)


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
