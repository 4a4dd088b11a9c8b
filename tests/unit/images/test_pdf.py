"""Pages of PDFs: what is drawn, what is refused, and that every page is accounted for."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from actors.images.decode import Picture
from actors.images.errors import UnfitPicture
from actors.images.page_tree import page_tree
from actors.images.pdf import Box, PdfDocument, drawn_size
from actors.images.pixels import resized, unpack_pixels
from actors.images.settings import PictureSettings
from tests.toys.pdfs import RED_CORNER, encryption, pdf_of, stream, write_pdf

SETTINGS = PictureSettings(3136, 100_000)
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def render(pdf: bytes, page: int, settings: PictureSettings) -> Picture:
    with PdfDocument(pdf) as opened:
        return opened.render(page, settings, text=True)


def page_boxes(pdf: bytes | str) -> list[Box | None]:
    with PdfDocument(pdf) as opened:
        return opened.boxes()


def colours(pdf: bytes, page: int = 1) -> dict[str, tuple[int, ...]]:
    """Colours in the middle of the four quarters of a page."""
    pixels = unpack_pixels(render(pdf, page, SETTINGS).pixels)
    rows, columns = pixels.shape[0] // 4, pixels.shape[1] // 4
    at = {"up left": (1, 1), "up right": (1, 3), "down left": (3, 1), "down right": (3, 3)}
    return {name: tuple(map(int, pixels[y * rows, x * columns])) for name, (y, x) in at.items()}


def corner(pdf: bytes, colour: tuple[int, int, int] = RED) -> list[str]:
    """The quarters that have a colour; all others are white."""
    seen = colours(pdf)
    assert all(found in (colour, WHITE) for found in seen.values())
    return [name for name, found in seen.items() if found == colour]


def refused(pdf: bytes, page: int = 1) -> str:
    with pytest.raises(UnfitPicture) as caught:
        render(pdf, page, SETTINGS)
    return caught.value.reason


@pytest.mark.parametrize(
    ("rotation", "where"),
    [(0, "up left"), (90, "up right"), (180, "down right"), (270, "down left"), (-90, "down left"), (450, "up right")],
)
def test_a_page_is_turned_as_it_says(rotation, where):
    pdf = pdf_of([RED_CORNER], page=b"/MediaBox [0 0 300 200] /Rotate %s" % str(rotation).encode())
    assert corner(pdf) == [where]
    height, width = unpack_pixels(render(pdf, 1, SETTINGS).pixels).shape[:2]
    assert (height > width) == (rotation % 180 != 0)


def test_sizes_that_are_planned_are_those_that_are_drawn():
    box = b"/MediaBox [0 0 %d00 200] /Rotate 90"
    pdf = pdf_of([b""] * 5, page=box)
    for page, size in enumerate(page_boxes(pdf), 1):
        assert size is not None
        assert size == (100 * page, 200)
        planned = resized(*drawn_size(size, SETTINGS), SETTINGS)
        assert unpack_pixels(render(pdf, page, SETTINGS).pixels).shape[:2] == planned


def test_values_of_forms_and_annotations_are_drawn_on_turned_pages_too():
    blue = stream(b"0 0 1 rg 0 0 150 100 re f", b"/Type /XObject /Subtype /Form /BBox [0 0 150 100]")
    widget = b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (b) /F 4 /Rect [0 100 150 200] /AP << /N 13 0 R >> >>"
    stamp = b"<< /Type /Annot /Subtype /Stamp /F 4 /Rect [0 100 150 200] /AP << /N 13 0 R >> >>"
    hidden = stamp.replace(b"/F 4", b"/F 2")
    page = b"/MediaBox [0 0 300 200] /Rotate 90 /Annots [12 0 R]"
    form = b"/AcroForm << /Fields [12 0 R] >>"
    assert corner(pdf_of([b""], page=page, catalog=form, objects={12: widget, 13: blue}), BLUE) == ["up right"]
    assert corner(pdf_of([b""], page=page, objects={12: stamp, 13: blue}), BLUE) == ["up right"]
    assert corner(pdf_of([b""], page=page, objects={12: hidden, 13: blue}), BLUE) == []


def test_a_layer_that_is_switched_off_is_not_drawn():
    layered = b"/OC /Layer BDC " + RED_CORNER + b" EMC"
    layer = {10: b"<< /Type /OCG /Name (Layer) >>"}
    off = b"/OCProperties << /OCGs [10 0 R] /D << /OFF [10 0 R] >> >>"
    on = b"/OCProperties << /OCGs [10 0 R] /D << /ON [10 0 R] >> >>"
    assert corner(pdf_of([layered], catalog=on, objects=layer)) == ["up left"]
    assert corner(pdf_of([layered], catalog=off, objects=layer)) == []


def test_an_owners_password_does_not_matter_but_a_users_does():
    assert colours(pdf_of([b""], trailer=encryption(b"", b"owner")))["up left"] == WHITE
    locked = pdf_of([b""], trailer=encryption(b"user", b"owner"))
    assert refused(locked) == "encrypted"
    with pytest.raises(UnfitPicture, match="password"):
        page_boxes(locked)
    assert refused(pdf_of([])) == "bad_pdf"  # PDFium's last error is still that of the password


def test_junk_around_a_pdf_does_not_matter():
    pdf = pdf_of([RED_CORNER])
    assert corner(b"junk\n" * 100 + pdf) == ["up left"]
    assert corner(pdf + b"\x00" * 5000) == ["up left"]
    assert corner(pdf.replace(b"startxref\n", b"startxref\n99")) == ["up left"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty, not a PDF"),
        (b"<!DOCTYPE html><p>", "the file is an HTML page, not a PDF"),
        (b"\x89PNG\r\n\x1a\n", "the file is a PNG picture, not a PDF"),
        (b"%PDF-1.7\n", "damaged, or has no pages"),
        (pdf_of([]), "damaged, or has no pages"),
        (pdf_of([RED_CORNER])[:200], "damaged, or has no pages"),
    ],
)
def test_what_is_no_pdf_is_refused_with_a_reason(data, words, tmp_path):
    (tmp_path / "a.pdf").write_bytes(data)
    for source in (data, str(tmp_path / "a.pdf")):
        with pytest.raises(UnfitPicture, match=words) as caught:
            page_boxes(source)
        assert caught.value.reason == "bad_pdf"


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 300_000, 10**7])
def test_no_page_is_lost_where_the_number_of_pages_is_wrong(count):
    pdf = pdf_of([RED_CORNER] * 3, count=count, page=b"/MediaBox [0 0 %d00 200]")
    boxes = page_boxes(pdf)
    assert boxes[:3] == [(200, 100), (200, 200), (200, 300)]
    assert set(boxes[3:]) <= {None}
    assert len(boxes) == (3 if count <= 3 or count == 10**7 else min(count, 130))
    assert unpack_pixels(render(pdf, 3, SETTINGS).pixels).any()  # without `page_boxes` before it
    assert refused(pdf, 4) == "bad_page"


def test_wrong_numbers_in_the_nodes_of_a_tree_are_found():
    def leaf(parent: bytes) -> bytes:
        return b"<< /Type /Page /Parent %s 0 R /MediaBox [0 0 300 200] >>" % parent

    nodes = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [3 0 R 4 0 R 2 0 R] /Count 2 >>",  # also its own child
        3: b"<< /Type /Pages /Parent 2 0 R /Kids [5 0 R 6 0 R] /Count 1 >>",
        4: b"<< /Type /Pages /Parent 2 0 R /Kids [7 0 R] /Count 1 >>",
        5: leaf(b"3"),
        6: leaf(b"3"),
        7: leaf(b"4"),
    }
    assert page_boxes(write_pdf(nodes)) == [(200, 300)] * 3


def test_a_tree_that_is_not_understood_takes_no_page_away():
    pages = b" ".join(b"%d 0 R" % number for number in range(10, 1010))
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [3 0 R] /Count 1000 >>",
        3: b"<< /Type /Pages /Parent 2 0 R /Kids 4 0 R /Count 1000 >>",
        4: b"[" + pages + b"]",
        **dict.fromkeys(range(10, 1010), b"<< /Type /Page /Parent 3 0 R /MediaBox [0 0 300 200] >>"),
    }
    assert page_boxes(write_pdf(objects)) == [(200, 300)] * 1000


def test_a_page_tree_in_compressed_objects_is_counted():
    inner = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R 4 0 R] /Count 1 >>", b"<<>>", b"<<>>"]
    places = [sum(map(len, inner[:i])) + i for i in range(4)]
    numbers = b" ".join(b"%d %d" % (number, place) for number, place in enumerate(places, 1)) + b"\n"
    packed = zlib.compress(numbers + b" ".join(inner))
    pdf = b"%%PDF-1.5\n9 0 obj\n%s\nendobj\n" % stream(
        packed, b"/Type /ObjStm /N 4 /First %d /Filter /FlateDecode" % len(numbers)
    )
    tree = page_tree(pdf)
    assert tree is not None
    assert (tree.pages, tree.counts) == (2, ())
    assert page_tree(pdf.replace(packed, b"encrypted")) is None


def test_a_damaged_page_costs_only_itself():
    pdf = pdf_of([RED_CORNER] * 3).replace(b"102 0 obj\n<< /Type /Page ", b"102 0 obj\n[[ /Type /Page ")
    boxes = page_boxes(pdf)
    assert len(boxes) == 3
    assert boxes[1] is None
    assert refused(pdf, 2) == "bad_page"
    assert colours(pdf, 3)["up left"] == RED


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (b"/MediaBox [0 0 100 100] /CropBox [200 200 300 300]", "bad_shape"),
        (b"/MediaBox [0 0 30000 100]", "bad_shape"),
        (b"/MediaBox [0 0 1e9 1e9]", None),
        (b"/MediaBox [0 0 200000 200000]", None),
        (b"/MediaBox [0 0 .5 .5]", None),
        (b"/MediaBox [0 0 3 3]", None),
    ],
)
def test_absurd_pages_are_refused_or_drawn_small(box, reason):
    pdf = pdf_of([b"", b""], page=box)
    (size, _) = page_boxes(pdf)
    assert size is not None
    if reason:
        assert refused(pdf) == reason
        with pytest.raises(UnfitPicture):
            resized(*drawn_size(size, SETTINGS), SETTINGS)
    else:
        assert colours(pdf)["up left"] == WHITE
        assert np.prod(drawn_size(size, SETTINGS)) < 4.1 * SETTINGS.max_pixels


def test_the_text_layer_is_plain_text():
    lines = b"BT /F 12 Tf 20 150 Td (first line) Tj 0 -20 Td (second) Tj ET"
    turned = b"/MediaBox [0 0 300 200] /Rotate 180"
    assert render(pdf_of([lines]), 1, SETTINGS).text == "first line\nsecond"
    assert render(pdf_of([lines], page=turned), 1, SETTINGS).text == "first line\nsecond"
    assert render(pdf_of([b""]), 1, SETTINGS).text == ""
    with PdfDocument(pdf_of([lines])) as pdf:
        assert pdf.render(1, SETTINGS).text is None


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_all_that_is_opened_is_closed(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of([RED_CORNER] * 2))
    small = PictureSettings(3136, 3136)
    before, files = 0, len(os.listdir("/proc/self/fd"))
    for turn in range(400):
        with PdfDocument(str(path)) as pdf:
            pdf.boxes()
            pdf.render(1 + turn % 2, small, text=True)
        if turn == 100:
            before = resident_bytes()
    assert resident_bytes() < before + (4 << 20)
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_file_is_opened_anew_when_its_memory_has_grown(monkeypatch):
    monkeypatch.setattr("actors.images.pdf._MAX_GROWTH_BYTES", -(1 << 40))
    with PdfDocument(pdf_of([RED_CORNER] * 3, count=1)) as pdf:
        first = pdf._pdf
        assert pdf.pages == 3
        assert [unpack_pixels(pdf.render(page, SETTINGS).pixels)[9, 9, 1] for page in (1, 2, 3)] == [0, 0, 0]
        assert pdf._pdf is not first
        assert pdf.pages == 3
