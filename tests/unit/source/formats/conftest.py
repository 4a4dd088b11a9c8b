"""Fixtures for shards from bytes, on this disk or in fsspec's memory, which is a store with range requests."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable

import fsspec
import pyarrow as pa
import pytest

from actors import storage
from actors.schema import Piece, QuarantinedRow, Shard
from actors.source.formats import FORMATS, open_format

PutShard = Callable[[str, bytes], Shard]


@pytest.fixture(scope="session")
def put(tmp_path_factory) -> PutShard:
    """Writes a new file called `name`, in a folder of its own, and lists it. Session-wide: hypothesis uses it too."""
    root = tmp_path_factory.mktemp("shards")
    numbers = itertools.count()

    def write(name: str, data: bytes) -> Shard:
        folder = root / str(next(numbers))
        folder.mkdir()
        (folder / name).write_bytes(_packed(name, data))
        return storage.stat(str(folder / name))

    return write


@pytest.fixture(scope="session")
def put_in_memory() -> PutShard:
    """The same in a store."""
    numbers = itertools.count()

    def write(name: str, data: bytes) -> Shard:
        path = f"/shards/{next(numbers)}/{name}"
        fsspec.filesystem("memory").pipe_file(path, _packed(name, data))
        return storage.stat(f"memory:/{path}")

    return write


def _packed(name: str, data: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    return pa.Codec("zstd").compress(data, asbytes=True) if name.endswith(".zst") else data


@pytest.fixture(scope="session")
def read_pieces():
    """Good rows as dicts and bad rows, over pieces in order."""

    def read(format_name: str, pieces: list[Piece], wanted) -> tuple[list[dict[str, object]], list[QuarantinedRow]]:
        good: list[dict[str, object]] = []
        bad: list[QuarantinedRow] = []
        for piece in pieces:
            for item in FORMATS[format_name].read(piece, wanted):
                if isinstance(item, QuarantinedRow):
                    bad.append(item)
                else:
                    good += item.to_pylist()
        return good, bad

    return read


@pytest.fixture(scope="session")
def tables():
    """The tables of a piece that has no bad row."""

    def read(piece: Piece, wanted) -> list[pa.Table]:
        found: list[pa.Table] = []
        for item in open_format("auto", piece.shard.path).read(piece, wanted):
            assert not isinstance(item, QuarantinedRow)
            found.append(item)
        return found

    return read


@pytest.fixture
def asked(monkeypatch) -> list[tuple[int, int]]:
    """The byte ranges that a store is asked for from here on."""
    ranges: list[tuple[int, int]] = []
    real = storage.read

    def read(url: str, start: int, stop: int) -> bytes:
        ranges.append((start, stop))
        return real(url, start, stop)

    monkeypatch.setattr(storage, "read", read)
    return ranges
