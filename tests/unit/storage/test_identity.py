"""Identity of source objects: tags of stores, times of files, hashes of bytes."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import fsspec
import pytest
from huggingface_hub.hf_api import RepoFile

from actors import storage
from actors.errors import SourceChanged, StorageError
from actors.schema import Piece, RewriteUnit, RewrittenFile, Shard, Unit
from actors.source.formats.base import verify
from actors.storage import content_tags, identity
from pipeline.plan.identify import retagged, untagged

DAY = datetime(2026, 1, 1, tzinfo=UTC)
LFS = {"oid": "5a", "size": 1, "pointerSize": 1}
HUB = RepoFile(path="a", size=1, oid="b10b", lfs=LFS, xetHash="7e")


@pytest.mark.parametrize(
    ("info", "tag"),
    [
        ({"ETag": '"abc-2"', "LastModified": DAY}, "abc-2"),  # S3
        ({"etag": "CJ/=", "md5Hash": "m", "generation": "1", "updated": "2026"}, "CJ/="),  # GCS
        ({"md5Hash": "m", "generation": "1"}, "m"),
        ({"generation": "17"}, "17"),
        ({"etag": "0x8D", "content_settings": {"content_md5": bytearray(b"\1")}}, "0x8D"),  # Azure
        ({"content_md5": bytearray(b"\1\2")}, "0102"),
        ({"xet_hash": "7e", "lfs": HUB.lfs, "blob_id": "b10b"}, "7e"),  # hf://
        ({"xet_hash": None, "lfs": HUB.lfs, "blob_id": "b10b"}, "5a"),
        ({"xet_hash": None, "lfs": {"sha256": "5a"}, "blob_id": "b10b"}, "5a"),
        ({"xet_hash": None, "lfs": None, "blob_id": "b10b", "last_commit": None}, "b10b"),
        ({"sha": "5a5a"}, "5a5a"),  # github://
        ({"ETag": 'W/"x"', "Last-Modified": "Thu"}, 'W/"x'),  # http://
        ({"Last-Modified": "Thu"}, "Thu"),
        ({"modificationTime": 1767225600000}, "1767225600000"),  # webhdfs://
        ({"mtime": DAY, "time": DAY}, str(DAY)),  # sftp://, hdfs://
        ({"etag": None, "modified": DAY, "created": None}, str(DAY)),  # webdav://
        ({"modify": "20260101000000"}, "20260101000000"),  # ftp://
        ({"created": DAY}, str(DAY)),  # memory://
        ({"name": "a", "size": 3, "type": "file"}, ""),  # dbfs://
    ],
)
def test_the_tag_of_each_store(info, tag):
    assert identity.tag_of(info) == tag


def test_the_hub_returns_a_known_tag():
    """By the driver's own conversion of the hub's answer."""
    driver = pytest.importorskip("huggingface_hub.hf_file_system")
    assert identity.tag_of(driver._cache_info_from_path_info(HUB, "a")) == "7e"


def test_cached_listings_of_a_driver_are_cleared():
    hub = SimpleNamespace(dircache={"a": []})
    identity.forget_listings(hub)
    assert hub.dircache == {}
    identity.forget_listings(fsspec.filesystem("memory"))  # has a cache of fsspec's own, which heeds its setting


def test_a_local_file_put_in_place_with_its_times_kept_is_another(tmp_path):
    """rsync -t, cp -p, touch -d: same size, same mtime."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before, stamp = storage.stat(str(path)), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    written_over = storage.stat(str(path))
    (tmp_path / "b").write_bytes(b"six")
    os.utime(tmp_path / "b", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    os.replace(tmp_path / "b", path)
    replaced = storage.stat(str(path))
    assert len({one.etag.split("-")[0] for one in (before, written_over, replaced)}) == 1
    for first, second in ((before, written_over), (written_over, replaced)):
        assert not identity.unchanged(first.etag, second.etag)
        with pytest.raises(SourceChanged, match="changed since the run was planned"):
            verify(first)
    verify(replaced)


def test_an_inode_counts_between_runs_and_not_within_one():
    assert not identity.unchanged("5-6-7", "5-6-8")
    assert identity.still_fits("5-6-7", "5-6-8")
    assert not identity.still_fits("5-6-7", "5-7-7")
    assert not identity.still_fits("abc-2", "abc-3")  # parts of an upload to S3


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ("t", "t", True),
        ("t", "u", False),
        ("", "", False),
        ("t sha256:aa", "u sha256:aa", True),
        ("t sha256:aa", "t sha256:bb", False),
        ("t sha256:aa", "t", True),
        ("t", "t sha256:aa", False),
        (" sha256:aa", "", False),
        (" sha256:aa", " sha256:aa", True),
    ],
)
def test_a_shard_is_unchanged_with_equal_size_and_tag(before, now, same):
    assert identity.unchanged(before, now) is same


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_hash_is_of_all_bytes_in_parts(where, tmp_path, monkeypatch):
    monkeypatch.setattr(content_tags, "PART_BYTES", 3)
    url = str(tmp_path / "a") if where == "disk" else "memory://identity/a"
    storage.put(url, b"the bytes")
    parts: list[int] = []
    assert content_tags.content_hash(storage.stat(url), parts.append) == (
        "ed589341c9fd5da96aaff4c5efa008226282a716186608d5a032ac75895a9c2f"
    )
    assert parts == [3, 3, 3]


