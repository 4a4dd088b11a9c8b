from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import DataError
from actors.schema import Piece
from actors.source.formats import FORMATS, Wanted, json_values

JSONL = FORMATS["jsonl"]
TEXT = Wanted({"text": pa.string()}, text=("text",))


def lines_of(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_plain_file_is_cut_by_bytes_without_reading_it(put, read_pieces):
    rows = [{"id": i, "text": f"number {i} " + "x" * (i % 50)} for i in range(5000)]
    shard = put("a.jsonl", lines_of(rows))
    pieces = JSONL.pieces(shard, 400)
    assert len(pieces) == pytest.approx(5000 / 400, abs=2)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == shard.size_bytes
    assert not any(piece.rows_exact for piece in pieces)
    assert sum(piece.rows for piece in pieces) == pytest.approx(5000, rel=0.1)
    good, bad = read_pieces("jsonl", pieces, TEXT)
    assert [row["text"] for row in good] == [row["text"] for row in rows]
    assert not bad
    assert pieces == JSONL.pieces(shard, 400)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_compressed_file_is_cut_at_counted_rows(put, read_pieces, name):
    data = b"\n" + lines_of({"text": str(i)} for i in range(1000)) + b"broken\n\n"
    pieces = JSONL.pieces(put(name, data), 300)
    assert [piece.rows for piece in pieces] == [300, 300, 300, 101]
    assert all(piece.rows_exact for piece in pieces)
    good, bad = read_pieces("jsonl", pieces, TEXT)
    assert [row["text"] for row in good] == [str(i) for i in range(1000)]
    assert [row.reason for row in bad] == ["broken_line"]
    assert good[500]["_position"] == data.index(b'{"text": "500"')


@given(
    rows=st.lists(
        st.one_of(
            st.dictionaries(st.sampled_from(["text", "n"]), st.one_of(st.text(), st.integers(-9, 9), st.none())),
            st.sampled_from([b"", b"  ", b"{", b"[1]", b"\xff", b'{"text":"\xc3"}', b"null", b"\xef\xbb\xbf{}"]),
        )
    ),
    ends=st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=1),
    last=st.booleans(),
    size=st.integers(1, 6),
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_the_pieces_together_are_the_file_for_any_size(put_in_memory, read_pieces, *, name, rows, ends, last, size):
    raw = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    data = b"".join(line + ends[i % len(ends)] for i, line in enumerate(raw))
    if raw and not last:
        data = data.removesuffix(b"\n").removesuffix(b"\r")
    shard = put_in_memory(name, data)
    good, bad = read_pieces("jsonl", [Piece(shard, 0, 1 << 62, 0)], TEXT)
    good_of_pieces, bad_of_pieces = read_pieces("jsonl", JSONL.pieces(shard, size), TEXT)
    assert good_of_pieces == good
    assert sorted(bad_of_pieces, key=lambda row: row.position) == sorted(bad, key=lambda row: row.position)
    assert len(good) + len(bad) == sum(bool(line.strip()) for line in raw)


def test_each_broken_line_is_quarantined_and_reading_continues(put, read_pieces):
    bad_lines = [
        (b'{"text": "a"', "broken_line"),
        (b'["text"]', "broken_line"),
        (b"\xff\xfe", "invalid_utf8"),
        (b'{"text": "\xc3("}', "invalid_utf8"),
        (b'{"text": "a",}', "broken_line"),
        (b'{"text": Infinity}', "wrong_type"),
        (b'{"id": "x9", "body": "a"}', "missing_text"),
        (b'{"id": "x8", "text": 5}', "wrong_type"),
        (b'{"text": ["a"]}', "wrong_type"),
        (b"[" * 5000, "broken_line"),
    ]
    data, places = b"", []
    for line, _ in bad_lines:
        data += b'{"text": "good"}\n'
        places.append(len(data))
        data += line + b"\n"
    shard = put("a.jsonl", data)
    wanted = Wanted({"text": pa.string(), "id": pa.string()}, ("text",), "id")
    good, bad = read_pieces("jsonl", [Piece(shard, 0, len(data), 0)], wanted)
    assert [row["text"] for row in good] == ["good"] * len(bad_lines)
    bad = sorted(bad, key=lambda row: row.position)
    assert [(row.position, row.reason) for row in bad] == [
        (place, reason) for place, (_, reason) in zip(places, bad_lines, strict=True)
    ]
    assert {row.id for row in bad} == {None, "x9", "x8"}
    assert {row.shard for row in bad} == {shard.path}
    assert "['id', 'body']" in next(row.error for row in bad if row.reason == "missing_text")


def test_byte_order_mark_blank_lines_and_no_last_newline(put, read_pieces):
    data = b'\xef\xbb\xbf{"text":"a"}\r\n\r\n   \n{"text":"b"}'
    good, bad = read_pieces("jsonl", JSONL.pieces(put("a.jsonl", data), 10), TEXT)
    assert [row["text"] for row in good] == ["a", "b"]
    assert [row["_position"] for row in good] == [0, data.index(b'{"text":"b"')]
    assert not bad


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_without_rows_has_no_pieces(put, name):
    assert JSONL.pieces(put(name, b""), 10) == []
    assert JSONL.columns(put(name, b"")) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keep"), [("a.jsonl.gz", -20), ("a.jsonl.zst", -5)])
def test_a_compressed_file_cut_short_is_an_error_that_names_it(put, tmp_path, name, keep):
    from pathlib import Path

    from actors import storage

    whole = put(name, lines_of({"text": str(i) * 20} for i in range(20000)))
    Path(whole.path).write_bytes(Path(whole.path).read_bytes()[:keep])
    shard = storage.stat(whole.path)
    with pytest.raises(DataError, match=rf"{name}.*Truncated.*leave it out"):
        JSONL.pieces(shard, 10)
    with pytest.raises(DataError, match=name):
        list(JSONL.read(Piece(shard, 0, 1 << 62, 0), TEXT))


def test_a_file_that_is_not_gzip_is_an_error_that_names_it(put, tmp_path):
    from actors import storage

    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b'{"text": "a"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl\.gz.*cannot be read as JSON Lines"):
        JSONL.columns(storage.stat(str(path)))


def test_columns_come_from_the_head(put):
    rows = [
        {"text": "a", "i": 1, "f": 1, "b": True, "n": None, "nested": {"a": 1}, "mixed": 1},
        {"text": None, "i": 2, "f": 1.5, "b": None, "n": None, "nested": [1], "mixed": "x"},
    ]
    assert JSONL.columns(put("a.jsonl", lines_of(rows) + b"junk\n")) == {
        "text": pa.string(),
        "i": pa.int64(),
        "f": pa.float64(),
        "b": pa.bool_(),
        "n": pa.null(),
        "nested": pa.string(),
        "mixed": pa.string(),
    }


@pytest.mark.parametrize(
    ("value", "kind", "want"),
    [
        ("x", pa.string(), "x"),
        (5, pa.string(), "5"),
        (5.0, pa.string(), "5"),
        (5.5, pa.string(), "5.5"),
        (True, pa.string(), "true"),
        ({"b": [1, None], "a": "é"}, pa.string(), '{"b":[1,null],"a":"é"}'),
        (5, pa.int64(), 5),
        (5.0, pa.int64(), 5),
        (5, pa.float64(), 5.0),
        (5.5, pa.float64(), 5.5),
        (False, pa.bool_(), False),
    ],
)
def test_json_values_are_converted_by_the_rule(value, kind, want):
    array, wrong = json_values.column([value, None], kind, "any")
    assert array.to_pylist() == [want, None]
    assert array.type == kind
    assert not wrong


@pytest.mark.parametrize(
    ("value", "kind", "rule", "error"),
    [
        (5.5, pa.int64(), "any", "is not int64, the type of this column when the run was planned, but 5.5"),
        (True, pa.int64(), "any", "but True"),
        (1 << 63, pa.int64(), "any", "but 9223372036854775808"),
        ("x", pa.float64(), "any", "but 'x'"),
        (True, pa.float64(), "any", "but True"),
        (1, pa.bool_(), "any", "but 1"),
        ({"a": 1}, pa.int64(), "any", "but an object"),
        (5, pa.string(), "text", "is not text but 5"),
        ([5], pa.string(), "text", "is not text but a list"),
        (1e30, pa.string(), "id", "at most 64 bits but 1e\\+30"),
        (True, pa.string(), "id", "neither text nor a whole number"),
        ("y" * 200, pa.int64(), "any", "y\\.\\.\\.'$"),
    ],
)
def test_a_json_value_that_does_not_fit_has_an_error(value, kind, rule, error):
    import re

    array, wrong = json_values.column([None, value], kind, rule)
    assert array.to_pylist() == [None, None]
    assert list(wrong) == [1]
    assert re.search(error, wrong[1])


def test_nesting_too_deep_to_write_is_wrong_type():
    deep: object = 1
    for _ in range(600):
        deep = [deep]
    _, wrong = json_values.column([deep], pa.string(), "any")
    assert "cannot be kept as JSON text" in wrong[0]


def test_the_type_of_a_kept_column_does_not_depend_on_the_block(put, tables):
    shard = put("a.jsonl", lines_of({"text": "a", "n": n} for n in [1, 2.0, None, 3]))
    wanted = Wanted({"text": pa.string(), "n": pa.int64()}, ("text",))
    found = [table for piece in JSONL.pieces(shard, 1) for table in tables(piece, wanted)]
    assert {table.schema.field("n").type for table in found} == {pa.int64()}
    assert [value for table in found for value in table.column("n").to_pylist()] == [1, 2, None, 3]
