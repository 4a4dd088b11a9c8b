"""Sources read, checked and written: what is kept, left out, counted and refused."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from actors.errors import ConfigError, DataError
from pipeline.train import source_rows
from pipeline.train.data import open_data
from pipeline.train.prepare import check
from tests.unit.train.sources import job_of, pairs, prepared


def texts_of(data, source=0):
    """Query and passage of all rows."""
    rows = data.sources[source].dataset[:]
    return list(zip(rows["query"].to_pylist(), rows["passage"].to_pylist(), strict=True))


def test_rows_of_all_formats_are_written_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(source_rows, "_ROWS", 3)  # several parts
    expected = [(f"query {row}", f"passage {row}") for row in range(8)]
    pairs(tmp_path / "a.parquet", 8)
    (tmp_path / "b.csv").write_text("passage,query\n" + "".join(f"{p},{q}\n" for q, p in expected))
    lines = [json.dumps({"query": q, "passage": p}) for q, p in expected]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    write_deltalake(str(tmp_path / "d"), pa.table([*zip(*expected, strict=True)], ["query", "passage"]))
    data = prepared(
        tmp_path / "data", *({"uri": str(tmp_path / name)} for name in ("a.parquet", "b.csv", "c.jsonl", "d"))
    )
    assert [texts_of(data, number) for number in range(4)] == [expected] * 4
    assert [(source.name, source.rows, source.negatives, source.loss) for source in data.sources] == [
        (name, 8, 0, "infonce") for name in "abcd"
    ]
    assert data.counts == {name: {"read": 8, "kept": 8} for name in "abcd"}
    taken = data.sources[2].take([7, 0, 7])
    assert taken["query"].to_pylist() == ["query 7", "query 0", "query 7"]
    assert taken["query_text_hash"].to_pylist() == [data.sources[0].hashes("query")[row] for row in (7, 0, 7)]


def test_a_resume_reads_nothing_and_other_rows_are_other_data(tmp_path, monkeypatch):
    source = {"uri": pairs(tmp_path / "a.parquet")}
    first = prepared(tmp_path / "data", source)
    (tmp_path / "data" / "data.part" / "000").mkdir(parents=True)  # of a stopped run
    with monkeypatch.context() as patch:
        patch.setattr(source_rows, "read_rows", None)
        again = prepared(tmp_path / "data", source)
    assert (again.digest, again.counts, again.folder) == (first.digest, first.counts, first.folder)
    assert open_data(first.folder).sources == first.sources
    assert prepared(tmp_path / "other", source).digest == first.digest
    pairs(tmp_path / "a.parquet", 21)
    changed = prepared(tmp_path / "data", source)
    assert changed.digest != first.digest
    assert [each.name for each in (tmp_path / "data").iterdir()] == [changed.folder.name]  # the old ones are gone


@pytest.mark.parametrize("content", [b"", b"{}", b"ARROW1"])
@pytest.mark.parametrize("name", ["data.json", "000/rows.arrow", "000/negatives.npy"])
def test_damaged_rows_are_written_again(tmp_path, name, content):
    source = {"uri": pairs(tmp_path / "a.parquet", negative=[f"n {row}" for row in range(20)])}
    first = prepared(tmp_path / "data", source)
    (first.folder / name).write_bytes(content)
    again = prepared(tmp_path / "data", source)
    assert (again.digest, again.sources) == (first.digest, first.sources)
    assert again.sources[0].take([19])["negative_1"].to_pylist() == ["n 19"]


def test_rows_without_texts_are_left_out_and_counted(tmp_path):
    lines = [json.dumps({"query": f"q {row}", "passage": f"p {row}"}) for row in range(6)]
    bad = ['{"query": "q", "passage": "\\u00a0"}', '{"query": " ", "passage": "p"}', '{"query": null, "passage": "p"}']
    bad += [
        '{"query": "q"}',
        '{"query": "q", "passage": 5}',
        '{"query": "q", "passage": "p"',
        '{"query": ["q"], "passage": "p"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:3] + bad + lines[3:]))
    data = prepared(tmp_path / "data", {"uri": str(tmp_path / "a.jsonl")})
    assert texts_of(data)[:6] == [(f"q {row}", f"p {row}") for row in range(6)]
    counts = data.counts["a"]
    assert counts["read"] == 13
    assert counts["left out: blank query"] == 2
    assert counts["read"] == counts["kept"] + sum(
        count for key, count in counts.items() if key.startswith("left out: ")
    )


def test_a_condition_selects_rows(tmp_path):
    uri = pairs(tmp_path / "a.parquet", lang=["de", "en"] * 10, good=np.arange(20) / 20)
    data = prepared(tmp_path / "data", {"uri": uri, "where": "lang = 'de' and not coalesce(good > 0.5::double, false)"})
    assert texts_of(data) == [(f"query {row}", f"passage {row}") for row in (0, 2, 4, 6, 8, 10)]
    assert data.counts == {"a": {"read": 20, "left out: where": 14, "kept": 6}}


def test_a_condition_reads_fields_of_a_column_and_any_name(tmp_path):
    meta, row = [{"lang": "de"}, {"lang": "en"}] * 10, [*range(19, -1, -1)]
    uri = pairs(tmp_path / "a.parquet", meta=meta, _row=row, order=range(20))
    for where, kept in (("meta.lang = 'de'", range(0, 20, 2)), ("_row < 5", range(15, 20)), ('"order" < 5', range(5))):
        data = prepared(tmp_path / "data", {"uri": uri, "where": where})
        assert texts_of(data) == [(f"query {row}", f"passage {row}") for row in kept]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "rows"),
    [
        (None, range(8)),
        ("kept", range(8)),
        ("row > 3", range(4, 8)),
        ("not kept", range(8, 20)),
        ("kept or row = 9", [*range(8), 9]),
    ],
)
def test_of_a_curated_table_the_kept_rows_are_taken(tmp_path, where, rows):
    table = pa.table({"id": range(20), "kept": [row < 8 for row in range(20)], "row": range(20)})
    for side in ("query", "passage"):
        table = table.append_column(side, pa.array([f"{side} {row}" for row in range(20)]))
    write_deltalake(str(tmp_path / "curated"), table)
    data = prepared(tmp_path / "data", {"uri": str(tmp_path / "curated"), "where": where})
    assert texts_of(data) == [(f"query {row}", f"passage {row}") for row in rows]


def test_scores_are_labels(tmp_path):
    uri = pairs(tmp_path / "a.parquet", 6, similarity=[0.5, 1, None, 0, -2, 3])
    (tmp_path / "b.csv").write_text(
        "query,passage,score\n" + "".join(f"q{row},p{row},{row / 2}\n" for row in range(4)) + "q,p,\n"
    )
    data = prepared(
        tmp_path / "data", {"uri": uri, "score": "similarity"}, {"uri": str(tmp_path / "b.csv")}, stage="scored"
    )
    assert [source.label for source in data.sources] == ["number", "number"]
    labels = [source.take(range(source.rows))["label"] for source in data.sources]
    assert [each.to_pylist() for each in labels] == [[0.5, 1, 0, -2, 3], [0, 0.5, 1, 1.5]]
    assert {each.type for each in labels} == {pa.float32()}
    assert data.counts["a"]["left out: no similarity"] == data.counts["b"]["left out: no score"] == 1


def test_classes_are_numbered_as_they_appear(tmp_path):
    uri = pairs(tmp_path / "a.parquet", 6, topic=["law", "tax", None, "law", " ", "art"])
    data = prepared(tmp_path / "data", {"uri": uri, "label": "topic", "loss": "separation"})
    assert data.sources[0].take(range(4))["label"].to_pylist() == [0, 1, 0, 2]
    assert data.sources[0].label == "class"
    assert data.counts["a"]["left out: no topic"] == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"loss": "pearson"}, "all 8 rows have the same score, and loss pearson .* check the column 'score'"),
        ({"loss": "separation", "label": "kind"}, "the same class, and loss separation .* check the column 'kind'"),
        ({"loss": "classification", "label": "kind", "negative_columns": ["none"]}, "loss classification"),
    ],
)
def test_labels_that_are_all_the_same_are_refused(tmp_path, source, message):
    uri = pairs(tmp_path / "a.parquet", 8, score=[0.5] * 8, kind=["a"] * 8, none=[""] * 8)
    with pytest.raises(DataError, match=message):
        prepared(tmp_path / "data", {"uri": uri, **source})
    more = {
        "loss": "classification",
        "label": "kind",
        "negative_columns": ["query"],
        "query": "passage",
        "passage": "kind",
    }
    assert prepared(tmp_path / "more", {"uri": uri, **more}).sources[0].negatives == 1  # own negatives are enough


@pytest.mark.parametrize("side", ["query", "passage"])
def test_a_side_that_is_all_the_same_text_is_refused_without_negatives(tmp_path, side):
    uri = pairs(tmp_path / "a.parquet", 8, same=["a"] * 8)
    source = {"uri": uri, side: "same"}
    with pytest.raises(DataError, match=r"all 8 rows have the same text in the column 'same', and loss infonce"):
        prepared(tmp_path / "data", source)
    assert prepared(tmp_path / "more", {**source, "negative_columns": [side]}).sources[0].negatives == 1


@pytest.mark.parametrize(
    ("score", "problem"),
    [
        ([1.0, float("nan")] * 4, "score' is nan in the row 'a.parquet:1'; a score is a finite number"),
        ([1.0, float("-inf")] * 4, "is -inf in the row"),
        ([1.0, 1e39] * 4, "is 1e+39 in the row"),
        (["1", "high"] * 4, "has a value that is no number"),
        ([True, False] * 4, "which is bool; name a column of numbers"),
        ([[1.0]] * 8, "which is list<element: double>; name a column of numbers"),
    ],
)
def test_a_score_that_is_no_number_is_refused(tmp_path, score, problem):
    with pytest.raises((ConfigError, DataError)) as error:
        prepared(tmp_path / "data", {"uri": pairs(tmp_path / "a.parquet", 8, score=score)}, stage="scored")
    assert "data.0.score" in str(error.value)
    assert problem in str(error.value)


def test_a_held_out_text_in_a_pair_is_refused(tmp_path):
    first, second = ({"uri": pairs(tmp_path / f"{name}.parquet")} for name in "ab")
    prepared(tmp_path / "data", first, held_out=["query 20", "another"])
    with pytest.raises(DataError, match=r"texts of train.evaluate.queries are in 4 pairs, 'query 5' first"):
        prepared(tmp_path / "data", first, second, held_out=["query 5", "passage 7"])
    assert list((tmp_path / "data").glob("*.part")) == []
    assert prepared(tmp_path / "data", first).counts["a"]["kept"] == 20  # without held-out texts again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"query": "q"}, "data.0.query names the column 'q', which"),
        ({"passage": "p"}, "data.0.passage names the column 'p', which"),
        ({"query": "number"}, "which is int64; name a column of texts"),
        ({"loss": "cosent"}, "data.0.score names the column 'score', which"),
        ({"loss": "separation", "label": "lists"}, "name a column of texts or whole numbers"),
        ({"negative_columns": ["hard"]}, "data.0.negative_columns names the column 'hard'"),
        ({"negative_columns": ["number"]}, "which is int64; name a column of texts"),
        ({"where": "kept"}, "data.0.where 'kept' reads the column 'kept', which is not there"),
        ({"where": "number >"}, "is no SQL condition"),
        ({"where": "query"}, "is varchar and not boolean"),
        ({"where": "query in (select * from read_text('/etc/hostname'))"}, "disabled by configuration"),
        ({"uri": "nowhere.parquet"}, "data.0.uri 'nowhere.parquet' matches no file"),
        ({"negatives": "nowhere"}, "data.0.negatives 'nowhere' has no _mining.json"),
    ],
)
def test_what_is_missing_or_wrong_is_refused_before_rows_are_read(tmp_path, source, problem):
    uri = pairs(tmp_path / "a.parquet", number=range(20), lists=[[1]] * 20)
    with pytest.raises(ConfigError) as error:
        check(job_of({"uri": uri, **source}))
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("count", "where", "problem"),
    [
        (0, None, "has no row to train with; check where"),
        (20, "query = 'x'", "has no row to train with of 20 that were read (left out: where 20); check where"),
        (1, None, "has 1 row, and a step takes train.batch_rows = 4 of one source; give more rows"),
        (3, None, "has 3 rows, and a step takes train.batch_rows = 4 of one source; set train.batch_rows to 3 or less"),
    ],
)
def test_fewer_rows_than_a_step_are_refused(tmp_path, count, where, problem):
    with pytest.raises(ConfigError) as error:
        prepared(tmp_path / "data", {"uri": pairs(tmp_path / "a.parquet", count), "where": where})
    assert str(error.value).startswith("data.0.uri ")
    assert problem in str(error.value)


def test_sources_of_one_name_are_numbered(tmp_path):
    uris = [tmp_path / name / "pairs.parquet" for name in ("one", "two")]
    for uri in uris:
        uri.parent.mkdir()
        pairs(uri)
    sources = [{"uri": str(uri)} for uri in (*uris, tmp_path / "two" / "*.parquet")]
    assert [source.name for source in prepared(tmp_path / "data", *sources).sources] == ["pairs", "pairs-2", "two"]
