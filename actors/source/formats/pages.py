"""PDFs, pictures and text files together: a row for each page, picture and text file.

The first bytes of a file decide what it is. Its ending says what it should be, and whether markup is a text or a drawing.
Columns: `text`, the content of a text file or the text layer of a page; `page`, the number of a page in its PDF, from 1;
`path` and `name` as for text files. The position of a row is its page, and 0 for a picture, a text, or a file that cannot be
opened. Planning opens a PDF to count its pages, and of a picture reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import pyarrow as pa

from actors import storage
from actors.errors import InvariantBroken
from actors.images.decode import Picture
from actors.images.errors import UnfitPicture
from actors.images.pdf import Box, drawn_size
from actors.images.pixels import blank_pixels
from actors.images.workers import PageJob, decode_pool
from actors.looks import HEAD_BYTES, UNKNOWN, foreign, kind_of, unsupported
from actors.schema import NOTES, PAGE, PICTURE, POSITION, Piece, QuarantinedRow, Shard
from actors.source.formats.base import LARGEST_VALUE_BYTES, Wanted, reading
from actors.source.formats.documents import Documents
from actors.source.pdf_files import pdf_file
from actors.source.pictures import Pictures, decoded, notes_of

ENDINGS = (".pdf", ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".mpo")
_MARKUP_ENDINGS = (".html", ".htm", ".xml", ".txt", ".md", ".markdown")
_TEXTS = Documents()
_TYPES = {"text": pa.string(), PAGE: pa.int32(), "path": pa.string(), "name": pa.string()}


class Pages:
    """See `Format`."""

    name = "pages"
    whole_file = True
    schemaless = False

    def columns(self, shard: Shard) -> dict[str, pa.DataType]:  # noqa: ARG002  (the same for every shard)
        """Return text, page, path and name, for every shard."""
        return dict(_TYPES)

    def pieces(self, shard: Shard, rows: int) -> list[Piece]:
        """Return ranges of about `rows` pages of a PDF, and any other file as one piece."""
        pages = _pages(shard)
        if pages == 0:
            return [Piece(shard, 0, 1, 1)]
        parts = -(-pages // rows)
        bounds = [1 + pages * part // parts for part in range(parts + 1)]
        return [Piece(shard, start, stop, stop - start) for start, stop in pairwise(bounds)]

    def head(self, shard: Shard, rows: int) -> Piece:
        """Return the first pages of a PDF, or the file."""
        pages = min(rows, _pages(shard))
        return Piece(shard, 1, 1 + pages, pages) if pages else Piece(shard, 0, 1, 1)

    def read(self, piece: Piece, wanted: Wanted) -> Iterator[pa.Table | QuarantinedRow]:
        """See `Format.read`."""
        shard, how = piece.shard, wanted.pictures
        if how is None:
            raise InvariantBroken(f"{shard.path!r} is read without settings for pictures.")
        if piece.start > 0:
            yield from _read_pages(piece, wanted, how)
            return
        with reading(shard, "a picture or PDF"):
            head = _head(shard)
            kind = _kind(shard, head)
            if kind is None and not shard.path.lower().endswith(ENDINGS):
                yield from _read_text(piece, wanted, head)
            else:
                yield _row(shard, 0, wanted, _only_picture(shard, kind, how), {})


def _read_text(piece: Piece, wanted: Wanted, head: bytes) -> Iterator[pa.Table | QuarantinedRow]:
    path = piece.shard.path
    other = None if path.lower().endswith(_MARKUP_ENDINGS) else unsupported(head)
    if other is not None or (b"\0" in head and foreign(head) is None):
        name, fix = other or (UNKNOWN, "Save it as PDF, PNG or text")
        yield QuarantinedRow(path, 0, None, "bad_picture", f"the file is {name}. {fix}, or leave it out of the source")
        return
    for item in _TEXTS.read(piece, wanted):
        if isinstance(item, QuarantinedRow):
            yield item
        else:
            nothing = pa.nulls(item.num_rows, pa.binary()), pa.nulls(item.num_rows, pa.uint8())
            yield item.append_column(PICTURE, nothing[0]).append_column(NOTES, nothing[1])


def _read_pages(piece: Piece, wanted: Wanted, how: Pictures) -> Iterator[pa.Table | QuarantinedRow]:
    shard, pages = piece.shard, range(piece.start, piece.stop)
    with reading(shard, "a PDF"):
        if how.blank:
            boxes = _boxes(shard)
            for page in pages:
                yield _row(shard, page, wanted, _blank_page(page, boxes[page - 1], how), {PAGE: page})
            return
        pdf = pdf_file(shard)
        jobs = (PageJob(pdf, page, how.settings, text=how.page_text) for page in pages)
        for page, result in zip(pages, decode_pool().run(jobs), strict=True):
            if isinstance(result, UnfitPicture):
                yield _row(shard, page, wanted, result, {})
            else:
                yield _row(shard, page, wanted, result, {PAGE: page, "text": result.text or None})


def _row(
    shard: Shard, position: int, wanted: Wanted, picture: Picture | UnfitPicture, values: dict[str, object]
) -> pa.Table | QuarantinedRow:
    """Return a row as a table, or quarantined if its picture is unfit."""
    if isinstance(picture, UnfitPicture):
        return QuarantinedRow(shard.path, position, None, picture.reason, picture.error)
    values = {"path": shard.path, "name": shard.path.rsplit("/", 1)[-1], **values}
    names = wanted.present(shard, tuple(_TYPES))
    columns = {name: pa.array([values.get(name)], _TYPES[name]) for name in names}
    columns |= {PICTURE: pa.array([picture.pixels], pa.binary()), NOTES: pa.array([notes_of(picture)], pa.uint8())}
    return pa.table({**columns, POSITION: pa.array([position], pa.int64())})


def _blank_page(page: int, box: Box | None, how: Pictures) -> Picture | UnfitPicture:
    if box is None:
        return UnfitPicture("bad_page", f"page {page} is damaged or missing")
    try:
        return Picture(blank_pixels(*drawn_size(box, how.settings), how.settings))
    except UnfitPicture as error:
        return error


def _only_picture(shard: Shard, kind: str | None, how: Pictures) -> Picture | UnfitPicture:
    """Return the picture in a file, or why it has none, as a PDF that cannot be opened."""
    try:
        if kind == "pdf" or (kind is None and shard.path.lower().endswith(".pdf")):
            _boxes(shard)
            return UnfitPicture("bad_pdf", "the PDF has no pages")
    except UnfitPicture as error:
        return error
    if shard.size_bytes > LARGEST_VALUE_BYTES:
        error_text = f"a picture of {shard.size_bytes} bytes; the largest that is read has {LARGEST_VALUE_BYTES}"
        return UnfitPicture("too_large", error_text)
    return next(decoded([storage.read(shard.path)], how))


def _head(shard: Shard) -> bytes:
    """Return the first bytes, by which the content is recognized."""
    return storage.read(shard.path, 0, HEAD_BYTES) if shard.size_bytes else b""


def _kind(shard: Shard, head: bytes) -> str | None:
    """Return "pdf", "picture" or None. A file that is not named as a PDF is one if it begins as one: texts may mention it."""
    kind, may_mention = kind_of(head), not shard.path.lower().endswith(ENDINGS)
    return None if kind == "pdf" and may_mention and not head.lstrip().startswith(b"%PDF-") else kind


@lru_cache(maxsize=1 << 16)
def _pages(shard: Shard) -> int:
    """Return the number of pages of a PDF; 0 for any other file, and for a PDF that cannot be opened."""
    with reading(shard, "a PDF"):
        try:
            return len(_boxes(shard)) if _kind(shard, _head(shard)) == "pdf" else 0
        except UnfitPicture:
            return 0


@lru_cache(maxsize=64)
def _boxes(shard: Shard) -> tuple[Box | None, ...]:
    """Return the size of each page of a PDF.

    Raises:
        UnfitPicture: It cannot be opened.
    """
    return tuple(decode_pool().boxes(pdf_file(shard)))
