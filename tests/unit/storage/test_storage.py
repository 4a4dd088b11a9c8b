"""Storage: whole objects, an exclusive create with one winner, and error messages."""

from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from actors import storage
from actors.errors import ConfigError, StorageError, UnsafeStore
from pipeline.ledger.create_probe import probe_create


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_put_replaces_and_leaves_no_temporary_file(tmp_path):
    url = str(tmp_path / "a" / "b.json")
    storage.put(url, b"one")
    storage.put(url, b"two")
    assert storage.read(url) == b"two"
    assert os.listdir(tmp_path / "a") == ["b.json"]


def test_one_of_many_concurrent_creates_succeeds(tmp_path):
    url = str(tmp_path / "receipt.json")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: storage.create(url, b"%d" % number), range(64)))
    assert sum(won) == 1
    assert storage.read(url) == b"%d" % won.index(True)
    assert os.listdir(tmp_path) == ["receipt.json"]


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for write in (storage.put, storage.create):
        for url in (f"{tmp_path}/file/x", f"{tmp_path}/file/a/b/x"):
            with pytest.raises(ConfigError, match="file' is a file; name another place"):
                write(url, b"mine")
    assert os.listdir(tmp_path) == ["file"]


def test_create_recognises_its_own_object(tmp_path):
    """A client that is refused by its own earlier success is the winner."""
    url = str(tmp_path / "x")
    assert storage.create(url, b"mine")
    assert storage.create(url, b"mine")
    assert not storage.create(url, b"another's")


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket/x"])
def test_an_unknown_protocol_is_a_mistake_of_the_user(url):
    with pytest.raises(ConfigError, match="nosuchprotocol"):
        storage.read(url)


def test_calls_are_retried_while_the_store_is_busy(no_waiting):
    calls = []

    def call():
        calls.append(1)
        if len(calls) < 3:
            raise OSError(errno.EBUSY, "slow down")
        return "there"

    assert storage.retried("s3://b/x", "read", call) == "there"
    assert len(calls) == 3


def test_a_store_that_stays_busy_is_an_error(no_waiting):
    def call():
        raise OSError(errno.EBUSY, "slow down")

    with pytest.raises(StorageError, match=r"cannot read 's3://b/x' after 8 tries"):
        storage.retried("s3://b/x", "read", call)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EFBIG, "files that large are not allowed"),
        (errno.EACCES, "access denied"),
        (errno.EROFS, "access denied"),
    ],
)
def test_refusals_are_not_retried(number, message):
    calls = []

    def call():
        calls.append(1)
        raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError, match=message):
        storage.retried("/x", "write", call)
    assert len(calls) == 1


def test_a_full_disk_is_reported():
    """/dev/full is a disk that is full."""
    with pytest.raises(StorageError, match="the disk is full"):
        storage.retried("/dev/full", "write", lambda: _write_through("/dev/full"))


def _write_through(path):
    with open(path, "wb", buffering=0) as file:
        file.write(b"x")


def test_glob_lists_in_order_and_leaves_hidden_names_out(tmp_path):
    for name in ("b.txt", "a.txt", "_hidden.txt", ".hidden.txt", "sub/c.txt", "_sub/d.txt"):
        storage.put(str(tmp_path / name), b"x")
    names = [shard.path.removeprefix(f"{tmp_path}/") for shard in storage.glob(str(tmp_path)).shards]
    assert names == ["a.txt", "b.txt", "sub/c.txt"]
    assert [shard.path for shard in storage.glob(str(tmp_path / "*.txt")).shards] == [
        str(tmp_path / "a.txt"),
        str(tmp_path / "b.txt"),
    ]
    assert storage.glob(str(tmp_path / "nothing*")).shards == ()
    assert storage.glob(str(tmp_path / "nowhere")).shards == ()


def test_an_edit_of_the_same_size_changes_the_etag(tmp_path):
    path = str(tmp_path / "x")
    storage.put(path, b"one")
    before = storage.stat(path)
    storage.put(path, b"two")
    after = storage.stat(path)
    assert before.size_bytes == after.size_bytes
    assert before.etag != after.etag


def test_folders_are_those_directly_below(tmp_path):
    storage.put(str(tmp_path / "runs" / "a" / "deep" / "x"), b"")
    storage.put(str(tmp_path / "runs" / "b" / "x"), b"")
    assert storage.folders(str(tmp_path / "runs")) == ["a", "b"]
    assert storage.folders(str(tmp_path / "nowhere")) == []


def test_the_probe_passes_a_local_disk_and_leaves_nothing(tmp_path):
    probe_create(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_probe_finds_a_store_where_several_creates_succeed(tmp_path, monkeypatch):
    """A store that answers right in sequence and wrong in a race: exists() and then write."""

    def racy(url, data):
        storage.put(url, data)
        return True

    monkeypatch.setattr(storage, "create", racy)
    with pytest.raises(UnsafeStore, match="16 of 16 racing callers"):
        probe_create(str(tmp_path))


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    """fsspec leaves it out without a word: its files would be missing from a plan, and a refresh would remove them."""
    for folder in "abc":
        storage.put(str(tmp_path / folder / "x.parquet"), b"x")
    kind = type(fsspec.filesystem("file"))
    real, scan = kind.ls, os.scandir

    def ls(self, path, *arguments, **named):
        if path.rstrip("/").endswith("/b"):
            raise OSError(errno.EACCES, "not yours")
        return real(self, path, *arguments, **named)

    def scandir(path):
        if path.endswith("/b"):
            raise OSError(errno.EACCES, "not yours")
        return scan(path)

    for pattern in ("*/x.parquet", "**/x.parquet", ""):
        url = str(tmp_path / pattern)
        assert len(storage.glob(url).shards) == 3
        with monkeypatch.context() as patch:
            patch.setattr(kind, "ls", ls)
            patch.setattr(os, "scandir", scandir)
            with pytest.raises(StorageError, match="cannot list '.*/b': access denied"):
                storage.glob(url)
            with pytest.raises(StorageError, match="cannot list .* access denied"):
                list(storage.walk(str(tmp_path)))


def test_a_write_is_retried_if_its_temporary_file_is_removed(tmp_path, monkeypatch):
    """By a vacuum that keeps nothing for its age."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        if not waits:
            shutil.rmtree(tmp_path / "folder")

    monkeypatch.setattr(os, "fsync", fsync)
    assert storage.create(f"{tmp_path}/folder/x", b"mine")
    assert len(waits) == 1
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["x"]


def test_an_object_removed_right_after_its_write_was_written(tmp_path, monkeypatch):
    real = os.replace

    def replace(source: str, target: str) -> None:
        real(source, target)
        shutil.rmtree(tmp_path / "folder")

    monkeypatch.setattr(os, "replace", replace)
    storage.put(f"{tmp_path}/folder/x", b"mine")
    assert not storage.exists(f"{tmp_path}/folder/x")
