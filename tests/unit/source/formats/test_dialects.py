"""Delimited text in the dialects that databases, Spark, spreadsheets and Python write."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ConfigError, DataError
from actors.schema import Dialect
from actors.source.formats import FORMATS, Wanted, lines
from actors.source.formats.dialects import choose, settle
from tests.examples import examples

CSV = FORMATS["csv"]
WANTED = Wanted({"id": pa.string(), "text": pa.string()}, ("text",), "id")
RFC, SPARK = Dialect('"', "double"), Dialect('"', "backslash")
PLAIN, COPY = Dialect("none", "none"), Dialect("none", "backslash")
SINGLE = Dialect("'", "double")
KEYS = {"quote": "auto", "escape": "auto"}


def rows_of(shard, read_pieces, size=100, **keys):
    """Ids and texts of the good rows, and positions and errors of the bad ones."""
    (shard,), _ = settle([shard], "csv", **{**KEYS, **keys})
    good, bad = read_pieces("csv", CSV.pieces(shard, size), WANTED)
    return [(row["id"], row["text"]) for row in good], [(row.position, row.error) for row in bad]


def mysql(rows, delimiter, end):
    """Return rows as written by SELECT ... INTO OUTFILE and COPY TO."""
    table = {"\\": "\\\\", delimiter: "\\" + delimiter, "\n": "\\n", "\r": "\\r"}
    return "".join(
        delimiter.join("\\N" if value is None else "".join(table.get(c, c) for c in value) for value in row) + end
        for row in rows
    )


def with_csv(rows, delimiter, end, **settings):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end, **settings).writerows(rows)
    return out.getvalue()


WRITERS: dict[str, tuple[Dialect, Any]] = {
    "rfc": (RFC, with_csv),
    "all quoted": (RFC, lambda *args: with_csv(*args, quoting=csv.QUOTE_ALL)),
    "spark": (SPARK, lambda *args: with_csv(*args, quoting=csv.QUOTE_ALL, escapechar="\\", doublequote=False)),
    "python backslash": (SPARK, lambda *args: with_csv(*args, escapechar="\\", doublequote=False)),
    "single": (SINGLE, lambda *args: with_csv(*args, quotechar="'")),
    "mysql": (COPY, mysql),
    "iana": (PLAIN, lambda rows, d, end: "".join(d.join(row) + end for row in rows)),
}
FIELD = st.text(st.sampled_from("ab\"'\\, \n\r\té\N{CJK UNIFIED IDEOGRAPH-4E2D}N;"), max_size=6)


@examples(15)
@given(
    rows=st.lists(st.lists(FIELD, min_size=2, max_size=2), min_size=1, max_size=8),
    size=st.integers(1, 5),
    chunk=st.integers(1, 30),
    end=st.sampled_from(["\n", "\r\n"]),
    name=st.sampled_from(["a.csv", "a.tsv"]),
)
@pytest.mark.parametrize("writer", WRITERS)
def test_the_output_of_each_writer_round_trips(put_in_memory, read_pieces, *, writer, rows, size, chunk, end, name):
    dialect, write = WRITERS[writer]
    delimiter = "\t" if name == "a.tsv" else ","
    if dialect == PLAIN:
        rows = [[value.translate(dict.fromkeys(map(ord, "\n\r" + delimiter))) for value in row] for row in rows]
    if writer in ("rfc", "single", "python backslash"):  # Python leaves a carriage return outside of quotes
        rows = [[value.replace("\r", "") for value in row] for row in rows]
    # A row whose first field is not blank is never a blank line.
    rows = [["x" + row[0], row[1]] for row in rows]
    shard = put_in_memory(name, write([["id", "text"], *rows], delimiter, end).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", chunk)
        patch.setattr(lines, "TAIL_BYTES", 1)
        good, bad = rows_of(shard, read_pieces, size, quote=dialect.quote, escape=dialect.escape)
    assert good == [(first, second or None) for first, second in rows]
    assert not bad


@examples(20)
@given(data=st.lists(st.sampled_from(['"', "\\", ",", "\n", "a", "b,c\n", "\r", '"x"']), max_size=40).map("".join))
@pytest.mark.parametrize("dialect", [RFC, SPARK, COPY, PLAIN, SINGLE])
def test_each_byte_of_any_text_is_in_one_row(put_in_memory, data, dialect):
    from actors.source.formats import delimited

    shard = dataclasses.replace(put_in_memory("a.csv", ("id,text\n" + data).encode()), dialect=dialect)
    records = list(delimited._records(shard, 8, 1 << 62, count=2))
    at = 8
    for record in records:
        assert not ("id,text\n" + data)[at : record.start].strip("\r\n")
        assert record.end > record.start >= at
        at = record.end
        # What is broken ends with its line.
        assert record.bad is None or "\n" not in ("id,text\n" + data)[record.start : record.end - 1]
    assert not ("id,text\n" + data)[at:].strip("\r\n")
    # A row over several lines that is read has the fields of the header.
    for record in records:
        if b"\n" in record.data:
            fields = delimited._fields(shard, record, delimited._grammar(shard), 2)
            assert isinstance(fields, list)


@examples(20)
@given(
    count=st.integers(6, 40),
    strays=st.lists(st.tuples(st.integers(0, 39), st.sampled_from(["start", "end", "both", "middle"])), max_size=5),
    key=st.sampled_from(["{}", "doc-{}", "{:08x}-beef"]),
    quote=st.sampled_from(["auto", '"']),
    name=st.sampled_from(["a.csv", "a.tsv"]),
)
def test_stray_quotes_never_merge_rows(put_in_memory, read_pieces, *, count, strays, key, quote, name):
    mark = "," if name == "a.csv" else "\t"
    texts = [f"text number {i}" for i in range(count)]
    for index, kind in strays:
        if index < count:
            text = texts[index].replace('"', "")
            texts[index] = {"start": f'"{text}', "end": f'{text}"', "both": f'"{text}"', "middle": f'5" {text}'}[kind]
    data = f"id{mark}text\n" + "".join(f"{key.format(i)}{mark}{text}\n" for i, text in enumerate(texts))
    good, bad = rows_of(put_in_memory(name, data.encode()), read_pieces, 7, quote=quote)
    assert len(good) + len(bad) == count
    assert not [text for _, text in good if "\n" in str(text)]


ID_TEXT = "id,text\n"


@pytest.mark.parametrize("width", ["{:08x}-beef", "550e8400-e29b-41d4-a716-{:012x}"])
def test_a_quote_that_closes_rows_later_merges_no_rows_with_ids_in_hex(put_in_memory, read_pieces, width):
    texts = [f"text number {i}" for i in range(11)]
    texts[2], texts[10] = f'"{texts[2]}', f'{texts[10]}"'
    data = ID_TEXT + "".join(f"{width.format(i)},{text}\n" for i, text in enumerate(texts))
    good, bad = rows_of(put_in_memory("a.csv", data.encode()), read_pieces, 7)
    assert len(good) + len(bad) == 11


@pytest.mark.parametrize(
    ("name", "data", "dialect", "rows"),
    [
        (
            "a.tsv",
            'id\ttext\n1\t"To be\n2\tb\n3\t"Hamlet" is\n4\t5" pipe\n',
            PLAIN,
            ['"To be', "b", '"Hamlet" is', '5" pipe'],
        ),
        ("a.tsv", 'id\ttext\nx\t"To be\ny\tb\nz\tHamlet"\n', PLAIN, ['"To be', "b", 'Hamlet"']),
        ("a.tsv", 'id\ttext\n1\t"he ""said"""\n2\tb\n', RFC, ['he "said"', "b"]),
        ("a.tsv", 'id\ttext\n1\t"two\nlines"\n2\tb\n', RFC, ["two\nlines", "b"]),
        ("a.tsv", '"id"\t"text"\n"1"\t"a"\n', RFC, ["a"]),
        ("a.tsv", 'id\ttext\tnote\n1\ta\t""\n2\t"b"\tx\n', RFC, ["a", "b"]),
        ("a.tsv", 'id\ttext\tnote\n1\t"To be\t""\n2\t"b\tx\n', PLAIN, ['"To be', '"b']),
        ("a.tsv", "id\ttext\n1\ta\\tb\\\\c\n2\t\\N\n", COPY, ["a\tb\\c", None]),
        ("a.tsv", "id\ttext\n1\tC:\\new\\table\n2\t\\alpha\n", PLAIN, ["C:\\new\\table", "\\alpha"]),
        ("a.csv", ID_TEXT + '1,"say \\"hi\\", he"\n2,"a\\\\b"\n', SPARK, ['say "hi", he', "a\\b"]),
        ("a.csv", ID_TEXT + '1,"C:\\temp, x"\n2,"say \\"hi\\""\n', SPARK, ["C:\\temp, x", 'say "hi"']),
        ("a.csv", ID_TEXT + '1,"C:\\dir\\"\n2,"x, y"\n', RFC, ["C:\\dir\\", "x, y"]),
        ("a.csv", ID_TEXT + "1,a\\,b\n2,c\\\nd\n3,\\N\n", COPY, ["a,b", "c\nd", None]),
        ("a.csv", ID_TEXT + '1,"a, b"\n2,\\N\n', SPARK, ["a, b", None]),
        ("a.csv", ID_TEXT + "1,'a, b'\n2,'it''s'\n", SINGLE, ["a, b", "it's"]),
        ("a.csv", ID_TEXT + "1,it's\n2,'quoted'\n", RFC, ["it's", "'quoted'"]),
        ("a.csv", ID_TEXT + '1,"To be\n2,b\n3,Hamlet"\n4,c\n', PLAIN, ['"To be', "b", 'Hamlet"', "c"]),
        (
            "a.csv",
            ID_TEXT + '7,"Hello\nI came, saw\nleft, gone"\n8,"b"\n',
            RFC,
            ["Hello\nI came, saw\nleft, gone", "b"],
        ),
        ("a.csv", ID_TEXT + '1,5" pipe\n2,"a, b"\n', RFC, ['5" pipe', "a, b"]),
    ],
)
def test_the_dialect_is_detected(put, read_pieces, *, name, data, dialect, rows):
    shard = put(name, data.encode())
    assert choose(shard).dialect == dialect
    good, bad = rows_of(shard, read_pieces, 1)
    assert [text for _, text in good] == rows
    assert not bad


