"""Checks of JPEGs that end too early: pixels are missing, or the end mark alone.

Pillow raises the same error for both cases. Used by `actors.images.decode` after that error.
"""

from __future__ import annotations

import io
from hashlib import blake2b
from itertools import product

from actors.images.pixels import strips

_END = b"\xff\xd9"
# Data that a decoder takes for pixels if some are missing, also behind each of the eight restart marks.
# A decoder that expects one of these marks and finds the following one skips the data, so there are two orders of them.
_MARKS = [b"\xa5\x5a" * 64 + bytes([0xFF, mark]) for mark in range(0xD0, 0xD8)]
_MORE = (b"".join(_MARKS), b"".join(_MARKS[4:] + _MARKS[:4]))
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # among the marks C0 to CF, which begin a frame


def ended(data: bytes) -> bytes | None:
    """Return a JPEG with the end mark that it lacks; None if pixels are missing too.

    If all pixels are there, what stands behind them does not change the picture.
    """
    if data.endswith(b"\0") and not data.endswith(b"\xff\0"):
        return None  # a transfer that stopped, filled up with zeros, which are decoded as pixels
    data = data.removesuffix(b"\xff")  # half of the end mark
    if not _has_all_scans(data):
        return None
    pixels = _hash(data + _END)
    return data + _END if all(_hash(data + more + _END) == pixels for more in _MORE) else None


def _hash(data: bytes) -> bytes:
    """Return a hash of the decoded pixels."""
    from PIL import Image

    digest = blake2b()
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.load()
        for box in strips(image):
            digest.update(image.crop(box).tobytes())
    return digest.digest()


def _has_all_scans(data: bytes) -> bool:
    """Return whether the last scan has begun: the scans before it and it have all bits of each coefficient."""
    expected, found = -1, set[tuple[int, int]]()
    place = data.find(b"\xff", 2)
    while 0 <= place < len(data) - 4:
        mark, header = data[place + 1], data[place + 4 : place + 2 + int.from_bytes(data[place + 2 : place + 4])]
        if mark in (0x00, 0xFF) or 0xD0 <= mark <= 0xD7:  # no mark, or one without a header
            place = data.find(b"\xff", place + (1 if mark == 0xFF else 2))
            continue
        if 0xC0 <= mark <= 0xCF and mark not in _NO_FRAMES and len(header) > 5:
            expected = 64 * header[5]
        elif mark == 0xDA and len(header) > 3 and len(header) == 2 * header[0] + 4 and header[-1] & 15 == 0:
            found |= set(product(header[1:-3:2], range(header[-3], header[-2] + 1)))
        place = data.find(b"\xff", place + 4 + len(header))
    return len(found) == expected
