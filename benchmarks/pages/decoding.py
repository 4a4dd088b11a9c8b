"""Render, decode and resize: one of our processes against pypdfium2 and Pillow alone, in turns."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pypdfium2
from PIL import Image

from actors.images.errors import UnfitPicture
from actors.images.pixels import HEADER_BYTES, resized
from actors.images.settings import PictureSettings
from actors.images.workers import DecodeJob, DecodePool, PageJob, PdfFile
from actors.source.formats.pages import ENDINGS
from benchmarks.pages.corpus import MOST_PAGES


@dataclass(slots=True)
class File:
    """Results of one file, a number a turn.

    Attributes:
        pages: Number of pages that are decoded in a turn; 1 for a picture.
        ours_s, bare_s: Seconds of the clock.
        ours_cpu_s, bare_cpu_s: Seconds of processor.
        draw_s: The part of `bare_s` until there are pixels; the rest is resizing.
        same: Number of pages with the same pixels both ways.
    """

    path: Path
    pages: int
    ours_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    ours_cpu_s: list[float] = field(default_factory=list)
    bare_cpu_s: list[float] = field(default_factory=list)
    draw_s: list[float] = field(default_factory=list)
    same: int = 0


def _found(folder: Path) -> list[File]:
    """Return the PDFs and pictures below a folder that can be opened; of a PDF the first pages."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in ENDINGS:
            continue
        pages = 1
        if path.suffix.lower() == ".pdf":
            with pypdfium2.PdfDocument(path) as pdf:
                pages = min(len(pdf), MOST_PAGES)
        files.append(File(path, pages))
    if not files:
        raise SystemExit(f"{str(folder)!r} has no PDF and no picture; name another folder")
    return files


def _draw(file: File, settings: PictureSettings, spent: list[float]) -> list[bytes]:
    """Return RGB of each page by pypdfium2 and Pillow alone; adds the seconds until there are pixels to `spent`."""

    def finish(image: Image.Image, started: float) -> bytes:
        spent.append(time.perf_counter() - started)
        height, width = resized(image.height, image.width, settings)
        return image.resize((width, height), Image.Resampling.BICUBIC).convert("RGB").tobytes()

    if file.path.suffix.lower() != ".pdf":
        started = time.perf_counter()
        with Image.open(file.path) as image:
            image.load()
            return [finish(image, started)]
    made = []
    with pypdfium2.PdfDocument(file.path) as pdf:
        pdf.init_forms()
        for number in range(file.pages):
            started = time.perf_counter()
            page = pdf[number]
            width, height = page.get_size()
            scale = min(200 / 72, 2 * math.sqrt(settings.max_pixels / (width * height)))
            bitmap = page.render(scale=scale)
            made.append(finish(bitmap.to_pil(), started))
            bitmap.close()
            page.close()
    return made


def _processor_s(pid: int) -> float:
    """Return the seconds of processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child() -> int:
    """Return the process that decodes, which is the youngest child of this one."""
    children = [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
    return max(children)


def race(folder: Path, settings: PictureSettings, repeats: int, print_progress: Callable[[str], None]) -> list[File]:
    """Time one process that decodes against the bare libraries, file by file, in turns."""
    files = _found(folder)
    with DecodePool(1) as pool:

        def ours(file: File) -> list[bytes]:
            if file.path.suffix.lower() == ".pdf":
                pdf = PdfFile(str(file.path))
                found = list(pool.run(PageJob(pdf, page + 1, settings) for page in range(file.pages)))
            else:
                found = list(pool.run([DecodeJob(file.path.read_bytes(), settings)]))
            return [b"" if isinstance(each, UnfitPicture) else each.pixels[HEADER_BYTES:] for each in found]

        ours(files[0])
        child = _child()
        for turn in range(repeats + 1):
            print_progress(f"turn {turn} of {repeats}")
            for file in files:
                drawn: list[float] = []
                before, cpu, started = _processor_s(child), time.process_time(), time.perf_counter()
                pixels = ours(file)
                our_s, middle = time.perf_counter() - started, time.process_time()
                our_cpu_s = middle - cpu + _processor_s(child) - before
                started = time.perf_counter()
                bare = _draw(file, settings, drawn)
                bare_s, bare_cpu_s = time.perf_counter() - started, time.process_time() - middle
                if turn == 0:  # files are not in the page cache yet
                    file.same = sum(a == b for a, b in zip(pixels, bare, strict=True))
                    continue
                file.ours_s.append(our_s)
                file.ours_cpu_s.append(our_cpu_s)
                file.bare_s.append(bare_s)
                file.bare_cpu_s.append(bare_cpu_s)
                file.draw_s.append(sum(drawn))
    return files