def test_one_stray_quote_in_a_quoted_file_quarantines_its_row(put, read_pieces):
    shard = put("a.csv", b'"id","text"\n"1","a"\n"2","say "hi" x"\n"3","c"\n"4","open\n"5","e"\n')
    good, bad = rows_of(shard, read_pieces)
    assert good == [("1", "a"), ("3", "c"), ("5", "e")]
    assert [position for position, _ in bad] == [20, 45]


def test_quote_and_escape_of_the_job_override_detection(put, read_pieces):
    shard = put("a.tsv", b'id\ttext\n1\t"a"\n2\tb\\tc\n')
    assert rows_of(shard, read_pieces)[0] == [("1", '"a"'), ("2", "b\tc")]
    assert rows_of(shard, read_pieces, quote='"', escape="double")[0] == [("1", "a"), ("2", "b\\tc")]
    assert rows_of(shard, read_pieces, quote="none", escape="none")[0] == [("1", '"a"'), ("2", "b\\tc")]


def test_the_report_of_dialects(put):
    shards = [put("a.tsv", b'id\ttext\n1\t"two\nlines"\n'), put("b.tsv", b"id\ttext\n1\ta\n")]
    settled, uses = settle(shards, "csv", "auto", "auto")
    assert [shard.dialect for shard in settled] == [RFC, PLAIN]
    assert [use.sentence() for use in uses if use.worth_saying] == [
        f'{shards[0].path!r}: quote ", escape double: quotes around fields, doubled inside of them (RFC 4180)'
    ]


