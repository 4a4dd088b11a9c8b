"""Data types that all packages share: shards, pieces, units, quarantined rows, and the column names of a block.

Every module may import it. It imports nothing of this project, no torch and no ray, and does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

# Columns of a block between stages. Names with an underscore are internal; `source.keep` may not use them.
ID = "id"
EMBEDDING = "embedding"
EMBEDDING_MULTI = "embedding_multi"
GRID_H = "grid_h"  # rows and columns of the grid that a picture with many vectors was cut into
GRID_W = "grid_w"
KEPT_TEXT = "text"  # the embedded text, if `table.keep_text` is on
NOTES = "_notes"  # of pictures, until their unit is read
PAGE = "page"  # the number of a page in its PDF, from 1
TOKENS = "tokens"
CHUNK = "chunk"
START = "start"
END = "end"
HASH = "_hash"
SHARD = "_shard"
POSITION = "_position"
CONTENT = "_content"
COST = "_cost"
PARTS = "_parts"
INPUT_IDS = "_input_ids"
PREFIX = "_prefix"
SUFFIX = "_suffix"
TASK = "_task"
PICTURE = "_picture"

RESERVED = frozenset({ID, EMBEDDING, EMBEDDING_MULTI, TOKENS, CHUNK, START, END})


@dataclass(frozen=True, slots=True)
class Dialect:
    """Quoting and escaping of the fields of a delimited shard.

    Attributes:
        quote: The character around quoted fields, or "none".
        escape: How a quote is written inside quotes: "double" (twice), "backslash" (after a backslash, which in files
            without quotes escapes delimiters and line ends), or "none" (not possible).
    """

    quote: str
    escape: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One source object from a listing.

    Attributes:
        path: Full URL or absolute local path.
        size_bytes: Its size.
        etag: A text that changes with the content (`actors.storage.identity`): the store's tag, or times and inode of a
            local file, followed by the hash of its bytes if the job asks for it. Empty if the store gives no tag.
        written_s: Time of the last write, in seconds since the epoch by the store's clock; 0 if unknown.
        dialect: Quoting and escaping of its fields; None before it is detected, and for formats without dialects.
    """

    path: str
    size_bytes: int
    etag: str
    written_s: float = field(default=0.0, compare=False)
    dialect: Dialect | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Deterministic slice of one shard: positions `start <= p < stop`.

    The unit of a position depends on the format. Parquet: rows. JSON Lines and CSV: the byte offset of the first byte
    of the row, in the uncompressed text if the file is compressed, so that a reader can seek to its piece (a compressed
    file must be decompressed up to there, but is not parsed). A file that is one document: 0. Uncompressed JSON Lines
    may be cut at any byte: a line belongs to the piece that contains its first byte. CSV and compressed files are cut
    at row starts, which a pass over the file finds.

    Attributes:
        rows: Exact if the format knows it without reading; otherwise an estimate, and `rows_exact` is False.
    """

    shard: Shard
    start: int
    stop: int
    rows: int
    rows_exact: bool = True


@dataclass(frozen=True, slots=True)
class Unit:
    """Smallest unit of work, retry, checkpoint and output: one Ray Data block.

    Attributes:
        number: Its index in the plan, from 0.
        pieces: One for most formats; many if each shard is a single document.
    """

    number: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Planned rows: an estimate if that of a piece is one."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def rows_exact(self) -> bool:
        """True if `rows` is no estimate."""
        return all(piece.rows_exact for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class RewrittenFile:
    """One table file of a rewrite unit.

    Attributes:
        path: Relative to the table's folder.
        partition: Partition column to value, in Delta Lake's text form; None is null.
        rows: Number of rows to copy.
    """

    path: str
    partition: dict[str, str | None]
    rows: int


@dataclass(frozen=True, slots=True)
class RewriteUnit:
    """Unit that copies rows of table files unchanged. It reads nothing from the source."""

    number: int
    files: tuple[RewrittenFile, ...]

    @property
    def rows(self) -> int:
        """Number of rows to copy."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True, slots=True)
class QuarantinedRow:
    """A source row that was quarantined.

    Attributes:
        position: Its position in the shard, in the unit of the format (see `Piece`).
        id: Its id, if one could be read.
        reason: One of `REASONS`.
        error: Description of the problem.
    """

    shard: str
    position: int
    id: str | None
    reason: str
    error: str


REASONS = (
    "broken_line",  # a line that is not valid JSON or CSV
    "invalid_utf8",  # bytes that are not UTF-8
    "null_text",  # every text column is null
    "empty_text",  # only white space and invisible characters
    "missing_text",  # no text column in a row of a schemaless format
    "too_large",  # a value or line is larger than the limit (256 MiB)
    "generated_code",  # a file of source code that a program wrote, as it says or as its long lines show
    "wrong_type",  # a value that is not text in a text column, or that does not fit the column's type
    "missing_id",  # the job names an id column and this row has no id
    "duplicate_id",  # another row of the corpus has the same id
    "unknown_task",  # `task_column` names a task that the model does not have
    "bad_picture",  # a picture that is damaged, or of a format that is not read
    "bad_shape",  # a picture or page without an area, or with one side over 200 times the other
    "too_many_pixels",  # a picture of more pixels than are decoded, or than memory holds
    "bad_pdf",  # a PDF that cannot be opened, or that has no pages
    "encrypted",  # a PDF that needs a password
    "bad_page",  # a page of a PDF that cannot be loaded
    "fetch_failed",  # a URL or file that gave no picture, or that may not be read
    "encode_failed",  # the model raised on this row alone
    "killed_process",  # the process died while encoding the row
    "changed_by_other_tool",  # another tool removed or replaced the row in the table, and the refresh keeps that
    "timed_out",  # the row took longer than `run.row_timeout_s`
)

# Reasons that are not in the row: it may succeed with another library, machine or memory. For all other reasons the
# source has to change first.
RETRIED = ("encode_failed", "fetch_failed", "killed_process", "timed_out")

QUARANTINE_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("position", pa.int64()),
        ("id", pa.string()),
        ("reason", pa.string()),
        ("error", pa.string()),
        ("unit", pa.int64()),
    ]
)
