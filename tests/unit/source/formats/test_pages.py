"""Files of a source of pages: what is said of those that are none, and how often a PDF of a store is fetched."""

from __future__ import annotations

import gc

import pyarrow as pa
import pytest

from actors import storage
from actors.images.settings import PictureSettings
from actors.source import pdf_files
from actors.source.formats import FORMATS, Wanted
from actors.source.pictures import Pictures
from tests.toys.pdfs import RED_CORNER, pdf_of

WANTED = Wanted({"text": pa.string()}, ("text",), pictures=Pictures(PictureSettings(3136, 10_000)))
XML = b'<?xml version="1.0"?>\n<!-- <svg> is made by hand -->\n'
SVG = XML + b'<!DOCTYPE s:svg [<!ENTITY a "b">]>\n<s:svg xmlns:s="http://www.w3.org/2000/svg"/>'
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.svg", SVG, "bad_picture is an SVG drawing. Save it as PNG or JPEG"),
        ("a", b"\xef\xbb\xbf<svg>", "bad_picture an SVG drawing"),
        ("a.xml", SVG, ""),
        ("a.md", b"<svg></svg> as Markdown", ""),
        ("a.md", b"a PDF begins with %PDF-1.7", ""),
        ("a.kml", XML + b"<kml/>", "bad_picture an XML document"),
        ("a.html", b"<html>a page", ""),
        ("report", b"<!doctype html><p>404", "bad_picture an HTML page"),
        ("a.heic", HEIC, "bad_picture is a HEIC picture. Save it as PNG or JPEG"),
        ("a.txt", HEIC, "invalid_utf8 holds a HEIC picture"),
        ("a.avif", b"\0\0\0\x1cftypavif\0\0", "bad_picture an AVIF picture"),
        ("a.ico", b"\0\0\1\0\1\0\x10\x10", "bad_picture an icon"),
        ("a.tga", b"\0\0\2\0\0\0\0\0\0\0", "bad_picture a TGA picture"),
        ("a.jxl", b"\xff\x0a\xfa\x1f", "bad_picture a JPEG XL picture"),
        ("a.jp2", b"\0\0\0\x0cjP  \r\n", "bad_picture a JPEG 2000 picture"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "bad_picture is PostScript. Save it as PDF"),
        ("a.rtf", b"{\\rtf1\\ansi words}", "bad_picture a Rich Text document"),
        ("a.docx", b"PK\x03\x04\x14\0", "invalid_utf8 a zip archive (files of Word"),
        ("a.bin", b"words\0\1 and more", "bad_picture of no known format"),
        ("a.bin", bytes(range(128, 256)), "invalid_utf8 no UTF-8 text"),
        ("a.txt", "words".encode("utf-16"), "invalid_utf8 UTF-16LE text"),
        ("a.log", b"\x1b[1mwords\x1b[0m", ""),
    ],
)
def test_a_file_that_is_no_text_is_named_and_has_a_fix(put, read_pieces, name, data, expected):
    good, bad = read_pieces("pages", FORMATS["pages"].pieces(put(name, data), 1), WANTED)
    reason, _, words = expected.partition(" ")
    assert [row.reason for row in bad] == [reason] * (not good)
    assert words in "".join(row.error for row in bad)


@pytest.mark.slow
def test_a_pdf_of_a_store_is_fetched_once_for_all_its_units(put_in_memory, read_pieces, monkeypatch):
    """The files on disk are removed when others need the space."""
    fetched = []
    plain = storage.read

    def read(url, start=None, stop=None):
        fetched.append(url)
        return plain(url, start, stop)

    monkeypatch.setattr(storage, "read", read)
    monkeypatch.setattr(pdf_files, "LIMIT_BYTES", 1)
    for name in ("a.pdf", "b.pdf"):
        shard = put_in_memory(name, pdf_of([RED_CORNER] * 6))
        pieces = FORMATS["pages"].pieces(shard, 2)
        assert len(pieces) == 3
        for piece in pieces:
            assert len(read_pieces("pages", [piece], WANTED)[0]) == 2
        assert len(fetched) == 2  # the first bytes, by which it is recognized, and the file
        fetched.clear()
        gc.collect()
        assert len(list(pdf_files._fetched_pdfs()._folder.path.iterdir())) == 1
