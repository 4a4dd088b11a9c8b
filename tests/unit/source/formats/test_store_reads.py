"""Reads of a store, through storage's own ranged file: retried, never further than asked, and with our errors."""

from __future__ import annotations

import io
import time

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors import storage
from actors.errors import SourceChanged, StorageError
from actors.schema import Piece
from actors.source.formats import FORMATS, Wanted
from actors.storage.ranged_file import RangedFile

TEXT = Wanted({"text": pa.string()}, ("text",))


def failing_reads(monkeypatch, failures):
    """Lets `fs.cat_file` of the store in memory fail with each of `failures` in turn, then work."""
    cls = fsspec.get_filesystem_class("memory")
    real = cls.cat_file
    left = list(failures)

    def cat_file(self, path, start=None, end=None, **kwargs):
        if left:
            raise left.pop(0)
        return real(self, path, start=start, end=end, **kwargs)

    monkeypatch.setattr(cls, "cat_file", cat_file)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return left


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"]}), out)
    return out.getvalue()


CASES = [
    ("parquet", "a.parquet", parquet()),
    ("jsonl", "a.jsonl", b'{"text": "a"}\n{"text": "b"}\n'),
    ("jsonl", "a.jsonl.gz", b'{"text": "a"}\n{"text": "b"}\n'),
    ("csv", "a.csv", b"text\na\nb\n"),
]


@pytest.mark.parametrize(("name", "file", "data"), CASES)
def test_reads_are_retried_while_a_store_is_unreachable(put_in_memory, monkeypatch, read_pieces, *, name, file, data):
    shard = put_in_memory(file, data)
    pieces = FORMATS[name].pieces(shard, 10)
    left = failing_reads(monkeypatch, [ConnectionResetError("gone"), TimeoutError("late")])
    good, _ = read_pieces(name, pieces, TEXT)
    assert [row["text"] for row in good] == ["a", "b"]
    assert not left


@pytest.mark.parametrize(("name", "file", "data"), [*CASES, ("text", "a.txt", b"text")])
def test_a_store_that_refuses_is_a_storage_error_through_arrow_too(put_in_memory, monkeypatch, name, file, data):
    shard = put_in_memory(file, data)
    pieces = FORMATS[name].pieces(shard, 10)
    failing_reads(monkeypatch, [PermissionError(13, "no")] * 3)
    with pytest.raises(StorageError, match=r"cannot read 'memory:.*access denied"):
        list(FORMATS[name].read(pieces[0], TEXT))


def test_an_object_that_shrank_is_a_change(put_in_memory):
    shard = put_in_memory("a.jsonl", b'{"text": "a"}\n' * 10)
    fsspec.filesystem("memory").pipe_file(shard.path.removeprefix("memory://"), b'{"text": "a"}\n')
    with pytest.raises(SourceChanged, match=r"had 140 bytes.*now it has 14 bytes"):
        list(FORMATS["jsonl"].read(Piece(shard, 0, 140, 10), TEXT))


def test_the_ranged_file_reads_like_a_file(put_in_memory):
    shard = put_in_memory("a.txt", bytes(range(100)))
    with storage.open_arrow(shard.path) as file:
        assert file.size() == 100
        assert file.read(3) == b"\0\1\2"
        assert file.tell() == 3
        file.seek(-2, 2)
        assert file.read() == b"bc"
        assert file.read(5) == b""
        file.seek(10)
        assert file.read() == bytes(range(10, 100))
    ranges = RangedFile(lambda start, stop: storage.read(shard.path, start, stop), 100)
    ranges.seek(98)
    assert ranges.readall() == b"bc"
    assert ranges.seek(-1, io.SEEK_CUR) == 99


def test_opening_a_missing_object_is_an_error(put):
    with pytest.raises(FileNotFoundError):
        storage.open_arrow("/nowhere/at/all")
    with pytest.raises(FileNotFoundError):
        storage.open_arrow("memory://nowhere")
