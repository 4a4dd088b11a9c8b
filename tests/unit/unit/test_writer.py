"""The writer, the receipt and the ledger on a local disk: the files after each outcome."""

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
from actors.unit.writer import WriterSpec, parquet_bytes, receipt_path, split_by, stored_table, table_schema, write_unit
from actors.vectors import VectorColumn
from pipeline.ledger.ledger import Ledger, table_to_units, units_to_table
from pipeline.ledger.run_description import RunDescription

DIM = 4
OUTPUTS = (VectorColumn("embedding", "dense", DIM),)


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


def rows_of(unit_batch):
    assert unit_batch.table is not None
    return unit_batch.table


@pytest.fixture
def spec(tmp_path):
    table = str(tmp_path / "table")
    schema = table_schema(pa.schema([("lang", pa.string())]), OUTPUTS)
    ledger = Ledger(table, "run1").url
    return WriterSpec(table, ledger, "run1", schema, ("lang",), "float32", json.dumps({"model": "m"}), OUTPUTS)


def files_below(folder):
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder) for parent, _, names in os.walk(folder) for name in names
    )


def test_a_unit_writes_its_files_and_its_receipt(spec):
    receipt = write_unit(batch(), spec)
    assert {file.partition["lang"] for file in receipt.files} == {"de", None, "a/b"}
    assert [file.rows for file in receipt.files] == [2, 2, 2]
    names = {file.partition["lang"]: file.path for file in receipt.files}
    assert names[None].startswith("data/run1/lang=__HIVE_DEFAULT_PARTITION__/")
    assert names["a/b"].startswith("data/run1/lang=a%2Fb/")
    with storage.open_read(storage.join(spec.table, names["de"])) as file:
        rows = pq.read_table(file, partitioning=None)
    assert rows.column_names == ["id", "embedding", "tokens", "_hash", "_shard"]
    assert rows["id"].to_pylist() == ["u0r0", "u0r3"]
    assert files_below(spec.table) == sorted([*names.values(), f"_vectide/runs/run1/{receipt_path(0)}"])
    assert Receipt.from_json(storage.read(storage.join(spec.ledger, receipt_path(0)))) == receipt


def test_the_first_attempt_wins_and_the_other_deletes_its_files(spec):
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


def test_a_unit_with_inconsistent_counts_is_refused(spec):
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
    receipt = Receipt(3, "a", (), 2, 0, 0, 2, 0, 0, quarantine=("quarantine/x.parquet",), seconds={"read": 0.5})
    assert Receipt.from_json(receipt.to_json()) == receipt
    of_a_development_version = receipt.to_json().replace('["quarantine/x.parquet"]', '"quarantine/x.parquet"')
    assert Receipt.from_json(of_a_development_version) == receipt


