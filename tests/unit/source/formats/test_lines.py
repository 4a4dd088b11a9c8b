from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import storage
from actors.schema import Piece, Shard
from actors.source.formats import lines
from actors.source.formats.lines import END, blocks

CONTENT = st.lists(
    st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\n\n", b" ", b"\xef\xbb\xbf", b"\xff", b"x" * 40])
).map(b"".join)


def whole(data: bytes) -> list[tuple[int, bytes]]:
    """The lines of a file by the plainest means: where each starts, and its bytes without the newline."""
    found, start = [], 0
    for line in data.split(b"\n"):
        found.append((start, line))
        start += len(line) + 1
    if not found[-1][1]:
        found.pop()
    if found:
        found[0] = (0, found[0][1].removeprefix(lines.BOM))
    return found


def read(shard, start, stop, **options):
    found: list[tuple[int, bytes]] = []
    for block in blocks(shard, start, stop, **options):
        starts, held = block.split()
        assert starts[0] == block.start
        assert starts[-1] == block.start + block.size_bytes
        found += zip(starts, held, strict=False)
    return found


@given(data=CONTENT, cuts=st.sets(st.integers(1, 400)), chunk=st.integers(1, 60), tail=st.integers(1, 20))
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_any_cut_gives_every_line_to_exactly_one_piece(put_in_memory, *, name, data, cuts, chunk, tail):
    shard = put_in_memory(name, data)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(data)), max(1, len(data))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", chunk)
        patch.setattr(lines, "TAIL_BYTES", tail)
        pieces = [read(shard, start, stop) for start, stop in itertools.pairwise(bounds)]
    for (start, stop), found in zip(itertools.pairwise(bounds), pieces, strict=True):
        assert all(start <= at < stop for at, _ in found)
    assert [line for found in pieces for line in found] == whole(data)


def test_every_cut_of_a_small_file(put):
    data = b'\xef\xbb\xbf{"a":1}\r\n\n{"a":2}\n' + b"x" * 30 + b"\nlast"
    shard = put("a.jsonl", data)
    for first in range(1, len(data)):
        for second in range(first + 1, len(data)):
            found = read(shard, 0, first) + read(shard, first, second) + read(shard, second, len(data))
            assert found == whole(data)


def test_a_line_of_tens_of_megabytes_belongs_to_the_piece_it_starts_in(put):
    long = b"y" * (30 << 20)
    shard = put("a.jsonl", b"first\n" + long + b"\nlast")
    cuts = [0, 7, 1 << 20, 12 << 20, shard.size_bytes]
    found = [read(shard, start, stop) for start, stop in itertools.pairwise(cuts)]
    assert [len(each) for each in found] == [2, 0, 0, 1]
    assert found[0][1] == (6, long)
    assert found[3] == [(6 + len(long) + 1, b"last")]


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_an_oversized_line_is_skipped_and_reading_continues(put, monkeypatch, chunk):
    monkeypatch.setattr(lines, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(lines, "TAIL_BYTES", 1)
    shard = put("a.jsonl", b"ab\n" + b"z" * 100 + b"\ncd\n" + b"z" * 99)
    found = [block for block in blocks(shard, 0, END, longest=20) if block.data is None]
    assert [(block.start, block.size_bytes) for block in found] == [(3, 101), (107, 99)]
    kept = [line for block in blocks(shard, 0, END, longest=20) for line in block.split()[1] if line]
    assert kept == [b"ab", b"cd"]


def test_a_head_reads_few_bytes_of_a_store(put_in_memory, asked):
    shard = put_in_memory("a.jsonl", b"line\n" * 1_000_000)
    next(iter(blocks(shard, 0, END)))
    assert asked == [(0, lines.TAIL_BYTES)]


def test_a_piece_of_a_plain_file_reads_no_more_than_its_bytes_and_a_line(put_in_memory, asked):
    shard = put_in_memory("a.jsonl", b"line\n" * 1_000_000)
    found = read(shard, 3_000_000, 3_400_000)
    assert len(found) == 80_000
    assert min(start for start, _ in asked) == 2_999_999
    assert max(stop for _, stop in asked) <= 3_400_000 + lines.TAIL_BYTES


@given(sizes=st.lists(st.integers(1, 5)), rows=st.integers(1, 7))
def test_cut_covers_every_row_once(put, sizes, rows):
    shard = Shard("a", sum(sizes), "")
    spans, at = [], 10
    for size in sizes:
        spans.append((at, at + size))
        at += size
    pieces = lines.cut(shard, iter(spans), rows)
    assert [piece.rows for piece in pieces] == [min(rows, len(sizes) - i) for i in range(0, len(sizes), rows)]
    for piece, first in zip(pieces, range(0, len(sizes), rows), strict=True):
        assert piece == Piece(shard, spans[first][0], spans[min(first + rows, len(spans)) - 1][1], piece.rows)


@pytest.mark.parametrize("path", ["a.csv.gz", "A.CSV.GZ", "a.csv.zst", "a.csv.zstd", "a.csv"])
def test_the_ending_names_the_codec(path):
    assert lines.without_compression(path) == "a.csv"
    assert lines.compression(path) == {"gz": "gzip", "v": None}.get(path.lower()[-2:].strip("s"), "zstd")


def test_joined_gzip_members_are_one_file(put):
    import gzip

    shard = put("a.jsonl", gzip.compress(b"one\ntw") + gzip.compress(b"o\n"))
    with pa.CompressedInputStream(storage.open_arrow(shard.path), "gzip") as file:
        assert file.read() == b"one\ntwo\n"
