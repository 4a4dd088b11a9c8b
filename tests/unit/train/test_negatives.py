"""Negatives of rows: in columns and mined, checked, joined with their texts, and padded."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from actors.errors import ConfigError, DataError
from tests.unit.train.sources import embedded, mining, pairs, prepared, write


def negatives_of(data):
    """The texts of the negatives of all rows; each has the hash of its text."""
    source = data.sources[0]
    rows = source.take(range(source.rows))
    texts = {
        text: value
        for side in rows.column_names[:2]
        for text, value in zip(rows[side].to_pylist(), rows[f"{side}_text_hash"].to_pylist(), strict=True)
    }
    for name in source.columns[2:]:
        for text, value in zip(rows[name].to_pylist(), rows[f"{name}_text_hash"].to_pylist(), strict=True):
            assert texts.setdefault(text, value) == value
    return list(zip(*(rows[name].to_pylist() for name in source.columns[2:]), strict=True))


def test_columns_of_negatives_are_found_by_name_in_their_order(tmp_path):
    columns = {f"negative_{number}": [f"no {number} {row}" for row in range(4)] for number in (10, 2, 1)}
    data = prepared(tmp_path / "data", {"uri": pairs(tmp_path / "a.parquet", 4, **columns)})
    assert data.sources[0].negatives == 3
    assert negatives_of(data) == [tuple(f"no {number} {row}" for number in (1, 2, 10)) for row in range(4)]
    assert data.counts == {"a": {"read": 4, "kept": 4}}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_column_of_lists_gives_negatives(tmp_path, kind):
    lists = [[f"no {row} {number}" for number in range(3)] for row in range(4)]
    if kind == "parquet":
        uri = pairs(tmp_path / "a.parquet", 4, negatives=lists)
    else:
        uri = str(tmp_path / f"a.{kind}")
        rows = [{"query": f"query {row}", "passage": f"passage {row}", "negatives": lists[row]} for row in range(4)]
        quoted = (json.dumps(each).replace('"', '""') for each in lists)
        csv = ["query,passage,negatives", *(f'query {row},passage {row},"{each}"' for row, each in enumerate(quoted))]
        (tmp_path / f"a.{kind}").write_text("\n".join(csv if kind == "csv" else map(json.dumps, rows)))
    assert negatives_of(prepared(tmp_path / "data", {"uri": uri})) == [tuple(each) for each in lists]


def test_rows_with_fewer_negatives_get_other_passages_by_the_seed(tmp_path):
    query = [f"query {row // 2}" for row in range(20)]
    uri = pairs(
        tmp_path / "a.parquet",
        query=query,
        negatives=[[f"no {row}"] * (row % 2) + [f"nein {row}"] for row in range(20)],
    )
    data = prepared(tmp_path / "data", {"uri": uri, "negatives_per_row": 3})
    found = negatives_of(data)
    for row, negatives in enumerate(found):
        own = [f"no {row}"] * (row % 2) + [f"nein {row}"]
        assert list(negatives[: len(own)]) == own
        sampled = set(negatives[len(own) :])
        assert len(sampled) == 3 - len(own)
        assert all(text.startswith("passage ") for text in sampled)
        assert not sampled & {f"passage {row}", f"passage {row ^ 1}"}  # those of its query
    assert data.counts["a"] == {"read": 20, "padded negatives": 30, "kept": 20}
    assert negatives_of(prepared(tmp_path / "again", {"uri": uri, "negatives_per_row": 3})) == found
    assert negatives_of(prepared(tmp_path / "other", {"uri": uri, "negatives_per_row": 3}, seed=1)) != found


def test_rows_without_negatives_get_random_ones_if_their_number_is_named(tmp_path):
    source = {"uri": pairs(tmp_path / "a.parquet"), "negatives_per_row": 2}
    data = prepared(tmp_path / "data", source, stage="triplets")
    for row, negatives in enumerate(negatives_of(data)):
        assert len({*negatives, f"passage {row}"}) == 3
        assert all(text.startswith("passage ") for text in negatives)
    assert data.counts["a"]["padded negatives"] == 40


def test_negatives_that_are_none_are_left_out_and_counted(tmp_path):
    query = ["a", "a", "b", "c"]
    lists = [["passage 1", "x"], ["a", "y"], ["z", "z", " "], ["v", None, "w", "u"]]
    uri = pairs(tmp_path / "a.parquet", 4, query=query, negatives=lists)
    data = prepared(tmp_path / "data", {"uri": uri, "negatives_per_row": 2})
    found = negatives_of(data)
    assert [row[0] for row in found] == ["x", "y", "z", "v"]
    assert found[3] == ("v", "w")
    assert data.counts["a"] == {
        "read": 4,
        "negatives left out: blank": 1,
        "negatives left out: a passage of the query": 2,
        "negatives left out: repeated": 1,
        "negatives left out: more than negatives_per_row": 1,
        "padded negatives": 3,
        "kept": 4,
    }


def test_too_few_passages_to_pad_with_are_refused(tmp_path):
    uri = write(tmp_path / "a.parquet", query=["a"] * 4, passage=["b", "c"] * 2, negative=["n", None] * 2)
    with pytest.raises(
        DataError, match="2 rows have fewer negatives than others, and there are too few other passages"
    ):
        prepared(tmp_path / "data", {"uri": uri})


def test_a_number_of_negatives_that_passages_cannot_fill_is_refused(tmp_path):
    source = {"uri": pairs(tmp_path / "a.parquet", negative=[f"n {row}" for row in range(20)])}
    with pytest.raises(DataError, match="and there are 19; set negatives_per_row to 20 or less"):
        prepared(tmp_path / "data", source | {"negatives_per_row": 10**12})


def test_json_lists_of_something_else_are_no_negatives(tmp_path):
    row = {"query": "q", "passage": "p", "negatives": [{"text": "n"}]}
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row | {"query": f"q {n}"}) for n in range(4)))
    with pytest.raises(DataError, match="'negatives' has lists of something else than texts, such as"):
        prepared(tmp_path / "data", {"uri": str(tmp_path / "a.jsonl")})


def test_lists_beside_texts_are_counted(tmp_path):
    rows = [{"query": f"q {n}", "passage": f"p {n}", "negatives": ["n"] if n else "one text"} for n in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = prepared(tmp_path / "data", {"uri": str(tmp_path / "a.jsonl")}).counts["a"]
    assert counts["lists in 'negatives' taken as texts, because other rows have none"] == 3


@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_mined_files_that_are_damaged_or_missing_are_refused(tmp_path, table, damage):
    negatives = mining(tmp_path / "mined", table, of_pairs(range(20)))
    file = tmp_path / "mined" / "negatives-0-000000.parquet"
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        pq.write_table(pq.read_table(file).slice(0, 7), file)
    said = "is damaged" if damage == "cut" else "pairs with negatives, and 20 were written"
    with pytest.raises(DataError, match=said):
        prepared(tmp_path / "data", {"uri": pairs(tmp_path / "a.parquet"), "negatives": negatives})


def test_the_stage_of_triplets_needs_negatives(tmp_path):
    with pytest.raises(ConfigError, match="has no negatives, which stage triplets needs"):
        prepared(tmp_path / "data", {"uri": pairs(tmp_path / "a.parquet")}, stage="triplets")


def test_losses_without_negatives_read_none(tmp_path):
    uri = pairs(tmp_path / "a.parquet", 4, negative=["n"] * 4, score=[0.0, 1.0, 0.0, 1.0])
    assert prepared(tmp_path / "data", {"uri": uri}, stage="scored").sources[0].negatives == 0


@pytest.fixture
def table(tmp_path):
    """Passages of the pairs and forty other rows."""
    texts = [f"passage {row}" for row in range(20)] + [f"other {row}" for row in range(40)]
    return embedded(tmp_path / "table", texts)


def of_pairs(rows):
    """The mined rows of pairs: ids of pair, positive and three negatives."""
    return [(f"a.parquet:{row}", f"d{row}", [f"d{20 + row}", f"d{(row + 1) % 20}", f"d{40 + row % 3}"]) for row in rows]


def mined_texts(row):
    return (f"other {row}", f"passage {(row + 1) % 20}", f"other {20 + row % 3}")


def test_mined_negatives_are_joined_with_the_texts_of_the_table(tmp_path, table):
    negatives = mining(tmp_path / "mined", table, of_pairs(reversed(range(20))))
    data = prepared(tmp_path / "data", {"uri": pairs(tmp_path / "a.parquet"), "negatives": negatives}, stage="triplets")
    assert negatives_of(data) == [mined_texts(row) for row in range(20)]
    assert data.counts["a"] == {"read": 20, "kept": 20}


def test_mined_negatives_of_some_rows_are_padded(tmp_path, table):
    negatives = mining(tmp_path / "mined", table, of_pairs(range(15)))
    source = {"uri": pairs(tmp_path / "a.parquet"), "negatives": negatives, "where": "query != 'query 3'"}
    data = prepared(tmp_path / "data", source)
    assert negatives_of(data)[:14] == [mined_texts(row) for row in range(15) if row != 3]
    assert data.counts["a"] == {
        "read": 20,
        "left out: where": 1,
        "pairs without mined negatives": 5,
        "padded negatives": 15,
        "kept": 19,
    }


def test_texts_of_negatives_can_be_in_files(tmp_path):
    table = embedded(tmp_path / "table", [f"passage {row}" for row in range(60)], keep_text=False)
    negatives = mining(tmp_path / "mined", table, of_pairs(range(20)))
    source = {"uri": pairs(tmp_path / "a.parquet"), "negatives": negatives}
    with pytest.raises(ConfigError, match="which stores no texts; name files with their texts"):
        prepared(tmp_path / "data", source)
    docs = write(
        tmp_path / "docs.parquet", key=[f"d{row}" for row in range(41)], body=[f"body {row}" for row in range(41)]
    )
    data = prepared(tmp_path / "data", {**source, "texts": {"uri": docs, "id": "key", "text": "body"}})
    assert [row[:2] for row in negatives_of(data)] == [
        (f"body {20 + row}", f"body {(row + 1) % 20}") for row in range(20)
    ]
    assert data.counts["a"]["negatives left out: no text"] == data.counts["a"]["padded negatives"] == 13
    with pytest.raises(DataError, match="none of the negatives has a text in .* by the ids in 'body'"):
        prepared(tmp_path / "data", {**source, "texts": {"uri": docs, "id": "body", "text": "body"}})


@pytest.mark.parametrize("by_id", [False, True])
def test_negatives_of_other_pairs_are_refused(tmp_path, table, by_id):
    passage_id = "pid" if by_id else None
    negatives = mining(tmp_path / "mined", table, of_pairs(range(20)), passage_id=passage_id)
    ids = [f"d{row}" for row in range(20)]
    uri = pairs(tmp_path / "a.parquet", pid=ids)
    assert negatives_of(prepared(tmp_path / "data", {"uri": uri, "negatives": negatives}))[0] == mined_texts(0)
    shifted = [f"passage {row + 1}" for row in range(20)]
    uri = pairs(tmp_path / "a.parquet", passage=shifted, pid=[*ids[1:], "d99"])
    with pytest.raises(
        DataError, match="has negatives of other pairs: the positives of 20 of 20 pairs are not the passages"
    ):
        prepared(tmp_path / "data", {"uri": uri, "negatives": negatives})
    uri = pairs(tmp_path / "b.parquet", pid=ids)
    with pytest.raises(DataError, match="has negatives of other pairs: none of its ids is that of a row"):
        prepared(tmp_path / "data", {"uri": uri, "negatives": negatives})


def test_negatives_of_a_version_that_is_gone_are_refused(tmp_path, table):
    source = {"uri": pairs(tmp_path / "a.parquet"), "negatives": mining(tmp_path / "mined", table, of_pairs(range(20)))}
    next(path for path in (tmp_path / "table").glob("*.parquet")).unlink()
    with pytest.raises(ConfigError, match="were mined in version 0 of .*, of which 1 files are gone, .* or mine again"):
        prepared(tmp_path / "data", source)


@pytest.mark.parametrize(
    "settings", ["{", "[]", '{"outcome": {}}', '{"outcome": {"settings": {}, "table": "t", "version": 1}}']
)
def test_a_folder_of_something_else_has_no_negatives(tmp_path, table, settings):
    source = {"uri": pairs(tmp_path / "a.parquet"), "negatives": mining(tmp_path / "mined", table, of_pairs(range(20)))}
    done = tmp_path / "mined" / "_mining.json"
    done.write_text(done.read_text().replace('["passage"]', '["title", "body"]'))
    with pytest.raises(ConfigError, match="was mined with --passage title,body, which are joined to one text"):
        prepared(tmp_path / "data", source)
    done.write_text(settings)
    with pytest.raises(ConfigError, match="has no _mining.json of a finished mining"):
        prepared(tmp_path / "data", source)


def test_rows_with_one_id_cannot_have_mined_negatives(tmp_path, table):
    negatives = mining(tmp_path / "mined", table, of_pairs(range(20)), id="key")
    uri = pairs(tmp_path / "a.parquet", key=["x"] * 20)
    with pytest.raises(DataError, match="rows of the source have the same id in 'key'"):
        prepared(tmp_path / "data", {"uri": uri, "negatives": negatives})


def test_a_teacher_gives_its_vectors_by_the_texts(tmp_path):
    texts = [f"{side} {row}" for side in ("passage", "query") for row in range(18)]
    vectors = np.random.default_rng(0).normal(size=(36, 4)).astype(np.float32)
    teacher = embedded(tmp_path / "table", texts, vectors)
    source = {"uri": pairs(tmp_path / "a.parquet", negative=[f"no {row}" for row in range(20)]), "teacher": teacher}
    data = prepared(tmp_path / "data", source, distill=1.0)
    assert data.sources[0].teacher == 4
    assert data.counts["a"] == {"read": 20, "left out: no vector of the teacher": 2, "kept": 18}
    taken = data.sources[0].take([17, 3])
    assert taken["negative_1"].to_pylist() == ["no 17", "no 3"]
    np.testing.assert_array_equal(taken["passage_teacher"].to_pylist(), vectors[[17, 3]])
    np.testing.assert_array_equal(taken["query_teacher"].to_pylist(), vectors[[18 + 17, 18 + 3]])
    other = write(tmp_path / "b.parquet", query=list("abcd"), passage=list("efgh"))
    with pytest.raises(DataError, match="has the vectors of both texts of none of 4 rows"):
        prepared(tmp_path / "data", {"uri": other, "teacher": teacher}, distill=1.0)


def test_a_table_without_vectors_of_texts_is_no_teacher(tmp_path):
    teacher = embedded(tmp_path / "table", ["a"], chunks=True)
    with pytest.raises(ConfigError, match="data.0.teacher .* has no single vector of each text"):
        prepared(tmp_path / "data", {"uri": pairs(tmp_path / "a.parquet"), "teacher": teacher}, distill=1.0)
