"""What the rooms hand to each other: shards, pieces, units, and the columns of a block.

Imported by everything, imports nothing of ours: no torch, no ray, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

# Columns that a block carries from stage to stage. Names with an underscore are ours; `source.keep` may not use them.
ID = "id"
EMBEDDING = "embedding"
EMBEDDING_MULTI = "embedding_multi"
TOKENS = "tokens"
CHUNK = "chunk"
START = "start"
END = "end"
HASH = "_hash"
SHARD = "_shard"
POSITION = "_position"
INPUT_IDS = "_input_ids"
CHUNKS = "_chunks"
PREFIX = "_prefix"
SUFFIX = "_suffix"
TASK = "_task"

RESERVED = frozenset({ID, EMBEDDING, EMBEDDING_MULTI, TOKENS, CHUNK, START, END})


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the fields of a delimited shard are written.

    Attributes:
        quote: The character around quoted fields, or "none".
        escape: How a quote is written inside of quotes: "double" twice, "backslash" behind a backslash (which without
            quotes stands before delimiters and line ends), "none" not at all.
    """

    quote: str
    escape: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One source object as it was listed.

    Attributes:
        path: Full URL or absolute local path.
        size_bytes: Its size.
        etag: What changes when its content does (`actors.storage.identity`): the store's tag, or the times and the inode of a
            local file; behind it the hash of its bytes where the job asks for that. Empty where the store gives none.
        written_s: When it was written, in seconds since the epoch by the store's clock; 0 where that is not known.
        dialect: How its fields are written, once that is decided; None before, and where the format has no dialects.
    """

    path: str
    size_bytes: int
    etag: str
    written_s: float = field(default=0.0, compare=False)
    dialect: Dialect | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A deterministic slice of one shard: positions `start <= p < stop`.

    What a position counts is the format's own: rows for Parquet; for JSON Lines and CSV the byte offset of the row's
    first byte, in the uncompressed text where the file is compressed, so that a reader goes straight to its piece (a
    compressed one must be unpacked up to there, but is not parsed); 0 for a file that is one document. Plain JSON
    Lines may be cut anywhere: a line belongs to the piece that its first byte is in. CSV and compressed files are cut
    at rows that a pass over the file has found.

    Attributes:
        rows: Exact where the format knows without reading, else an estimate, and `rows_exact` is False.
    """

    shard: Shard
    start: int
    stop: int
    rows: int
    rows_exact: bool = True


@dataclass(frozen=True, slots=True)
class Unit:
    """The atom of work, retry, checkpoint and output: one Ray Data block.

    Attributes:
        number: Its place in the plan, from 0.
        pieces: One for most formats; many small ones where a shard is a single document.
        carry: The pieces are not of the source but files of the table, whose rows move as they are: `shard.path` is
            relative to the table and `shard.etag` holds the partition values as JSON.
    """

    number: int
    pieces: tuple[Piece, ...]
    carry: bool = False

    @property
    def rows(self) -> int:
        """Planned rows (an estimate where a piece's is)."""
        return sum(piece.rows for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class QuarantinedRow:
    """A source row that was set aside.

    Attributes:
        position: Its position in the shard, in the format's own count.
        id: Its id where one could be read.
        reason: One of `REASONS`.
        error: What was wrong, for a person.
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
    "empty_text",  # nothing but white space and characters that show nothing
    "missing_text",  # no text column in a row of a schemaless format
    "too_large",  # one value or line is larger than any text can usefully be (256 MiB)
    "wrong_type",  # a value that is not text where text is needed, or that the column's type cannot hold
    "missing_id",  # an id column is named and this row has none
    "duplicate_id",  # the id was seen before in this corpus
    "unknown_task",  # `task_column` names a task that the model does not have
    "encode_failed",  # the model raised on this row alone
    "killed_process",  # the row ends its process
    "changed_by_other_tool",  # another tool removed or replaced the row in the table, and a refresh was told to keep that
    "timed_out",  # the row took longer than `run.row_timeout_s`
)

# The row itself is sound: it may go well with another library, machine or memory. All others change with the source.
RETRIED = ("encode_failed", "killed_process", "timed_out")

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
