from __future__ import annotations

import io
import json
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import storage
from actors.errors import DataError, InvariantBroken, SourceChanged
from actors.schema import REASONS, Unit
from actors.source.content_hash import content_hashes
from actors.source.formats import open_format
from actors.source.read_unit import SourceSpec, check_source, corpus_root, read_sample, read_unit


def parquet(table, **options) -> bytes:
    out = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), out, **options)
    return out.getvalue()


def read(shards, *, root="/", rows=1000, **settings):
    source = check_source(shards, root=root, **settings)
    pieces = [piece for shard in shards for piece in open_format(source.format, shard.path).pieces(shard, rows)]
    result = read_unit(Unit(0, tuple(pieces)), source)
    assert result.rows_read == result.table.num_rows + len(result.bad)
    assert result.table.schema == source.schema()
    assert {row.reason for row in result.bad} <= set(REASONS)
    result.table.validate(full=True)
    return result


def invalid_strings(values: list[bytes | None]) -> pa.Array:
    """A string array with bytes that are not UTF-8, as Parquet files of other writers hold."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), null_count=raw.null_count)


def expected_hash(text: bytes, task: str | None = None) -> str:
    salt = b"" if task is None else blake2b(task.encode(), digest_size=16).digest()
    return blake2b(text, digest_size=16, salt=salt).hexdigest()


def test_a_row_has_its_text_hash_position_and_kept_columns(put):
    shard = put("a.parquet", parquet({"n": [7, 8], "title": ["T", None], "text": ["a", "b"], "lang": ["de", None]}))
    result = read([shard], id="n", text=("title", "text"), keep=("lang",))
    place = {"_shard": shard.path}
    assert result.table.to_pylist() == [
        {"id": "7", "lang": "de", "_content": "T\n\na", "_hash": expected_hash(b"T\n\na"), **place, "_position": 0},
        {"id": "8", "lang": None, "_content": "b", "_hash": expected_hash(b"b"), **place, "_position": 1},
    ]
    assert result.rows_read == 2


def test_the_hash_is_blake2b_and_a_task_changes_it(put):
    data = {"text": ["a", "a", "a"], "task": ["query", None, "passage"]}
    table = read([put("a.parquet", parquet(data))], task="task").table
    assert table.column("_task").to_pylist() == ["query", None, "passage"]
    hashes = table.column("_hash").to_pylist()
    assert len(set(hashes)) == 3
    assert hashes[1] == blake2b(b"a", digest_size=16).hexdigest()
    assert hashes[0] == expected_hash(b"a", "query")


@given(texts=st.lists(st.text()), start=st.integers(0, 5))
def test_hashes_of_an_array_are_those_of_its_values(texts, start):
    array = pa.array(texts, pa.string()).slice(start)
    assert content_hashes(array).to_pylist() == [expected_hash(text.encode()) for text in texts[start:]]


def test_invalid_texts_and_ids_are_quarantined_with_a_reason(put):
    rows = [
        ("1", "good", None),
        ("2", None, "null_text"),
        ("3", "", "empty_text"),
        ("4", " \n\t\u3000", "empty_text"),
        (None, "a", "missing_id"),
        ("", "a", "missing_id"),
        ("1", "again", "duplicate_id"),
        ("8", "good too", None),
    ]
    shard = put("a.parquet", parquet({"id": [row[0] for row in rows], "text": [row[1] for row in rows]}))
    result = read([shard], id="id")
    assert result.table.column("id").to_pylist() == ["1", "8"]
    found = {row.position: (row.id, row.reason) for row in result.bad}
    assert found == {i: (row[0], row[2]) for i, row in enumerate(rows) if row[2]}
    assert f"seen before, at 0 of '{shard.path}'" in next(
        row.error for row in result.bad if row.reason == "duplicate_id"
    )


def test_one_part_of_a_text_is_enough_and_none_is_not(put):
    data = {"a": ["x", None, None, "", None], "b": [None, None, "y", " ", "z"]}
    result = read([put("a.parquet", parquet(data))], text=("a", "b"))
    assert result.table.select(["_content", "_position"]).to_pydict() == {
        "_content": ["x", "y", "z"],
        "_position": [0, 2, 4],
    }
    assert [(row.position, row.reason) for row in result.bad] == [(1, "null_text"), (3, "empty_text")]


def test_repeats_are_kept_where_ids_need_not_be_unique(put):
    result = read([put("a.parquet", parquet({"id": [1, 1], "text": ["a", "b"]}))], id="id", unique_ids=False)
    assert result.table.column("id").to_pylist() == ["1", "1"]


def test_a_quarantined_row_does_not_make_a_later_id_a_duplicate(put):
    result = read([put("a.parquet", parquet({"id": [1, 1, 1], "text": [None, "a", "b"]}))], id="id")
    assert result.table.column("_position").to_pylist() == [1]
    assert [row.reason for row in result.bad] == ["null_text", "duplicate_id"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("column", ["text", "keep", "id"])
def test_invalid_utf8_in_any_string_column_quarantines_only_its_row(put, kind, column):
    values = [b"ok", b"\xff", None, b"fine", b"caf\xe9"] * 30
    columns = {name: [f"{name} {i}" for i in range(len(values))] for name in ("text", "keep", "id")}
    array = invalid_strings(values)
    table = pa.table(
        {**columns, column: array.cast(kind) if not pa.types.is_dictionary(kind) else array.dictionary_encode()}
    )
    result = read([put("a.parquet", parquet(table))], id="id", keep=("keep",), unique_ids=False)
    bad = [row.position for row in result.bad if row.reason == "invalid_utf8"]
    assert bad == [i for i, value in enumerate(values) if value and not value.isascii()]
    other = {"text": ["null_text"] * 30, "keep": [], "id": ["missing_id"] * 30}[column]
    assert [row.reason for row in result.bad if row.reason != "invalid_utf8"] == other
    assert result.bad[0].id == (None if column == "id" else "id 1")


def test_invalid_utf8_inside_a_nested_kept_column(put):
    nested = pa.StructArray.from_arrays([invalid_strings([b"a", b"\xff", b"c"])], ["x"])
    data = parquet(pa.table({"text": ["1", "2", "3"], "meta": nested}))
    result = read([put("a.parquet", data)], keep=("meta",))
    assert result.table.column("meta").to_pylist() == [{"x": "a"}, {"x": "c"}]
    assert [(row.position, row.reason) for row in result.bad] == [(1, "invalid_utf8")]


@pytest.mark.parametrize(
    ("ids", "want"),
    [
        (pa.array([1, -2, 3], pa.int8()), ["1", "-2", "3"]),
        (pa.array([2**64 - 1, 0, 1], pa.uint64()), ["18446744073709551615", "0", "1"]),
        (pa.array([1.0, 2.0, 1e15]), ["1", "2", "1000000000000000"]),
        (pa.array([1.0, 2.0, 4.0], pa.float16()), ["1", "2", "4"]),
        (pa.array(["a", "b", "c"]).dictionary_encode(), ["a", "b", "c"]),
    ],
    ids=["int8", "uint64", "float64", "float16", "dictionary"],
)
def test_ids_become_text(put, ids, want):
    result = read([put("a.parquet", parquet({"id": ids, "text": ["a", "b", "c"]}))], id="id")
    assert result.table.column("id").to_pylist() == want


def test_inexact_float_ids_are_quarantined(put):
    ids = [1.0, 1.5, float("nan"), float("inf"), 1e17, None]
    result = read([put("a.parquet", parquet({"id": ids, "text": ["a"] * 6}))], id="id")
    assert result.table.column("id").to_pylist() == ["1"]
    assert [row.reason for row in result.bad] == ["wrong_type"] * 4 + ["missing_id"]


def test_position_ids_do_not_depend_on_the_mount(tmp_path):
    found = []
    for mount in ("here", "there/deeper"):
        folder = tmp_path / mount / "wiki"
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "é.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
        uri = str(folder / "*" / "*.jsonl")
        shards = storage.glob(uri).shards
        found.append(read(shards, root=corpus_root(uri, shards)).table.column("id").to_pylist())
    assert found == [["sub/é.jsonl:0", "sub/é.jsonl:14"]] * 2


def test_a_shard_outside_the_root_is_a_bug(put):
    with pytest.raises(InvariantBroken, match="not below the corpus's folder '/elsewhere'"):
        read([put("a.jsonl", b'{"text": "a"}')], root="/elsewhere")


def test_a_kept_column_that_a_shard_lacks_is_null_there_and_widens(put):
    shards = [
        put("a.parquet", parquet({"text": ["a"], "n": pa.array([1], pa.int32())})),
        put("b.parquet", parquet({"text": ["b"]})),
        put("c.parquet", parquet({"text": pa.array(["c"]).dictionary_encode(), "n": pa.array([2**40])})),
    ]
    table = read(shards, keep=("n",)).table
    assert table.column("n").to_pylist() == [1, None, 2**40]
    assert table.column("_content").to_pylist() == ["a", "b", "c"]


def test_kept_types_survive(put):
    import datetime as dt
    import decimal

    data = pa.table(
        {
            "text": ["a", "b"],
            "when": pa.array([1_700_000_000_123_456_000, None], pa.timestamp("ns")),
            "tags": pa.array([["x"], None], pa.large_list(pa.large_string())),
            "vector": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
            "meta": pa.array([{"a": 1}, None], pa.struct([("a", pa.uint8())])),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
            "price": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(9, 2)),
        }
    )
    shard = put("a.parquet", parquet(data))
    row, nulls = read([shard], keep=tuple(name for name in data.column_names if name != "text")).table.to_pylist()
    assert row["when"] == dt.datetime.fromisoformat("2023-11-14T22:13:20.123456")
    assert (row["tags"], row["vector"], row["meta"]) == (["x"], [1.0, 2.0], {"a": 1})
    assert (row["map"], row["price"]) == ([("k", 1)], decimal.Decimal("1.50"))
    assert all(nulls[name] is None for name in data.column_names if name != "text")


def test_a_kept_value_that_does_not_fit_is_quarantined(put):
    shard = put("a.parquet", parquet({"text": list("abcd"), "n": pa.array([1, 2**64 - 1, None, 2], pa.uint64())}))
    result = read([shard], keep=("n",))
    assert result.table.column("n").to_pylist() == [1, None, 2]
    assert [(row.position, row.reason) for row in result.bad] == [(1, "wrong_type")]


def test_a_shard_whose_column_changed_its_kind_is_an_error_that_names_it(put):
    good = put("a.parquet", parquet({"text": ["a"], "n": [1]}))
    other = put("b.parquet", parquet({"text": ["a"], "n": [[1]]}))
    source = check_source([good], root="/", keep=("n",))
    pieces = tuple(open_format("auto", other.path).pieces(other, 10))
    with pytest.raises(DataError, match=r"'n' of '.*b\.parquet' is list.*not what the run was planned"):
        read_unit(Unit(0, pieces), source)


def test_a_shard_without_the_id_column_is_an_error_that_names_it(put):
    good = put("a.parquet", parquet({"text": ["a"], "doc": [1]}))
    other = put("b.parquet", parquet({"text": ["a"]}))
    source = check_source([good], root="/", id="doc")
    with pytest.raises(DataError, match=r"b\.parquet' has no column 'doc'"):
        read_unit(Unit(0, tuple(open_format("auto", other.path).pieces(other, 10))), source)


def test_a_source_that_changed_fails_the_unit(put):
    shard = put("a.csv", b"text\na\n")
    source = check_source([shard], root="/")
    unit = Unit(0, tuple(open_format("auto", shard.path).pieces(shard, 10)))
    Path(shard.path).write_bytes(b"text\nb\n")
    with pytest.raises(SourceChanged, match=r"a\.csv' changed since the run was planned"):
        read_unit(unit, source)


def test_json_lines_through_the_reader(put):
    rows = [
        {"id": 1, "text": "a", "n": 1, "meta": {"x": [1]}},
        {"id": "two", "text": "b", "n": 2.5},
        {"id": 3.0, "text": "c", "n": "x"},
        {"id": 4, "text": 4},
        {"id": 5, "title": "t"},
        {"id": None, "text": "d"},
    ]
    shard = put("a.jsonl.gz", "\n".join(map(json.dumps, rows)).encode())
    head = put("head.jsonl", b'{"id": 0, "text": "z", "n": 0.5, "meta": {}}')
    source = check_source([head], root="/", id="id", keep=("n", "meta"))
    assert source.keep == (("n", pa.float64()), ("meta", pa.string()))
    pieces = open_format("auto", shard.path).pieces(shard, 2)
    result = read_unit(Unit(0, tuple(pieces)), source)
    assert result.rows_read == 6
    assert result.table.select(["id", "n", "meta", "_content"]).to_pylist() == [
        {"id": "1", "n": 1.0, "meta": '{"x":[1]}', "_content": "a"},
        {"id": "two", "n": 2.5, "meta": None, "_content": "b"},
    ]
    assert sorted((row.id or "", row.reason) for row in result.bad) == [
        ("", "missing_id"),
        ("3.0", "wrong_type"),
        ("4", "wrong_type"),
        ("5", "missing_text"),
    ]


def test_an_id_column_may_be_kept_too(put):
    shard = put("a.jsonl", b'{"doc": 1, "text": "a"}\n{"doc": 2, "text": "b"}\n')
    table = read([shard], id="doc", keep=("doc", "text")).table
    assert table.column("id").to_pylist() == ["1", "2"]
    assert table.column("doc").to_pylist() == [1, 2]
    assert table.column("text").to_pylist() == table.column("_content").to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["put", "put_in_memory"])
def test_a_unit_of_many_documents_keeps_their_order(request, where):
    write = request.getfixturevalue(where)
    texts = [b"text %d" % i if i % 7 else b"" for i in range(200)]
    texts[3] = b"\xff"
    shards = [write("a.md", text) for text in texts]
    root = "memory:///" if where == "put_in_memory" else "/"
    result = read(shards, root=root, keep=("name",))
    good = [
        (shard.path, text.decode()) for shard, text in zip(shards, texts, strict=True) if text not in (b"", b"\xff")
    ]
    assert list(zip(*(result.table.column(n).to_pylist() for n in ("_shard", "_content")), strict=True)) == good
    assert sorted(row.reason for row in result.bad) == ["empty_text"] * 29 + ["invalid_utf8"]
    assert set(result.table.column("name").to_pylist()) == {"a.md"}


def test_a_unit_of_several_batches_is_one_table_in_order(put):
    count = 30_000
    data = {"text": [f"text {i}" if i % 1000 else " " for i in range(count)], "n": range(count)}
    result = read([put("a.parquet", parquet(data, row_group_size=7000))], rows=11_000, keep=("n",))
    want = [i for i in range(count) if i % 1000]
    assert result.table.column("n").to_pylist() == want
    assert result.table.column("_position").to_pylist() == want
    assert sorted(row.position for row in result.bad) == list(range(0, count, 1000))


def test_a_unit_without_rows_is_an_empty_table(put):
    source = SourceSpec("parquet", "/", ("text",), keep=(("n", pa.int64()),))
    result = read_unit(Unit(0, ()), source)
    assert result.table.schema == source.schema()
    assert (result.table.num_rows, result.rows_read, result.bad) == (0, 0, [])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv", "a.csv.gz"])
def test_a_sample_is_the_first_rows_as_the_reader_sees_them(put, name):
    texts = [f"text {i}" for i in range(3000)]
    data = {
        "a.parquet": parquet({"text": texts}),
        "a.jsonl": b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts),
    }.get(name, ("text\n" + "\n".join(texts)).encode())
    shard = put(name, data)
    result = read_sample(shard, check_source([shard], root="/"), rows=10)
    assert result.table.column("_content").to_pylist() == texts[:10]
    assert result.rows_read == 10
    assert read_sample(shard, check_source([shard], root="/"), rows=10_000).rows_read == 3000


def test_hashing_takes_texts_without_a_python_string_each():
    texts = pa.array(["é" * 10, "", "\0"])
    assert content_hashes(texts).to_pylist() == [expected_hash(each.encode()) for each in texts.to_pylist()]
    assert content_hashes(texts.slice(3)).to_pylist() == []
    assert np.unique(content_hashes(texts).to_numpy(zero_copy_only=False)).size == 3
