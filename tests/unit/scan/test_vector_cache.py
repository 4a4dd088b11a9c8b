"""The local cache: never a wrong vector, whatever is in its folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from actors.errors import ConfigError
from actors.schema import EMBEDDING, ID, Shard
from actors.vectors import VectorColumn
from actors.vectors.quantiser import Precision, round_mantissa
from pipeline.scan.block import Block
from pipeline.scan.vector_cache import VectorCache, default_folder

DIM = 16
COLUMN = VectorColumn(EMBEDDING, "dense", DIM)
SHARD = Shard("file:///table/data/a.parquet", 1000, "tag")
SCHEMA = pa.schema([(ID, pa.string())])


class File:
    """A table file of two batches that counts how often it is read."""

    def __init__(self, precision: Precision = "float16", rows: int = 100, seed: int = 0) -> None:
        vectors = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
        self.vectors = round_mantissa(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), precision)
        self.reads = 0

    def __call__(self) -> Iterator[pa.RecordBatch]:
        self.reads += 1
        half = len(self.vectors) // 2
        for part in (self.vectors[:half], self.vectors[half:]):
            columns = [pa.array([str(row) for row in range(len(part))]), pa.array(list(part), pa.list_(pa.float32()))]
            yield pa.RecordBatch.from_arrays(columns, [ID, EMBEDDING])


def vectors_of(blocks: list[Block]) -> np.ndarray:
    return np.concatenate([block.vectors(np.arange(block.rows.num_rows)) for block in blocks])


def read(cache: VectorCache, file: File, shard: Shard = SHARD, schema: pa.Schema = SCHEMA) -> None:
    """Read a file through the cache; the vectors must be those of the file."""
    blocks = list(cache.blocks(shard, schema, COLUMN, 7, file))
    wide = file.vectors.astype(np.float64)
    np.testing.assert_array_equal(vectors_of(blocks), wide / np.linalg.norm(wide, axis=1, keepdims=True))
    assert [block.first for block in blocks] == [7, 7 + len(file.vectors) // 2]
    assert blocks[0].rows.schema.names == [ID]


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize(("precision", "width"), [("bfloat16", 2), ("float16", 3), ("float32", 4)])
def test_the_second_read_is_from_the_cache_bit_for_bit(folder, precision, width):
    file = File(precision, rows=20_000)
    read(VectorCache(folder, 1 << 30), file)
    reads = file.reads
    read(VectorCache(folder, 1 << 30), file)
    assert file.reads == reads
    (entry,) = entries(folder)
    ids_and_norms = 12
    assert entry.stat().st_size == pytest.approx(20_000 * (DIM * width + ids_and_norms), rel=0.02)


def test_vectors_of_any_length_keep_it_in_the_cache(folder):
    file, column = File(rows=1000), VectorColumn(EMBEDDING, "dense", DIM, normalized=False)
    file.vectors *= np.arange(1000, dtype=np.float32)[:, None]
    blocks: list[Block] = []
    for _ in range(2):  # written, then read
        blocks = list(VectorCache(folder, 1 << 30).blocks(SHARD, SCHEMA, column, 0, file))
        np.testing.assert_array_equal(vectors_of(blocks), file.vectors)
        assert [block.normalized for block in blocks] == [False, False]
    assert blocks[0].mapped


def test_another_size_tag_url_or_column_is_another_entry(folder):
    cache, file = VectorCache(folder, 1 << 30), File()
    others = [
        Shard(SHARD.path, 1001, "tag"),
        Shard(SHARD.path, 1000, "other"),
        Shard("file:///table/data/b.parquet", 1000, "tag"),
    ]
    read(cache, File(seed=1))
    for shard in others:
        read(cache, file, shard)
    read(cache, file, schema=pa.schema([(ID, pa.string()), ("lang", pa.string())]))
    assert len(entries(folder)) == 5


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99, -1])
def test_an_entry_that_was_cut_off_is_written_again(folder, kept):
    file = File()
    read(VectorCache(folder, 1 << 30), file)
    (entry,) = entries(folder)
    data = entry.read_bytes()
    entry.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    read(VectorCache(folder, 1 << 30), file)
    assert entry.read_bytes() == data


def test_two_processes_may_write_one_entry_at_once(folder):
    file = File()

    def other_writes_first() -> Iterator[pa.RecordBatch]:
        read(VectorCache(folder, 1 << 30), File())
        yield from file()

    blocks = list(VectorCache(folder, 1 << 30).blocks(SHARD, SCHEMA, COLUMN, 7, other_writes_first))
    wide = file.vectors.astype(np.float64)
    np.testing.assert_array_equal(vectors_of(blocks), wide / np.linalg.norm(wide, axis=1, keepdims=True))
    assert len(entries(folder)) == 1


def test_a_folder_that_others_may_write_to_is_not_used(folder):
    folder.mkdir()
    folder.chmod(0o777)
    cache, file = VectorCache(folder, 1 << 30), File()
    read(cache, file)
    assert not entries(folder)
    assert "others may write to it" in str(cache.problem)


def test_an_entry_that_others_may_write_to_is_not_used(folder):
    file = File()
    read(VectorCache(folder, 1 << 30), file)
    (entry,) = entries(folder)
    entry.chmod(0o666)
    reads, cache = file.reads, VectorCache(folder, 1 << 30)
    read(cache, file)
    assert file.reads > reads


def test_the_entries_that_were_not_used_for_longest_are_deleted(folder):
    files = [File(seed=seed, rows=1000) for seed in range(4)]
    shards = [Shard(f"file:///table/{seed}.parquet", 1000, "tag") for seed in range(4)]
    for age_s, file, shard in zip((300, 100, 200), files, shards, strict=False):
        before = set(entries(folder)) if folder.exists() else set[Path]()
        read(VectorCache(folder, 1 << 30), file, shard)
        (entry,) = set(entries(folder)) - before
        os.utime(entry, (entry.stat().st_atime, entry.stat().st_mtime - age_s))
    size = entries(folder)[0].stat().st_size
    read(VectorCache(folder, int(2.5 * size)), files[3], shards[3])
    reads = [file.reads for file in files]
    again = VectorCache(folder, 1 << 30)
    for file, shard in zip(files, shards, strict=True):
        read(again, file, shard)
    assert [file.reads > before for file, before in zip(files, reads, strict=True)] == [True, False, True, False]


def test_a_scan_that_is_larger_than_the_cache_keeps_what_fits(folder):
    files = [File(seed=seed, rows=1000) for seed in range(3)]
    read(VectorCache(folder, 1 << 30), files[0])
    (entry,) = entries(folder)
    size = entry.stat().st_size
    entry.unlink()
    shards = [Shard(f"file:///table/{seed}.parquet", size, "tag") for seed in range(3)]
    for _ in range(2):
        cache = VectorCache(folder, int(2.5 * size))
        for file, shard in zip(files, shards, strict=True):
            read(cache, file, shard)
        assert len(entries(folder)) == 2
        assert "larger than the cache" in str(cache.problem)


def test_a_file_that_is_larger_than_it_looked_leaves_no_entry(folder):
    cache = VectorCache(folder, 2000)
    read(cache, File(rows=1000))
    assert not entries(folder)
    assert "larger than the cache" in str(cache.problem)


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_leaves_no_part_and_the_table_is_read(folder, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"os.{call}", full)
    cache = VectorCache(folder, 1 << 30)
    read(cache, File())
    assert not entries(folder)
    assert "No space left on device" in str(cache.problem)


def test_parts_of_killed_processes_are_deleted_after_an_hour(folder):
    folder.mkdir(mode=0o700)
    old, new = folder / "a.vectors.1-a.part", folder / "b.vectors.2-b.part"
    for part in (old, new):
        part.write_bytes(b"cut off")
    os.utime(old, (0, 0))
    read(VectorCache(folder, 1 << 30), File())
    assert not old.exists()
    assert new.exists()


def test_a_mapped_entry_stays_readable_when_it_is_deleted(folder):
    file = File()
    read(VectorCache(folder, 1 << 30), file)
    blocks = list(VectorCache(folder, 1 << 30).blocks(SHARD, SCHEMA, COLUMN, 0, file))
    before = vectors_of(blocks)
    entries(folder)[0].unlink()
    np.testing.assert_array_equal(vectors_of(blocks), before)


def test_a_folder_below_a_file_is_not_used(tmp_path):
    (tmp_path / "file").write_text("")
    cache = VectorCache(tmp_path / "file" / "cache", 1000)
    read(cache, File())
    assert "Not a directory; name another folder in VECTIDE_CACHE" in str(cache.problem)


def test_a_name_that_is_too_long_for_the_disk_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="File name too long; name another folder in VECTIDE_CACHE"):
        VectorCache(tmp_path / ("a" * 300), 1000)


def test_a_user_without_a_home_folder_is_told_to_name_one(monkeypatch):
    for name in ("HOME", "VECTIDE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(ConfigError, match="no home folder for the cache; name a folder in VECTIDE_CACHE"):
        default_folder()


def test_a_cache_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(ConfigError, match="not a folder"):
        VectorCache(tmp_path / "cache", 1000)
