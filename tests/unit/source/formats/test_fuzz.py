"""Arbitrary bytes under any name: rows, quarantined rows, or an error of this package; no row is lost."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.errors import VectideError
from actors.schema import REASONS, Unit
from actors.source.formats import open_format
from actors.source.read_unit import check_source, read_unit

BITS = st.sampled_from(
    [b'"', b",", b"\n", b"\r", b"\xff", b"\0", b"{", b"}", b":", b'{"text":"a"}', b"text", b"id", b"1e9"]
)
BYTES = st.one_of(st.binary(max_size=200), st.lists(BITS, max_size=40).map(b"".join))


def read_all(shard, *, rows: int) -> None:
    """Plan and read a shard as a job would; errors of ours are fine."""
    try:
        kind = open_format("auto", shard.path)
        columns = [name for name in kind.columns(shard) if not name.startswith("_") and name != "id"]
        source = check_source([shard], root="/", text=columns[:1] or ["text"], keep=columns[1:])
        pieces = kind.pieces(shard, rows)
    except VectideError:
        return
    for number, piece in enumerate(pieces):
        try:
            result = read_unit(Unit(number, (piece,)), source)
        except VectideError:
            continue
        assert result.rows_read == result.table.num_rows + len(result.bad)
        assert not piece.rows_exact or result.rows_read == piece.rows
        assert {row.reason for row in result.bad} <= set(REASONS)
        result.table.validate(full=True)


@pytest.mark.slow
@given(data=BYTES, rows=st.integers(1, 5), headed=st.booleans())
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt", "a.parquet"])
def test_arbitrary_bytes(put, name, data, rows, headed):
    heads = {"a.jsonl": b'{"text":"a","n":1,"b":true}\n', "a.csv": b"text,n\n", "a.tsv": b"text\tn\n"}
    read_all(put(name, heads.get(name, b"") + data if headed else data), rows=rows)


@given(data=st.binary(max_size=60), rows=st.integers(1, 3))
@pytest.mark.parametrize("name", ["raw.jsonl.gz", "raw.jsonl.zst", "raw.csv.gz"])
def test_arbitrary_bytes_as_a_compressed_file(put, name, data, rows):
    from pathlib import Path

    from actors import storage

    shard = put(name, b"")
    Path(shard.path).write_bytes(data)
    read_all(storage.stat(shard.path), rows=rows)


def small_parquet(compression: str) -> bytes:
    out = io.BytesIO()
    table = pa.table(
        {
            "text": [f"text {i % 5}" for i in range(40)],
            "n": range(40),
            "tags": [["a", None], None] * 20,
            "s": ["é"] * 40,
        }
    )
    pq.write_table(table, out, row_group_size=15, compression=compression)
    return out.getvalue()


PLAIN, PACKED = small_parquet("none"), small_parquet("zstd")


@pytest.mark.slow
@given(
    packed=st.booleans(),
    changes=st.lists(
        st.tuples(st.integers(0, len(PLAIN) - 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=5
    ),
    rows=st.integers(1, 40),
)
@example(packed=False, changes=[(PLAIN.rindex(b"text"), b"\xff\xfe")], rows=10)
def test_a_damaged_parquet_file(put, packed, changes, rows):
    data = bytearray(PACKED if packed else PLAIN)
    for at, new in changes:
        data[at % len(data) : at % len(data) + len(new)] = new
    read_all(put("a.parquet", bytes(data)), rows=rows)
