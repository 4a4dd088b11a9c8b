"""Recognizes the content of a file from its first bytes and never from its name, and suggests a fix if it is not as expected.

Used by the formats of sources and by the processes that decode pictures, so it imports the standard library alone. No
library is called, and nothing is decompressed. The trade-off: content that is not listed here is refused without its name.
"""

from __future__ import annotations

import re
from typing import Literal

HEAD_BYTES = 4096
CODECS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
UNKNOWN = "of no known format"

_BOM = b"\xef\xbb\xbf"
_GZIP, _ZSTD, _ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
_RENAME = "Rename it to end in {0}, or unpack it"
_UNPACK = "Unpack it, or pack it with gzip (.gz) or zstd (.zst)"
_CONVERT = "Convert it to UTF-8, as in `iconv -f {0} -t UTF-8`"
_EXPORT = "Export it as text"
_READ_AS_PAGES = "Read it with source.format: pages"
_SAVE_AS_PICTURE = "Save it as PNG or JPEG"
_SAVE_AS_PDF = "Save it as PDF or as text"
_DECODED: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes in bytes
_PDF = re.compile(rb"%PDF-\d")  # viewers allow about 1,000 bytes in front
_PICTURES: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\0...ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "a HEIC picture"),
    (re.compile(rb"\0...ftypavi[fs]", re.DOTALL), "an AVIF picture"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000 picture"),
    (re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"), "a JPEG XL picture"),
    (re.compile(rb"8BPS\0[\1\2]"), "a Photoshop file"),
    (re.compile(rb"\0\0[\1\2]\0[^\0]"), "an icon"),
    (re.compile(rb"\0\0[\2\3\x0a\x0b]\0{5}"), "a TGA picture"),
)
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (_GZIP, "gzip data", _RENAME.format(".gz")),
    (_ZSTD, "zstd data", _RENAME.format(".zst")),
    (b"BZh", "bzip2 data", _UNPACK),
    (b"\xfd7zXZ\0", "xz data", _UNPACK),
    (b"\x04\x22\x4d\x18", "lz4 data", _UNPACK),
    (
        _ZIP,
        "a zip archive (files of Word, PowerPoint and Excel are such)",
        "Unpack it, or export it as PDF or CSV",
    ),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\xd0\xcf\x11\xe0", "an old Office document (.doc, .ppt or .xls)", "Export it as PDF or CSV"),
    (b"PAR1", "a Parquet file", "Rename it to end in .parquet, or set source.format: parquet"),
    (b"ARROW1", "an Arrow file", "Convert it to Parquet"),
    (b"ORC", "an ORC file", "Convert it to Parquet"),
    (b"Obj\x01", "an Avro file", "Convert it to Parquet"),
    (b"SQLite format 3\0", "an SQLite database", _EXPORT),
    (b"%PDF-", "a PDF document", f"{_READ_AS_PAGES}, or export it as text"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the data itself", "Run `git lfs pull`"),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer, not the data itself", "Run `git lfs pull`"),
    (b"/annex/objects/", "a git-annex pointer, not the data itself", "Run `git annex get`"),
)
_MARKUP = re.compile(rb"\s*<(?:!doctype\s+html|html|head|body|\?xml|error>)", re.IGNORECASE)
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_ROOT = re.compile(rb"<(?:[\w.-]+:)?(\w+)")  # of a document of markup: its first tag


def picture_format(head: bytes) -> str | None:
    """Return the format of a picture that is decoded, such as "JPEG", or None."""
    for magic, name in _DECODED:
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
    # An archive may have a PDF in it.
    archive = head.startswith(_ZIP) or _is_tar(head)
    return "pdf" if _PDF.search(head, 0, 1024 + 8) and not archive else None


def look_of(head: bytes) -> str:
    """Return words for what the first bytes of a file look like, for a message where a picture or PDF is expected."""
    if not head:
        return "empty"
    if (picture := picture_format(head)) is not None:
        return f"a {picture} picture"
    if (known := unsupported(head) or foreign(head)) is not None:
        return known[0]
    try:
        text = head[:-4].decode() if len(head) >= HEAD_BYTES // 2 else head.decode()  # a character may be cut
    except UnicodeDecodeError:
        return UNKNOWN
    return UNKNOWN if re.search(r"[\x00-\x08\x0e-\x1f]", text) else "text"


