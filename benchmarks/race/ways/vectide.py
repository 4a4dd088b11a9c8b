"""`vectide backfill` on a Ray of its own."""

from __future__ import annotations

import sys

from actors.unit.receipt import Receipt
from benchmarks.race.ways.results import FIRST_UNIT, print_result, since_start
from pipeline.execute.progress import Started
from pipeline.job.config import parse_job
from pipeline.run.backfill import backfill


class Times:
    """A reporter that keeps times."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self.units: list[tuple[float, int]] = []
        self.first_unit_s = 0.0

    def step(self, text: str) -> None:
        self.steps[text] = since_start()

    def started(self, started: Started) -> None:
        self.steps["units begin"] = since_start()
        self.replicas = started.replicas

    def finished_unit(self, receipt: Receipt) -> None:
        if not self.units:
            self.first_unit_s = sum(receipt.seconds.values())
        self.units.append((since_start(), receipt.rows))

    def busy(self, encoders: int) -> None:
        """Not needed here."""

    def failed_unit(self, unit: int, error: Exception) -> None:
        raise SystemExit(f"unit {unit}: {error}")


def main(corpus: str, out: str, model: str, max_tokens: str, dtype: str = "auto") -> None:
    times = Times()
    outcome = backfill(
        parse_job(
            {
                "source": {"uri": f"{corpus}/*.parquet", "id": "id", "text": "text"},
                "table": {"uri": f"{out}/table", "precision": "float32"},
                "encoder": {"model": model, "max_tokens": int(max_tokens), "dtype": dtype},
                "run": {"address": "local"},
            }
        ),
        times,
    )
    parts = {
        "imports, listing": times.steps["starting"],
        "Ray's start": times.steps["planning"] - times.steps["starting"],
        "plan": times.steps["units begin"] - times.steps["planning"],
        "workers, model": times.units[0][0] - times.steps["units begin"] - times.first_unit_s,
        FIRST_UNIT: times.first_unit_s,
        "all other units": times.units[-1][0] - times.units[0][0],
        "check and publish": since_start() - times.units[-1][0],
    }
    print_result(rows=outcome.rows, out=times.units, parts=parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
