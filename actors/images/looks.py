"""Kinds of files, by their first bytes and never by their names."""

from __future__ import annotations

import re
from typing import Literal

HEAD_BYTES = 2048  # enough for `kind_of` and `look_of`

_PICTURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),  # BigTIFF
    (b"MM\x00+", "TIFF"),
)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes in bytes
_PDF = re.compile(rb"%PDF-\d")  # viewers allow about 1,000 bytes in front

# What else is found where a picture or PDF is expected, for the message.
_OTHERS = (
    (rb"\x1f\x8b", "gzip data"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", "a HEIC picture"),
    (rb"....ftypavi[fs]", "an AVIF picture"),
    (rb"(\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51)", "a JPEG 2000 picture"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\x00\x00[\x01\x02]\x00", "an icon"),
    (rb"%!PS", "PostScript"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
    (rb"(?i:[\s\xef\xbb\xbf]*(<\?xml.*?)?(<!--.*?-->\s*)?(<!DOCTYPE svg.*?)?<svg\b)", "an SVG drawing"),
    (rb"(?i:[\s\xef\xbb\xbf]*(<!--.*?-->\s*)?(<!DOCTYPE html|<html|<head|<body))", "a web page"),
)


def picture_format(head: bytes) -> str | None:
    """Return the format of a picture that is decoded, such as "JPEG", or None."""
    for magic, name in _PICTURES:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return None


def kind_of(head: bytes) -> Literal["pdf", "picture"] | None:
    """Return the kind of a file by its first `HEAD_BYTES` bytes; None if it is neither a PDF nor a picture."""
    if picture_format(head):
        return "picture"
    return "pdf" if _PDF.search(head, 0, 1024 + 8) else None


def look_of(head: bytes) -> str:
    """Return words for what the first bytes of a file look like, for a message."""
    if not head:
        return "empty"
    kind = kind_of(head)
    if kind:
        return "a PDF" if kind == "pdf" else f"a {picture_format(head)} picture"
    for pattern, name in _OTHERS:
        if re.match(pattern, head, re.DOTALL):
            return name
    try:
        text = head[:-4].decode() if len(head) > HEAD_BYTES // 2 else head.decode()  # a character may be cut
    except UnicodeDecodeError:
        return "of no known format"
    return "text" if text.isprintable() or not re.search(r"[\x00-\x08\x0e-\x1f]", text) else "of no known format"
