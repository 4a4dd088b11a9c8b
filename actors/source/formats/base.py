"""What a format is, and what all of them share: the columns that are asked for, and the check that a shard is still
the one that was planned.

Used by the formats and by the reader. The trade-off: a format yields the source's own columns, loosely typed; text,
ids and hashes are the reader's business, so that a new format is one small file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from actors import storage
from actors.errors import DataError, SourceChanged, StorageError, VectideError
from actors.schema import Piece, QuarantinedRow, Shard
from actors.source.formats import looks
from actors.storage import content_tags, identity

BATCH_ROWS = 8192
BATCH_BYTES = 8 << 20
# The type that `Format.columns` gives a name that a shard has more than once: no column has it.
REPEATED = pa.sparse_union([pa.field("repeated", pa.null())])
# A value beyond this is set aside unread: no model takes a text of this size, and holding it could end the process.
LARGEST_VALUE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """The columns that a read asks for.

    Attributes:
        types: Every column by name, with the type that its values must fit where the format has no types of its own.
        text: Those that are embedded: in a format without a schema a value must be text, and one of them be there.
        id: The id column: text or a whole number.
        task: The column of task names: text or null.
    """

    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    text: tuple[str, ...] = ()
    id: str | None = None
    task: str | None = None

    @property
    def strict(self) -> frozenset[str]:
        """Names of the columns where nothing but text or null is right."""
        return frozenset(self.text) | ({self.task} if self.task else frozenset())

    @property
    def needed(self) -> frozenset[str]:
        """Names of the columns that a shard must have; others are null where it lacks them."""
        return self.strict | ({self.id} if self.id else frozenset())

    def present(self, shard: Shard, names: Sequence[str]) -> list[str]:
        """The wanted columns among `names`, in the order asked for.

        Raises:
            DataError: the shard lacks a column that it must have, or has it twice.
        """
        if missing := sorted(self.needed - set(names)):
            raise DataError(
                f"{shard.path!r} has no column {missing[0]!r}, which this job needs; it has {list(names)}. Leave the "
                f"file out of the source or add the column"
            )
        if twice := sorted(name for name in self.types if names.count(name) > 1):
            raise DataError(f"{shard.path!r} has two columns named {twice[0]!r}. Rename one of them")
        return [name for name in self.types if name in names]


def columns_of(names: Sequence[str], kinds: Sequence[pa.DataType]) -> dict[str, pa.DataType]:
    """What `Format.columns` gives for these names, of these types."""
    return {name: REPEATED if names.count(name) > 1 else kind for name, kind in zip(names, kinds, strict=True)}


class Format(Protocol):
    """One kind of file. Instances hold no state: threads share them, and workers make their own."""

    name: str
    whole_file: bool
    """One document per file."""
    schemaless: bool
    """Rows may have any columns, so a column that the head of a file lacks may still come."""

    def columns(self, shard: Shard) -> dict[str, pa.DataType]:
        """Names and types of the columns: `null` where only nulls were seen, `REPEATED` for a name that occurs twice."""

    def pieces(self, shard: Shard, rows: int) -> list[Piece]:
        """Slices of about `rows` rows, in order, that cover the shard exactly once; always the same ones."""

    def head(self, shard: Shard, rows: int) -> Piece:
        """A piece that holds at least the first `rows` rows, where there are as many; found without a pass."""

    def read(self, piece: Piece, wanted: Wanted) -> Iterator[pa.Table | QuarantinedRow]:
        """The rows of a piece: tables of some of the wanted columns and `_position`, and the rows set aside.

        Raises:
            DataError: the shard cannot be read as this format, or lacks a column that it must have.
            SourceChanged: it is not the one that was planned.
        """


# --------------------------------------------------------------------------------------------------- the planned shard


def verify(shard: Shard) -> None:
    """Raise SourceChanged unless the object is the one that was listed, by size and tag; or else, where its bytes were
    hashed, by those."""
    try:
        now = storage.stat(shard.path)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceChanged(
            f"{shard.path!r} is gone: it was there with {shard.size_bytes} bytes when the run was planned. Put it back, "
            f"or run the same command again to plan anew"
        ) from None
    same = now.size_bytes == shard.size_bytes
    if not same or not identity.still_fits(shard.etag, now.etag):
        sha256 = identity.hash_of(shard.etag)
        if same and sha256 and content_tags.has_hash(now, sha256):
            return
        raise SourceChanged(
            f"{shard.path!r} changed since the run was planned: it had {shard.size_bytes} bytes and etag "
            f"{shard.etag!r}, now it has {now.size_bytes} bytes and etag {now.etag!r}. Run the same command again to "
            f"plan anew"
        )


def refused(shard: Shard, holds: str, fix: str, *, what: str | None = None) -> DataError:
    """The error for a shard that is not of its format.

    Args:
        shard: The shard.
        holds: What it holds instead, as a noun phrase.
        fix: What to do about it, without a full stop.
        what: The format that it was read as, where its first bytes were not enough to tell.
    """
    cannot = f" cannot be read as {what}: it" if what else ""
    return DataError(f"{shard.path!r}{cannot} holds {holds}. {fix}, or leave it out of the source")


@contextmanager
def reading(shard: Shard, what: str) -> Iterator[None]:
    """Around every read of a shard: errors become ours, and one that comes of a change says so.

    The check comes after the read: what was read is then known to be what was planned, with one request instead of
    two. Rows handed out before it are worth nothing if it raises, so nobody may keep them.
    """
    try:
        yield
    except (VectideError, pa.ArrowException, OSError, UnicodeError) as error:
        verify(shard)
        if isinstance(error, VectideError):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(f"cannot read {shard.path!r}: {error}") from error
        head = storage.read(shard.path, 0, looks.HEAD_BYTES)
        # A Parquet file that was cut off, or is damaged, begins as it should.
        found = None if (what, head[:4]) == ("Parquet", b"PAR1") else looks.not_as_named(shard.path, head)
        if found is not None:
            raise refused(shard, *found, what=what) from error
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(
            f"{shard.path!r} cannot be read as {what}: {reason}. Replace the file or leave it out of the source"
        ) from error
    verify(shard)
