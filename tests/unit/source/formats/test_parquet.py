from __future__ import annotations

import datetime as dt
import io
import re
import struct
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import storage
from actors.errors import DataError, SourceChanged
from actors.schema import Piece, QuarantinedRow
from actors.source.formats import FORMATS, Wanted
from actors.source.formats.int96 import misread
from actors.source.formats.types import refusal

PARQUET = FORMATS["parquet"]
TEXT = Wanted({"text": pa.string()}, ("text",))


def parquet(table: pa.Table, *, group: int = 100) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=group)
    return out.getvalue()


def numbered(count: int) -> pa.Table:
    return pa.table({"text": [f"text {i}" for i in range(count)], "other": range(count)})


@given(count=st.integers(0, 60), group=st.integers(1, 25), rows=st.integers(1, 30))
def test_pieces_cover_the_rows_once_for_any_groups(put_in_memory, read_pieces, count, group, rows):
    shard = put_in_memory("a.parquet", parquet(numbered(count), group=group))
    pieces = PARQUET.pieces(shard, rows)
    assert all(0 < piece.rows <= rows and piece.rows_exact for piece in pieces)
    good, bad = read_pieces("parquet", pieces, TEXT)
    assert [row["text"] for row in good] == [f"text {i}" for i in range(count)]
    assert [row["_position"] for row in good] == list(range(count))
    assert not bad


def test_row_groups_are_kept_whole_up_to_the_requested_rows(put):
    shard = put("a.parquet", parquet(numbered(1000), group=100))
    assert [piece.rows for piece in PARQUET.pieces(shard, 250)] == [200] * 5
    assert [piece.rows for piece in PARQUET.pieces(shard, 40)] == [33, 33, 34] * 10


def test_only_the_needed_columns_are_read(put_in_memory, tables, asked):
    table = pa.table({"text": ["a"] * 1000, "blob": [bytes([i % 251]) * 5000 for i in range(1000)]})
    data = io.BytesIO()
    pq.write_table(table, data, compression="none", use_dictionary=False)
    shard = put_in_memory("a.parquet", data.getvalue())
    (found,) = tables(PARQUET.pieces(shard, 1000)[0], TEXT)
    assert found.column_names == ["text", "_position"]
    assert sum(stop - start for start, stop in asked) < 200_000 < shard.size_bytes


@pytest.mark.slow
def test_batches_are_bounded_by_bytes(put, tables):
    shard = put("a.parquet", parquet(pa.table({"text": [f"{i}" * 200_000 for i in range(100)]}), group=100))
    found = tables(Piece(shard, 0, 100, 100), TEXT)
    assert max(table.nbytes for table in found) < 40 << 20
    assert sum(table.num_rows for table in found) == 100


def test_a_column_with_a_dot_in_its_name_is_not_a_nested_one(put, tables):
    table = pa.table({"a": [{"b": 1}], "a.b": ["text"]})
    (found,) = tables(Piece(put("a.parquet", parquet(table)), 0, 1, 1), Wanted({"a.b": pa.string()}, text=("a.b",)))
    assert found.column("a.b").to_pylist() == ["text"]


def test_a_file_without_rows_has_columns_and_no_pieces(put):
    shard = put("a.parquet", parquet(numbered(0)))
    assert PARQUET.pieces(shard, 10) == []
    assert list(PARQUET.columns(shard)) == ["text", "other"]


@pytest.mark.parametrize("keep", [0, 4, 11, 300, -1])
def test_a_file_cut_short_is_an_error_that_names_it(put, keep):
    shard = put("a.parquet", parquet(numbered(100))[:keep])
    for call in (PARQUET.columns, lambda one: PARQUET.pieces(one, 10)):
        with pytest.raises(DataError, match=rf"{re.escape(shard.path)}.*cannot be read as Parquet.*leave it out"):
            call(shard)


@pytest.mark.parametrize("left", [8, 300, -1])
def test_the_error_of_a_truncated_parquet_file_suggests_no_new_name(put, left):
    with pytest.raises(DataError, match=r"cannot be read as Parquet: (?!it holds).*\. Replace the file") as found:
        PARQUET.columns(put("a.parquet", parquet(numbered(10))[:left]))
    assert ".." not in str(found.value)


def test_an_interval_is_named_as_such(put):
    path = put("a.parquet", b"").path
    for value in ("interval 1 month", "[interval 1 month]"):
        duckdb.sql(f"copy (select {value} as \"length\", 'a' as text, 5 as n) to '{path}' (format parquet)")
        (shard,) = storage.glob(path).shards
        assert refusal(PARQUET.columns(shard)["length"]) is not None
        assert PARQUET.columns(shard)["n"] == pa.int32()


def test_a_damaged_page_is_an_error_that_names_the_file(put):
    data = bytearray(parquet(numbered(1000), group=1000))
    data[4:400] = b"\xff" * 396
    shard = put("a.parquet", bytes(data))
    with pytest.raises(DataError, match=rf"{re.escape(shard.path)}.*cannot be read as Parquet"):
        list(PARQUET.read(Piece(shard, 0, 1000, 1000), TEXT))


def test_fewer_rows_than_in_the_footer_are_an_error(put):
    shard = put("a.parquet", parquet(numbered(10)))
    with pytest.raises(DataError, match="ends at row 10, but its footer promises rows up to 12"):
        list(PARQUET.read(Piece(shard, 0, 12, 12), TEXT))


def test_a_missing_text_column_names_the_shard_and_what_it_has(put):
    shard = put("a.parquet", parquet(numbered(10)))
    with pytest.raises(DataError, match=r"a\.parquet' has no column 'body'.*\['text', 'other'\]"):
        list(PARQUET.read(Piece(shard, 0, 10, 10), Wanted({"body": pa.string()}, text=("body",))))


