"""Judged queries: each kind of bad input is named, with the fix."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import DataError, VectideError
from pipeline.evaluate.beir import read_beir
from pipeline.quality.judged import read_corpus, read_judged

QUERIES = {"id": ["q1", "q2"], "text": ["one", "two"]}
JUDGEMENTS = {"query": ["q1", "q2"], "doc": ["a", "b"]}


def read(folder, queries, judgements):
    paths = [str(folder / f"{name}.parquet") for name in ("queries", "judgements")]
    for path, columns in zip(paths, (queries, judgements), strict=True):
        pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
    return read_judged(*paths, options=("--queries", "--judgements"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"_id": "q", "text": null}', "'text' is blank in row 0; give each row a text"),
        ('{"_id": null, "text": "a"}', "line 1 of .* is not a JSON object with _id and text: _id is None"),
        ('{"_id": 1, "text": ["a"]}', "line 1 of .* is not a JSON object with _id and text: text is .'a'."),
    ],
)
def test_values_of_beir_that_are_no_texts_are_named(tmp_path, line, said):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n")
    (tmp_path / "queries.jsonl").write_text(line)
    with pytest.raises(VectideError, match=said):
        read_beir(str(tmp_path), "test")
    (tmp_path / "queries.jsonl").write_text('\ufeff{"_id": 1, "text": "a"}')
    assert read_beir(str(tmp_path), "test").queries == {"1": "a"}


@pytest.mark.parametrize("column", ["id", "text"])
def test_a_text_that_is_not_utf8_is_named(tmp_path, column):
    rows = {"id": pa.array(["a"]), "text": pa.array(["b"])} | {column: pa.array([b"\xff"]).view(pa.string())}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    pq.write_table(pa.table({"query": ["a"], "doc": ["b"]}), tmp_path / "j.parquet")
    said = f"the column '{column}' has a text that is not UTF-8"
    with pytest.raises(DataError, match=said):
        read_corpus(str(tmp_path / "a.parquet"), "--corpus")
    with pytest.raises(DataError, match=said):
        read_judged(str(tmp_path / "a.parquet"), str(tmp_path / "j.parquet"), options=("--queries", "--judgements"))


def test_ids_may_be_whole_numbers_and_notes_tell_what_is_left_out(tmp_path):
    queries = {"id": [1, 2, 3, 4], "text": ["a", "b", "c", "d"]}
    judgements = {"query": [1, 1, 2, 9], "doc": [10, 11, 10, 10], "relevance": [2.0, 0.0, 0.0, 1.0]}
    found = read(tmp_path, queries, judgements)
    assert (found.queries, found.judgements) == ({"1": "a", "2": "b"}, {"1": {"10": 2, "11": 0}, "2": {"10": 0}})
    assert found.notes == (
        "2 queries have no judgement and are left out",
        "1 judged queries have no text and are left out",
        "1 queries have no relevant document and count as 0, as in trec_eval",
    )
    assert found.count_present([pa.chunked_array([["x", "10"]]), pa.chunked_array([["10"]])]) == (1, 2)
    with pytest.raises(
        VectideError, match=r"none of its documents is in the table: it judges '1[01]', .* such as 'doc/10'"
    ):
        found.count_present([pa.chunked_array([[]], pa.string()), pa.chunked_array([["doc/10"]])])


@pytest.mark.parametrize(
    ("queries", "judgements", "said"),
    [
        ({"id": ["q1"]}, JUDGEMENTS, "--queries: .* has no column 'text'; it needs id and text"),
        (QUERIES, {"query": ["q1"]}, "--judgements: .* has no column 'doc'"),
        ({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}, JUDGEMENTS, "--queries: .* has no rows"),
        ({"id": ["q", "q"], "text": ["one", "two"]}, JUDGEMENTS, "has the id 'q' twice; keep one query of each id"),
        ({"id": ["q1", "q2"], "text": ["one", " "]}, JUDGEMENTS, "'text' is blank in row 1"),
        ({"id": ["q1", "q2"], "text": ["one", None]}, JUDGEMENTS, "'text' has nulls .1."),
        ({"id": ["q1"], "text": [1]}, JUDGEMENTS, "'text' is int64; it must be text"),
        ({"id": [1.0, 2.0], "text": ["one", "two"]}, JUDGEMENTS, "'id' is double, and ids are texts or whole numbers"),
        ({"id": [1, 2], "text": ["one", "two"]}, JUDGEMENTS, "none of its queries is in .*'q1', .* such as '1'"),
        (QUERIES, {**JUDGEMENTS, "doc": [["a"], ["b"]]}, "'doc' is list<.*; cast it to the type of the table's ids"),
        (QUERIES, {**JUDGEMENTS, "relevance": [0, 0]}, "has no relevance above 0, so every metric would be 0"),
        (QUERIES, {**JUDGEMENTS, "relevance": [0.5, 1.0]}, "'relevance' must hold whole numbers"),
        (QUERIES, {"query": ["q1", "q1"], "doc": ["a", "a"]}, "judges the document 'a' twice for the query 'q1'"),
        (pa.table([["q"], ["r"], ["x"]], ["id", "id", "text"]), JUDGEMENTS, "has 2 columns 'id'; rename all but one"),
    ],
)
def test_bad_input_is_named_with_the_fix(tmp_path, queries, judgements, said):
    with pytest.raises(VectideError, match=said):
        read(tmp_path, queries, judgements)
