"""Drivers that publish at the same moment: one version, whoever makes it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pyarrow as pa
from deltalake import DeltaTable

from actors import storage
from actors.unit.receipt import DataFile
from actors.unit.writer import parquet_bytes, table_schema
from actors.vectors import VectorColumn
from pipeline.table import delta_table
from pipeline.table.commit import Publication, publish

DRIVERS = 4
ROUNDS = 12


def publication(table: str) -> Publication:
    outputs = (VectorColumn("embedding", "dense", 2),)
    schema = table_schema(pa.schema([]), outputs)
    data, stats = parquet_bytes(schema.empty_table(), "{}", outputs)
    storage.put(storage.join(table, "data/r/0.parquet"), data)
    return Publication(
        commit="r",
        run="r",
        operation="backfill",
        embedding_spec=delta_table.EmbeddingSpec("f", {"dim": 2}, {}),
        schema=schema,
        partition_by=(),
        base=None,
        add=(DataFile("data/r/0.parquet", len(data), 0, {}, stats),),
    )


def test_one_of_concurrent_drivers_creates_the_table(tmp_path):
    for number in range(ROUNDS):
        table = str(tmp_path / str(number))
        whole, gate = publication(table), Barrier(DRIVERS)

        def race(_: int, table: str = table, whole: Publication = whole, gate: Barrier = gate) -> int:
            gate.wait()
            return publish(table, whole)

        with ThreadPoolExecutor(DRIVERS) as pool:
            assert set(pool.map(race, range(DRIVERS))) == {1}
        assert DeltaTable(table).version() == 1
