"""Pictures that cells name: which places may be named, and that one bad cell does not stop the others."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest
from PIL import Image

from actors import storage
from actors.errors import AccessDenied, StorageError
from actors.images.settings import PictureSettings
from actors.source.picture_cells import contents
from actors.source.pictures import Pictures

HOW = Pictures(PictureSettings(56 * 56, 112 * 112), "image", blank=True)


def read(cell: str, shard: str, text: str | None = None) -> tuple[bool, tuple[str, str]]:
    """Return whether a row has a content, and why it has none."""
    content, _, invalid = contents(pa.array([text], pa.string()), pa.array([cell]), pa.array([shard]), HOW)
    return content[0].is_valid and 0 not in invalid, invalid.get(0, ("", ""))


@pytest.fixture
def shard(tmp_path) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 60)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    return str(tmp_path / "0.jsonl")


@pytest.mark.parametrize("url", ["ftp://host/a.png", "github://a:b@main/a.png", "hf://datasets/a/b.png", "x://y"])
def test_a_cell_names_only_files_and_stores(shard, url):
    _, (reason, error) = read(url, shard)
    assert reason == "bad_picture"
    assert "which cells may not name" in error
    assert read("a.png", shard) == (True, ("", ""))


def test_a_device_is_not_read_as_a_picture(shard):
    assert read("/dev/zero", shard)[1] == ("fetch_failed", "the file '/dev/zero' was not found")


def test_an_object_without_bytes_and_path_is_no_picture(shard):
    for cell in ("{}", '{"bytes":null,"path":null}', '{"bytes":"","path":""}'):
        assert read(cell, shard, "a text") == (True, ("", ""))
        assert read(cell, shard)[1][0] == "empty_text"


def test_a_refused_object_costs_one_row_and_a_failing_store_stops_the_run(shard, monkeypatch):
    def refuse(url: str) -> None:
        raise AccessDenied(f"cannot look at {url!r}: access denied")

    monkeypatch.setattr(storage, "stat", refuse)
    assert read("s3://other/a.png", shard)[1] == ("fetch_failed", "cannot look at 's3://other/a.png': access denied")

    def fail(_: str) -> None:
        raise StorageError("nothing answers")

    monkeypatch.setattr(storage, "stat", fail)
    with pytest.raises(StorageError, match="nothing answers"):
        read("s3://other/a.png", shard)
