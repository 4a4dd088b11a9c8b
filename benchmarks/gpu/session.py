"""All measurements of one GPU, in the order of their value, within a time; the page is written after each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.backfills import Backfill, run_backfills, write_model
from benchmarks.gpu.measure import measure_shape
from benchmarks.gpu.page import Result
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.timing import mixes
from benchmarks.gpu.vision import measure_pages

Part = tuple[str, Callable[[], Sequence[Result]]]


@dataclass(slots=True)
class Session:
    """What was measured so far.

    Attributes:
        page: Where the results go.
        write: Returns the text of the page; gets the results and the parts that are missing.
        say: Prints a line of progress.
        minutes: No part begins after these.
    """

    page: Path
    write: Callable[[Sequence[Result], Sequence[str]], str]
    say: Callable[[str], None]
    minutes: float
    found: list[Result] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def run(self, parts: Sequence[Part]) -> None:
        """Measure the parts, by name, until the time is over; those after it are named on the page."""
        for number, (name, measure) in enumerate(parts):
            if time.monotonic() - self.started >= 60 * self.minutes:
                return
            self.say(name)
            self.found += measure()
            self.page.write_text(self.write(self.found, [name for name, _ in parts[number + 1 :]]))


def parts_of(
    shapes: Sequence[Shape],
    *,
    tokens: int,
    repeats: int,
    rows: int,
    texts: Callable[[], Sequence[str]],
    model: Path,
    v4: Path | None,
    pages: int,
    device: torch.device,
    address: str = "local",
) -> list[Part]:
    """The parts of a session: the shapes, and backfills after the second of them.

    Args:
        shapes: The shapes, most important first.
        tokens: Of each mix.
        repeats: Passes that count.
        rows: Of the backfill of the packaged model; 0 leaves backfills out.
        texts: Returns the texts of backfills.
        model: Folder of the packaged model.
        v4: Folder of v4 for its pages; None makes random weights.
        pages: Pages of its backfill.
        device: The GPU.
        address: `run.address` of backfills.
    """

    def measure(shape: Shape) -> Sequence[Result]:
        if shape.family == "v4 pages":
            return measure_pages(shape, v4, pages=pages, repeats=repeats, device=device, address=address)
        return measure_shape(shape, mixes(max(1, int(tokens * shape.share))), device=device, repeats=repeats)

    parts: list[Part] = [(shape.name, partial(measure, shape)) for shape in shapes]
    if not rows:
        return parts

    def backfills(shape: Shape | None, count: int) -> list[Backfill]:
        settings = {"rows": count, "replicas": (1, 2), "device": device, "address": address}
        with tempfile.TemporaryDirectory() as folder:
            written = model if shape is None else write_model(shape, model, Path(folder) / "model")
            return run_backfills(texts(), written, model.name if shape is None else shape.name, **settings)  # type: ignore[arg-type]

    # A small model is judged by its rate: no machine has the cores to tokenize for it.
    large = next((shape for shape in shapes if shape.name == "BERT large"), None)
    wanted: list[Part] = [*([("backfill, BERT large", partial(backfills, large, rows // 4))] if large else [])]
    wanted.append(("backfill, all-MiniLM-L6-v2", partial(backfills, None, rows)))
    return [*parts[:2], *wanted, *parts[2:]]