def test_vectors_are_stored_in_byte_stream_split_and_read_back():
    table = rows_of(batch()).drop_columns(["_position"])
    plain = table.set_column(2, "embedding", table["embedding"].cast(pa.list_(pa.float32())))
    data, stats = parquet_bytes(plain, "{}", OUTPUTS)
    column = pq.read_metadata(pa.BufferReader(data)).row_group(0).column(2)
    assert column.path_in_schema == "embedding.list.element"
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert pq.read_table(pa.BufferReader(data)).column("embedding").to_pylist() == table["embedding"].to_pylist()
    assert json.loads(stats)["numRecords"] == 6
    assert json.loads(stats)["nullCount"]["lang"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("form", [("int8", "blob"), ("float32", "list"), ("int8", "list")])
def test_many_vectors_are_cut_into_row_groups_and_blobs_not_compressed(form):
    outputs = (*OUTPUTS, VectorColumn("embedding_multi", "multi", 64).stored_as(*form))
    kept = pa.schema([("tags", pa.list_(pa.struct([("a", pa.string()), ("b", pa.int64())])))])
    schema = table_schema(kept, outputs, grids=True)
    counts = [700, 0, 3, 20_000, 400, 200, 9_000, 9_000]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    numbers = np.random.default_rng(0).normal(size=sum(counts) * 64).astype(np.float32)
    table = rows_of(batch(count=8)).append_column(
        "tags", pa.array([[{"a": "x", "b": 1}]] * 8, schema.field("tags").type)
    )
    many = pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(pa.array(numbers), 64))
    for name, column in (
        ("embedding_multi", many),
        *((name, pa.nulls(8, pa.int32())) for name in ("grid_h", "grid_w")),
    ):
        table = table.append_column(name, column)
    stored = stored_table(table, WriterSpec("t", "l", "r", schema, (), "float16", "{}", outputs))
    data, stats = parquet_bytes(stored, "{}", outputs)
    file = pq.ParquetFile(pa.BufferReader(data))
    assert file.num_row_groups > 1
    assert file.read().cast(schema).equals(stored)
    row = 0
    for group in map(file.metadata.row_group, range(file.num_row_groups)):
        most = (1 << 20) // outputs[1].vector_bytes
        assert sum(counts[row : row + group.num_rows - 1]) <= most
        row += group.num_rows
        for column in map(group.column, range(group.num_columns)):
            is_blob = column.path_in_schema == "embedding_multi"
            assert column.compression == ("UNCOMPRESSED" if is_blob else "ZSTD")
            assert not (is_blob and column.is_stats_set)
    assert json.loads(stats)["maxValues"]["embedding_multi_n"] == 20_000


@given(st.lists(st.tuples(st.sampled_from(["x", "y", "", None]), st.sampled_from([1, 2, None])), max_size=30))
def test_partitions_contain_every_row_once_in_order(values):
    table = pa.table(
        {
            "row": pa.array(range(len(values)), pa.int64()),
            "a": pa.array([a for a, _ in values], pa.string()),
            "b": pa.array([b for _, b in values], pa.int32()),
        }
    )
    parts = split_by(table, ("a", "b"))
    partition_of = {row: values for values, part in parts for row in part["row"].to_pylist()}
    assert sum(part.num_rows for _, part in parts) == len(values)
    assert partition_of == {n: (a or None, None if b is None else str(b)) for n, (a, b) in enumerate(values)}
    assert all(part["row"].to_pylist() == sorted(part["row"].to_pylist()) for _, part in parts)


def test_a_unit_batch_survives_packing_even_without_rows():
    sent = batch(bad=[QuarantinedRow("s", 1, "x", "null_text", "none")], seconds={"read": 1.0})
    received = unpack(pack(sent))
    assert sent.table is not None
    assert received.table is not None
    assert received.table.equals(sent.table)
    assert (received.unit, received.bad, received.rows_read, received.seconds, received.counts) == (
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


def test_a_plan_survives_conversion_to_a_table():
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


def test_the_first_frozen_plan_is_kept(tmp_path):
    ledger = Ledger(str(tmp_path), "r")
    assert ledger.description() is None
    first = units_to_table([Unit(0, (Piece(Shard("/a", 1, ""), 0, 1, 1),))])
    other = Ledger(str(tmp_path), "r")
    frozen = ledger.freeze(RunDescription("backfill", 1, 1), first)
    assert other.freeze(RunDescription("backfill", 2, 1), first.slice(0, 0), listing=first) == frozen
    for reader in (ledger, other, Ledger(str(tmp_path), "r")):
        assert reader.description() == frozen
        assert (frozen.units, reader.plan()) == (1, first)
        assert reader.listing() is None  # the listing of the other driver must not be combined with this plan


def all_errors(kind=VectideError):
    return [kind, *(below for child in kind.__subclasses__() for below in all_errors(child))]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_survives_pickle_and_is_in_the_docstring(kind):
    error = pickle.loads(pickle.dumps(kind("value, rule and fix")))
    assert type(error) is kind
    assert "value, rule and fix" in str(error)
    assert kind.__name__ in errors.__doc__
