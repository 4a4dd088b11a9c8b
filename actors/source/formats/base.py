"""Interface of a format, the columns that a read requests, and the check that a shard is unchanged since planning.

Used by the formats and by the reader. The trade-off: a format yields the source's own columns, loosely typed. The reader
makes texts, ids and hashes from them, so that a new format is one small file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from actors import looks, storage
from actors.errors import DataError, SourceChanged, StorageError, VectideError
from actors.schema import Piece, QuarantinedRow, Shard
from actors.storage import content_tags, identity

if TYPE_CHECKING:
    from actors.source.pictures import Pictures

BATCH_ROWS = 8192
BATCH_BYTES = 8 << 20
# The type in `Format.columns` of a name that a shard has more than once. No column has this type.
REPEATED = pa.sparse_union([pa.field("repeated", pa.null())])
# Larger values are quarantined unread: no model accepts such a text, and it could exhaust the memory.
LARGEST_VALUE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """Columns that a read requests.

    Attributes:
        types: Every column by name, with the type of its values if the format has no types of its own.
        text: The embedded columns. In a schemaless format values must be text, and a row must have one of them.
        id: The id column: text or a whole number.
        task: The column of task names: text or null.
        pictures: Settings of a source with pictures; None for texts.
        texts: Further columns whose values must be text or null.
    """

    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    text: tuple[str, ...] = ()
    id: str | None = None
    task: str | None = None
    pictures: Pictures | None = None
    texts: tuple[str, ...] = ()

    @property
    def image(self) -> str | None:
        """The column of pictures. If there is one, a row may have none of the columns in `text`."""
        return None if self.pictures is None else self.pictures.column

    @property
    def strict(self) -> frozenset[str]:
        """Names of the columns that allow only text and null."""
        return frozenset((*self.text, *self.texts)) | ({self.task} if self.task else frozenset())

    @property
    def needed(self) -> frozenset[str]:
        """Names of the columns that a shard must have; other missing columns are null."""
        content = self.text if self.image is None else (self.image,)
        return frozenset(filter(None, (*content, self.id, self.task)))

    def present(self, shard: Shard, names: Sequence[str]) -> list[str]:
        """Return the wanted columns among `names`, in the order of `types`.

        Raises:
            DataError: The shard lacks a column that it must have, or has it twice.
        """
        if missing := sorted(self.needed - set(names)):
            raise DataError(
                f"{shard.path!r} has no column {missing[0]!r}, which this job needs; it has {list(names)}. Leave the "
                f"file out of the source or add the column"
            )
        if repeated := sorted(name for name in self.types if names.count(name) > 1):
            raise DataError(f"{shard.path!r} has two columns named {repeated[0]!r}. Rename one of them")
        return [name for name in self.types if name in names]


def columns_of(names: Sequence[str], kinds: Sequence[pa.DataType]) -> dict[str, pa.DataType]:
    """Return the result of `Format.columns` for these names and types."""
    return {name: REPEATED if names.count(name) > 1 else kind for name, kind in zip(names, kinds, strict=True)}


class Format(Protocol):
    """Format of source files. Instances have no state: threads share them, and each worker creates its own."""

    name: str
    whole_file: bool
    """One document per file."""
    schemaless: bool
    """Rows may have any columns, so a column missing in the head of a file may occur later."""

    def columns(self, shard: Shard) -> dict[str, pa.DataType]:
        """Return names and types of the columns: `null` if only nulls were seen, `REPEATED` for a repeated name."""

    def pieces(self, shard: Shard, rows: int) -> list[Piece]:
        """Return slices of about `rows` rows, in order, that cover the shard exactly once. Deterministic."""

    def head(self, shard: Shard, rows: int) -> Piece:
        """Return a piece with at least the first `rows` rows, or all if there are fewer, without a pass over the file."""

    def read(self, piece: Piece, wanted: Wanted) -> Iterator[pa.Table | QuarantinedRow]:
        """Yield the rows of a piece: tables of some of the wanted columns and `_position`, and quarantined rows.

        Raises:
            DataError: The shard cannot be read as this format, or lacks a column that it must have.
            SourceChanged: The shard changed since the run was planned.
        """


# --------------------------------------------------------------------------------------------------- the planned shard


def verify(shard: Shard) -> None:
    """Raise SourceChanged unless the object has the planned size and tag, or the planned hash of its bytes."""
    try:
        now = storage.stat(shard.path)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceChanged(
            f"{shard.path!r} is gone: it had {shard.size_bytes} bytes when the run was planned. Restore it, "
            f"or run the same command again to plan anew"
        ) from None
    same_size = now.size_bytes == shard.size_bytes
    if not same_size or not identity.still_fits(shard.etag, now.etag):
        sha256 = identity.hash_of(shard.etag)
        if same_size and sha256 and content_tags.has_hash(now, sha256):
            return
        raise SourceChanged(
            f"{shard.path!r} changed since the run was planned: it had {shard.size_bytes} bytes and etag "
            f"{shard.etag!r}, now it has {now.size_bytes} bytes and etag {now.etag!r}. Run the same command again to "
            f"plan anew"
        )


def refused(shard: Shard, holds: str, fix: str, *, what: str | None = None) -> DataError:
    """Return the error for a shard that is not of its format.

    Args:
        shard: The shard.
        holds: The actual content, as a noun phrase.
        fix: The fix, as an imperative without a full stop.
        what: The format as which it was read, if its first bytes were not enough to detect the content.
    """
    cannot = f" cannot be read as {what}: it" if what else ""
    return DataError(f"{shard.path!r}{cannot} holds {holds}. {fix}, or leave it out of the source")


@contextmanager
def reading(shard: Shard, what: str) -> Iterator[None]:
    """Wrap every read of a shard: convert errors to this package's, and check afterwards that the shard is unchanged.

    The check after the read needs one request; checks before and after would need two. If it raises, the caller must
    discard the rows that it already has.
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
        # A truncated or damaged Parquet file still has the right first bytes.
        mismatch = None if (what, head[:4]) == ("Parquet", b"PAR1") else looks.not_as_named(shard.path, head)
        if mismatch is not None:
            raise refused(shard, *mismatch, what=what) from error
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(
            f"{shard.path!r} cannot be read as {what}: {reason}. Replace the file or leave it out of the source"
        ) from error
    verify(shard)
