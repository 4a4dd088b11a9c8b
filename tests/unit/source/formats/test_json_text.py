"""JSON as written by Python and pandas, and the errors of files with other content."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import DataError
from actors.source.formats import FORMATS, Wanted, json_values
from actors.source.formats.json_text import parse_line

JSONL = FORMATS["jsonl"]
SCALARS = st.one_of(st.none(), st.booleans(), st.floats(), st.text(), st.integers(-(1 << 63), (1 << 64) - 1))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def rows_of(put, lines, **types):
    """The good rows of a file of these lines, and reasons of the bad ones."""
    shard = put("a.jsonl", b"\n".join(lines) + b"\n")
    wanted = Wanted({"text": pa.string(), **types}, ("text",))
    good, bad = [], []
    for piece in JSONL.pieces(shard, 100):
        for item in JSONL.read(piece, wanted):
            if isinstance(item, pa.Table):
                good += item.drop_columns(["_position"]).to_pylist()
            else:
                bad.append((item.reason, item.error))
    return good, bad


@given(row=st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_output_of_json_dumps_is_read_at_any_depth(row):
    line = json.dumps(row).encode()
    assert repr(parse_line(line)) == repr(json.loads(line))


def test_nan_and_infinity_in_each_kind_of_column(put):
    lines = [json.dumps({"text": "a", "f": v, "i": v, "b": v, "s": v, "n": [v]}).encode() for v in (math.nan, math.inf)]
    good, bad = rows_of(put, lines[:1], f=pa.float64(), i=pa.int64(), b=pa.bool_(), s=pa.string(), n=pa.string())
    assert math.isnan(good[0].pop("f"))
    assert good == [{"text": "a", "i": None, "b": None, "s": None, "n": "[null]"}]
    assert not bad
    good, bad = rows_of(put, lines[1:], f=pa.float64(), s=pa.string(), n=pa.string())
    assert good == [{"text": "a", "f": math.inf, "s": "Infinity", "n": "[null]"}]
    _, bad = rows_of(put, lines[1:], i=pa.int64())
    assert bad[0][0] == "wrong_type"


def test_nan_as_a_text_or_an_id_is_null(put, read_pieces):
    good, _ = rows_of(put, [b'{"text": NaN}'])
    assert good == [{"text": None}]
    for rule in ("text", "id"):
        for kind in (pa.string(), pa.float64()):
            array, wrong = json_values.column([math.nan], kind, rule)
            assert array.to_pylist() == [None]
            assert not wrong


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["NaN", "1"], pa.float64()),
        (["NaN", "null"], pa.float64()),
        (["NaN", "true"], pa.bool_()),
        (["NaN", '"x"'], pa.string()),
        (["1.5", "Infinity"], pa.float64()),
    ],
)
def test_the_type_of_a_column_with_nan(put, values, kind):
    shard = put("a.jsonl", "".join(f'{{"v": {value}}}\n' for value in values).encode())
    assert JSONL.columns(shard) == {"v": kind}


def test_half_of_a_surrogate_pair_is_replaced_in_values_and_names(put):
    line = rb'{"text": "a\ud800b\udc00", "\udfffk": [{"x": "\ud83d\ude00\ud83d"}]}'
    assert parse_line(line) == {"text": "a\ufffdb\ufffd", "\ufffdk": [{"x": "\U0001f600\ufffd"}]}
    good, bad = rows_of(put, [line])
    assert good == [{"text": "a\ufffdb\ufffd"}]
    assert not bad


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"text": "a"} // c', "a comment"),
        (b"# c", "a comment"),
        (b'{"text": "a" /* c */}', "a comment"),
        (b'{"text": "a",}', "a trailing comma"),
        (b'{"text": ["a", ]}', "a trailing comma"),
        (b'{"text": "a"},', "a comma behind the object"),
        (b'{"text": "a"}{"text": "b"}', "several JSON values on one line"),
        (b"{'text': 'a'}", "single quotes, as Python prints a dict"),
        (b'{"text": None}', "None, as Python prints"),
        (b'{text: "a"}', "the name text without double quotes"),
        (b'{"text": undefined}', "undefined, which is no JSON value"),
        (b'{"text": "a\tb"}', "Invalid control character"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_the_error_names_the_json_mistake(put, line, error):
    good, bad = rows_of(put, [b'{"text": "good"}', line, b'{"text": "good"}'])
    assert [row["text"] for row in good] == ["good"] * 2
    assert [reason for reason, _ in bad] == ["broken_line"]
    assert error in bad[0][1]


def test_unusual_valid_lines_are_read(put):
    lines = [
        b'{"text": "a", "text": "b"}',
        b'\xef\xbb\xbf{"text": "c"}',
        b'{"text": "d", "n": 123456789012345680000000000000, "m": NaN}',
        b'{"text": "e", "n": 1e400}',
    ]
    good, bad = rows_of(put, lines, n=pa.float64())
    assert [row["text"] for row in good] == ["b", "c", "d", "e"]
    assert [row["n"] for row in good] == [None, None, 123456789012345680000000000000.0, math.inf]
    assert not bad


DOCUMENTS = [{"id": i, "text": f"rain {i}"} for i in range(50)]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "holds"),
    [
        (json.dumps(DOCUMENTS).encode(), "one JSON array on one line"),
        (json.dumps(DOCUMENTS, indent=1).encode(), "one JSON array over several lines"),
        (("[\n" + ",\n".join(map(json.dumps, DOCUMENTS)) + "\n]\n").encode(), "one JSON array over several lines"),
        (("[" + ",\n".join(map(json.dumps, DOCUMENTS)) + "]\n").encode(), "one JSON array over several lines"),
        (json.dumps(DOCUMENTS[0], indent=2).encode(), "a JSON object over several lines"),
        ("\n".join(json.dumps(one, indent=2) for one in DOCUMENTS).encode(), "a JSON object over several lines"),
        (b'{"a": [\n{"b": 1},\n{"b": 2}\n]}\n', "a JSON object over several lines"),
        (b"[1, 2]\n[3, 4]\n", "lines that are JSON arrays"),
        (("[" + "\n,".join(map(json.dumps, DOCUMENTS)) + "]\n").encode(), "one JSON array over several lines"),
        (b"".join(b"\x1e%b\n" % json.dumps(one).encode() for one in DOCUMENTS), "a JSON text sequence"),
        (b"\r".join(json.dumps(one).encode() for one in DOCUMENTS), "lines that end with a carriage return alone"),
        ("\n".join(map(repr, DOCUMENTS)).encode(), "Python dicts in single quotes"),
        (b"id,text\n1,a\n2,b\n", "lines that look like CSV"),
        (json.dumps(DOCUMENTS[0]).encode("utf-16"), "UTF-16LE text"),
        (json.dumps(DOCUMENTS[0]).encode("utf-16-be"), "UTF-16BE text"),
        (json.dumps(DOCUMENTS[0]).encode("utf-16-le"), "UTF-16LE text"),
        (json.dumps(DOCUMENTS[0]).encode("utf-32"), "UTF-32LE text"),
        (json.dumps(DOCUMENTS[0]).encode("utf-32-be"), "UTF-32BE text"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc", "gzip data"),
        (b"\x28\xb5\x2f\xfdabc", "zstd data"),
        (b"BZh91AY&SY\xff\x01", "bzip2 data"),
        (b"PK\x03\x04\x14\0", "a zip archive"),
        (b"PAR1\x15\x04\x15", "a Parquet file"),
        (b"<!DOCTYPE html>\n<html>404</html>\n", "an HTML page"),
        (b"<?xml version='1.0'?><Error/>\n", "an XML document"),
        (LFS, "a Git LFS pointer"),
        (b"hello\nworld\n", "no line that is a row; the first"),
        (b'"a"\n5\n', "no line that is a row; the first: a row is a JSON object, and this is text"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_without_a_row_is_refused_with_its_content(put, name, data, holds):
    shard = put(name, data)
    with pytest.raises(DataError) as error:
        JSONL.columns(shard)
    assert shard.path in str(error.value)
    assert f"holds {holds}" in str(error.value)
    assert "leave it out of the source" in str(error.value)


@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_plain_text_under_a_packed_name_is_named(tmp_path, codec):
    from actors import storage

    path = tmp_path / f"a.jsonl.{codec}"
    path.write_bytes(b'{"text": "a"}\n')
    with pytest.raises(DataError, match="text that is not packed with .*Remove the ending from its name"):
        JSONL.columns(storage.stat(str(path)))


@pytest.mark.parametrize("data", [b"", b"\n \n\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_file_of_blank_lines_is_fine(put, data):
    assert JSONL.columns(put("a.jsonl", data)) == {}


def test_one_row_after_a_thousand_broken_lines_is_enough(put):
    shard = put("a.jsonl", b"junk\n" * 5000 + b'{"text": "a"}\n')
    assert JSONL.columns(shard) == {}
    _, bad = rows_of(put, [b"junk"] * 3 + [b'{"text": "a"}'])
    assert len(bad) == 3


LARGE = [(1 << 53) + 1, (1 << 63) + 1, (1 << 64) - 1, 123456789012345678901234567890]


@pytest.mark.parametrize("number", [*LARGE, *(-number for number in LARGE)])
def test_no_digit_of_a_whole_number_is_lost(put, number):
    lines = [b'{"text": "a", "n": %d}' % number, b'{"text": "b", "n": 1.5}']
    good, bad = rows_of(put, lines, n=pa.float64())
    assert [row["text"] for row in good] == ["b"]
    assert [reason for reason, _ in bad] == ["wrong_type"]
    assert f"cannot represent: {number}" in bad[0][1]
    good, bad = rows_of(put, [*lines, b'{"text": "c", "n": [%d, NaN]}' % number], n=pa.string())
    assert [row["n"] for row in good] == [str(number), "1.5", f"[{number},null]"]
    assert not bad


@pytest.mark.parametrize("number", ["1152921504606847000", "36893488147419103232", "1e25", "-9223372036854775808"])
def test_a_number_that_a_float_represents_is_a_float(put, number):
    good, bad = rows_of(put, [b'{"text": "a", "n": %s}' % number.encode()], n=pa.float64())
    assert [row["n"] for row in good] == [float(number)]
    assert not bad


@pytest.mark.parametrize(
    ("number", "kind"),
    [("9223372036854775807", pa.int64()), ("9223372036854775808", pa.string()), ("1e30", pa.float64())],
)
def test_whole_numbers_beyond_int64_are_text(put, number, kind):
    shard = put("a.jsonl", b'{"text": "a", "n": %s}\n{"text": "a", "n": 1}\n' % number.encode())
    assert JSONL.columns(shard)["n"] == kind
