"""Real backfills small enough for this machine: a tiny random BERT, texts of some forty letters, everything else real."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.unit.receipt import Receipt
from pipeline.execute.progress import Started
from pipeline.job.config import parse_job
from pipeline.run.backfill import backfill
from tests.checkpoints.bert import write_bert

ROWS_A_SHARD = 5_000


class Stopwatch:
    """A reporter that records the time of each call."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.steps: list[tuple[str, float]] = []
        self.ended: list[float] = []
        self.driver_s: list[float] = []

    def step(self, text: str) -> None:
        self.steps.append((text, time.perf_counter() - self.begun))

    def started(self, started: Started) -> None:
        self.step(f"{started.units} units")

    def finished_unit(self, receipt: Receipt) -> None:
        del receipt
        self.ended.append(time.perf_counter() - self.begun)
        self.driver_s.append(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))

    def busy(self, encoders: int) -> None:
        """Not needed here."""

    def failed_unit(self, unit: int, error: Exception) -> None:
        raise SystemExit(f"unit {unit}: {error}")


def write_rows(folder: Path, count: int) -> None:
    """A corpus of `count` texts, all different."""
    folder.mkdir(parents=True)
    for start in range(0, count, ROWS_A_SHARD):
        numbers: Iterable[int] = range(start, min(start + ROWS_A_SHARD, count))
        table = pa.table(
            {
                "id": [f"row {number}" for number in numbers],
                "text": [f"the text of row {number} and a word" for number in numbers],
            }
        )
        pq.write_table(table, folder / f"part-{start // ROWS_A_SHARD:05d}.parquet")


def job(folder: Path, **run: Any) -> Any:
    """A job over `folder/corpus`."""
    return parse_job(
        {
            "source": {"uri": str(folder / "corpus"), "id": "id", "text": "text"},
            "table": {"uri": str(folder / "table")},
            "encoder": {"model": str(write_bert(folder / "model")), "dtype": "float32"},
            "run": run,
        }
    )


def backfill_rows(folder: Path, count: int) -> dict[str, Any]:
    """A whole backfill inside this process."""
    write_rows(folder / "corpus", count)
    watch = Stopwatch()
    outcome = backfill(job(folder, address="inline", unit_rows=1_000), watch)
    total = time.perf_counter() - watch.begun
    if outcome.rows != count:
        raise SystemExit(f"{outcome.rows} of {count} rows came out")
    first = next(at for text, at in watch.steps if text.endswith("units"))
    return {"seconds": {"until units begin": round(first, 2), "units and publishing": round(total - first, 2)}}


def drive_units(folder: Path, count: int) -> dict[str, Any]:
    """A backfill of `count` units of one row each on Ray: processor time of the driver's process a unit, once it runs."""
    write_rows(folder / "corpus", count)
    watch = Stopwatch()
    backfill(job(folder, address="local", unit_rows=1, replicas=1), watch)
    half = len(watch.ended) // 2
    wall, spent = watch.ended[-1] - watch.ended[half], watch.driver_s[-1] - watch.driver_s[half]
    return {
        "seconds": {"first receipt": round(watch.ended[0], 1), "last receipt": round(watch.ended[-1], 1)},
        "driver's processor ms a unit": round(1000 * spent / (len(watch.ended) - 1 - half), 2),
        "units a second": round((len(watch.ended) - 1 - half) / wall, 1),
    }
