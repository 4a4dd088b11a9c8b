"""The result of every way and the times of its rows. Imported in every environment, so it has no dependency."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

STARTED = "RACE_STARTED"  # when the process was started, by the clock that all processes share
FIRST_UNIT = "first unit: read, encode, write"  # a part of a backfill's start


def since_start() -> float:
    """Seconds since the race started this process."""
    return time.monotonic() - float(os.environ[STARTED])


def record_rows(folder: Path, rows: int) -> None:
    """Record that rows are embedded. Called in the process that embeds them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{os.getpid()}.txt").open("a") as file:
        file.write(f"{since_start()} {rows}\n")


def recorded_rows(folder: Path) -> list[tuple[float, int]]:
    """Return the times and rows that all processes recorded, in order of time."""
    lines = [line.split() for path in folder.glob("*.txt") for line in path.read_text().splitlines()]
    return sorted((float(at), int(rows)) for at, rows in lines)


def print_result(**facts: Any) -> None:
    """Print the result as one line, which the race reads."""
    print("RESULT " + json.dumps({**facts, "end": since_start()}), flush=True)
