"""Reads the bytes of a piece as whole lines, from plain and compressed files.

Used by JSON Lines and CSV. A line belongs to the piece that contains its first byte, so pieces may be cut anywhere and
still contain every line exactly once. Memory is bounded by one read of a few MB and the longest line. The trade-off: each
piece of a compressed file is decompressed from the start of the file, so the time of one huge compressed file grows with
the square of its size; many small files avoid this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa

from actors import storage
from actors.looks import CODECS
from actors.progress_counter import count_progress
from actors.schema import Piece, QuarantinedRow, Shard
from actors.source.formats.base import LARGEST_VALUE_BYTES

CHUNK_BYTES = 4 << 20
TAIL_BYTES = 256 << 10
END = 1 << 62
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive whole lines.

    Attributes:
        start: Offset of the first byte.
        data: Each line with its newline, which the last one of a file may lack. None for one line of `size_bytes`
            that is too long to be kept in memory.
    """

    start: int
    data: bytes | None
    size_bytes: int

    def split(self) -> tuple[list[int], list[bytes]]:
        """Return the start of each line followed by the end of the last, and the lines without their newlines."""
        lines = (self.data or b"").split(b"\n")
        if not lines[-1]:
            lines.pop()
        starts = [*accumulate((len(line) + 1 for line in lines), initial=self.start)]
        starts[-1] = self.start + self.size_bytes
        if self.start == 0 and lines:
            lines[0] = lines[0].removeprefix(BOM)
        return starts, lines


def compression(path: str) -> str | None:
    """Return the codec of a file by the ending of its name, or None."""
    return next((codec for ending, codec in CODECS.items() if path.lower().endswith(ending)), None)


def without_compression(path: str) -> str:
    """Return a path in lower case, without the ending of a codec."""
    path = path.lower()
    return next((path.removesuffix(ending) for ending in CODECS if path.endswith(ending)), path)


def delimiter_of(path: str) -> str:
    """Return the delimiter of a file by its name: a tab for TSV, else a comma."""
    return "\t" if without_compression(path).endswith((".tsv", ".tab")) else ","


def open_lines(shard: Shard) -> pa.NativeFile:
    """Open the uncompressed text of a shard."""
    file = storage.open_arrow(shard.path)
    codec = compression(shard.path)
    if codec is None:
        return file
    # Arrow reads 64 KiB at a time, which would be one request each.
    return pa.CompressedInputStream(pa.BufferedInputStream(file, CHUNK_BYTES), codec)


def _skip(file: pa.NativeFile, count: int) -> None:
    if file.seekable():
        file.seek(count)
        return
    while count > 0:
        skipped = len(_next(file, min(count, CHUNK_BYTES)))
        if not skipped:
            return
        count -= skipped


def blocks(shard: Shard, start: int, stop: int, *, longest: int = LARGEST_VALUE_BYTES) -> Iterator[Block]:
    """Yield the lines whose first byte is in `start <= p < stop`, in order."""
    with open_lines(shard) as file:
        yield from _blocks(file, start, stop, longest)


def _blocks(file: pa.NativeFile, start: int, stop: int, longest: int) -> Iterator[Block]:
    data, position = b"", 0
    if start > 0:
        # A line starts after a newline, so the byte before the piece shows whether a line starts at its first byte.
        position = start - 1
        _skip(file, position)
        while True:
            if position >= stop - 1:
                return
            data = _next(file, _request(stop, position))
            if not data:
                return
            newline = data.find(b"\n")
            if newline >= 0:
                break
            position += len(data)
        position += newline + 1
        data = data[newline + 1 :]

    # From here on, the next line starts at `position`, begins with `partial` and continues in `data`.
    partial: list[bytes] = []
    partial_bytes = 0
    while position < stop:
        if not data:
            data = _next(file, _request(stop, position + partial_bytes))
            if not data:
                if partial_bytes:
                    yield _line(position, partial, partial_bytes, longest)
                return
        # Up to the end of the last line that starts in this piece, else of the last whole line.
        end = data.find(b"\n") if partial_bytes else data.find(b"\n", max(0, stop - 1 - position))
        if end < 0 and not partial_bytes:
            end = data.rfind(b"\n")
        if end < 0:
            partial_bytes += len(data)
            partial = [*partial, data] if partial_bytes <= longest else []
            data = b""
            continue
        part, data = data[: end + 1], data[end + 1 :]
        size = partial_bytes + len(part)
        if partial_bytes:
            yield _line(position, [*partial, part], size, longest)
        else:
            yield Block(position, part, size)
        position += size
        partial, partial_bytes = [], 0


def _next(file: pa.NativeFile, size: int) -> bytes:
    """Read the next bytes and count progress: skipping to a piece of a compressed file, or a long row, takes a while."""
    data: bytes = file.read(size)
    count_progress()
    return data


def _request(stop: int, position: int) -> int:
    """Return the size of the next read: at most the rest of the piece, or `TAIL_BYTES` for its last line.

    If the piece has no end, as for a head, the first reads are small.
    """
    rest = stop - position if stop < END else position
    return min(CHUNK_BYTES, max(rest, TAIL_BYTES))


def _line(start: int, parts: list[bytes], size: int, longest: int) -> Block:
    return Block(start, b"".join(parts) if size <= longest else None, size)


def too_large(shard: Shard, start: int, size: int) -> QuarantinedRow:
    """Return the quarantined row of a line that is too long."""
    error = f"a row of {size} bytes; the largest that is read has {LARGEST_VALUE_BYTES}"
    return QuarantinedRow(shard.path, start, None, "too_large", error)


def cut(shard: Shard, spans: Iterable[tuple[int, int]], rows: int) -> list[Piece]:
    """Return pieces of `rows` rows each, from the start and end of each row."""
    pieces: list[Piece] = []
    count, begin, last = 0, 0, 0
    for start, end in spans:
        if count == rows:
            pieces.append(Piece(shard, begin, last, count))
            count = 0
        if count == 0:
            begin = start
        count += 1
        last = end
    if count:
        pieces.append(Piece(shard, begin, last, count))
    return pieces
