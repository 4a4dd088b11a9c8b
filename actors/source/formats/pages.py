"""PDFs, pictures and text files together: a row for each page, picture and text file.

The first bytes of a file decide what it is, and its ending only what it should be. Columns: `text`, the content of a text
file or the text layer of a page; `page`, the number of a page in its PDF, from 1; `path` and `name` as for text files. The
position of a row is its page, and 0 for a picture, a text, or a file that cannot be opened. Planning opens a PDF to count
its pages, and of a picture reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import pyarrow as pa

from actors import storage
from actors.errors import InvariantBroken
from actors.images.errors import UnfitPicture
from actors.images.looks import kind_of
from actors.images.pixels import blank_pixels
from actors.images.workers import Pdf, decode_pool
from actors.progress_counter import count_progress
from actors.schema import PAGE, PICTURE, POSITION, Piece, QuarantinedRow, Shard
from actors.source.formats import looks
from actors.source.formats.base import LARGEST_VALUE_BYTES, Wanted, reading
from actors.source.formats.documents import Documents
from actors.source.pictures import Pictures, decoded

ENDINGS = (".pdf", ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".mpo")
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
        return [Piece(shard, start, stop, stop - start) for start, stop in zip(bounds, bounds[1:], strict=False)]

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
            kind = _kind(shard)
            if kind is None and not _is_named_picture(shard):
                yield from _read_text(piece, wanted)
                return
            yield _row_or_quarantined(shard, 0, wanted, lambda: {PICTURE: _only_picture(shard, kind, how)})


def _read_text(piece: Piece, wanted: Wanted) -> Iterator[pa.Table | QuarantinedRow]:
    for item in _TEXTS.read(piece, wanted):
        if isinstance(item, pa.Table):
            absent = {name: pa.nulls(item.num_rows, _TYPES.get(name, pa.binary())) for name in (PAGE, PICTURE)}
            item = pa.table({**{name: item[name] for name in item.column_names}, **absent})
        yield item


def _read_pages(piece: Piece, wanted: Wanted, how: Pictures) -> Iterator[pa.Table | QuarantinedRow]:
    shard = piece.shard
    with reading(shard, "a PDF"), open_pdf(shard.path) as pdf:
        for page in range(piece.start, piece.stop):

            def row(page: int = page) -> dict[str, object]:
                if how.blank:
                    return {PAGE: page, PICTURE: blank_pixels(*pdf.size(page, how.settings), how.settings)}
                picture = pdf.render(page, how.settings).pixels
                return {PAGE: page, PICTURE: picture, "text": pdf.text(page) or None if how.page_text else None}

            yield _row_or_quarantined(shard, page, wanted, row)


def _row_or_quarantined(
    shard: Shard, position: int, wanted: Wanted, row: Callable[[], dict[str, object]]
) -> pa.Table | QuarantinedRow:
    """Return a row as a table, or quarantined if its picture is unfit."""
    count_progress()
    try:
        values = {"path": shard.path, "name": shard.path.rsplit("/", 1)[-1], **row()}
    except UnfitPicture as error:
        return QuarantinedRow(shard.path, position, None, error.reason, error.error)
    names = wanted.present(shard, tuple(_TYPES))
    columns = {name: pa.array([values.get(name)], _TYPES[name]) for name in names}
    picture = pa.array([values[PICTURE]], pa.binary())
    return pa.table({**columns, POSITION: pa.array([position], pa.int64()), PICTURE: picture})


def _only_picture(shard: Shard, kind: str | None, how: Pictures) -> bytes:
    """Return the packed pixels of a picture file.

    Raises:
        UnfitPicture: It is no picture, or a PDF that cannot be opened.
    """
    if shard.size_bytes > LARGEST_VALUE_BYTES:
        error = f"a picture of {shard.size_bytes} bytes; the largest that is read has {LARGEST_VALUE_BYTES}"
        raise UnfitPicture("too_large", error)
    if kind == "pdf" or (kind is None and shard.path.lower().endswith(".pdf")):
        with open_pdf(shard.path):
            raise UnfitPicture("bad_pdf", "the PDF has no pages")
    if kind is None and (content := looks.foreign(storage.read(shard.path, 0, looks.HEAD_BYTES))) is not None:
        raise UnfitPicture("bad_picture", f"the file is named as a picture and holds {content[0]}. {content[1]}")
    return decoded(storage.read(shard.path), how)


def _is_named_picture(shard: Shard) -> bool:
    return shard.path.lower().endswith(ENDINGS)


def _kind(shard: Shard) -> str | None:
    """Return "pdf", "picture" or None, by the first bytes."""
    return kind_of(storage.read(shard.path, 0, looks.HEAD_BYTES)) if shard.size_bytes else None


@lru_cache(maxsize=1 << 16)
def _pages(shard: Shard) -> int:
    """Return the number of pages of a PDF; 0 for any other file, and for a PDF that cannot be opened."""
    with reading(shard, "a PDF"):
        if _kind(shard) != "pdf":
            return 0
        try:
            with open_pdf(shard.path) as pdf:
                return pdf.pages
        except UnfitPicture:
            return 0


def open_pdf(path: str) -> Pdf:
    """Return a PDF at a path or URL, opened in a process for decoding.

    Raises:
        UnfitPicture: It cannot be opened.
    """
    if storage.is_local(path):
        return decode_pool().open_pdf(storage.local_path(path))
    return decode_pool().open_pdf(storage.open_read(path))
