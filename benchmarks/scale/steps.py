"""One measurement in a process of its own, so that its peak memory is its own: `python -m benchmarks.scale.steps`.

What is measured is the driver's real code: the plan, the ledger and Delta Lake on a local disk. Only receipts and data
files are made up, because a million units would take this machine weeks to encode.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors import storage
from actors.schema import ID, SHARD, Piece, Shard
from actors.unit.delta_statistics import delta_statistics
from actors.unit.receipt import DataFile, Receipt
from actors.unit.writer import parquet_bytes, receipt_path, table_schema
from actors.vectors import VectorColumn
from benchmarks.race.session import peak_bytes
from pipeline.execute.progress import Outcome
from pipeline.ledger import duplicates
from pipeline.ledger.ledger import RECEIPT_BATCH_UNITS, Ledger, listing_table, table_to_units, units_to_table
from pipeline.ledger.run_description import RunDescription
from pipeline.plan.units import _gather
from pipeline.table import commit as publishing
from pipeline.table import delta_table

RUN = "0123456789abcdef"
PIECES_A_SHARD = 100
UNIT_ROWS = 1000
UNIT_IDS = 20_000


class Clock:
    """By step: seconds of the wall, of the processor (which other work on the machine does not change), peak of memory."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor_s: dict[str, float] = {}
        self.peak_mib: dict[str, int] = {"imports": self._peak()}

    def time(self, step: str, call: Callable[[], Any]) -> Any:
        started, spent = time.perf_counter(), time.process_time()
        value = call()
        self.seconds[step] = round(time.perf_counter() - started, 3)
        self.processor_s[step] = round(time.process_time() - spent, 3)
        self.peak_mib[step] = self._peak()
        return value

    def facts(self) -> dict[str, Any]:
        """All of it."""
        return {"seconds": self.seconds, "processor_s": self.processor_s, "peak_mib": self.peak_mib}

    @staticmethod
    def _peak() -> int:
        return peak_bytes(os.getpid()) >> 20


def pieces(units: int) -> Iterator[Piece]:
    """As many pieces as units, of shards with names as long as real ones."""
    for number in range(units):
        shard, place = divmod(number, PIECES_A_SHARD)
        path = f"s3://bucket-of-a-company/crawl/2026-10/part-{shard:06d}.parquet"
        start = place * UNIT_ROWS
        yield Piece(Shard(path, 104_857_600, f"{shard:032x}"), start, start + UNIT_ROWS, UNIT_ROWS, rows_exact=True)


def model_receipt() -> Receipt:
    """A receipt with the fields of a real one."""
    rows = pa.table(
        {
            "id": [f"document-{number:012d}" for number in range(UNIT_ROWS)],
            "tokens": pa.array([128] * UNIT_ROWS, pa.int32()),
            "content_hash": [f"{number:032x}" for number in range(UNIT_ROWS)],
            "source_shard": ["s3://bucket-of-a-company/crawl/2026-10/part-000000.parquet"] * UNIT_ROWS,
        }
    )
    file = DataFile("", 7, UNIT_ROWS, {}, delta_statistics(rows))
    return Receipt(
        0, "a1b2c3d4e5f6", (file,), UNIT_ROWS, UNIT_ROWS, UNIT_ROWS, 0, 128_000, 12, UNIT_ROWS,
        seconds={"read": 0.1, "tokenize": 0.2, "encode": 9.9, "write": 0.3},
    )  # fmt: skip


def receipts(units: int) -> Iterator[Receipt]:
    """Receipts of `units` finished units."""
    model = model_receipt()
    file = model.files[0]
    for unit in range(units):
        path = f"data/{RUN}/{unit:09d}-{model.attempt}.parquet"
        yield replace(model, unit=unit, files=(DataFile(path, file.size_bytes, file.rows, file.partition, file.stats),))


def plan(table: str, units: int) -> dict[str, Any]:
    """Cut and freeze a plan."""
    clock = Clock()
    cut = clock.time("gather units", lambda: list(_gather(pieces(units), UNIT_ROWS, UNIT_ROWS)))
    frozen = clock.time("to a table", lambda: units_to_table(cut))
    ledger = Ledger(table, RUN)
    shards = [piece.shard for piece in pieces(units) if piece.start == 0]
    description = RunDescription("backfill", units, units * UNIT_ROWS, fingerprint="f")
    clock.time("freeze", lambda: ledger.freeze(description, frozen, listing=listing_table(shards)))
    size = (Path(ledger.home()) / "plan.parquet").stat().st_size
    return {**clock.facts(), "plan.parquet bytes": size}


