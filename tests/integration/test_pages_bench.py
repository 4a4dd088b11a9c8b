"""The benchmark of pages, with a few small ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from actors.images.settings import PictureSettings
from benchmarks.pages.decoding import race
from benchmarks.pages.measure import markdown, measure
from tests.checkpoints.jina_v4 import write_jina_v4
from tests.toys.pdfs import RED_CORNER, pdf_of


def test_pages_are_raced_and_backfilled(tmp_path: Path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.pdf").write_bytes(pdf_of([RED_CORNER] * 2))
    Image.new("RGB", (100, 60), "red").save(tmp_path / "source" / "b.png")
    model = write_jina_v4(tmp_path / "model", max_pixels=20_000)
    found = measure(
        tmp_path / "work",
        model=model,
        source=tmp_path / "source",
        pages=60,
        repeats=1,
        print_progress=lambda _: None,
    )
    assert [(file.path.name, file.pages, file.same) for file in found.files] == [("a.pdf", 2, 2), ("b.png", 1, 1)]
    assert found.stages["rows"] == 3
    assert set(found.stages["stage_s"]) == {"read", "tokenize", "encode", "write", "vision", "language"}
    assert all(found.stages["stage_s"][stage] > 0 for stage in ("vision", "language"))
    assert [each["rows"] for each in found.memory] == [50, 60]
    assert all(each["peak_mib"] > each["child_mib"] > 20 for each in found.memory)
    page = markdown(found, command="c", date="d")
    assert "At most 20,000 pixels a page." in page
    assert "| b.png | 1 | 1 |" in page
    assert "| one PDF | 60 |" in page


def test_a_folder_without_pages_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(SystemExit, match="has no PDF and no picture"):
        race(tmp_path, PictureSettings(3136, 20_000), 1, lambda _: None)
