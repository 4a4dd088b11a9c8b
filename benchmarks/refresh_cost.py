"""What a refresh costs, as a share of the backfill: with nothing changed, 1 % of rows edited in 1 % of the shards, in all
shards, and with everything cut into other shards.

Run as `python -m benchmarks.refresh_cost --corpus FOLDER --model NAME_OR_DIR`. FOLDER contains Parquet shards with `id`,
`title` and `text`; they are copied, so that they can be edited. Each command is a process of its own, as for a user, so
its time has Python's start in it. Before each of the measured refreshes the table is as the last one left it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

SHARE = 0.01


def edit(path: Path, share: float, mark: str) -> int:
    """Edit a share of the rows of a shard, spread over it; how many."""
    table = pq.read_table(path)
    texts = table["text"].to_pylist()
    step = max(1, round(1 / share))
    for row in range(0, len(texts), step):
        texts[row] = f"{texts[row]} {mark}"
    index = table.schema.get_field_index("text")
    pq.write_table(table.set_column(index, table.schema.field(index), pa.array(texts, pa.string())), path)
    return len(range(0, len(texts), step))


def cut_anew(folder: Path) -> None:
    """The same rows in other shards, in another order."""
    paths = sorted(folder.glob("*.parquet"))
    everything = pa.concat_tables([pq.read_table(path) for path in paths]).sort_by([("title", "descending")])
    for path in paths:
        path.unlink()
    size = -(-everything.num_rows // (len(paths) + 3))
    for number, start in enumerate(range(0, everything.num_rows, size)):
        pq.write_table(everything.slice(start, size), folder / f"anew-{number:04d}.parquet")


def run(command: str, job: Path) -> tuple[float, str]:
    """Wall time of a command in s, and what it said."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "jobs", command, str(job)], capture_output=True, text=True, check=False
    )
    took_s = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{command} failed: {done.stderr[-2000:]}")
    return took_s, done.stdout.strip().splitlines()[0]


def main() -> None:
    """Backfill once, change the corpus in four ways, refresh after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--keep", nargs="*", default=[], help="columns to keep; the first one partitions the table")
    parser.add_argument("--max-tokens", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        corpus = Path(place) / "corpus"
        shutil.copytree(arguments.corpus, corpus, ignore=lambda _, names: [n for n in names if ".parquet" not in n])
        shards = sorted(corpus.glob("*.parquet"))
        document: dict[str, Any] = {
            "source": {"uri": f"{corpus}/*.parquet", "id": "id", "text": ["title", "text"], "keep": arguments.keep},
            "table": {"uri": f"{place}/table", "partition_by": arguments.keep[:1]},
            "encoder": {"model": arguments.model, "max_tokens": arguments.max_tokens},
        }
        job = Path(place) / "job.yaml"
        job.write_text(yaml.safe_dump(document))
        whole_s, said = run("backfill", job)
        print(f"backfill: {whole_s:.1f} s: {said}", flush=True)
        few = shards[: max(1, round(SHARE * len(shards)))]
        in_few = SHARE * len(shards) / len(few)  # of the rows of those shards, so that it is 1 % of all rows
        changes = {
            "nothing changed": lambda: None,
            f"1 % of rows in {len(few)} of {len(shards)} shards": lambda: [edit(path, in_few, "one") for path in few],
            "1 % of rows in all shards": lambda: [edit(path, SHARE, "two") for path in shards],
            "everything in other shards": lambda: cut_anew(corpus),
        }
        result: dict[str, Any] = {"backfill_s": round(whole_s, 1), "backfill": said}
        for name, change in changes.items():
            change()
            took_s, said = run("refresh", job)
            result[name] = {"s": round(took_s, 2), "share": round(took_s / whole_s, 4), "said": said}
            print(f"{name}: {took_s:.2f} s, {took_s / whole_s:.2%}: {said}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
