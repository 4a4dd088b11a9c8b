"""What every way tells at its end, and when rows came out on the way. Imported in every environment: no dependency."""

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


def note(folder: Path, rows: int) -> None:
    """Some rows are embedded: called where that happens, in any process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{os.getpid()}.txt").open("a") as file:
        file.write(f"{since_start()} {rows}\n")


def noted(folder: Path) -> list[tuple[float, int]]:
    """What was noted by all processes, in order of time."""
    lines = [line.split() for path in folder.glob("*.txt") for line in path.read_text().splitlines()]
    return sorted((float(at), int(rows)) for at, rows in lines)


def tell(**facts: Any) -> None:
    """The result, for the race to read."""
    print("RESULT " + json.dumps({**facts, "end": since_start()}), flush=True)
