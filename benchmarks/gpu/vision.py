"""Pages a second through v4: rendering, the vision tower, the language model, both together, and a whole backfill."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from actors.encoders import describe, load_encoder
from actors.encoders.families.jina_v4 import JinaV4
from actors.encoders.pictured import Picture, place_pictures
from actors.images.decode import Picture as Decoded
from actors.images.workers import DecodePool, PageJob, PdfFile
from actors.inputs import PAGE_CONTENT, load_preparer
from actors.schema import COST, PICTURE, PREFIX
from benchmarks.gpu.backfills import Backfill, watched
from benchmarks.gpu.measure import busy_share
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.timing import let_go, random_ids, timed
from benchmarks.pages.corpus import write_text_pdf

_ALONE = 64  # pages that each part is timed with
_FILE_PAGES = 100
_TOWER_PAGES = 4  # in a call, within the patches that the tower takes at a time


@dataclass(frozen=True, slots=True)
class PageRates:
    """Pages a second.

    Attributes:
        tokens: Of a page.
        render: Rendering and resizing, on all cores.
        tower: The vision tower alone.
        language: The language model alone, with texts of as many tokens.
        backfill: A whole backfill, and the encoder alone.
    """

    tokens: int
    render: float
    tower: float
    language: float
    backfill: Backfill


def measure_pages(
    shape: Shape,
    checkpoint: Path | None,
    *,
    pages: int,
    repeats: int,
    device: torch.device,
    address: str = "local",
) -> list[PageRates]:
    """Measure pages of text.

    Args:
        shape: Shape of v4 with a vision tower.
        checkpoint: Folder of v4's main repository; None makes one of random weights.
        pages: Pages of the backfill.
        repeats: Passes that count.
        device: Device of the encoder.
        address: `run.address` of the backfill.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint or shape.write(Path(folder) / "model")
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        random = np.random.default_rng(0)
        for start in range(0, pages, _FILE_PAGES):
            write_text_pdf(corpus / f"{start:06d}.pdf", min(_FILE_PAGES, pages - start), random)

        spec = describe(str(model), task=shape.task).seeing()
        assert spec.pictures is not None
        pdf = PdfFile(str(corpus / "000000.pdf"))
        jobs = [PageJob(pdf, page + 1, spec.pictures) for page in range(min(pages, _ALONE))]
        with DecodePool() as pool:
            render = timed(lambda: list(pool.run(jobs)), len(jobs), repeats, device)
            found = [{"picture": each.pixels} for each in pool.run(jobs) if isinstance(each, Decoded)]
        rows = load_preparer(spec).prepare(pa.chunked_array([[each] for each in found], PAGE_CONTENT)).rows
        lengths = rows[COST].to_numpy().astype(np.int64)

        encoder = load_encoder(spec, device=str(device), one_task=True)
        whole = partial(encoder.encode_rows, rows)
        alone = timed(whole, len(found), repeats, device)
        ids = random_ids(lengths, spec.vocab_size)
        language = timed(partial(encoder.encode_tokens, ids), len(found), repeats, device)
        assert isinstance(encoder.family, JinaV4)
        look = partial(_look, encoder.family, rows, lengths, device)
        tower = timed(look, len(found), repeats, device)
        busy = busy_share(whole, device)
        del encoder, whole, look
        let_go(device)

        run = {"address": address, "replicas": 1, "gpus_per_replica": 1 if device.type == "cuda" else 0}
        settings = {"model": str(model), "task": shape.task}
        watch = watched({"uri": str(corpus)}, settings, f"{folder}/table", rows=pages, run=run)
    seconds = watch.seconds(1)
    rate = sum(receipt.rows for receipt in watch.receipts[1:]) / seconds
    name = shape.name if checkpoint is None else checkpoint.name
    backfill = Backfill(name, 1, seconds, rate, statistics.median(alone), busy)
    return [
        PageRates(
            int(lengths[0]), statistics.median(render), statistics.median(tower), statistics.median(language), backfill
        )
    ]


@torch.inference_mode()
def _look(family: JinaV4, rows: pa.Table, lengths: Sequence[int], device: torch.device) -> None:
    """Run the vision tower over the pictures of prepared rows."""
    assert family.tower is not None
    pixels, starts = rows[PICTURE].to_pylist(), rows[PREFIX].to_pylist()
    for start in range(0, len(pixels), _TOWER_PAGES):
        part = slice(start, start + _TOWER_PAGES)
        pictures = [Picture(*each) for each in zip(pixels[part], starts[part], strict=True)]
        placed = place_pictures(pictures, np.asarray(lengths[part]), device)
        assert placed is not None
        family.tower(placed)
