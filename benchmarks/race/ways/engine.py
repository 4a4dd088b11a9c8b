"""The engine alone on the same texts: one process with all cores, nothing read or written while the clock runs.

The rate of a backfill is compared with it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.race.ways.results import print_result, since_start
from benchmarks.race.workers.serve import Settings
from benchmarks.race.workers.vectide import One

PASSES = 3


def main(corpus: str, out: str, model: str, max_tokens: str, dtype: str = "auto") -> None:
    del out
    cores = os.cpu_count() or 1
    texts = [
        text for path in sorted(Path(corpus).glob("*.parquet")) for text in pq.read_table(path)["text"].to_pylist()
    ]
    engine = One(Settings(model, "", cores, int(max_tokens), dtype))
    loaded = since_start()
    came = []
    for _ in range(PASSES):
        engine.encode(texts)
        came.append((since_start(), len(texts)))
    # The first pass finds the budget.
    print_result(rows=len(texts), out=came, parts={"imports, model": loaded, f"{PASSES} passes": came[-1][0] - loaded})


if __name__ == "__main__":
    main(*sys.argv[1:])