def unsupported(head: bytes) -> tuple[str, str] | None:
    """Return name and fix of a picture or document that is not read as a page, although it may be text, as SVG is."""
    if (picture := _other_picture(head)) is not None:
        return picture
    if head.startswith(b"%!PS"):
        return "PostScript", _SAVE_AS_PDF
    if head.startswith(b"{\\rtf"):
        return "a Rich Text document", _SAVE_AS_PDF
    plain = _COMMENT.sub(b"", head.removeprefix(_BOM)).lstrip()
    root = _ROOT.search(plain) if plain.startswith(b"<") else None
    if root is not None and root[1].lower() == b"svg":
        return "an SVG drawing", _SAVE_AS_PICTURE
    return _markup(plain)


def foreign(head: bytes) -> tuple[str, str] | None:
    """Return name and fix of data that is no UTF-8 text of rows, or None if it may be such text."""
    if (picture := picture_format(head)) is not None and b"\0" in head[:64]:
        return f"a {picture} picture", _READ_AS_PAGES
    if (other := _other_picture(head)) is not None:
        return other
    for magic, name, fix in _MAGIC:
        if head.startswith(magic) and _is_binary_or_long(magic, head):
            return name, fix
    if _is_tar(head):
        return "a tar archive", "Unpack it"
    if (encoding := wide_encoding(head)) is not None:
        return f"{encoding} text", _CONVERT.format(encoding)
    return _markup(head.removeprefix(_BOM))


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _other_picture(head: bytes) -> tuple[str, str] | None:
    """Return name and fix of a picture in a format that is not decoded."""
    return next(((name, _SAVE_AS_PICTURE) for pattern, name in _PICTURES if pattern.match(head)), None)


def _markup(plain: bytes) -> tuple[str, str] | None:
    """Return name and fix of an HTML or XML document."""
    if not _MARKUP.match(plain):
        return None
    kind = "an XML document" if plain.lstrip().lower().startswith((b"<?xml", b"<error>")) else "an HTML page"
    return kind, "It is often an error page that a download saved: fetch the file again"


def is_markup(head: bytes) -> bool:
    """Return whether these are the first bytes of an HTML or XML document."""
    return _markup(head.removeprefix(_BOM)) is not None


def _is_binary_or_long(magic: bytes, head: bytes) -> bool:
    """Return whether a magic cannot be text by chance: `ORC,text` is a header of a CSV file."""
    if len(magic) > 4 or max(magic) > 0x7E or min(magic) < 0x20:
        return True
    rest = head[len(magic) :]
    return any(byte < 0x09 or 0x0E <= byte < 0x20 or byte >= 0x7F for byte in rest[:64])


def wide_encoding(head: bytes) -> str | None:
    """Return UTF-16 or UTF-32 with its byte order if the first bytes are such text, with or without a mark; else None."""
    for mark, name in (
        (b"\xff\xfe\0\0", "UTF-32LE"),
        (b"\0\0\xfe\xff", "UTF-32BE"),
        (b"\xff\xfe", "UTF-16LE"),
        (b"\xfe\xff", "UTF-16BE"),
    ):
        if head.startswith(mark):
            return name
    # Without a mark: the first two characters of nearly every file of rows are ASCII, and so have NUL bytes.
    zeros = tuple(byte == 0 for byte in head[:8])
    if len(zeros) < 4:
        return None
    if zeros == (False, True, True, True) * 2:
        return "UTF-32LE"
    if zeros == (True, True, True, False) * 2:
        return "UTF-32BE"
    if zeros[:4] == (False, True, False, True):
        return "UTF-16LE"
    return "UTF-16BE" if zeros[:4] == (True, False, True, False) else None


def packed_as(head: bytes) -> str | None:
    """Return the codec of data with these first bytes: "gzip", "zstd" or None."""
    if head.startswith(_GZIP):
        return "gzip"
    # A zstd file may begin with a skippable frame.
    return (
        "zstd"
        if head.startswith(_ZSTD) or (head[:1] and 0x50 <= head[0] < 0x60 and head[1:4] == b"\x2a\x4d\x18")
        else None
    )


def not_as_named(path: str, head: bytes) -> tuple[str, str] | None:
    """Return content and fix of a file whose first bytes do not match its name; None if they may."""
    codec = next((codec for ending, codec in CODECS.items() if path.lower().endswith(ending)), None)
    return foreign(head) if codec is None else not_packed(head, codec)


def not_packed(head: bytes, codec: str) -> tuple[str, str] | None:
    """Return content and fix of a file with the ending of a codec and other first bytes; None if they match."""
    if not head or packed_as(head) == codec:
        return None
    if (content := foreign(head)) is not None:
        return content
    try:
        head[:-3].decode()
    except UnicodeDecodeError:
        return f"no {codec} data", "Replace it"
    return f"text that is not packed with {codec}", "Remove the ending from its name, or pack it"