@pytest.mark.parametrize(
    ("source_format", "quote", "escape", "error"),
    [
        ("jsonl", '"', "auto", "are for CSV and TSV, and this source is jsonl"),
        ("csv", "none", "double", "source.quote is none"),
    ],
)
def test_contradicting_keys_are_refused(put, source_format, quote, escape, error):
    with pytest.raises(ConfigError, match=error):
        settle([put("a.csv", b"id,text\n1,a\n")], source_format, quote, escape)


@pytest.mark.parametrize(
    ("name", "data", "holds"),
    [
        ("a.csv", b"id;text\n1;a\n", "fields between semicolons"),
        ("a.csv", b"id|text\n1|a\n", "fields between vertical bars"),
        ("a.csv", b"id\ttext\n1\ta\n", "fields between tabs"),
        ("a.tsv", b"id,text\n1,a\n", "fields between commas"),
        ("a.csv", b"id,text\r1,a\r2,b\r", "lines that end with a carriage return alone"),
        ("a.csv", b"sep=,\nid,text\n1,a\n", "a first line `sep=`"),
        ("a.csv", b'{"id": 1, "text": "a"}\n', "JSON Lines"),
        ("a.csv", b'[{"id": 1}, {"id": 2}]', "a JSON array"),
        ("a.csv", b'[\n{"id": 1}\n]\n', "JSON over several lines"),
        ("a.csv", "id,text\n1,a\n".encode("utf-16"), "UTF-16LE text"),
        ("a.tsv", "id\ttext\n1\ta\n".encode("utf-16-be"), "UTF-16BE text"),
        ("a.csv", "id,text\n1,a\n".encode("utf-32"), "UTF-32LE text"),
        ("a.csv", b"\x1f\x8b\x08\0\0\0", "gzip data"),
        ("a.csv", b"PK\x03\x04\x14\0", "a zip archive"),
        ("a.csv", b"PAR1\x15\x04", "a Parquet file"),
        ("a.csv", b"<html><body>404</body></html>\n", "an HTML page"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid x\n", "a Git LFS pointer"),
        ("a.csv", b"id,text\n1\n2\n", "no line that is a row below its header"),
    ],
)
def test_a_file_that_is_no_csv_is_refused_with_its_content(put, name, data, holds):
    shard = put(name, data)
    with pytest.raises(DataError) as error:
        CSV.columns(shard)
    assert shard.path in str(error.value)
    assert f"holds {holds}" in str(error.value)


@pytest.mark.parametrize("data", [b"PAR1,text\na,b\n", b"ORC,text\na,b\n", b"BZh,text\na,b\n", b"a;b,c\n1,2\n"])
def test_a_header_that_begins_like_a_magic_number_is_a_header(put, data):
    assert len(CSV.columns(put("a.csv", data))) == 2
