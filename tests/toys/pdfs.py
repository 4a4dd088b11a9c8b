"""Small PDFs, written byte by byte, so that tests can say what is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

RED_CORNER = b"1 0 0 rg 0 100 150 100 re f"  # the upper left quarter of a page of 300 x 200 points
_PADDING = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")


def stream(data: bytes, entries: bytes = b"") -> bytes:
    """An object with a stream."""
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), entries, data)


def write_pdf(objects: Mapping[int, bytes], trailer: bytes = b"") -> bytes:
    """A file of objects by number; object 1 is the catalog."""
    out, places = bytearray(b"%PDF-1.5\n"), {}
    for number, body in sorted(objects.items()):
        places[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table, size = len(out), max(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % size
    for number in range(1, size):
        out += b"%010d 00000 n \n" % places[number] if number in places else b"0000000000 00000 f \n"
    return bytes(out + b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (size, trailer, table))


def pdf_of(
    contents: Sequence[bytes],
    *,
    count: int | None = None,
    page: bytes = b"/MediaBox [0 0 300 200]",
    catalog: bytes = b"",
    objects: Mapping[int, bytes] | None = None,
    trailer: bytes = b"",
) -> bytes:
    """A file with a page for each content stream.

    Args:
        contents: Operators of each page; "/F" is a font.
        count: Number of pages that the file says it has.
        page: Entries of each page; `%d` is replaced by its number, from 1.
        catalog: Entries of the catalog.
        objects: More objects, numbered from 10 to 99.
        trailer: Entries of the trailer.
    """
    kids = range(100, 100 + 2 * len(contents), 2)
    made = dict(objects or {})
    made[1] = b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog
    pages = b" ".join(b"%d 0 R" % kid for kid in kids)
    made[2] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (pages, len(contents) if count is None else count)
    made[3] = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    for number, (kid, content) in enumerate(zip(kids, contents, strict=True), 1):
        entries = page.replace(b"%d", b"%d" % number)
        made[kid] = (
            b"<< /Type /Page /Parent 2 0 R /Resources << /Font << /F 3 0 R >> /Properties << /Layer 10 0 R >> "
            b"/XObject << /Form 11 0 R >> >> /Contents %d 0 R %s >>" % (kid + 1, entries)
        )
        made[kid + 1] = stream(content)
    return write_pdf(made, trailer)


def encryption(user: bytes, owner: bytes) -> bytes:
    """Entries of the trailer of a file with two passwords (RC4, 40 bits). Strings and streams must be empty."""
    padded = (user + _PADDING)[:32]
    by_owner = _rc4(hashlib.md5((owner + _PADDING)[:32]).digest()[:5], padded)
    permissions = (-4 & 0xFFFFFFFF).to_bytes(4, "little")
    key = hashlib.md5(padded + by_owner + permissions + b"i" * 16).digest()[:5]
    by_user = _rc4(key, _PADDING)
    entries = (by_owner.hex().encode(), by_user.hex().encode(), b"69" * 16, b"69" * 16)
    return b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >> /ID [<%s> <%s>]" % entries


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j, out = list(range(256)), 0, bytearray()
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