def test_with_a_hash_a_touched_shard_is_the_same_and_another_is_not(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    (shard,) = content_tags.with_hashes([storage.stat(str(path))], lambda _: None)
    os.utime(path)
    verify(shard)
    path.write_bytes(b"two")
    with pytest.raises(SourceChanged, match="sha256"):
        verify(shard)


def test_a_planned_hash_detects_a_change_without_tags(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    monkeypatch.setattr(identity, "local_tag", lambda _: "")
    (shard,) = content_tags.with_hashes([storage.stat(str(path))], lambda _: None)
    verify(shard)
    path.write_bytes(b"two")
    with pytest.raises(SourceChanged):
        verify(shard)


def test_a_shard_that_changes_while_it_is_hashed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    shard = storage.stat(str(path))
    path.write_bytes(b"more")
    for listed in (shard, replace(shard, size_bytes=4)):
        with pytest.raises(SourceChanged, match="changed while it was hashed"):
            content_tags.with_hashes([listed], lambda _: None)
    path.unlink()
    with pytest.raises(SourceChanged, match="changed while it was hashed"):
        content_tags.content_hash(shard)


def test_tags_are_requested_one_by_one_if_the_listing_has_none(monkeypatch):
    storage.put("memory://identity/b", b"four")
    asked = storage.stat("memory://identity/b")
    listed = replace(asked, etag="", size_bytes=0)
    gone = Shard("memory:///identity/gone", 1, "")
    assert asked.etag
    assert content_tags.with_tags([listed, gone]) == (asked, gone)


def test_an_object_of_unknown_size_is_not_an_empty_one(monkeypatch):
    kind = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(kind, "info", lambda self, path: {"name": path, "size": None, "type": "file"})
    with pytest.raises(StorageError, match="does not say how large it is"):
        storage.stat("memory://identity/c")


def test_objects_without_a_tag_are_counted():
    assert untagged([Shard("a", 1, "t")]) == ""
    assert untagged([Shard("a", 1, "t"), Shard("b", 1, "")]).startswith("1 of 2 objects have no tag, such as 'b'")


def test_a_frozen_plan_resumes_with_new_tags_of_touched_shards():
    def unit(etag: str) -> Unit:
        return Unit(0, (Piece(Shard("a", 1, etag), 0, 1, 1),))

    now = [Shard("a", 1, "u sha256:aa")]
    assert list(retagged([unit("t sha256:aa")], now)) == [unit("u sha256:aa")]
    assert list(retagged([unit("t sha256:bb")], now)) == [unit("t sha256:bb")]
    assert list(retagged([unit("t")], [Shard("a", 1, "t")])) == [unit("t")]
    rewrite = RewriteUnit(0, (RewrittenFile("a", {}, 1),))
    assert list(retagged([rewrite], now)) == [rewrite]