def test_a_change_since_the_plan_names_both(put):
    shard = put("a.parquet", parquet(numbered(10)))
    (piece,) = PARQUET.pieces(shard, 10)
    Path(shard.path).write_bytes(parquet(numbered(11)))
    now = storage.stat(shard.path)
    with pytest.raises(
        SourceChanged, match=rf"{shard.size_bytes} bytes and etag '{shard.etag}'.*{now.etag}.*plan anew"
    ):
        list(PARQUET.read(piece, TEXT))


@pytest.mark.parametrize("replaced", [b"", b"junk that is not Parquet"])
def test_a_change_that_breaks_the_file_is_reported_as_a_change(put, replaced):
    shard = put("a.parquet", parquet(numbered(10)))
    (piece,) = PARQUET.pieces(shard, 10)
    Path(shard.path).write_bytes(replaced)
    with pytest.raises(SourceChanged, match="changed since the run was planned"):
        list(PARQUET.read(piece, TEXT))


def test_a_removed_file_is_reported_as_a_change(put):
    shard = put("a.parquet", parquet(numbered(10)))
    (piece,) = PARQUET.pieces(shard, 10)
    Path(shard.path).unlink()
    with pytest.raises(SourceChanged, match="is gone"):
        list(PARQUET.read(piece, TEXT))


def test_planning_many_threads_at_once(put):
    from concurrent.futures import ThreadPoolExecutor

    shards = [put("a.parquet", parquet(numbered(i + 1), group=7)) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda shard: PARQUET.pieces(shard, 5), shards * 3))
    assert [sum(piece.rows for piece in pieces) for pieces in found] == [*range(1, 41)] * 3


@pytest.mark.parametrize("rows", [10**12, 2**62])
def test_a_footer_with_an_impossible_row_count_is_refused(put, rows):
    """Six hundred bytes would make a plan of billions of pieces, in the driver's memory."""
    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"] * 40}), out, compression="none")
    data = out.getvalue()
    (size,) = struct.unpack("<I", data[-8:-4])
    footer = data[-8 - size : -8].replace(b"\x16\x50", b"\x16" + zigzag(rows))  # 40, as a Thrift number
    shard = put("a.parquet", data[: -8 - size] + footer + struct.pack("<I", len(footer)) + b"PAR1")
    with pytest.raises(DataError, match="promises .* rows, which cannot be: the file is damaged"):
        PARQUET.pieces(shard, 10)


def zigzag(value: int) -> bytes:
    value, out = 2 * value, b""
    while value > 127:
        value, out = value >> 7, out + bytes([value & 127 | 128])
    return out + bytes([value])


DATES = ["9999-12-31T23:59:59.999999", "0001-01-01", "2024-01-02T03:04:05.678901", None, "1600-01-01T00:00:00.000001"]


def int96(**columns: pa.Array) -> bytes:
    out = io.BytesIO()
    count = len(next(iter(columns.values())))
    pq.write_table(
        pa.table({"id": range(count), **columns}), out, use_deprecated_int96_timestamps=True, row_group_size=2
    )
    return out.getvalue()


def test_int96_timestamps_of_any_year_are_exact(put, tables):
    when = [date and dt.datetime.fromisoformat(date) for date in DATES]
    kind = pa.timestamp("us")
    columns = {
        "t": pa.array(when, kind),
        "t.t": pa.array(when, kind),
        "list": pa.array([[one, None] for one in when], pa.list_(kind)),
        "struct": pa.array([{"a": one} for one in when], pa.struct([("a", kind)])),
        "map": pa.array([[("k", one)] for one in when], pa.map_(pa.string(), kind)),
    }
    shard = put("a.parquet", int96(**columns))
    found = tables(Piece(shard, 0, 5, 5), Wanted(dict.fromkeys(columns, pa.null())))
    for name, array in columns.items():
        assert [value for table in found for value in table[name].to_pylist()] == array.to_pylist()


@pytest.mark.parametrize("nested", [False, True])
def test_an_int96_timestamp_below_a_microsecond_is_quarantined(put, nested):
    when: list[int | None] = [1_700_000_000_123_456_000, 1_700_000_000_123_456_789, -1, None, -1000]
    kind, wanted = pa.timestamp("ns"), Wanted({"id": pa.int64(), "t": pa.null()}, id="id")
    array = pa.array(
        [[{"a": one}, None] for one in when] if nested else when, pa.list_(pa.struct([("a", kind)])) if nested else kind
    )
    shard = put("a.parquet", int96(t=array))
    good: list[pa.Table] = []
    bad: list[QuarantinedRow] = []
    for start, stop in ((0, 2), (2, 5)):
        for item in PARQUET.read(Piece(shard, start, stop, stop - start), wanted):
            if isinstance(item, QuarantinedRow):
                bad.append(item)
            else:
                good.append(item)
    assert [row for table in good for row in table["id"].to_pylist()] == [0, 3, 4]
    assert [(row.position, row.id, row.reason) for row in bad] == [(1, "1", "wrong_type"), (2, "2", "wrong_type")]
    assert "'t': the INT96 timestamp 2023-11-14 22:13:20.123456 and 789 ns has a part below" in bad[0].error


def test_an_int96_timestamp_beyond_64_bits_is_detected():
    seconds = 2**62 // 1_000_000 * 3
    us, ns = (np.array([0, seconds * scale], object) % 2**64 for scale in (10**6, 10**9))
    us, ns = (pa.array(part.astype(np.uint64).view(np.int64)) for part in (us, ns))
    arrays = [us.view(pa.timestamp("us")), ns.view(pa.timestamp("ns")), pa.array([0, seconds], pa.timestamp("s"))]
    assert misread(*arrays) == {1: "an INT96 timestamp outside the range of 64-bit microseconds"}
