from __future__ import annotations

import csv
import dataclasses
import io
import re

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.errors import DataError
from actors.schema import Dialect, Piece
from actors.source.formats import FORMATS, Wanted, delimited, lines
from actors.source.formats.grammar import grammar

CSV = FORMATS["csv"]
WANTED = Wanted({"id": pa.string(), "text": pa.string()}, ("text",), "id")

RFC = Dialect('"', "double")


def with_dialect(shard, dialect):
    return dataclasses.replace(shard, dialect=dialect)


def columns(good):
    return [(row["id"], row["text"]) for row in good]


def test_quotes_newlines_and_doubled_quotes(put, read_pieces):
    data = 'id,text\r\n1,"two\r\nlines, and a comma"\r\n\r\n2,"she said ""no"""\r\n3,plain "inner" quote\n4,\n5,"\',\n"'
    shard = put("a.csv", data.encode())
    for rows in (1, 2, 100):
        pieces = CSV.pieces(shard, rows)
        assert [piece.rows for piece in pieces] == [min(rows, 5 - i) for i in range(0, 5, rows)]
        good, bad = read_pieces("csv", pieces, WANTED)
        assert columns(good) == [
            ("1", "two\r\nlines, and a comma"),
            ("2", 'she said "no"'),
            ("3", 'plain "inner" quote'),
            ("4", None),
            ("5", "',\n"),
        ]
        assert good[1]["_position"] == data.index("2,")
        assert not bad


FIELD = st.text(st.sampled_from('ab", \n\t'), max_size=6)