def prepare(table: str, units: int) -> dict[str, Any]:
    """Write the receipts of finished units and their receipt batches. Not measured."""
    ledger = Ledger(table, RUN)
    if ledger.description() is None:
        ledger.freeze(RunDescription("backfill", units, units * UNIT_ROWS), units_to_table([]))
    batch: list[Receipt] = []
    made: set[Path] = set()
    for receipt in receipts(units):
        path = Path(ledger.home()) / receipt_path(receipt.unit)
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.write_text(receipt.to_json())
        batch.append(receipt)
        if len(batch) == RECEIPT_BATCH_UNITS:
            ledger.write_receipt_batch(batch)
            batch = []
    return {}


def prepare_files(table: str, units: int) -> dict[str, Any]:
    """Write a data file of the size in its receipt for each unit. Not measured."""
    folder = Path(table) / "data" / RUN
    folder.mkdir(parents=True)
    for receipt in receipts(units):
        (Path(table) / receipt.files[0].path).write_bytes(b"parquet")
    return {}


def resume(table: str, units: int) -> dict[str, Any]:
    """Find the remaining units of a plan."""
    ledger = Ledger(table, RUN)
    clock = Clock()
    description = clock.time("describe", ledger.frozen)
    done = clock.time("find what is done", ledger.done)
    frozen = clock.time("read the plan", ledger.plan)
    rest = clock.time("the units that are left", lambda: sum(1 for _ in table_to_units(frozen, done)))
    if rest + len(done) != description.units or description.units != units:
        raise SystemExit(f"{rest} units are left and {len(done)} done of {units}")
    return {**clock.facts(), "units left": rest}


def publish(table: str, units: int) -> dict[str, Any]:
    """Read all receipts, check them and commit; then open the table as a reader does."""
    ledger = Ledger(table, RUN)
    clock = Clock()
    found = clock.time("read receipts", ledger.receipts)
    nothing = Outcome(table, RUN, version=-1, published=False)
    clock.time(
        "check and add up", lambda: ([receipt.check() for receipt in found.values()], nothing.plus(found.values()))
    )
    files = tuple(file for receipt in found.values() for file in receipt.files)
    missing = clock.time("look for files", lambda: publishing.missing_files(table, files))
    if missing or len(files) != units:
        raise SystemExit(f"{len(missing)} of {len(files)} files are missing")
    schema = table_schema(pa.schema([]), (VectorColumn("embedding", "dense", 1),))
    publication = publishing.Publication(
        commit=RUN,
        run=RUN,
        operation="backfill",
        embedding_spec=delta_table.EmbeddingSpec("fingerprint", {"dim": 1}, {}),
        schema=schema,
        partition_by=(),
        base=None,
        add=files,
    )
    version = clock.time("commit", lambda: publishing.publish(table, publication))
    opened = clock.time("a reader opens it", lambda: delta_table.open_table(table))
    listed = clock.time("a reader lists files", lambda: delta_table.file_sizes(opened))
    if version != 1 or len(listed) != units:
        raise SystemExit(f"version {version} has {len(listed)} files")
    log = sum(path.stat().st_size for path in (Path(table) / "_delta_log").glob("*.json"))
    return {**clock.facts(), "log bytes": log}


def unique(table: str, rows: int) -> dict[str, Any]:
    """Find ids that two units have in common among `rows` rows."""
    made = []
    for unit, start in enumerate(range(0, rows, UNIT_IDS)):
        ids = [f"document-{number:012d}" for number in range(start, start + UNIT_IDS)]
        path = f"data/{RUN}/{unit:09d}.parquet"
        storage.put(
            storage.join(table, path),
            parquet_bytes(pa.table({ID: ids, SHARD: [f"part-{unit:06d}.parquet"] * len(ids)}), "{}", ())[0],
        )
        made.append(path)
    clock = Clock()
    losers = clock.time("look for ids twice", lambda: duplicates.find_duplicates(table, made))
    if losers:
        raise SystemExit(f"{len(losers)} files have ids of others")
    return clock.facts()


def rows(table: str, count: int) -> dict[str, Any]:
    """A backfill of `count` rows with a tiny model, in this process."""
    from benchmarks.scale.small import backfill_rows

    clock = Clock()
    facts = backfill_rows(Path(table), count)
    clock.peak_mib["backfill"] = peak_bytes(os.getpid()) >> 20
    return {**facts, "peak_mib": clock.peak_mib}


def driver(table: str, count: int) -> dict[str, Any]:
    """Measure the CPU time of a Ray run's driver for each of `count` units of one row."""
    from benchmarks.scale.small import drive_units

    return drive_units(Path(table), count)


STEPS = {step.__name__: step for step in (plan, prepare, prepare_files, resume, publish, unique, rows, driver)}

if __name__ == "__main__":
    print("RESULT " + json.dumps(STEPS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))))
