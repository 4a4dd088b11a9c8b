"""`vectide backfill` on a Ray of its own."""

from __future__ import annotations

import sys

from actors.unit.receipt import Receipt
from benchmarks.race.ways.told import FIRST_UNIT, since_start, tell
from pipeline.execute.progress import Started
from pipeline.job.config import parse_job
from pipeline.run.backfill import backfill


class Told:
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
        """Not asked for here."""

    def failed_unit(self, unit: int, error: Exception) -> None:
        raise SystemExit(f"unit {unit}: {error}")


def main(corpus: str, out: str, model: str, max_tokens: str, dtype: str = "auto") -> None:
    told = Told()
    outcome = backfill(
        parse_job(
            {
                "source": {"uri": f"{corpus}/*.parquet", "id": "id", "text": "text"},
                "table": {"uri": f"{out}/table", "precision": "float32"},
                "encoder": {"model": model, "max_tokens": int(max_tokens), "dtype": dtype},
                "run": {"address": "local"},
            }
        ),
        told,
    )
    parts = {
        "imports, listing": told.steps["starting"],
        "Ray's start": told.steps["planning"] - told.steps["starting"],
        "plan": told.steps["units begin"] - told.steps["planning"],
        "workers, model": told.units[0][0] - told.steps["units begin"] - told.first_unit_s,
        FIRST_UNIT: told.first_unit_s,
        "all other units": told.units[-1][0] - told.units[0][0],
        "check and publish": since_start() - told.units[-1][0],
    }
    tell(rows=outcome.rows, out=told.units, parts=parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