@pytest.mark.slow
@given(
    rows=st.lists(st.lists(FIELD, min_size=2, max_size=2).filter(any), min_size=1),
    size=st.integers(1, 5),
    chunk=st.integers(1, 30),
    end=st.sampled_from(["\n", "\r\n"]),
)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.csv.zst"])
def test_csv_round_trips_for_any_piece_and_read_size(put_in_memory, read_pieces, *, name, rows, size, chunk, end):
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t" if "tsv" in name else ",", lineterminator=end)
    writer.writerows([["id", "text"], *rows])
    # A row over lines that each look like a row is no row to TSV, so the dialect is not to be guessed here.
    shard = with_dialect(put_in_memory(name, out.getvalue().encode()), RFC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", chunk)
        patch.setattr(lines, "TAIL_BYTES", 1)
        good, bad = read_pieces("csv", CSV.pieces(shard, size), WANTED)
    assert columns(good) == [(first or None, second or None) for first, second in rows]
    assert not bad


@given(data=st.text(st.sampled_from('ab",\n'), max_size=60))
def test_valid_csv_is_read_as_by_the_csv_module(put_in_memory, data):
    try:
        rows = [row for row in csv.reader(io.StringIO(data, newline=""), strict=True) if row]
    except csv.Error:
        rows = []
    assume(rows)
    shard = with_dialect(put_in_memory("a.csv", data.encode()), RFC)
    records = list(delimited._records(shard, 0, 1 << 62))
    assert [delimited._fields(shard, record, grammar(RFC, ","), None) for record in records] == rows


def test_a_ragged_row_is_quarantined_and_reading_continues(put, read_pieces):
    shard = put("a.csv", b"id,text\n1,a\n2\n3,c,d\n4,e\n")
    good, bad = read_pieces("csv", CSV.pieces(shard, 2), WANTED)
    assert columns(good) == [("1", "a"), ("4", "e")]
    assert [(row.position, row.reason, row.error) for row in bad] == [
        (12, "broken_line", "1 fields where the header has 2"),
        (14, "broken_line", "3 fields where the header has 2"),
    ]


def test_invalid_utf8_and_a_stray_carriage_return_quarantine_one_row_each(put, read_pieces):
    shard = put("a.csv", b"id,text\n1,a\n2,\xff\n3,a\rb\n4,d\n")
    good, bad = read_pieces("csv", CSV.pieces(shard, 9), WANTED)
    assert columns(good) == [("1", "a"), ("4", "d")]
    assert [row.reason for row in bad] == ["invalid_utf8", "broken_line"]


def test_an_unclosed_quote_quarantines_only_its_line(put, read_pieces):
    shard = with_dialect(put("a.csv", b'id,text\n1,a\n2,"open\n3,c\n4,"d\ne"\n5,"f\n6,g\n'), RFC)
    good, bad = read_pieces("csv", CSV.pieces(shard, 2), WANTED)
    # The next quote after that of row 2 closes no field, so row 2 ends with its line.
    assert columns(good) == [("1", "a"), ("3", "c"), ("4", "d\ne"), ("6", "g")]
    assert [(row.position, row.reason) for row in bad] == [(12, "broken_line"), (32, "broken_line")]
    assert bad[-1].error == "a quote is opened in this line and never closed"


@pytest.mark.parametrize("chunk", [5, 1000])
def test_an_oversized_row_is_quarantined_at_its_first_line(put, monkeypatch, chunk):
    monkeypatch.setattr(lines, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(lines, "TAIL_BYTES", 1)
    shard = with_dialect(put("a.csv", b'1,"open\n' + b"2,b\n" * 40 + b'3,"x"\n' + b"4" * 90 + b"\n5,e\n"), RFC)
    records = list(delimited._records(shard, 0, 1 << 62, largest=50))
    reasons = [record.bad.reason for record in records if record.bad]
    if chunk == 5:  # the row is given up before its end has been seen
        assert reasons[0] == "broken_line"
        assert [record.data for record in records if record.data][:2] == [b"2,b", b"2,b"]
    assert "too_large" in reasons or chunk == 1000
    assert records[-1].data == b"5,e"


@pytest.mark.slow
def test_a_row_of_many_megabytes_over_many_lines(put, read_pieces):
    text = "a line of some length\n" * (256 << 10)
    shard = put("a.csv", f'id,text\n1,"{text}"\n2,b\n'.encode())
    good, bad = read_pieces("csv", CSV.pieces(shard, 1), WANTED)
    assert columns(good) == [("1", text), ("2", "b")]
    assert not bad


def test_a_field_larger_than_the_csv_modules_own_limit(put, read_pieces):
    big = '"' + "x" * 200_000 + '"'
    good, _ = read_pieces("csv", CSV.pieces(put("a.csv", f"id,text\n1,{big}\n".encode()), 1), WANTED)
    assert len(good[0]["text"]) == 200_000


def test_byte_order_mark_before_a_quoted_name(put, read_pieces):
    shard = put("a.csv", b'\xef\xbb\xbf"id","te,\nxt"\n1,a\n')
    assert CSV.columns(shard) == {"id": pa.string(), "te,\nxt": pa.string()}
    good, _ = read_pieces("csv", CSV.pieces(shard, 1), Wanted({"te,\nxt": pa.string()}))
    assert [row["te,\nxt"] for row in good] == ["a"]


def test_tabs_separate_a_tsv(put):
    assert list(CSV.columns(put("a.tsv.gz", b"id\ttext,more\n"))) == ["id", "text,more"]


@pytest.mark.parametrize("data", [b"", b"id,text\n", b"id,text", b"\n\n", b"id,text\n\n\r\n"])
def test_a_file_without_rows_has_no_pieces(put, data):
    assert CSV.pieces(put("a.csv", data), 5) == []


@pytest.mark.slow
def test_a_reader_seeks_to_its_piece(put_in_memory, tables, asked):
    shard = put_in_memory("a.csv", b"id,text\n" + b"1,aaaa\n" * 500_000)
    last = CSV.pieces(shard, 100_000)[-1]
    asked.clear()
    assert sum(table.num_rows for table in tables(last, WANTED)) == 100_000
    assert min(start for start, _ in asked) == last.start - 1


def test_a_missing_column_names_the_shard(put):
    shard = put("a.csv", b"id,body\n1,a\n")
    with pytest.raises(DataError, match=rf"{re.escape(shard.path)}.*no column 'text'.*\['id', 'body'\]"):
        list(CSV.read(CSV.pieces(shard, 1)[0], WANTED))


def test_a_repeated_column_is_refused_if_requested(put):
    shard = put("a.csv", b"id,text,text\n1,a,b\n")
    with pytest.raises(DataError, match="two columns named 'text'"):
        list(CSV.read(CSV.pieces(shard, 1)[0], WANTED))


def test_a_broken_header_names_the_shard(put):
    with pytest.raises(DataError, match=r"header of .*a\.csv' cannot be read: .*utf-8"):
        CSV.columns(put("a.csv", b"id,\xff\n1,a\n"))


def test_csv_pieces_are_contiguous(put):
    shard = put("a.csv", b"id,text\n" + b"1,a\n" * 10)
    pieces = CSV.pieces(shard, 4)
    assert pieces == [Piece(shard, 8, 24, 4), Piece(shard, 24, 40, 4), Piece(shard, 40, 48, 2)]
