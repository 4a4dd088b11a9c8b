from __future__ import annotations

import pyarrow as pa
import pytest

from actors.errors import SourceChanged
from actors.schema import Piece, Shard
from actors.source.formats import FORMATS, Wanted, documents

TEXT = FORMATS["text"]
ALL = Wanted(dict.fromkeys(("text", "path", "name"), pa.string()), ("text",))


def test_a_file_is_one_document(put, read_pieces):
    shard = put("read me.md", b"\xef\xbb\xbf# Title\r\n\nBody \xf0\x9f\x90\xa6\n")
    assert TEXT.pieces(shard, 500) == [Piece(shard, 0, 1, 1)]
    good, bad = read_pieces("text", TEXT.pieces(shard, 500), ALL)
    row = {"text": "# Title\r\n\nBody 🐦\n", "path": shard.path, "name": "read me.md", "_position": 0}
    assert good == [row]
    assert not bad


def test_invalid_utf8_sets_the_document_aside(put, read_pieces):
    good, bad = read_pieces("text", TEXT.pieces(put("a.txt", b"caf\xe9 au lait"), 1), ALL)
    assert not good
    assert [(row.reason, row.position) for row in bad] == [("invalid_utf8", 0)]
    assert "position 3" in bad[0].error


def test_an_empty_file_is_an_empty_document_not_a_missing_one(put, read_pieces):
    good, bad = read_pieces("text", TEXT.pieces(put("a.txt", b""), 1), ALL)
    assert [row["text"] for row in good] == [""]
    assert not bad


def test_a_document_beyond_the_limit_is_set_aside_unread(put, read_pieces, monkeypatch):
    monkeypatch.setattr(documents, "LARGEST_VALUE_BYTES", 10)
    good, bad = read_pieces("text", TEXT.pieces(put("a.txt", b"x" * 11), 1), ALL)
    assert not good
    assert [row.reason for row in bad] == ["too_large"]


def test_a_document_that_changed(put):
    shard = put("a.txt", b"one")
    with pytest.raises(SourceChanged, match="had 3 bytes and etag 'another'"):
        list(TEXT.read(Piece(Shard(shard.path, 3, "another"), 0, 1, 1), ALL))


@pytest.mark.parametrize(
    ("data", "holds"),
    [
        ("Rain falls.".encode("utf-16-le"), "UTF-16LE text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "a Git LFS pointer"),
        (b"%PDF-1.7\n", "a PDF document"),
    ],
)
def test_a_file_that_is_no_text_is_quarantined_by_what_it_holds(put, read_pieces, data, holds):
    shard = put("a.txt", data)
    good, bad = read_pieces("text", TEXT.pieces(shard, 1), Wanted({"text": pa.string()}, ("text",)))
    assert not good
    assert [row.reason for row in bad] == ["invalid_utf8"]
    assert f"holds {holds}" in bad[0].error
