"""The writer, the receipt and the ledger on a local disk: what lies there after each outcome."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import errors, storage
from actors.errors import InvariantBroken, StorageError, VectideError
from actors.schema import Piece, QuarantinedRow, Shard, Unit
from actors.unit.receipt import Receipt
from actors.unit.unit_batch import UnitBatch, pack, unpack
from actors.unit.writer import WriterSpec, parquet_bytes, receipt_path, split_by, table_schema, write_unit
from pipeline.ledger.ledger import Ledger, table_to_units, units_to_table

DIM = 4


def batch(unit=0, count=6, **changes):
    vectors = np.random.default_rng(unit).normal(size=(count, DIM)).astype(np.float32)
    table = pa.table(
        {
            "id": [f"u{unit}r{row}" for row in range(count)],
            "lang": [["de", None, "a/b"][row % 3] for row in range(count)],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
            "tokens": pa.array(range(count), pa.int32()),
            "_hash": ["h"] * count,
            "_shard": ["s"] * count,
            "_position": pa.array(range(count), pa.int64()),
        }
    )
    return UnitBatch(unit, table, rows_read=count, counts={"documents": count, "tokens": 15}, **changes)


def rows_of(made):
    assert made.table is not None
    return made.table


@pytest.fixture
def spec(tmp_path):
    table = str(tmp_path / "table")
    schema = table_schema(pa.schema([("lang", pa.string())]))
    ledger = Ledger(table, "run1").url
    return WriterSpec(table, ledger, "run1", schema, ("lang",), "float32", json.dumps({"model": "m"}))


def files_below(folder):
    return sorted(
        os.path.relpath(os.path.join(here, name), folder) for here, _, names in os.walk(folder) for name in names
    )


def test_a_unit_leaves_its_files_and_then_its_receipt(spec):
    receipt = write_unit(batch(), spec)
    assert {file.partition["lang"] for file in receipt.files} == {"de", None, "a/b"}
    assert [file.rows for file in receipt.files] == [2, 2, 2]
    names = {file.partition["lang"]: file.path for file in receipt.files}
    assert names[None].startswith("data/run1/lang=__HIVE_DEFAULT_PARTITION__/")
    assert names["a/b"].startswith("data/run1/lang=a%2Fb/")
    rows = pq.read_table(storage.open_read(storage.join(spec.table, names["de"])), partitioning=None)
    assert rows.column_names == ["id", "embedding", "tokens", "_hash", "_shard"]
    assert rows["id"].to_pylist() == ["u0r0", "u0r3"]
    assert files_below(spec.table) == sorted([*names.values(), f"_vectide/runs/run1/{receipt_path(0)}"])
    assert Receipt.from_json(storage.read(storage.join(spec.ledger, receipt_path(0)))) == receipt


def test_the_first_attempt_wins_and_the_loser_cleans_up(spec):
    first = write_unit(batch(), replace(spec, partition_by=()))
    before = files_below(spec.table)
    late = batch(bad=[QuarantinedRow("s", 7, None, "null_text", "no text")])
    late.rows_read += 1
    assert write_unit(late, spec) == first
    assert files_below(spec.table) == before


def test_a_failed_put_leaves_no_file_and_no_receipt(spec, monkeypatch):
    real = storage.put
    calls = []

    def fails_second(url, data):
        calls.append(url)
        if len(calls) == 2:
            raise StorageError(f"cannot write {url!r}: the disk is full")
        real(url, data)

    monkeypatch.setattr(storage, "put", fails_second)
    with pytest.raises(StorageError, match="the disk is full"):
        write_unit(batch(), spec)
    assert files_below(spec.table) == []


def test_a_unit_that_does_not_add_up_is_refused(spec):
    lost = batch()
    lost.rows_read = 7
    with pytest.raises(InvariantBroken, match="7 rows were read, but 6 embedded and 0 quarantined"):
        write_unit(lost, spec)
    assert not storage.exists(storage.join(spec.ledger, receipt_path(0)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_never_written(spec, value):
    broken = batch()
    vectors = np.full((6, DIM), value, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM)
    broken.table = rows_of(broken).set_column(2, "embedding", column)
    with pytest.raises(InvariantBroken, match="not finite"):
        write_unit(broken, spec)


def test_a_receipt_survives_json():
    receipt = Receipt(3, "a", (), 2, 0, 0, 2, 0, 0, quarantine="quarantine/x.parquet", seconds={"read": 0.5})
    assert Receipt.from_json(receipt.to_json()) == receipt


def test_vectors_are_stored_in_byte_stream_split_and_come_back():
    table = rows_of(batch()).drop_columns(["_position"])
    plain = table.set_column(2, "embedding", table["embedding"].cast(pa.list_(pa.float32())))
    data, stats = parquet_bytes(plain, "{}")
    column = pq.read_metadata(pa.BufferReader(data)).row_group(0).column(2)
    assert column.path_in_schema == "embedding.list.element"
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert pq.read_table(pa.BufferReader(data)).column("embedding").to_pylist() == table["embedding"].to_pylist()
    assert json.loads(stats)["numRecords"] == 6
    assert json.loads(stats)["nullCount"]["lang"] == 2


@given(st.lists(st.tuples(st.sampled_from(["x", "y", "", None]), st.sampled_from([1, 2, None])), max_size=30))
def test_partitions_hold_every_row_once_in_order(values):
    table = pa.table(
        {
            "row": pa.array(range(len(values)), pa.int64()),
            "a": pa.array([a for a, _ in values], pa.string()),
            "b": pa.array([b for _, b in values], pa.int32()),
        }
    )
    parts = split_by(table, ("a", "b"))
    found = {row: values for values, part in parts for row in part["row"].to_pylist()}
    assert sum(part.num_rows for _, part in parts) == len(values)
    assert found == {n: (a or None, None if b is None else str(b)) for n, (a, b) in enumerate(values)}
    assert all(part["row"].to_pylist() == sorted(part["row"].to_pylist()) for _, part in parts)


def test_a_parcel_travels_whole_even_without_rows():
    sent = batch(bad=[QuarantinedRow("s", 1, "x", "null_text", "none")], seconds={"read": 1.0})
    back = unpack(pack(sent))
    assert sent.table is not None
    assert back.table is not None
    assert back.table.equals(sent.table)
    assert (back.unit, back.bad, back.rows_read, back.seconds, back.counts) == (
        sent.unit,
        sent.bad,
        sent.rows_read,
        sent.seconds,
        sent.counts,
    )
    empty = unpack(pack(UnitBatch(9, sent.table.slice(0, 0))))
    assert empty.table is not None
    assert empty.table.num_rows == 0
    assert empty.table.schema == sent.table.schema
    failed = unpack(pack(UnitBatch(9, None, error=StorageError("full"))))
    assert failed.table is None
    assert str(failed.error) == "full"


def test_a_plan_survives_its_table():
    shard = Shard("/a", 10, "e")
    units = [
        Unit(0, (Piece(shard, 0, 5, 5), Piece(shard, 5, 9, 4, rows_exact=False))),
        Unit(1, (Piece(Shard("/b", 1, ""), 0, 1, 1),)),
        Unit(2, (Piece(shard, 9, 10, 1),)),
    ]
    table = units_to_table(units)
    assert list(table_to_units(table)) == units
    assert list(table_to_units(table, {1})) == [units[0], units[2]]
    assert list(table_to_units(table.slice(0, 0))) == []


def test_the_first_plan_stands(tmp_path):
    ledger = Ledger(str(tmp_path), "r")
    assert ledger.description() is None
    first = units_to_table([Unit(0, (Piece(Shard("/a", 1, ""), 0, 1, 1),))])
    other = Ledger(str(tmp_path), "r")
    frozen = ledger.freeze({"units": 1}, first)
    assert other.freeze({"units": 2}, first.slice(0, 0), listing=first) == frozen
    for seen in (ledger, other, Ledger(str(tmp_path), "r")):
        assert seen.description() == frozen
        assert (frozen["units"], seen.plan()) == (1, first)
        assert seen.listing() is None  # not the plan of one driver with the listing of another


def all_errors(kind=VectideError):
    return [kind, *(below for child in kind.__subclasses__() for below in all_errors(child))]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_survives_pickle_and_stands_in_the_tree_of_the_docstring(kind):
    error = pickle.loads(pickle.dumps(kind("what, why, and the way out")))
    assert type(error) is kind
    assert "what, why, and the way out" in str(error)
    assert kind.__name__ in errors.__doc__
