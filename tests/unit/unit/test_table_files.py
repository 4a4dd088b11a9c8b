"""Columns of a table file are read without the columns between them."""

from __future__ import annotations

import secrets

import numpy as np
import pyarrow as pa

from actors import storage
from actors.schema import HASH, ID, TOKENS
from actors.unit.table_files import read_stored
from actors.unit.writer import parquet_bytes
from actors.vectors import VectorColumn


def test_many_vectors_in_a_store_are_not_read_with_other_columns(monkeypatch):
    column = VectorColumn("embedding_multi", "multi", 128, "int8", "blob")
    blobs = [np.random.default_rng(row).bytes(3000 * 128) for row in range(12)]
    table = pa.table({ID: [f"r{row}" for row in range(12)], column.name: pa.array(blobs, pa.binary())})
    table = table.append_column("embedding_multi_n", pa.array([3000] * 12, pa.int32()))
    table = table.append_column(HASH, pa.array([f"{row:032x}" for row in range(12)]))
    data, _ = parquet_bytes(table, "{}", [column])
    url = f"memory://tables/{secrets.token_hex(4)}"
    storage.put(f"{url}/a.parquet", data)
    read = storage.read
    sizes: list[int] = []

    def counted(*place):
        found = read(*place)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(storage, "read", counted)
    rows = read_stored(url, "a.parquet", [ID, HASH, TOKENS])
    assert rows.select([ID, HASH]).equals(table.select([ID, HASH]))
    assert rows[TOKENS].null_count == 12
    assert sum(sizes) < len(data) / 20
    assert read_stored(url, "a.parquet", [ID], [column])[column.name].to_pylist() == blobs
