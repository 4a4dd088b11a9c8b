"""Number of pages that the page tree of a PDF really has.

PDFium believes the `/Count` of the tree's root. If that is too low, the pages behind it are lost without an error. This
module finds the nodes of the tree without PDFium, in plain objects and in compressed object streams. It knows nothing of
cross-reference tables: a later definition of an object replaces an earlier one, as in a file that was appended to.
"""

from __future__ import annotations

import mmap
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

Content = bytes | mmap.mmap

_NUMBER = re.compile(rb"(\d+)\s+\d+\s+$")  # in front of "obj"
_KIDS = re.compile(rb"/Kids\s*\[([^\]]*)\]")
_COUNT = re.compile(rb"/Count\s+(\d{1,10})")
_REFERENCE = re.compile(rb"(\d{1,10})\s+\d+\s+R")
_ROOT = re.compile(rb"/Pages\s+(\d{1,10})\s+\d+\s+R")
_FIRST = re.compile(rb"/First\s+(\d{1,10})")
_WORDS = (b"/Kids", b"/Catalog", b"/ObjStm")
_WINDOW_BYTES = 1 << 24
_MAX_STREAM_BYTES = 1 << 26  # unpacked


@dataclass(frozen=True, slots=True)
class PageTree:
    """Page tree of a PDF.

    Attributes:
        pages: Number of its leaves.
        counts: Places of the digits of `/Count` in its plain nodes: start and end.
    """

    pages: int
    counts: tuple[tuple[int, int], ...]

    def without_counts(self, content: Content) -> bytes:
        """Return the file with every plain count set to 0, so that PDFium counts the pages itself."""
        changed = bytearray(content)
        for start, end in self.counts:
            changed[start:end] = b"0" * (end - start)
        return bytes(changed)


def page_tree(content: Content) -> PageTree | None:
    """Return the page tree of a PDF; None if it cannot be found, as in encrypted object streams."""
    kids: dict[int, list[int]] = {}
    counts: dict[int, tuple[int, int]] = {}
    root = None
    for number, text, start in _objects(content):
        found, count = _KIDS.search(text), _COUNT.search(text)
        if found and count:
            kids[number] = [int(kid) for kid in _REFERENCE.findall(found.group(1))]
            counts.pop(number, None)
            if start is not None:
                counts[number] = (start + count.start(1), start + count.end(1))
        elif b"/Catalog" in text and (pages := _ROOT.search(text)):
            root = int(pages.group(1))
    if root not in kids:
        return None
    leaves, waiting, seen = 0, [root], {root}
    while waiting:
        for kid in kids[waiting.pop()]:
            if kid not in kids:
                leaves += 1
            elif kid not in seen:
                seen.add(kid)
                waiting.append(kid)
    return PageTree(leaves, tuple(counts[node] for node in seen if node in counts))


def _objects(content: Content) -> Iterator[tuple[int, bytes, int | None]]:
    """Objects that may be a node or the catalog, in the order of the file: number, text, and place if it is plain."""
    for place in _places(content):
        start = content.rfind(b"obj", 0, place)
        number = _NUMBER.search(content[max(0, start - 24) : start])
        end = content.find(b"endobj", place)
        if start < 0 or number is None or end < 0:
            continue
        if content[place : place + 7] == b"/ObjStm":
            yield from ((inner, text, None) for inner, text in _inner_objects(content, start, place))
        else:
            yield int(number.group(1)), content[start:end], start


def _places(content: Content) -> list[int]:
    """Places of the words that a node, the catalog or an object stream has, in the order of the file."""
    found: set[int] = set()
    for start in range(0, len(content), _WINDOW_BYTES):
        end = start + _WINDOW_BYTES + 8  # a word may lie across it
        for word in _WORDS:
            place = content.find(word, start, end)
            while place >= 0:
                found.add(place)
                place = content.find(word, place + 1, end)
        if isinstance(content, mmap.mmap):
            content.madvise(mmap.MADV_DONTNEED, start, _WINDOW_BYTES)  # a large file does not fill the memory
    return sorted(found)


def _inner_objects(content: Content, start: int, place: int) -> Iterator[tuple[int, bytes]]:
    """Number and text of the objects in a compressed object stream; none if it cannot be unpacked."""
    begin = content.find(b"stream", place)
    sizes = _FIRST.search(content[start:begin])
    if begin < 0 or sizes is None:
        return
    first = int(sizes.group(1))
    data = content[begin + 6 : content.find(b"endstream", begin)].lstrip(b"\r\n")
    try:
        unpacked = zlib.decompressobj().decompress(data, _MAX_STREAM_BYTES)
        places = [int(word) for word in unpacked[:first].split()]
    except (zlib.error, ValueError):  # encrypted, or packed in another way
        return
    if b"/Kids" not in unpacked and b"/Catalog" not in unpacked:
        return
    numbers, offsets = places[::2], [first + offset for offset in places[1::2]]
    for number, offset, end in zip(numbers, offsets, [*offsets[1:], len(unpacked)], strict=False):
        yield number, unpacked[offset:end]
