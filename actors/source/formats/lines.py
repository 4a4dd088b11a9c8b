"""Files of lines: the bytes of a piece, as whole lines, from plain and compressed objects.

Used by JSON Lines and CSV. A line belongs to the piece that its first byte is in, so pieces may be cut anywhere and
still hold every line exactly once. Memory is bounded by one read of a few MB and the longest line. The trade-off: a
compressed object has no way in but its beginning, so a piece of it is unpacked from there; one huge compressed file
costs time in the square of its size, and many small ones do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa

from actors import storage
from actors.progress_counter import count_progress
from actors.schema import Piece, QuarantinedRow, Shard
from actors.source.formats.base import LARGEST_VALUE_BYTES
from actors.source.formats.looks import CODECS

CHUNK_BYTES = 4 << 20
TAIL_BYTES = 256 << 10
END = 1 << 62
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Block:
    """Some whole lines in a row.

    Attributes:
        start: Offset of the first byte.
        data: Each line with its newline, which the last one of a file may lack. None for one line of `size_bytes`
            that is too long to be held.
    """

    start: int
    data: bytes | None
    size_bytes: int

    def split(self) -> tuple[list[int], list[bytes]]:
        """Where each line starts, with the end of the last behind them, and the lines without their newlines."""
        lines = (self.data or b"").split(b"\n")
        if not lines[-1]:
            lines.pop()
        starts = [*accumulate((len(line) + 1 for line in lines), initial=self.start)]
        starts[-1] = self.start + self.size_bytes
        if self.start == 0 and lines:
            lines[0] = lines[0].removeprefix(BOM)
        return starts, lines


def compression(path: str) -> str | None:
    """The codec of a file, by its name's ending."""
    return next((codec for ending, codec in CODECS.items() if path.lower().endswith(ending)), None)


def without_compression(path: str) -> str:
    """A path in lower case, without the ending that names a codec."""
    path = path.lower()
    return next((path.removesuffix(ending) for ending in CODECS if path.endswith(ending)), path)


def delimiter_of(path: str) -> str:
    """What stands between the fields of a delimited file, by its name: a tab in TSV, else a comma."""
    return "\t" if without_compression(path).endswith((".tsv", ".tab")) else ","


def open_lines(shard: Shard) -> pa.NativeFile:
    """The uncompressed text of a shard."""
    file = storage.open_arrow(shard.path)
    codec = compression(shard.path)
    if codec is None:
        return file
    # Arrow asks for 64 KiB at a time, which would be one request each.
    return pa.CompressedInputStream(pa.BufferedInputStream(file, CHUNK_BYTES), codec)


def _skip(file: pa.NativeFile, count: int) -> None:
    if file.seekable():
        file.seek(count)
        return
    while count > 0:
        got = len(_next(file, min(count, CHUNK_BYTES)))
        if not got:
            return
        count -= got


def blocks(shard: Shard, start: int, stop: int, *, longest: int = LARGEST_VALUE_BYTES) -> Iterator[Block]:
    """The lines whose first byte is in `start <= p < stop`, in order."""
    with open_lines(shard) as file:
        yield from _blocks(file, start, stop, longest)


def _blocks(file: pa.NativeFile, start: int, stop: int, longest: int) -> Iterator[Block]:
    data, position = b"", 0
    if start > 0:
        # A line starts behind a newline, so the byte before the piece tells whether one starts right at its head.
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

    # From here on `position` is where the next line starts, `held` its beginning, and `data` follows that.
    held: list[bytes] = []
    held_bytes = 0
    while position < stop:
        if not data:
            data = _next(file, _request(stop, position + held_bytes))
            if not data:
                if held_bytes:
                    yield _line(position, held, held_bytes, longest)
                return
        # Up to the end of the last line that starts in this piece, else to the last line that is whole.
        end = data.find(b"\n") if held_bytes else data.find(b"\n", max(0, stop - 1 - position))
        if end < 0 and not held_bytes:
            end = data.rfind(b"\n")
        if end < 0:
            held_bytes += len(data)
            held = [*held, data] if held_bytes <= longest else []
            data = b""
            continue
        part, data = data[: end + 1], data[end + 1 :]
        size = held_bytes + len(part)
        if held_bytes:
            yield _line(position, [*held, part], size, longest)
        else:
            yield Block(position, part, size)
        position += size
        held, held_bytes = [], 0


def _next(file: pa.NativeFile, size: int) -> bytes:
    """The next bytes. A piece of a compressed file is reached through all that stands before it, and a row may be long."""
    data: bytes = file.read(size)
    count_progress()
    return data


def _request(stop: int, here: int) -> int:
    """How much to read at once: no more than the piece, but for the end of a line that reaches out of it. Where the
    piece has no end, as when a head is looked at, the first reads are small."""
    left = stop - here if stop < END else here
    return min(CHUNK_BYTES, max(left, TAIL_BYTES))


def _line(start: int, parts: list[bytes], size: int, longest: int) -> Block:
    return Block(start, b"".join(parts) if size <= longest else None, size)


def too_large(shard: Shard, start: int, size: int) -> QuarantinedRow:
    """The record of a line that was not held."""
    error = f"a row of {size} bytes; the largest that is read has {LARGEST_VALUE_BYTES}"
    return QuarantinedRow(shard.path, start, None, "too_large", error)


def cut(shard: Shard, spans: Iterable[tuple[int, int]], rows: int) -> list[Piece]:
    """Pieces of `rows` rows each, from where each row starts and ends."""
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
