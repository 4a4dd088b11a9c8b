"""Text and Markdown files: one document per file.

Columns: `text`, the content without a byte order mark; `path`, the file's full path or URL; `name`, its last part. The
trade-off: each file is one request, so many small files are slower to read than one large file. The reader fetches
several at once from a store.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from actors import looks, storage
from actors.schema import POSITION, Piece, QuarantinedRow, Shard
from actors.source.formats.base import LARGEST_VALUE_BYTES, Wanted, reading

_COLUMNS = ("text", "path", "name")


def _no_text(head: bytes) -> str | None:
    """Return an error for a file with these first bytes unless it is UTF-8 text. HTML and XML are text."""
    content = None if looks.is_markup(head) else looks.foreign(head)
    return None if content is None else f"the file holds {content[0]}. {content[1]}"


class Documents:
    """See `Format`."""

    name = "text"
    whole_file = True
    schemaless = False

    def columns(self, shard: Shard) -> dict[str, pa.DataType]:  # noqa: ARG002  (the same for every shard)
        """Return text, path and name, for every shard."""
        return dict.fromkeys(_COLUMNS, pa.string())

    def pieces(self, shard: Shard, rows: int) -> list[Piece]:  # noqa: ARG002  (a document is not cut)
        """Return the file as one piece. An empty file is a document too: its row is quarantined."""
        return [self.head(shard, 1)]

    def head(self, shard: Shard, rows: int) -> Piece:  # noqa: ARG002
        """Return the file as one piece."""
        return Piece(shard, 0, 1, 1)

    def read(self, piece: Piece, wanted: Wanted) -> Iterator[pa.Table | QuarantinedRow]:
        """See `Format.read`."""
        shard = piece.shard
        names = wanted.present(shard, _COLUMNS)
        text = read_document(shard, LARGEST_VALUE_BYTES)
        if isinstance(text, QuarantinedRow):
            yield text
            return
        row = {"text": text, "path": shard.path, "name": shard.path.rsplit("/", 1)[-1]}
        columns = {name: pa.array([row[name]], pa.string()) for name in names}
        yield pa.table({**columns, POSITION: pa.array([0], pa.int64())})


def read_document(shard: Shard, largest_bytes: int) -> str | QuarantinedRow:
    """Return the text of a file without a byte order mark, or why it is quarantined.

    Raises:
        DataError, SourceChanged, StorageError: see `reading`.
    """

    def refused(reason: str, error: str) -> QuarantinedRow:
        return QuarantinedRow(shard.path, 0, None, reason, error)

    if shard.size_bytes > largest_bytes:
        error = f"a document of {shard.size_bytes} bytes; the largest that is read has {largest_bytes}"
        return refused("too_large", error)
    with reading(shard, "text"):
        data = storage.read(shard.path)
        if (error_text := _no_text(data[: looks.HEAD_BYTES])) is not None:
            return refused("invalid_utf8", error_text)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return refused("invalid_utf8", f"the file is no UTF-8 text: {error}")
