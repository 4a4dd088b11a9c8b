"""Path traversal: files for any id, partition column and partition value stay below the table's folder."""

from __future__ import annotations

import json
import os
import urllib.parse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.unit.receipt import Receipt
from actors.unit.unit_batch import UnitBatch
from actors.unit.writer import WriterSpec, table_schema, write_unit
from actors.vectors import VectorColumn
from pipeline.ledger.ledger import Ledger
from tests.examples import examples

TRICKS = (
    "..",
    ".",
    "../../../outside",
    "/etc/passwd",
    "//host/share",
    "%2e%2e%2f",
    "..\\..\\x",
    "a\0b",
    "\0",
    "x" * 5_000,
    "日" * 300,
    "",
    " ",
    "__HIVE_DEFAULT_PARTITION__",
    "lang=de/../..",
    "s3://bucket/key",
    "file:///etc/passwd",
    "~",
    "-rf",
    "*?[a]",
    "\n",
    "_delta_log",
    ".hidden",
)
VALUES = st.one_of(st.sampled_from(TRICKS), st.text(max_size=20), st.none())


def written(folder: Path, column: str, values: list[str | None]) -> Receipt:
    """One unit with these ids and partition values, written to `folder`/table."""
    table = pa.table(
        {
            "id": pa.array([value or "none" for value in values], pa.string()),
            column: pa.array(values, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2 * len(values), np.float32)), 2),
            "tokens": pa.array(range(len(values)), pa.int32()),
            "_hash": ["h"] * len(values),
            "_shard": ["s"] * len(values),
        }
    )
    url = str(folder / "table")
    outputs = (VectorColumn("embedding", "dense", 2),)
    schema = table_schema(pa.schema([(column, pa.string())]), outputs)
    spec = WriterSpec(url, Ledger(url, "run1").url, "run1", schema, (column,), "float32", json.dumps({}), outputs)
    return write_unit(UnitBatch(0, table, rows_read=len(values), counts={"documents": len(values)}), spec)


def check(folder: Path, values: list[str | None], receipt: Receipt) -> None:
    """Every row once, in the file of its value, and nothing beside the table's folder."""
    root = folder / "table" / "data" / "run1"
    assert os.listdir(folder) == ["table"]
    assert sorted(os.listdir(folder / "table")) == ["_vectide", "data"]
    assert len({file.path for file in receipt.files}) == len(receipt.files)
    found: dict[int, str | None] = {}
    for file in receipt.files:
        path = folder / "table" / file.path
        assert path.resolve().is_relative_to(root.resolve())
        assert len(path.relative_to(root).parts) == 2
        (value,) = file.partition.values()
        for row in pq.read_table(path, partitioning=None).column("tokens").to_pylist():
            assert row not in found
            found[row] = value
    assert found == {row: value or None for row, value in enumerate(values)}


def test_path_tricks_in_ids_and_partition_values_stay_in_the_table(tmp_path):
    values = [*TRICKS, None]
    check(tmp_path, values, written(tmp_path, "lang", values))


@examples(25)  # each writes files
@given(values=st.lists(VALUES, min_size=1, max_size=6))
def test_any_ids_and_partition_values_stay_in_the_table(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("paths")
    check(folder, values, written(folder, "lang", values))


@pytest.mark.slow
@pytest.mark.parametrize("column", [name for name in TRICKS if name])
def test_a_partition_column_with_a_path_in_its_name_stays_in_the_table(tmp_path, column):
    check(tmp_path, ["de", None], written(tmp_path, column, ["de", None]))


@pytest.mark.parametrize("value", ["é" * 100, "é" + "a" * 200, "a" * 99 + "é", "\U00020000" * 50])
def test_a_long_partition_value_is_cut_between_characters(tmp_path, value):
    (file,) = written(tmp_path, "lang", [value]).files
    shown = urllib.parse.unquote(file.path.split("/")[-2].removeprefix("lang="), errors="strict")
    kept, _, _ = shown.rpartition("~")
    assert value.startswith(kept)
    assert len(urllib.parse.quote(kept)) > 80
