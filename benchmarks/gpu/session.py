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
from benchmarks.gpu.measure import Row, measure_shape
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.timing import mixes


@dataclass(slots=True)
class Session:
    """What was measured so far.

    Attributes:
        page: Where the results go.
        write: Returns the text of the page; gets the rows, the backfills and the parts that are missing.
        say: Prints a line of progress.
        minutes: No part begins after these.
    """

    page: Path
    write: Callable[[Sequence[Row], Sequence[Backfill], Sequence[str]], str]
    say: Callable[[str], None]
    minutes: float
    rows: list[Row] = field(default_factory=list)
    backfills: list[Backfill] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def run(self, parts: Sequence[tuple[str, Callable[[], list[Row] | list[Backfill]]]]) -> None:
        """Measure the parts, by name, until the time is over; those after it are named on the page."""
        for number, (name, measure) in enumerate(parts):
            if time.monotonic() - self.started >= 60 * self.minutes:
                return
            self.say(name)
            for found in measure():
                (self.rows if isinstance(found, Row) else self.backfills).append(found)  # type: ignore[arg-type]
            self.page.write_text(self.write(self.rows, self.backfills, [name for name, _ in parts[number + 1 :]]))


def parts_of(
    shapes: Sequence[Shape],
    *,
    tokens: int,
    repeats: int,
    rows: int,
    texts: Callable[[], Sequence[str]],
    model: Path,
    device: torch.device,
    address: str = "local",
) -> list[tuple[str, Callable[[], list[Row] | list[Backfill]]]]:
    """The parts of a session: the shapes, and backfills after the second of them.

    Args:
        shapes: The shapes, most important first.
        tokens: Of each mix.
        repeats: Passes that count.
        rows: Of the backfill of the packaged model; 0 leaves backfills out.
        texts: Returns the texts of backfills.
        model: Folder of the packaged model.
        device: The GPU.
        address: `run.address` of backfills.
    """
    parts: list[tuple[str, Callable[[], list[Row] | list[Backfill]]]] = [
        (
            shape.name,
            partial(measure_shape, shape, mixes(max(1, int(tokens * shape.share))), device=device, repeats=repeats),
        )
        for shape in shapes
    ]
    if not rows:
        return parts

    def backfills(shape: Shape | None, count: int) -> list[Backfill]:
        settings = {"rows": count, "replicas": (1, 2), "device": device, "address": address}
        with tempfile.TemporaryDirectory() as folder:
            written = model if shape is None else write_model(shape, model, Path(folder) / "model")
            return run_backfills(texts(), written, model.name if shape is None else shape.name, **settings)  # type: ignore[arg-type]

    # A small model is judged by its rate: no machine has the cores to tokenize for it.
    large = next((shape for shape in shapes if shape.name == "BERT large"), None)
    wanted = [*([("backfill, BERT large", partial(backfills, large, rows // 4))] if large else [])]
    wanted.append(("backfill, all-MiniLM-L6-v2", partial(backfills, None, rows)))
    return [*parts[:2], *wanted, *parts[2:]]
