"""PDFs and pictures that the benchmark makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.toys.pdfs import pdf_of

MOST_PAGES = 20  # of a file in a turn
_A4 = b"/MediaBox [0 0 595 842]"
_WORDS = ("net", "interest", "margin", "by", "quarter", "rose", "in", "all", "regions", "while", "costs", "fell")


def _sentence(random: np.random.Generator, words: int) -> str:
    return " ".join(random.choice(_WORDS, words))


def write_text_pdf(file: Path, pages: int, random: np.random.Generator) -> None:
    """Write a PDF of A4 pages full of text."""

    def page() -> bytes:
        lines = (f"({_sentence(random, 13)}) Tj T*" for _ in range(52))
        return f"BT /F 10 Tf 14 TL 60 780 Td {' '.join(lines)} ET".encode()

    file.write_bytes(pdf_of([page() for _ in range(pages)], page=_A4))


def write_corpus(folder: Path) -> None:
    """Write a PDF with text, a PDF of scans, and a photograph."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    write_text_pdf(folder / "text.pdf", MOST_PAGES, random)
    scans = []
    for _ in range(8):
        paper = random.normal(245, 4, (1754, 1240)).clip(0, 255).astype(np.uint8)
        scan = Image.fromarray(paper)
        text = "\n".join(_sentence(random, 12) for _ in range(55))
        ImageDraw.Draw(scan).multiline_text((120, 120), text, 30, ImageFont.load_default(20))
        scans.append(scan.convert("RGB"))
    scans[0].save(folder / "scan.pdf", save_all=True, append_images=scans[1:], resolution=150)
    blobs = Image.fromarray(random.integers(0, 255, (9, 12, 3), np.uint8)).resize(
        (4000, 3000), Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 6, (3000, 4000, 1))
    photograph = Image.fromarray((np.asarray(blobs) + grain).clip(0, 255).astype(np.uint8))
    photograph.save(folder / "photograph.jpg", quality=90)


def write_long_pdf(file: Path, pages: int) -> None:
    """Write a PDF of A4 pages with a number and a bar each, so that no two are equal."""
    contents = [
        b"BT /F 60 Tf 60 700 Td (%d) Tj ET 60 60 %d 500 re f" % (page, 20 + page % 400) for page in range(pages)
    ]
    file.parent.mkdir(parents=True)
    file.write_bytes(pdf_of(contents, page=_A4))
